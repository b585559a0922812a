"""Images per second of the input pipeline beside the published one, on the same crops, in turns.

On one core, without workers: encoded bytes to what a batch is made of. Then end to end with two
workers, from files to batches of 64, beside a PyTorch DataLoader where PyTorch is installed. Ratios
are to the published pipeline and to the DataLoader of float32; without PyTorch, end to end, to our
exact one. MFU does not apply, for no model runs. Peak memory is not told: the methods take turns in
one process, and what workers hold lies in other processes, shared in part.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from benchmarks import peers
from benchmarks.device import here
from benchmarks.photographs import make_jpegs
from benchmarks.show import show as printed
from xtra_jax.data import resize as resizing
from xtra_jax.data.decode import decode, describe_decoder
from xtra_jax.data.device_resize import resize_on_device
from xtra_jax.data.pipeline import train_batches
from xtra_jax.data.resize import describe_resizer
from xtra_jax.data.sources import open_source
from xtra_jax.data.transforms import DeviceResizeTransform, PretrainTransform
from xtra_jax.errors import UserError

IMAGES = 64
BATCH, WORKERS = 64, 2
PUBLISHED = "published"
LOADER = "DataLoader, float32"
_PARTS = {"one_core": PUBLISHED, "end_to_end": LOADER}
_INSTALL = f"`{sys.executable} -m pip install torch torchvision` installs them"

Method = Callable[[bytes, np.random.Generator], object]


def run(rounds: int = 15, batches: int = 20) -> dict:
    """Times everything.

    Args:
        rounds: passes over the images on one core; end to end has a third as many.
        batches: timed ones of each method in each end-to-end round.
    """
    here()
    jpegs = make_jpegs(IMAGES)
    notes = {}
    if not peers.have_torch():
        notes["not timed"] = f"PyTorch's DataLoader, for it or torchvision is missing: {_INSTALL}"
    return {
        "case": f"{IMAGES} JPEGs of 500 x 375, {np.mean([len(j) for j in jpegs]) / 1000:.0f} KB",
        "published_by": peers.by_what(),
        "decoder": describe_decoder(),
        "resizers": {kind: describe_resizer(kind) for kind in ("exact", *_fast())},
        "versions": {name: _version(name) for name in _PACKAGES},
        **notes,
        "one_core": one_core(jpegs, rounds),
        "end_to_end": end_to_end(jpegs, max(3, rounds // 3), batches),
    }


def show(result: dict) -> None:
    """Prints what was compared, and a table of each comparison."""
    what = {name: value for name, value in result.items() if name not in _PARTS}
    resizers = {f"resize {kind}": how for kind, how in what.pop("resizers").items()}
    versions = {name: version for name, version in what.pop("versions").items() if version}
    printed(what | resizers | {"versions": ", ".join(f"{k} {v}" for k, v in versions.items())})
    for part, base in _PARTS.items():
        rows = result[part]
        base = base if base in rows else next(iter(rows))
        print(f"\n{part.replace('_', ' '):26}  images/s  ratio to {base}  error: mean, largest")
        for name, row in rows.items():
            error = ""
            if row.get("mean_error") is not None:
                error = f"  {row['mean_error']:11.4f}  {row['max_error']:7.0f}"
            ratio = f"{row['ratio']:{len('ratio to ') + len(base)}.2f}"
            print(f"  {name:24}  {row['images_per_s']:8.0f}  {ratio}{error}")


def one_core(jpegs: list[bytes], rounds: int) -> dict:
    """Every method on every image in turn, so that all see the machine in the same state.

    Time is the processor's, of all threads: other work on the machine does not count.
    """
    exact = _ours("exact")
    methods: dict[str, Method] = {
        PUBLISHED: peers.published,
        "exact": exact,
        "device: decode and cut": _cut,
        "decode alone": lambda data, rng: decode(data),
    }
    if resizing._numba() is not None:
        methods["exact, without Numba"] = _resized_by(resizing.resize_with_pillow)
    if resizing._kornia() is not None:
        methods["kornia_rs"] = _resized_by(resizing.resize_with_kornia)
    seconds = {name: np.zeros((rounds + 1, len(jpegs))) for name in methods}
    names = list(methods)
    gc.disable()
    for turn in range(rounds + 1):
        for index, data in enumerate(jpegs):
            first = (turn + index) % len(names)
            for name in names[first:] + names[:first]:
                rng = np.random.default_rng((turn, index))
                begin = time.process_time()
                methods[name](data, rng)
                seconds[name][turn, index] = time.process_time() - begin
        gc.collect()
    gc.enable()
    result = {}
    for name, method in methods.items():
        taken = seconds[name][1:].sum(1)  # the first pass warms up
        ratios = seconds[PUBLISHED][1:].sum(1) / taken
        result[name] = {
            "images_per_s": len(jpegs) / statistics.median(taken),
            "ratio": statistics.median(ratios),
            "ratio_all": ratios.tolist(),
            **_errors(name, method, jpegs),
        }
    return result


def end_to_end(jpegs: list[bytes], rounds: int, batches: int) -> dict:
    """Files to batches with two workers, one method after the other, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        for index, data in enumerate(jpegs):
            path = Path(folder, "photographs", f"{index:04}.jpg")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        transform = PretrainTransform(peers.SIZE)
        starts: dict[str, Callable[[], Iterator]] = {
            "exact": lambda: _ours_batches(folder, transform),
            **{
                kind: lambda kind=kind: _ours_batches(
                    folder, PretrainTransform(peers.SIZE, resize=kind)
                )
                for kind in _fast()
            },
            "device: decode and cut": lambda: _ours_batches(
                folder, DeviceResizeTransform(transform)
            ),
        }
        if peers.have_torch():
            starts |= {
                LOADER: lambda: peers.loader_batches(Path(folder), BATCH, WORKERS, True),
                "DataLoader, uint8": lambda: peers.loader_batches(
                    Path(folder), BATCH, WORKERS, False
                ),
            }
        rates: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(rounds):
            for name, start in starts.items():
                rates[name].append(_rate(start(), batches))
    base = rates.get(LOADER, rates["exact"])
    return {
        name: {
            "images_per_s": statistics.median(measured),
            "images_per_s_all": measured,
            "ratio": statistics.median(np.divide(measured, base)),
            "ratio_all": np.divide(measured, base).tolist(),
        }
        for name, measured in rates.items()
    }


def _ours(kind: str) -> Method:
    transform = PretrainTransform(peers.SIZE, peers.SCALE, peers.RATIO, peers.FLIP, resize=kind)
    return lambda data, rng: transform(decode(data), rng)


_CUTTER = DeviceResizeTransform(PretrainTransform(peers.SIZE))


def _cut(data: bytes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return _CUTTER(decode(data), rng)


def _resized_by(resize: resizing.Resize) -> Method:
    """Our pipeline with a resizer that is not the one chosen here."""

    def method(data: bytes, rng: np.random.Generator) -> np.ndarray:
        crop, flip = _CUTTER.pretrain.crop(decode(data), rng)
        return resize(crop, peers.SIZE, peers.SIZE, flip)

    return method


def _ours_batches(folder: str, transform) -> Iterator[dict]:
    source = open_source("folder", "all", folder)
    return train_batches(source, transform, batch_size=BATCH, seed=0, num_workers=WORKERS)


def _rate(batches: Iterator, count: int) -> float:
    """Images per second, once the workers have started and what they made ahead is used up."""
    for _ in range(3 * WORKERS):
        next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - begin
    if hasattr(batches, "close"):
        batches.close()
    return count * BATCH / seconds


def _errors(name: str, method: Method, jpegs: list[bytes]) -> dict[str, float]:
    """Against the published output of the same crops, in grey levels."""
    if name in (PUBLISHED, "decode alone"):
        return {}
    difference = []
    for index, data in enumerate(jpegs):
        theirs = peers.grey_levels(peers.published(data, np.random.default_rng(index)))
        ours = method(data, np.random.default_rng(index))
        if isinstance(ours, dict):
            ours = _on_device(ours["image"][None], ours["box"][None], peers.SIZE)[0]
        difference.append(np.abs(theirs.astype(int) - np.asarray(ours)))
    return {"mean_error": float(np.mean(difference)), "max_error": float(np.max(difference))}


_on_device = jax.jit(resize_on_device, static_argnums=2)


def _fast() -> list[str]:
    """The fast resizer, where it is another than the exact one."""
    try:
        return ["fast"] if resizing.resizer("fast") is resizing.resize_with_kornia else []
    except UserError:
        return []


_PACKAGES = ("pillow", "pillow-simd", "simplejpeg", "numba", "kornia_rs", "torchvision", "torch")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
