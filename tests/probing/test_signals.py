"""Few-shot and k-NN during pretraining: right, without a trace in the training, and announced."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from tests.runs import assert_same_state, on, saved_state, told
from xtra_jax.config import load, model_spec
from xtra_jax.data.decode import decode
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.xtra import bind, init_params
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.probing import signals
from xtra_jax.probing.features import LINEAR, encoder_features
from xtra_jax.probing.few_shot import few_shot_accuracy
from xtra_jax.probing.knn import knn_accuracy
from xtra_jax.probing.signals import make_signals
from xtra_jax.training.checkpoint import checkpoint_directory
from xtra_jax.training.pretrain import pretrain
from xtra_jax.training.progress import Progress

SIGNALS = {
    "signals.every": 4,
    "signals.dataset": "digits",
    "signals.train_split": "train[:150]",
    "signals.eval_split": "test[:50]",
}
METRICS = {"few_shot_1", "few_shot_5", "few_shot_10", "knn_10", "knn_20", "seconds"}


def measure(runs, params, **changes):
    config = runs.config(SIGNALS | on(2, 2, 2) | changes)
    made = make_signals(config, model_spec(config), make_mesh(dict(config.mesh)))
    assert made.keys() == {"signals"} and made["signals"].every == 4
    return lambda: made["signals"].measure(params)


@pytest.fixture(scope="module")
def params(runs):
    return init_params(model_spec(runs.config()), jax.random.key(3))


def test_the_numbers_are_those_of_the_encoder_on_the_decoded_images(runs, params):
    found = measure(runs, params)()
    config = runs.config()
    spec = model_spec(config)

    def split(name):
        source = open_source("digits", name, config.data.data_dir)
        records = [source[i] for i in range(len(source))]
        pixels = [
            np.asarray(Image.fromarray(decode(r["image"])).resize((16, 16), 3)) for r in records
        ]
        patches = normalise_patches(
            patchify(np.stack(pixels), spec.grid), config.data.mean, config.data.std
        )
        features = encoder_features(bind(spec, params).encoder, patches, LINEAR)
        return np.asarray(features), np.array([r["label"] for r in records])

    train, test = split("train[:150]"), split("test[:50]")
    assert found.keys() == METRICS
    for shots, accuracies in few_shot_accuracy(train, test, 10).items():
        assert found[f"few_shot_{shots}"] == pytest.approx(accuracies.mean(), abs=0.005)
    for k, accuracy in knn_accuracy(train, test, 10).items():
        assert found[f"knn_{k}"] == pytest.approx(accuracy, abs=0.02)
    assert found["knn_10"] > 0.15 and found["seconds"] > 0


@pytest.mark.parametrize(("gib", "decoded"), [(1.0, 2), (0.0, 6)])
def test_images_are_decoded_once_where_they_may_be_kept(runs, params, gib, decoded, monkeypatch):
    passes, read = [], signals.eval_batches

    def batches(source, *args, **how):
        passes.append(len(source))
        return read(source, *args, **how)

    monkeypatch.setattr(signals, "eval_batches", batches)
    again = measure(runs, params, **{"signals.max_gib": gib})
    found = [{name: value for name, value in again().items() if name != "seconds"} for _ in "abc"]
    assert found[0] == found[1] == found[2] and len(passes) == decoded


def test_signals_change_nothing_of_the_training_and_are_logged_at_their_steps(runs, tmp_path):
    quick = on(2, 2, 2) | {"steps": 9, "eval_every": 3, "data.eval_split": "test[:16]"}
    quiet = Progress(9, active=False)
    with runs.cache_here():
        pretrain(runs.config(quick), str(tmp_path / "without"), progress=quiet)
        pretrain(
            runs.config(quick | SIGNALS),
            str(tmp_path / "with"),
            progress=quiet,
            signals=make_signals,
        )
    assert_same_state(saved_state(tmp_path / "with"), saved_state(tmp_path / "without"))
    lines = told(tmp_path / "with")
    measured = [line for line in lines if "signals/knn_10" in line]
    assert [line["step"] for line in measured] == [4, 8, 9]
    assert all(
        line.keys() == {"step", *(f"signals/{name}" for name in METRICS)} for line in measured
    )
    assert [line for line in lines if line not in measured] == told(tmp_path / "without")


def test_nothing_is_measured_unless_it_is_asked_for(runs):
    config = runs.config()
    assert make_signals(config, model_spec(config), make_mesh({"data": 8})) == {}


def unlabelled(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    splits = {"signals.train_split": "all", "signals.eval_split": "all"}
    return splits | {"signals.dataset": f"folder:{tmp_path}"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"signals.dataset": "digitz"}, "signals.dataset=digitz: .*did you mean digits"),
        ({"signals.eval_split": "nowhere"}, "signals.dataset=digits: The split 'nowhere'"),
        (unlabelled, "few-shot and k-NN need the same classes in both"),
    ],
)
def test_a_set_that_cannot_be_used_is_told_before_anything_is_trained(
    runs, changes, sentence, tmp_path
):
    changes = changes(tmp_path) if callable(changes) else changes
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=sentence):
        pretrain(runs.config(SIGNALS | changes), str(workdir), signals=make_signals)
    assert not checkpoint_directory(workdir).exists()


def test_a_process_with_other_images_is_told_before_anything_is_measured(runs, monkeypatch):
    config = runs.config(SIGNALS)
    monkeypatch.setattr(signals, "text_from_the_first", lambda text: text + "more")
    with pytest.raises(UserError, match="process 0 finds other images of signals.dataset=digits"):
        make_signals(config, model_spec(config), make_mesh({"data": 8}))


def test_signals_that_nobody_would_measure_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="signals.every=4, and nobody measures them"):
        pretrain(runs.config(SIGNALS), str(tmp_path))
    with pytest.raises(UserError, match="signals.every=5, and signals.dataset is empty"):
        load("configs/demo.py", {"signals.every": 5})


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(runs, tmp_path):
    overrides = SIGNALS | {"steps": 5, "eval_every": 0}
    runs.start(tmp_path / "one", overrides, devices=4).succeed()
    for process in runs.start_two(tmp_path / "two", overrides):
        process.succeed()
    one, two = (
        [line for line in told(tmp_path / name) if "signals/knn_10" in line]
        for name in ("one", "two")
    )
    assert [line["step"] for line in one] == [line["step"] for line in two] == [4, 5]
    for ours, theirs in zip(two, one, strict=True):
        for name in METRICS - {"seconds"}:  # one of fifty images may be a close call
            assert ours[f"signals/{name}"] == pytest.approx(theirs[f"signals/{name}"], abs=0.021)
