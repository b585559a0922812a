"""The probing job on a real data set, through a checkpoint and the command line."""

import contextlib
import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from tests.saved import save_checkpoint
from xtra_jax.cli import main
from xtra_jax.config import from_dict, load, model_spec
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.xtra import bind, init_params
from xtra_jax.probing import job
from xtra_jax.probing.features import ATTENTIVE, FeatureSpec, encoder_features, load_encoder
from xtra_jax.probing.job import Encoder, make_recipe, probe_encoder
from xtra_jax.probing.results import best_head, read_results
from xtra_jax.training.progress import Progress

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
    "probe.attentive_layers": (6,),
    "probe.final_norm": (False, True),
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
    return save_checkpoint(workdir, config, params), config, params


def probe_arguments(run, data_dir, **overrides) -> list[str]:
    settings = PROBE | {"data.data_dir": str(data_dir)} | overrides
    text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in settings.items()}
    return [
        "probe",
        "--config=configs/probe.py:digits",
        f"--checkpoint={run[0]}",
        *(f"--config.{key}={value}" for key, value in text.items()),
    ]


@pytest.fixture(scope="module")
def probed(run, data_dir):
    """A complete probe, in its default folder; what it printed comes with it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(probe_arguments(run, data_dir)) == 0
    return read_results(run[0] / "probes" / "digits"), out.getvalue(), err.getvalue()


def test_a_probe_tells_the_accuracy_of_every_head_of_the_grid(run, probed):
    results, _, _ = probed
    groups = [
        f"{kind}{norm}" for kind in ("attentive_last6", "linear_last1") for norm in ("", "_norm")
    ]
    heads = [(group, rate, 0.1) for group in groups for rate in (1e-3, 1e-2)]
    assert [(h.group, *h.setting) for h in results.histories] == heads
    for history in results.histories:
        assert [entry.step for entry in history.evaluations] == [2, 3]
        # 355 held-out digits in batches of 48 over eight devices: each counts once.
        assert {entry.total for entry in history.evaluations} == {355}
        assert history.class_total.sum() == 355 and len(history.class_total) == 10
        assert history.class_correct.sum() == history.test.correct <= history.test.correct5
        assert history.test == history.last
    provenance = results.provenance
    assert (provenance.checkpoint, provenance.select) == ("run, step 1", "test")
    assert provenance.config["data"]["image_size"] == 16
    assert provenance.pretraining["model"]["width"] == 16
    assert provenance.checkpoint_hash == Encoder.of(run[2], run[1], "").sha256
    names = {path.name for path in (run[0] / "probes" / "digits").iterdir()}
    assert names == {"heads", "results.json", "table.md", "table.csv", "rates.png"}


def test_a_probe_prints_its_table_and_what_its_rates_and_its_choice_mean(run, probed):
    results, out, err = probed
    for kind in ("attentive", "linear"):
        best = best_head(results.histories, kind)
        assert f"{100 * best.test.accuracy:.2f}" in out and f"{best.setting.rate:g}" in out
    assert f"are in {run[0] / 'probes' / 'digits'}" in out
    assert "2 attentive_last6 and 2 attentive_last6_norm and 2 linear_last1" in err
    assert "rates are those that the optimizer really starts at: without a warm-up" in err
    assert "the best head is chosen on the 355 images that are reported on, as published" in err


def test_broken_images_are_named_in_the_first_evaluation_alone(run, data_dir, tmp_path, capfd):
    for i in range(20):
        file = tmp_path / "images" / f"{i % 10}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:40])
    images = {"data.eval_dataset": f"folder:{tmp_path / 'images'}", "data.eval_split": "all"}
    out = tmp_path / "out"
    assert main([*probe_arguments(run, data_dir, kind="linear", **images), f"--out={out}"]) == 0
    results = read_results(out)
    assert len(results.histories[0].evaluations) == 2
    assert (results.histories[0].test.total, results.provenance.unreadable) == (19, 1)
    assert capfd.readouterr().err.count("19.png is unusable") == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"data.num_classes": 11}, "has 10 classes, and data.num_classes=11"),
        ({"data.eval_split": ""}, "data.eval_split is empty"),
        ({"probe.attentive_layers": (7,)}, "probe.attentive_layers names 7.*from 1 to 6"),
        ({"probe.num_heads": 5}, "divides the width"),
        ({"batch_size": 12}, "the nearest sizes"),
    ],
)
def test_a_probe_that_does_not_fit_its_encoder_or_data_is_one_sentence(
    run, data_dir, overrides, sentence, tmp_path
):
    _, pretraining, params = run
    config = load("configs/probe.py:digits", PROBE | {"data.data_dir": str(data_dir)} | overrides)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=sentence):
        probe_encoder(config, Encoder.of(params, pretraining, "run"), out)
    assert not out.exists()


def test_a_recipe_has_the_published_lengths():
    config = load("configs/probe.py:imagenet2012")
    recipe = make_recipe(config, 1_281_167)
    assert recipe.steps == 31278 and round(recipe.steps_per_epoch) == 313
    assert recipe.warmup_steps == 3127
    assert (recipe.clip_norm, recipe.end_rate, recipe.beta2) == (3.0, 1e-5, 0.95)


def test_the_rate_is_that_of_steps_without_the_first_and_without_evaluations(monkeypatch):
    config = load("configs/probe.py:digits", PROBE | {"log_every": 2, "batch_size": 10})
    now, told = [0.0], []
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    progress = Progress(4, active=False)
    monkeypatch.setattr(progress, "update", lambda step, images_per_s: told.append(images_per_s))
    tell = job._tell(config, make_recipe(config, 100), progress)
    scores = SimpleNamespace(correct={"linear": [1]}, total=2)
    tell["on_evaluation"](0, scores)
    # Compilation, two steps, one with an evaluation of 7 seconds before it, and another step.
    for step, seconds in ((5, 60.0), (6, 1.0), (7, 9.0), (8, 2.0)):
        if step == 7:
            now[0] += 7
            tell["on_evaluation"](6, scores)
            seconds -= 7
        now[0] += seconds
        tell["on_step"](step)
    assert told == [10.0, 30 / 5]


def test_a_step_of_which_no_rate_is_known_yet_is_told_without(monkeypatch):
    config = load("configs/probe.py:digits", PROBE | {"log_every": 1})
    told = []
    progress = Progress(4, active=False)
    monkeypatch.setattr(progress, "update", lambda step, images_per_s: told.append(images_per_s))
    job._tell(config, make_recipe(config, 100), progress)["on_step"](1)
    assert told == [None]


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
