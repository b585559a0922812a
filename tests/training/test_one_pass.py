"""One pass over images: each once and in order, on any mesh, in full float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.config import load
from xtra_jax.data.images import UnlessOfSize, open_images
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.training.one_pass import chosen_images, one_pass

TRANSFORM = UnlessOfSize(EvalTransform(4, 4))


@pytest.fixture
def source(tmp_path):
    """Nineteen images; the first pixel of each is its number."""
    pixels = np.zeros((19, 4, 4, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(19)
    np.save(tmp_path / "images.npy", pixels)
    return open_images([str(tmp_path / "images.npy")])


def numbers(params, images):
    return {"number": params["scale"] * images[:, 0, 0, 0]}


@pytest.mark.parametrize(
    ("mesh", "batch_size", "sizes"),
    [
        ({"data": 8}, 8, [8, 8, 3]),
        ({"data": 8}, 0, [19]),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 12, [12, 7]),
        ({"data": 1, "tensor": 8}, 5, [5, 5, 5, 4]),
    ],
)
def test_every_image_comes_out_once_and_in_order(source, mesh, batch_size, sizes):
    mesh = make_mesh(mesh)
    params = {"scale": jnp.float32(2)}
    parts = list(one_pass(numbers, params, source, TRANSFORM, mesh, batch_size=batch_size))
    assert [len(part["number"]) for part in parts] == sizes
    found = np.concatenate([part["number"] for part in parts])
    np.testing.assert_array_equal(found, 2 * np.arange(19))
    assert all((part["weight"] == 1).all() and (part["label"] == -1).all() for part in parts)


def test_matrix_products_are_asked_for_in_full_float32(source):
    asked = []

    def product(params, images):
        x = images.reshape(len(images), -1).astype(jnp.float32)
        asked.append(str(jax.make_jaxpr(lambda x: x @ x.T)(x)))
        return {}

    list(one_pass(product, {}, source, TRANSFORM, make_mesh({"data": 8})))
    assert asked and all("HIGHEST" in program for program in asked)


def test_a_batch_that_does_not_divide_is_one_sentence(source):
    with pytest.raises(UserError, match="the nearest sizes that do, are 8"):
        next(one_pass(numbers, {}, source, TRANSFORM, make_mesh({"data": 8}), batch_size=9))


def test_images_are_those_named_or_those_of_the_runs_validation(source, tmp_path):
    config = load("configs/demo.py", {"data.data_dir": str(tmp_path / "data")})
    array = str(tmp_path / "images.npy")
    found, said = chosen_images(config, [array])
    assert (len(found), said) == (19, "images.npy")
    found, said = chosen_images(config)
    assert (len(found), said) == (355, "digits (test)")
    found, said = chosen_images(config, dataset="digits", split="train[:7]")
    assert (len(found), said) == (7, "digits (train[:7])")
    with pytest.raises(UserError, match="name two sets of images"):
        chosen_images(config, [array], "digits")
    config.data.eval_split = ""
    with pytest.raises(UserError, match="names no held-out images"):
        chosen_images(config)
