"""What a probe is trained on, chosen by and reported on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.probing import tiny
from xtra_jax.data.record_index import RecordIndex, index_of
from xtra_jax.errors import UserError
from xtra_jax.probing.job import probe_encoder
from xtra_jax.probing.selection import Images, check_same_classes, hold_out, open_images


class Labelled:
    """A source of which only labels are asked for."""

    class_names = ()

    def __init__(self, labels, num_classes):
        self.labels, self.num_classes = np.asarray(labels, np.int32), num_classes

    def __len__(self):
        return len(self.labels)

    def digest(self):
        return "labels"

    def index(self):
        return RecordIndex(np.array([b"x"] * len(self), np.bytes_), self.labels)


def counts(source, part):
    return np.bincount(source.labels[part.indices] + 1, minlength=source.num_classes + 1)[1:]


def test_the_held_out_part_is_that_share_of_every_class_and_the_rest_is_trained_on():
    labels = np.repeat([0, 1, 2, 3, 4, -1], [100, 40, 2, 1, 3, 7])
    source = Labelled(np.random.default_rng(0).permutation(labels), 6)
    train, held = hold_out(source, 0.1, seed=0)
    # One at least where there are two; never all; none of a class that does not occur.
    np.testing.assert_array_equal(counts(source, held), [10, 4, 1, 0, 1, 0])
    np.testing.assert_array_equal(np.sort([*train.indices, *held.indices]), np.arange(len(labels)))


def test_a_large_share_leaves_one_image_of_each_class_to_train_on():
    source = Labelled([0, 0, 0, 1, 1], 2)
    train, _ = hold_out(source, 0.99, seed=0)
    np.testing.assert_array_equal(counts(source, train), [1, 1])


def test_the_same_seed_holds_out_the_same_images_and_another_seed_others():
    source = Labelled(np.arange(200) % 4, 4)
    parts = [hold_out(source, 0.1, seed)[1].indices for seed in (0, 0, 1)]
    np.testing.assert_array_equal(parts[0], parts[1])
    assert set(parts[0]) != set(parts[2])


def test_classes_of_one_image_each_have_nothing_to_hold_out():
    with pytest.raises(UserError, match="none of the 3 classes has two training images"):
        hold_out(Labelled([0, 1, 2, -1, -1], 3), 0.5, seed=0)


def test_a_probe_that_selects_on_held_out_images_trains_on_none_of_them_and_says_so(runs, tmp_path):
    config = tiny.digits(
        runs.overrides()["data.data_dir"], select="heldout", steps=2, kind="linear"
    )
    images = open_images(config)
    labels = index_of(images.chosen_on).labels
    assert len(images.train) + len(images.chosen_on) == 1442 and len(images.test) == 355
    assert not set(images.train.indices) & set(images.chosen_on.indices)
    assert set(np.bincount(labels)) <= {14, 15}  # a tenth of each digit

    with runs.cache_here():
        results = probe_encoder(config, tiny.encoder(), tmp_path / "probe").results
    assert results.provenance.select == "heldout"
    for history in results.histories:
        assert {e.total for e in history.evaluations} == {len(images.chosen_on)}
        assert history.test.total == 355 == history.class_total.sum()
        assert history.test.step == history.last.step == 2
    assert "held-out" in (tmp_path / "probe" / "table.md").read_text()


class Named:
    def __init__(self, *class_names):
        self.class_names = class_names


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("cat", "horse", "dog"), "label 1 is dog in ours and horse in theirs: both need the same"),
        (("cat", "dog"), "label 2 is horse in ours and None in theirs"),
    ],
)
def test_sets_whose_labels_mean_other_classes_are_refused(names, sentence):
    with pytest.raises(UserError, match=sentence):
        check_same_classes(("ours", Named("cat", "dog", "horse")), ("theirs", Named(*names)))


@pytest.mark.parametrize("names", [("cat", "dog"), ()])
def test_sets_of_the_same_classes_or_of_unnamed_ones_pass(names):
    check_same_classes(("ours", Named("cat", "dog")), ("theirs", Named(*names)))
    check_same_classes(("theirs", Named(*names)), ("ours", Named("cat", "dog")))


def test_a_probe_on_another_set_with_as_many_other_classes_is_one_sentence(runs, tmp_path):
    for i in range(10):
        file = tmp_path / "images" / f"class-{i}" / "image.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(file)
    elsewhere = {"data.eval_dataset": f"folder:{tmp_path / 'images'}", "data.eval_split": "all"}
    config = tiny.digits(runs.overrides()["data.data_dir"], steps=2, **elsewhere)
    with pytest.raises(UserError, match=r"label 0 is 0 in digits .* and class-0 in folder:"):
        open_images(config)


@pytest.mark.parametrize("changed", ["train", "chosen_on", "test"])
def test_what_processes_compare_tells_each_of_the_three_sets(changed):
    class Source:
        def __init__(self, digest):
            self.digest = lambda: digest

    images = Images(Source("a"), Source("b"), Source("c"))
    assert images.digest() != images._replace(**{changed: Source("d")}).digest()


def test_as_published_the_reported_images_themselves_choose(runs):
    images = open_images(tiny.digits(runs.overrides()["data.data_dir"], steps=2))
    assert images.chosen_on is images.test
    assert len(images.train) == 1442
