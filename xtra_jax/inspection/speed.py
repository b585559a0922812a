"""How fast images come in: each stage by itself in one process, and the pipeline as it is set."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from xtra_jax.data.ahead import BadRecord
from xtra_jax.data.decode import BadImage, decode
from xtra_jax.data.pipeline import train_batches
from xtra_jax.data.workers import available_cores, default_workers
from xtra_jax.inspection.inputs import Inputs
from xtra_jax.inspection.pixels import PixelMeter, PixelStatistics
from xtra_jax.inspection.views import Unusable

LARGEST_BATCH = 64  # of a measurement: real batches may be too few to time
_SMALLEST_BATCH = 4
_BATCH_SECONDS = 0.25  # of one core, for a batch of a measurement
MOST_IMAGES = 20_000
FEWEST_IMAGES = 32
STAGES = ("read", "decode", "crop", "crop and resize", "RandAugment", "batch")


@dataclasses.dataclass(frozen=True)
class OneProcess:
    """What one thread of one process needs for an image.

    Attributes:
        seconds: of each stage that the config has, per image.
        images: how many were timed.
        records: of the source, from which they were drawn without repetition.
        unusable: those that gave no image; they are not timed.
        pixels: of the training samples.
    """

    seconds: dict[str, float]
    images: int
    records: int
    unusable: list[BadRecord]
    pixels: PixelStatistics | None

    @property
    def images_per_s(self) -> float:
        total = sum(self.seconds.values())
        return 1 / total if total else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """The part of the time that each stage takes."""
        return {name: spent * self.images_per_s for name, spent in self.seconds.items()}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What the pipeline alone feeds, with nobody using what it makes.

    Attributes:
        workers: processes; 0 means threads of this one.
        cores: that this process may use.
        batch_size, images: of the measurement.
    """

    images_per_s: float
    workers: int
    cores: int
    batch_size: int
    images: int


def time_stages(inputs: Inputs, seconds: float, most: int = MOST_IMAGES) -> OneProcess:
    """Loads different records in random order, one after another, and times the stages.

    Args:
        seconds: after which to stop, with `FEWEST_IMAGES` at least.
        most: images after which to stop.
    """
    source, transform = inputs.train, inputs.pipeline_transform
    crop = "crop" if inputs.on_device else "crop and resize"
    clock = _Clock(["read", "decode", crop, "batch"])
    if not inputs.on_device and transform.randaugment is not None:
        timed = clock.inside("RandAugment", crop, transform.randaugment)
        transform = dataclasses.replace(transform, randaugment=timed)
    meter, rows = PixelMeter(inputs.mean, inputs.std), []
    unusable, images = [], 0
    drawn = np.random.default_rng(0).choice(len(source), min(most, len(source)), replace=False)
    end = time.monotonic() + seconds
    # The first image also pays for what is imported and compiled on first use.
    for number, index in enumerate([int(drawn[0]), *drawn.tolist()]):
        key = f"#{index}"
        try:
            with clock.timing("read"):
                record = source[index]
            key = record["key"]
            with clock.timing("decode"):
                pixels = decode(record["image"])
            with clock.timing(crop):
                sample = transform(pixels, np.random.default_rng((inputs.config.seed, number)))
            with clock.timing("batch"):
                rows.append(_row(sample))
                _row(sample)  # once more, from a worker's memory into the trainer's
        except BadImage as error:
            unusable += [BadRecord(index, key, str(error))] if number else []
            clock.forget()
            continue
        if number == 0:
            clock.forget()
            rows.clear()
            continue
        clock.keep()
        images += 1
        if len(rows) == LARGEST_BATCH:
            meter.add(inputs.squares(_stacked(rows)))
            rows.clear()
        if images >= FEWEST_IMAGES and time.monotonic() > end:
            break
    if rows:
        meter.add(inputs.squares(_stacked(rows)))
    spent = {name: total / max(images, 1) for name, total in clock.kept.items()}
    seconds_by_stage = {name: spent[name] for name in STAGES if name in spent}
    return OneProcess(seconds_by_stage, images, len(source), unusable, meter.result())


def _row(sample: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A copy of what a transform gave, by the names that it has in a batch."""
    named = sample if isinstance(sample, dict) else {"image": sample}
    return {name: value.copy() for name, value in named.items()}


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def time_pipeline(inputs: Inputs, seconds: float, one_process: float) -> Pipeline:
    """Runs the training pipeline with the config's workers for some seconds after it has started.

    Args:
        one_process: images/s of a single process, for the size of the batches.
    """
    data = inputs.config.data
    batch_size = int(np.clip(_BATCH_SECONDS * one_process, _SMALLEST_BATCH, LARGEST_BATCH))
    workers = data.num_workers
    if workers < 0:
        size = inputs.pipeline_transform.size
        workers = default_workers(inputs.config.batch_size * size * size * 3, data.prefetch)
    batches = train_batches(
        inputs.train,
        inputs.pipeline_transform,
        batch_size=batch_size,
        seed=inputs.config.seed,
        num_workers=workers,
        prefetch=data.prefetch,
        bad_images=Unusable(),
    )
    turn = max(workers, 1)  # workers take turns, so whole turns are what a rate is told by
    with contextlib.closing(batches):
        # What was ready before everything ran belongs to no steady state.
        for _ in range((data.prefetch + 2) * turn):
            next(batches)
        taken, begin = 0, time.monotonic()
        while True:
            for _ in range(turn):
                next(batches)
            taken += turn
            spent = time.monotonic() - begin
            if spent > seconds:
                break
    images = taken * batch_size
    return Pipeline(images / spent, workers, available_cores(), batch_size, images)


class _Clock:
    """Adds up the time of stages, keeping that of an image only when the image is through."""

    def __init__(self, names: list[str]):
        self.kept = dict.fromkeys(names, 0.0)
        self._image = dict.fromkeys(names, 0.0)

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._image[name] += time.perf_counter() - begin

    def inside(self, name: str, outer: str, augment: Callable) -> Callable:
        """Times a part of another stage by itself, and not as that stage's."""
        self.kept[name] = self._image[name] = 0.0

        def timed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
            begin = time.perf_counter()
            result = augment(image, rng)
            spent = time.perf_counter() - begin
            self._image[name] += spent
            self._image[outer] -= spent
            return result

        return timed

    def keep(self) -> None:
        for name, spent in self._image.items():
            self.kept[name] += spent
        self.forget()

    def forget(self) -> None:
        self._image = dict.fromkeys(self._image, 0.0)
