"""The probing job on a real data set, through a checkpoint and the command line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from xtra_jax.cli import main
from xtra_jax.config import from_dict, load, model_spec
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.xtra import bind, init_params
from xtra_jax.probing.features import ATTENTIVE, FeatureSpec, encoder_features, load_encoder
from xtra_jax.probing.job import make_recipe, probe_params
from xtra_jax.training.checkpoint import Checkpointer, checkpoint_directory

PRETRAINING = {
    "model.width": 16,
    "model.depth": 6,
    "model.num_heads": 2,
    "model.image_size": 16,
    "model.patch_size": 4,
    "predictor.width": 12,
    "predictor.depth": 1,
    "head.hidden": 8,
    "data.eval_resize": 16,
}
PROBE = {
    "steps": 3,
    "epochs": 0.0,
    "eval_every": 2,
    "batch_size": 48,
    "probe.num_heads": 4,
    "rates": (1e-3, 1e-2),
    "data.randaugment": "rand-m9-mstd0.5-inc1",
    "data.erasing": 0.25,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The checkpoint of an untrained encoder."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    config = load("configs/demo.py", PRETRAINING | {"data.data_dir": str(data_dir)})
    params = init_params(model_spec(config), jax.random.key(1))
    with Checkpointer(checkpoint_directory(workdir), save_every=1, keep=1) as checkpointer:
        state = {"params": params}
        checkpointer.save(1, state, position={}, config=config.to_dict(), force=True)
    return workdir, config, params


def probe_arguments(run, data_dir, **overrides) -> list[str]:
    settings = PROBE | {"data.data_dir": str(data_dir)} | overrides
    text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in settings.items()}
    return [
        "probe",
        "--config=configs/probe.py:digits",
        f"--checkpoint={run[0]}",
        *(f"--config.{key}={value}" for key, value in text.items()),
    ]


def test_a_probe_writes_and_prints_the_accuracy_of_every_head(run, data_dir, capsys):
    assert main(probe_arguments(run, data_dir)) == 0
    printed = capsys.readouterr().out
    results = json.loads((run[0] / "probes" / "probe_digits.json").read_text())
    assert [(h["group"], h["rate"]) for h in results["heads"]] == [
        ("attentive", 1e-3),
        ("attentive", 1e-2),
        ("linear", 1e-3),
        ("linear", 1e-2),
    ]
    for head in results["heads"]:
        assert [entry["step"] for entry in head["evaluations"]] == [2, 3]
        # 355 held-out digits in batches of 48 over eight devices: each counts once.
        assert {entry["total"] for entry in head["evaluations"]} == {355}
    for kind in ("attentive", "linear"):
        last = results["best"][kind]["last"]
        assert f"{last['accuracy']:.2%} ({last['correct']} of 355)" in printed
    assert results["checkpoint"].endswith("checkpoints/1")
    assert results["config"]["data"]["image_size"] == 16


def test_the_same_probe_gives_the_same_numbers_twice(run, data_dir, tmp_path):
    def heads(name):
        out = tmp_path / name
        assert main([*probe_arguments(run, data_dir, kind="linear"), f"--out={out}"]) == 0
        return json.loads(out.read_text())["heads"]

    assert heads("first.json") == heads("again.json")


def test_broken_images_are_named_in_the_first_evaluation_alone(run, data_dir, tmp_path, capfd):
    for i in range(20):
        file = tmp_path / "images" / f"class-{i % 10}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:40])
    images = {"data.eval_dataset": f"folder:{tmp_path / 'images'}", "data.eval_split": "all"}
    out = tmp_path / "out.json"
    assert main([*probe_arguments(run, data_dir, kind="linear", **images), f"--out={out}"]) == 0
    assert len(json.loads(out.read_text())["heads"][0]["evaluations"]) == 2
    assert capfd.readouterr().err.count("19.png is unusable") == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"data.num_classes": 11}, "has 10 classes, and data.num_classes=11"),
        ({"data.eval_split": ""}, "data.eval_split is empty"),
        ({"probe.last_layers": 7}, "ask for 1 to 6"),
        ({"probe.num_heads": 5}, "divides the width"),
        ({"batch_size": 12}, "the nearest sizes"),
    ],
)
def test_a_probe_that_does_not_fit_its_encoder_or_data_is_one_sentence(
    run, data_dir, overrides, sentence, tmp_path
):
    _, pretraining, params = run
    config = load("configs/probe.py:digits", PROBE | {"data.data_dir": str(data_dir)} | overrides)
    out = tmp_path / "out.json"
    with pytest.raises(UserError, match=sentence):
        probe_params(config, params, pretraining, str(out), checkpoint="run")
    assert not out.exists()


def test_a_recipe_has_the_published_lengths():
    config = load("configs/probe.py:imagenet2012")
    recipe = make_recipe(config, 1_281_167)
    assert recipe.steps == 31278 and round(recipe.steps_per_epoch) == 313
    assert recipe.warmup_steps == 3127
    assert (recipe.clip_norm, recipe.end_rate, recipe.beta2) == (3.0, 1e-5, 0.95)


def test_a_loaded_encoder_gives_the_features_of_its_parameters(run, data_dir):
    workdir, config, params = run
    config = from_dict(config.to_dict())
    spec = model_spec(config)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    encode = load_encoder(str(workdir))
    patches = normalise_patches(patchify(images, spec.grid), config.data.mean, config.data.std)
    encoder = bind(spec, params).encoder
    for features in (FeatureSpec(pool=True), ATTENTIVE):
        expected = encoder_features(encoder, patches, features)
        np.testing.assert_allclose(encode(images, features), expected, atol=1e-5)
    assert encode(images).shape == (5, 16)
    with pytest.raises(UserError, match=r"uint8 images \[batch, 16, 16, 3\].*\[5, 8, 8, 3\]"):
        encode(images[:, :8, :8])
    assert len(open_source("digits", "test", str(data_dir))) == 355
