import io

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data.digits import prepare_digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A TFDS root in which the digits are prepared."""
    root = tmp_path_factory.mktemp("tfds")
    prepare_digits(str(root))
    return str(root)


@pytest.fixture
def picture():
    """Makes a smooth random RGB picture, uint8 `[height, width, 3]`."""

    def make(height, width, seed=0):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 5, (height, width, 3))
        return np.clip(noisy, 0, 255).astype(np.uint8)

    return make


@pytest.fixture
def encode():
    """Encodes a uint8 array or a PIL image to bytes."""

    def make(image, form="PNG", **options):
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    return make
