"""An exported program runs where this package is not, and gives the model's features."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

from tests.export.exported import code_in, exported, golden_run, manifest_of
from xtra_jax.errors import UserError
from xtra_jax.export import program
from xtra_jax.parallel.topologies import devices_of, find_topology
from xtra_jax.probing.features import FeatureSpec, load_encoder

FEATURES = {
    "last layer, normalised, pooled": FeatureSpec(pool=True, norm=True),
    "mean of the last 3 layers, tokens": FeatureSpec(last_layers=3, raster=True),
}

# Stands in the way of every import but those of jax and what jax needs itself.
GUARD = """
import runpy, sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"xtra_jax", "flax", "optax", "orbax", "ml_collections", "etils"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Guard())
script, *sys.argv = sys.argv[1], *sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return golden_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def encode(run):
    return load_encoder(run)


@pytest.fixture(scope="module")
def folder(run):
    return exported(run, run.parent / "out", "stablehlo")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)


def without_this_package(folder, images, tmp_path):
    """What the exported script gives in a process of its own, away from this package."""
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", GUARD, str(folder / program.SCRIPT)]
    files = [str(tmp_path / "images.npy"), str(tmp_path / "features.npy")]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "features.npy")


def read(folder) -> export.Exported:
    return export.deserialize(bytearray((folder / program.PROGRAM).read_bytes()))


@pytest.mark.parametrize("batch", [1, 7])
def test_the_script_beside_it_needs_only_jax(folder, encode, images, tmp_path, batch):
    features = without_this_package(folder, images[:batch], tmp_path)
    assert features.shape == (batch, 48) and features.dtype == np.float32
    np.testing.assert_allclose(features, encode(images[:batch]), rtol=0, atol=1e-5)


def test_the_script_is_short_imports_jax_and_numpy_and_is_in_the_model_card(folder):
    script = (folder / program.SCRIPT).read_text()
    assert code_in(folder) == [script]
    lines = [line for line in script.splitlines()[1:] if line.strip()]
    assert len(lines) <= 10
    imported = set(re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE))
    assert imported == {"sys", "pathlib", "jax", "numpy"}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_it_gives_the_features_asked_for(run, encode, images, tmp_path, features):
    found = read(exported(run, tmp_path / "out", "stablehlo", features=features))
    assert str(found.in_avals) == "(ShapedArray(uint8[batch,64,64,3]),)"
    expected = encode(images, features)
    np.testing.assert_allclose(found.call(images), expected, rtol=0, atol=1e-5)


def test_other_images_than_it_takes_are_refused(folder, images):
    call = read(folder).call
    with pytest.raises(ValueError, match="uint8"):
        call(images.astype(np.float32))
    with pytest.raises(ValueError, match="64"):
        call(images[:, :32, :32])


@pytest.mark.parametrize("platform", program.PLATFORMS)
def test_it_lowers_for_every_platform(folder, images, platform):
    found = read(folder)
    assert found.platforms == program.PLATFORMS
    traced = jax.jit(found.call).trace(images)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.dot_general" in text and "7x64x64x3xui8" in text


@pytest.mark.parametrize(
    ("dtype", "element", "precision"),
    [("float32", "f32", "HIGHEST"), ("bfloat16", "bf16", "DEFAULT")],
)
def test_products_are_computed_in_what_was_asked_for(run, tmp_path, dtype, element, precision):
    found = read(exported(run, tmp_path / "out", "stablehlo", dtype=dtype))
    products = re.findall(r"dot_general %.*", found.mlir_module())
    assert products and not len(products) % (1 + 3 * 6)  # of the patches, and of every layer
    for product in products:
        inputs = re.search(r": \((.*)\) ->", product)[1]
        assert re.findall(r"x(b?f\d+)>", inputs) == [element, element]
        stated = re.search(r"precision = \[(\w+)", product)
        assert (stated[1] if stated else "DEFAULT") == precision


@pytest.mark.parametrize(
    ("topology", "compiler"), [("v5e:1x1", "libtpu"), ("h100:1", "jax_cuda13_plugin")]
)
def test_it_compiles_for_accelerators_that_are_not_here(folder, images, topology, compiler):
    pytest.importorskip(compiler)
    here = jax.sharding.SingleDeviceSharding(devices_of(find_topology(topology))[0])
    batch = jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=here)
    compiled = jax.jit(read(folder).call, out_shardings=here).lower(batch).compile()
    assert compiled.memory_analysis().output_size_in_bytes >= 7 * 48 * 4


@pytest.mark.parametrize("dtype", program.COMPUTES_IN)
def test_weights_that_are_too_many_lie_beside_it(run, encode, images, tmp_path, monkeypatch, dtype):
    inside = exported(run, tmp_path / "inside", "stablehlo", dtype=dtype)
    monkeypatch.setattr(program, "_MOST_INSIDE", 100_000)
    beside = exported(run, tmp_path / "beside", "stablehlo", dtype=dtype)
    sizes = [manifest_of(folder)["files"][program.PROGRAM]["bytes"] for folder in (inside, beside)]
    assert sizes[1] < 100_000 < sizes[0]
    np.testing.assert_array_equal(
        without_this_package(beside, images, tmp_path), read(inside).call(images)
    )


def test_in_bfloat16_features_are_off_by_what_bfloat16_costs_the_model(
    run, encode, images, tmp_path
):
    features = read(exported(run, tmp_path / "out", "stablehlo", dtype="bfloat16")).call(images)
    assert features.dtype == np.float32
    exact, model = encode(images), load_encoder(run, dtype="bfloat16")(images)
    off, models = np.abs(features - exact).max(), np.abs(model - exact).max()
    assert 0.5 < off / models < 2


def test_what_jax_needs_to_write_it_is_named_where_it_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.export.serialization", None)
    with pytest.raises(UserError, match="pip install flatbuffers"):
        exported(run, tmp_path / "out", "stablehlo")
    assert not list(tmp_path.iterdir())


def test_another_image_size_resizes_the_positions(run, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3), np.uint8)
    changed = {"model.image_size": 96, "data.eval_resize": 96}
    folder = exported(run, tmp_path / "out", "stablehlo", overrides=changed)
    expected = load_encoder(run, image_size=96)(images)
    np.testing.assert_allclose(read(folder).call(images), expected, rtol=0, atol=1e-5)
