import functools
import itertools

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data.bad_images import MAX_NAMED
from xtra_jax.data.decode import BadImage
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.sources import open_source
from xtra_jax.data.transforms import EvalTransform, PretrainTransform
from xtra_jax.errors import UserError


class Squares:
    """Records 0 to n - 1; record `i` is an image of grey level `i` with label `i % 5`."""

    num_classes = 5
    class_names = tuple("abcde")

    def __init__(self, encode, count, corrupt=(), unreadable=()):
        self.images = [encode(np.full((6, 6, 3), i, np.uint8)) for i in range(count)]
        for i in corrupt:
            self.images[i] = self.images[i][:40]
        self.unreadable = unreadable

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.unreadable:
            raise BadImage("cannot be read")
        return {"image": self.images[index], "label": index % 5, "key": f"square-{index}"}


@pytest.fixture
def squares(encode):
    return functools.partial(Squares, encode)


KEEP = EvalTransform(6, 6)
AUGMENT = PretrainTransform(4, scale=(0.2, 1.0))


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


def side_by_side(shares):
    """Joins the processes' shares of every batch, in the order of the processes."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


def test_a_batch_has_the_promised_names_shapes_and_types(squares):
    (batch,) = take(train_batches(squares(10), AUGMENT, batch_size=3, seed=0), 1)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((3, 4, 4, 3), np.uint8),
        "label": ((3,), np.int32),
        "weight": ((3,), np.float32),
        "index": ((3,), np.int64),
    }


def test_image_label_and_index_belong_together(squares):
    for batches in (
        train_batches(squares(20), KEEP, batch_size=4, seed=0),
        eval_batches(squares(20), KEEP, batch_size=4),
    ):
        for batch in take(batches, 5):
            np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
            np.testing.assert_array_equal(batch["label"], batch["index"] % 5)
            np.testing.assert_array_equal(batch["weight"], 1)


@pytest.mark.parametrize("start_step", [1, 3, 6, 11])
def test_a_run_started_in_the_middle_continues_as_if_never_interrupted(squares, start_step):
    # 23 examples in batches of 4: epochs end within batches 6 and 12.
    run = functools.partial(train_batches, squares(23), AUGMENT, batch_size=4, seed=1)
    assert_equal(take(run(start_step=start_step), 5), take(run(), start_step + 5)[start_step:])


@pytest.mark.parametrize("num_shards", [2, 4])
def test_the_shards_side_by_side_are_the_whole_batches(squares, num_shards):
    run = functools.partial(train_batches, squares(23), AUGMENT, batch_size=8, seed=1, start_step=2)
    shares = [take(run(shards=(i,), num_shards=num_shards), 6) for i in range(num_shards)]
    assert_equal(side_by_side(shares), take(run(), 6))


def test_a_process_may_hold_shards_that_are_not_neighbours(squares):
    run = functools.partial(train_batches, squares(23), AUGMENT, batch_size=8, seed=1)
    rows = np.array([0, 1, 4, 5])
    expected = [{name: array[rows] for name, array in batch.items()} for batch in take(run(), 4)]
    assert_equal(take(run(shards=(0, 2), num_shards=4), 4), expected)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_reading_ahead_changes_no_batch(squares, prefetch):
    run = functools.partial(train_batches, squares(23), AUGMENT, batch_size=4, seed=1)
    assert_equal(take(run(prefetch=prefetch), 8), take(run(), 8))


def test_every_example_is_seen_once_per_epoch(squares):
    batches = take(train_batches(squares(12), KEEP, batch_size=5, seed=3), 12)
    indices = np.concatenate([batch["index"] for batch in batches]).reshape(5, 12)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(12), (5, 1)))


def test_every_epoch_and_every_seed_has_an_order_of_its_own(squares):
    orders = set()
    for seed in range(3):
        batches = take(train_batches(squares(16), KEEP, batch_size=16, seed=seed), 3)
        orders |= {tuple(batch["index"]) for batch in batches}
    assert len(orders) == 9
    assert tuple(range(16)) not in orders


def test_an_example_is_augmented_anew_in_every_epoch(squares, encode, picture):
    source = squares(1)
    source.images[0] = encode(picture(24, 24))
    batches = take(train_batches(source, AUGMENT, batch_size=8, seed=0), 2)
    views = {image.tobytes() for batch in batches for image in batch["image"]}
    assert len(views) == 16


def test_fewer_examples_than_a_batch_repeat_within_it(squares):
    (batch,) = take(train_batches(squares(3), KEEP, batch_size=7, seed=0), 1)
    assert sorted(np.bincount(batch["index"])) == [2, 2, 3]


def test_bad_images_keep_their_places_with_weight_zero(squares, capfd):
    good = squares(12)
    bad = squares(12, corrupt=[4, 7], unreadable=[9])
    run = functools.partial(train_batches, transform=AUGMENT, batch_size=6, seed=2)
    for ours, theirs in zip(take(run(bad), 4), take(run(good), 4), strict=True):
        is_bad = np.isin(ours["index"], [4, 7, 9])
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        np.testing.assert_array_equal(ours["weight"], np.where(is_bad, 0, 1))
        np.testing.assert_array_equal(ours["image"][~is_bad], theirs["image"][~is_bad])
        assert not ours["image"][is_bad].any()


def test_a_bad_image_is_named_once_with_its_reason(squares, capfd):
    source = squares(6, corrupt=[4], unreadable=[2])
    take(train_batches(source, KEEP, batch_size=6, seed=2), 5)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert sum("square-4" in line for line in lines) == 1
    assert sum("cannot be read" in line for line in lines) == 1


def test_a_flood_of_bad_images_is_not_a_flood_of_messages(squares, capfd):
    source = squares(60, corrupt=range(60))
    list(eval_batches(source, KEEP, batch_size=7))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == MAX_NAMED + 1
    assert "no longer named" in lines[-1]


def test_an_error_in_a_transform_is_no_bad_image(squares):
    class Broken:
        size = 4

        def __call__(self, image, rng):
            raise TypeError("a mistake in the code")

    with pytest.raises(TypeError, match="a mistake in the code"):
        take(eval_batches(squares(3), Broken(), batch_size=3), 1)


@pytest.mark.parametrize("batch_size", [1, 4, 12, 23, 24, 40])
@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_every_example_counts_exactly_once_when_the_batch_does_not_divide(
    squares, batch_size, num_shards
):
    batch_size *= num_shards
    shares = [
        list(
            eval_batches(
                squares(23),
                KEEP,
                batch_size=batch_size,
                shards=(i,),
                num_shards=num_shards,
            )
        )
        for i in range(num_shards)
    ]
    batches = side_by_side(shares)
    index, weight, label, image = (
        np.concatenate([batch[name] for batch in batches])
        for name in ("index", "weight", "label", "image")
    )
    assert len(index) == -(-23 // batch_size) * batch_size
    np.testing.assert_array_equal(index[:23], np.arange(23))
    np.testing.assert_array_equal(weight, np.arange(len(index)) < 23)
    assert (index[23:] == -1).all() and (label[23:] == -1).all() and not image[23:].any()


def test_evaluation_repeats_itself_exactly_even_with_a_random_transform(squares):
    passes = [list(eval_batches(squares(9), AUGMENT, batch_size=4)) for _ in range(2)]
    assert_equal(*passes)


def test_a_real_folder_of_images_makes_batches(tmp_path):
    for i in range(5):
        Image.new("RGB", (9, 7), (i, i, i)).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", "all")
    (batch,) = take(train_batches(source, KEEP, batch_size=5, seed=0), 1)
    assert sorted(batch["image"][:, 0, 0, 0]) == [0, 1, 2, 3, 4]
    assert (batch["label"] == -1).all()


@pytest.mark.parametrize("batches", [functools.partial(train_batches, seed=0), eval_batches])
def test_an_empty_source_is_a_user_error(squares, batches):
    with pytest.raises(UserError, match="empty"):
        batches(squares(0), KEEP, batch_size=4)


@pytest.mark.parametrize(("batch_size", "num_shards"), [(10, 4), (0, 1), (2, 4)])
def test_a_batch_that_does_not_divide_into_shards_is_a_user_error(squares, batch_size, num_shards):
    with pytest.raises(UserError, match="does not divide"):
        eval_batches(squares(9), KEEP, batch_size=batch_size, num_shards=num_shards)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_a_transform_that_breaks_its_promise_is_told_and_not_stretched_to_fit(squares, wrong):
    class Wrong:
        size = 4

        def __call__(self, image, rng):
            return wrong

    with pytest.raises(ValueError, match=r"promised uint8 \[4, 4, 3\]"):
        take(eval_batches(squares(3), Wrong(), batch_size=3), 1)
