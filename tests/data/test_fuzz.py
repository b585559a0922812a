"""Thousands of damaged images and data files: no crash, no hang, no other order, all counted."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.mutations import ANY, OF_IMAGES, damaged, images_of_all_kinds
from tests.data.processes import workers_of
from tests.data.small_sets import noise, prepare, shard_files
from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.decode import BadImage, decode
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.shards import check_shards
from xtra_jax.data.sources import open_source
from xtra_jax.data.transforms import EvalTransform, PretrainTransform
from xtra_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

IMAGES, BATCH = 2600, 50
MEMORY = 3 * 2**30  # of a worker: the largest image allowed, as it is decoded, converted and cut


@pytest.fixture(autouse=True)
def no_hang():
    """A hang is a failure."""

    def give_up(number, frame):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Images:
    num_classes, class_names = None, ()

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": -1, "key": f"image-{index}"}


@pytest.fixture(scope="module")
def source():
    kinds, rng = images_of_all_kinds(), np.random.default_rng(7)
    return Images([damaged(kinds[i % len(kinds)], rng, OF_IMAGES) for i in range(IMAGES)])


def most_memory(pid: int) -> int:
    status = (Path("/proc") / str(pid) / "status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_the_images_are_good_before_they_are_damaged():
    for image in images_of_all_kinds():
        assert decode(image).shape == (48, 64, 3)


def test_2600_damaged_images_are_read_or_counted_each_in_its_place(source, capfd):
    """In a worker, so that a library that crashes would be seen as a run that failed."""
    bad = BadImages()
    how = dict(batch_size=BATCH, num_workers=1, bad_images=bad)
    batches = eval_batches(source, EvalTransform(40, 32), **how)
    first = next(batches)
    (worker,) = workers_of(os.getpid())
    # The worker ends after its last batch, so all but that count.
    middle = list(itertools.islice(batches, IMAGES // BATCH - 6))
    assert most_memory(worker) < MEMORY
    last = list(batches)
    index, weight, image = (
        np.concatenate([batch[name] for batch in [first, *middle, *last]])
        for name in ("index", "weight", "image")
    )
    np.testing.assert_array_equal(index, np.arange(IMAGES))
    assert set(index[weight == 0]) == set(bad.indices)
    assert not image[weight == 0].any()
    assert 0.2 * IMAGES < (weight == 0).sum() < 0.9 * IMAGES  # some of both
    capfd.readouterr()


KINDS = images_of_all_kinds()
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("write", "flip", "insert", "cut")),
        st.integers(0, 2**12),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """Small edits; their places wrap around, so that headers are met often."""
    result = bytearray(data)
    for what, place, byte in edits:
        at = place % max(len(result), 1)
        if what == "insert":
            result.insert(at, byte)
        elif what == "cut":
            del result[at : at + byte]
        elif result:
            result[at] = byte if what == "write" else result[at] ^ (1 << byte % 8)
    return bytes(result)


@settings(
    max_examples=2000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.sampled_from(range(len(KINDS))), EDITS)
def test_any_edit_of_an_image_gives_a_square_or_says_that_it_is_bad(kind, edits):
    try:
        square = EvalTransform(40, 32)(decode(edited(KINDS[kind], edits)))
    except BadImage as error:
        assert str(error)
    else:
        assert (square.dtype, square.shape) == (np.uint8, (32, 32, 3))


def test_what_is_left_of_a_damaged_image_is_always_the_same(source):
    """No memory that nobody wrote shows through."""
    for data in source.images[::2]:
        with contextlib.suppress(BadImage):
            np.testing.assert_array_equal(decode(data), decode(data))


def test_a_damaged_image_takes_no_longer_than_a_large_one(source):
    slowest = 0.0
    for data in source.images[1::2]:
        begin = time.monotonic()
        with contextlib.suppress(BadImage):
            decode(data)
        slowest = max(slowest, time.monotonic() - begin)
    assert slowest < 20


FILES, PER_FILE = 200, 12


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("files"), noise(FILES * PER_FILE, side=48), shards=FILES)


def test_200_damaged_files_are_refused_or_read_with_what_is_left_in_its_place(data_dir, capfd):
    files = shard_files(data_dir)
    assert len(files) == FILES
    source = open_source("small", "train", data_dir)
    transform = PretrainTransform(16)
    how = dict(batch_size=100, seed=1)
    steps = FILES * PER_FILE // 100
    expected = list(itertools.islice(train_batches(source, transform, **how), steps))

    rng = np.random.default_rng(3)
    refused = 0
    for number, file in enumerate(files):
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, rng, ANY))
        slice_ = f"train[{number * PER_FILE}:{(number + 1) * PER_FILE}]"
        try:
            check_shards(os.path.dirname(file), slice_)
        except UserError as error:
            assert file.name in str(error)
            refused += 1
            file.write_bytes(whole)
    assert 0.2 * FILES < refused < 0.8 * FILES  # some of both

    bad = BadImages()
    source = open_source("small", "train", data_dir)
    batches = train_batches(source, transform, num_workers=2, bad_images=bad, **how)
    found = list(itertools.islice(batches, steps))
    batches.close()
    lost = set()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        good = ours["weight"] > 0
        for name in ("image", "label"):
            np.testing.assert_array_equal(ours[name][good], theirs[name][good])
        lost |= set(ours["index"][~good])
    assert lost == set(bad.indices) and FILES - refused > 0 < len(lost)
    capfd.readouterr()
