import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from xtra_jax.data.mixture import MixedOrder, Mixture
from xtra_jax.data.pipeline import train_batches
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError


class Shades:
    """Grey squares of consecutive levels from `first` on, all of the same class."""

    def __init__(self, encode, first, size, num_classes=2):
        self.num_classes = num_classes
        self.class_names = tuple(map(str, range(num_classes)))
        self._records = [
            {
                "image": encode(np.full((4, 4, 3), first + i, np.uint8)),
                "label": 1,
                "key": f"{first + i}",
            }
            for i in range(size)
        ]

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self._records[index]


class AsItIs:
    size = 4

    def __call__(self, image, rng):
        return image


def drawn(source, count, *, batch_size=6, **options):
    """The indices of the first `count` batches."""
    batches = train_batches(source, AsItIs(), batch_size=batch_size, seed=7, **options)
    indices = [batch["index"].tolist() for batch in itertools.islice(batches, count)]
    batches.close()
    return indices


def test_sources_without_shares_are_shuffled_together_and_each_record_seen_once_per_epoch(encode):
    mixture = Mixture([Shades(encode, 0, 10), Shades(encode, 100, 2)])
    epoch = list(itertools.chain(*drawn(mixture, 2)))
    assert sorted(epoch) == list(range(12))
    assert mixture[10]["key"] == "100"


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (0.8, 0.2), (1, 2, 3, 0.5)])
def test_every_stretch_of_samples_holds_each_source_in_its_share(shares):
    sizes = [50, 7, 1000, 3][: len(shares)]
    starts = np.cumsum([0, *sizes])
    order = MixedOrder(sizes, shares, seed=0)
    counts = Counter()
    for position in range(600):
        counts[int(np.searchsorted(starts, order[position], side="right")) - 1] += 1
        for part, share in enumerate(shares):
            assert abs(counts[part] - (position + 1) * share / sum(shares)) < len(shares)


def test_within_a_mixture_each_source_is_seen_whole_before_it_begins_anew(encode):
    order = MixedOrder([5, 30], (1, 1), seed=3)
    small = [order[p] for p in range(100) if order[p] < 5]
    epochs = [small[i : i + 5] for i in range(0, 50, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "the epochs are in the same order"


def test_a_mixtures_order_depends_on_the_seed_alone_and_costs_the_same_far_out():
    orders = [MixedOrder([50, 70], (2, 1), seed) for seed in (0, 0, 1)]
    far = 2**40
    first, again, other = ([order[far + i] for i in range(60)] for order in orders)
    assert first == again != other
    assert pickle.loads(pickle.dumps(orders[0]))[far] == first[0]


def test_a_mixture_continues_at_any_step_and_is_the_same_for_any_number_of_hosts(encode):
    mixture = Mixture([Shades(encode, 0, 10), Shades(encode, 100, 4)], (0.25, 0.75))
    whole = drawn(mixture, 5)
    assert drawn(mixture, 2, start_step=3) == whole[3:]
    halves = [drawn(mixture, 5, shards=(shard,), num_shards=2) for shard in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_labels_are_unknown_where_the_sources_name_different_classes(encode):
    mixture = Mixture([Shades(encode, 0, 2), Shades(encode, 10, 2, num_classes=3)])
    assert mixture.num_classes is None and mixture.class_names == ()
    assert {mixture[i]["label"] for i in range(4)} == {-1}
    agreeing = Mixture([Shades(encode, 0, 2), Shades(encode, 10, 2)])
    assert agreeing.num_classes == 2 and agreeing[3]["label"] == 1


def test_data_sets_are_mixed_by_their_names_and_splits(digits_dir):
    source = open_source("digits,digits", "train,test", digits_dir, mixture=(1, 3))
    assert len(source) == 1797
    assert source.num_classes == 10
    both = open_source("digits, digits", "test", digits_dir)
    assert len(both) == 2 * 355


@pytest.mark.parametrize(
    "dataset, split, mixture, message",
    [
        ("digits,digits", "train", (1,), "1 shares and data.dataset names 2 data sets"),
        ("digits", "train", (1, 1), "2 shares and data.dataset names 1 data sets"),
        ("digits,digits", "train", (1, -1), "shares must be above 0"),
        ("digits,digits", "train,test,test", (), "names 2 data sets and 'train,test,test' 3"),
    ],
)
def test_shares_and_splits_that_do_not_fit_the_data_sets_are_refused(
    digits_dir, dataset, split, mixture, message
):
    with pytest.raises(UserError, match=message):
        open_source(dataset, split, digits_dir, mixture=mixture)


def test_a_subset_of_a_mixture_with_shares_is_refused(digits_dir):
    with pytest.raises(UserError, match="cannot be combined"):
        open_source("digits,digits", "train", digits_dir, mixture=(1, 2), subset="10%")
