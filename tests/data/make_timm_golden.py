"""What timm and torchvision do to images, and the recording of it that runs without them.

    pip install timm torchvision
    python -m tests.data.make_timm_golden

writes tests/data/golden/timm.npz. The same functions serve `test_against_timm.py` where timm is
installed. The recording was made with timm 1.0.31, torchvision 0.28 and Pillow 13.0.
"""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden" / "timm.npz"

POLICY = "rand-m9-mstd0.5-inc1"
MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)  # what timm makes of it

# Our names of the operations, and timm's. Those that have a direction take signed magnitudes.
SIGNED = {
    "rotate": "Rotate",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
UNSIGNED = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
}
OPERATIONS = SIGNED | UNSIGNED
MAGNITUDES = (*range(11), 0.4, 2.5, 4.99, 7.51, 8.7, 9.3, 9.95)

CROP_RANGES = (((0.3, 1.0), (0.75, 1.5)), ((0.08, 1.0), (3 / 4, 4 / 3)))
EVAL_SIZES = ((30, 24), (24, 24), (25, 18))  # resize, crop
ERASED_SHAPES = ((48, 48), (40, 56), (8, 64))  # the last is often too narrow for what is drawn


def levels(name: str) -> list[tuple[float, int]]:
    """The magnitudes that an operation is tried at, each with the signs that it has."""
    signs = (1, -1) if name in SIGNED else (1,)
    return [(magnitude, sign) for magnitude in MAGNITUDES for sign in signs]


def pictures() -> dict[str, np.ndarray]:
    """Small images, uint8: a gradient with noise, pure noise, and one with a narrow range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:13, :18]
    gradient = np.stack([15 * x, 20 * y, 8 * (x + y)], axis=-1) + rng.normal(0, 6, (13, 18, 3))
    narrow = 90 + 60 * (rng.random((12, 10, 3)) - 0.5) * (0.2, 0.5, 1)
    noise = rng.integers(0, 256, (9, 7, 3))
    named = {"gradient": gradient, "narrow": narrow, "noise": noise}
    return {name: np.clip(image, 0, 255).astype(np.uint8) for name, image in named.items()}


def timm_operation(name: str, pixels: np.ndarray, magnitude: float, sign: int) -> np.ndarray | None:
    """One operation at one magnitude; None where timm, on this Pillow, refuses."""
    from timm.data import auto_augment

    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    operation = auto_augment.AugmentOp(OPERATIONS[name], 1.0, magnitude, hparams)
    with mock.patch.object(auto_augment, "_randomly_negate", lambda level: sign * level):
        try:
            return np.asarray(operation(Image.fromarray(pixels)))
        except ValueError:
            return None


def timm_policy(images: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the policy applies to so many images, by the transform that the published probes build.

    Returns:
        `image`, `operation` (the place in OPERATIONS) and `strength` (magnitude over 10 with its
        sign, where it has one), an entry for every operation applied.
    """
    from timm.data import create_transform

    _, transform, _ = create_transform(
        input_size=32,
        is_training=True,
        auto_augment=POLICY,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        separate=True,
    )
    (policy,) = transform.transforms
    names = {theirs: place for place, theirs in enumerate(OPERATIONS.values())}
    applied = []

    def noting(operation):
        def note(image, *arguments, **how):
            assert how == {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
            strength = _strength(operation.name, *arguments)
            applied.append((image, names[operation.name], strength))
            return image

        return note

    for operation in policy.ops:
        operation.aug_fn = noting(operation)
    random.seed(seed)
    np.random.seed(seed)
    for image in range(images):
        policy(image)  # its number: no operation looks at it
    which, operations, strengths = zip(*applied, strict=True)
    return {
        "image": np.array(which, np.int32),
        "operation": np.array(operations, np.int8),
        "strength": np.array(strengths, np.float32),
    }


def _strength(name: str, argument: float = np.nan) -> float:
    """Magnitude over 10, as the operation's own argument tells it; NaN where it is rounded."""
    scales = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3}
    scales |= {"TranslateXRel": 0.45, "TranslateYRel": 0.45}
    if name in scales:
        return argument / scales[name]
    if name.removesuffix("Increasing") in ("Color", "Contrast", "Brightness", "Sharpness"):
        return (argument - 1) / 0.9
    return np.nan


def timm_crops(height: int, width: int, scale, ratio, count: int, seed: int) -> np.ndarray:
    """`count` crops [top, left, height, width], drawn from Python's generator."""
    from timm.data.transforms import RandomResizedCropAndInterpolation as Crop

    random.seed(seed)
    image = Image.new("RGB", (width, height))
    return np.array([Crop.get_params(image, scale, ratio) for _ in range(count)])


class PythonsDraws:
    """Python's generator with the methods that our transforms call."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def integers(self, count: int) -> int:
        return self._random.randint(0, count - 1)

    def random(self) -> float:
        return self._random.random()


def torchvision_crop(pixels: np.ndarray, crop, size: int) -> np.ndarray:
    """The resized crop [top, left, height, width] of an image."""
    from torchvision.transforms import InterpolationMode, functional

    return np.asarray(
        functional.resized_crop(
            Image.fromarray(pixels), *map(int, crop), (size, size), InterpolationMode.BICUBIC
        )
    )


def torchvision_eval(pixels: np.ndarray, resize: int, size: int) -> np.ndarray:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    transform = Compose([Resize(resize, InterpolationMode.BICUBIC), CenterCrop(size)])
    return np.asarray(transform(Image.fromarray(pixels)))


def timm_rectangles(
    height: int, width: int, count: int, seed: int = 0, probability: float = 1.0
) -> np.ndarray:
    """Rectangles [top, left, height, width] erased from `count` images, -1 where none was."""
    import torch
    from timm.data.random_erasing import RandomErasing

    erasing = RandomErasing(probability, mode="pixel", max_count=1, device="cpu")
    random.seed(seed)
    torch.manual_seed(seed)
    rectangles = np.full((count, 4), -1, np.int16)
    for row in rectangles:
        erased = (erasing(torch.full((3, height, width), 7.0)) != 7).any(0).numpy()
        if erased.any():
            rows, columns = (np.flatnonzero(erased.any(axis)) for axis in (1, 0))
            row[:] = rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1
    return rectangles


def record() -> dict[str, np.ndarray]:
    """All that goes into the file."""
    tensors = {}
    for which, pixels in pictures().items():
        tensors[f"picture/{which}"] = pixels
        for name in OPERATIONS:
            results = {
                sign * magnitude: timm_operation(name, pixels, magnitude, sign)
                for magnitude, sign in levels(name)
            }
            done = [level for level in results if results[level] is not None]
            tensors[f"levels/{name}"] = np.array(done)
            tensors[f"operation/{which}/{name}"] = np.stack([results[level] for level in done])
    for name, values in timm_policy(4000).items():
        tensors[f"policy/{name}"] = values
    rng = np.random.default_rng(1)
    for height, width in ((37, 53), (61, 40), (20, 91), (33, 33)):
        coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
        pixels = coarse.repeat(4, 0).repeat(4, 1)[:height, :width] // 2
        pixels = (pixels + rng.integers(0, 128, pixels.shape)).astype(np.uint8)
        at = f"{height}x{width}"
        tensors[f"photo/{at}"] = pixels
        for i, (scale, ratio) in enumerate(CROP_RANGES):
            crops = timm_crops(height, width, scale, ratio, 200, seed=i)
            tensors[f"crops/{at}/{i}"] = crops.astype(np.int16)
            for j in range(4):
                tensors[f"crop/{at}/{i}/{j}"] = torchvision_crop(pixels, crops[j], 18)
        for resize, size in EVAL_SIZES:
            tensors[f"eval/{at}/{resize}/{size}"] = torchvision_eval(pixels, resize, size)
    for height, width in ERASED_SHAPES:
        tensors[f"rectangles/{height}x{width}"] = timm_rectangles(height, width, 4000)
    return tensors


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **record())
    print(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes")
