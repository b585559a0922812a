import numpy as np
import pytest
from PIL import Image

from xtra_jax.config import load

COLORS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def paint(path, color, height, width, seed):
    """A picture whose brightest channel tells its class, with noise that tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.array(color) + rng.integers(0, 50, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of ten red, six green and four blue pictures of odd sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for name, count in (("red", 10), ("green", 6), ("blue", 4)):
        for i in range(count):
            paint(root / name / f"{i}.png", COLORS[name], 21 + 3 * i, 40 - 2 * i, 100 * count + i)
    return root


@pytest.fixture
def pretraining():
    """Makes the config of a small pretraining on a folder."""

    def make(folder, **changes):
        settings = {
            "data.dataset": f"folder:{folder}",
            "data.train_split": "all",
            "data.eval_split": "all",
            "data.crop_scale": "0.3,0.6",
            "data.flip": "0.5",
        }
        return load("configs/demo.py", settings | changes)

    return make


@pytest.fixture
def probing():
    """Makes the config of a small probe with all augmentations on a folder."""

    def make(folder, **changes):
        settings = {
            "data.dataset": f"folder:{folder}",
            "data.train_split": "all",
            "data.eval_split": "all",
            "data.num_classes": "3",
            "data.image_size": "64",
            "data.eval_resize": "72",
            "data.num_workers": "0",
        }
        return load("configs/probe.py:cifar10", settings | changes)

    return make
