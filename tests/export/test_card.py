"""The model card says what is known of the weights, and no more than that."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.export.exported import exported, golden_run, manifest_of
from tests.interop.weights import as_aim, as_vit, tensors
from tests.probing.studies import make_history, make_results
from tests.saved import golden_config, save_checkpoint, save_golden_probe
from xtra_jax.export.job import export
from xtra_jax.interop.imported import write_checkpoint
from xtra_jax.interop.importer import import_weights
from xtra_jax.interop.open_checkpoint import open_checkpoint
from xtra_jax.probing.results import write_results
from xtra_jax.training.telemetry import MetricWriter


def card_of(folder) -> str:
    return (folder / "README.md").read_text()


def write_probe(folder, step: int, correct: int) -> None:
    histories = [make_history(0.0015, correct, total=200)]
    results = make_results("pets", histories)
    provenance = dataclasses.replace(results.provenance, checkpoint=f"run, step {step}")
    write_results(folder, results.histories, provenance)


@pytest.fixture
def run(tmp_path):
    """A checkpoint of step 1, in a run that went on to step 3."""
    run = golden_run(tmp_path / "run")
    with MetricWriter(run) as metrics:
        metrics.write(0, {"validation/loss": 1.25})
        metrics.write(1, {"loss": 0.875, "lr": 1e-3})
        metrics.write(3, {"loss": 0.5, "validation/loss": 0.625})
    return run


def test_it_has_the_losses_up_to_the_checkpoint_and_not_beyond(run, tmp_path):
    card = card_of(exported(run, tmp_path / "out", "timm"))
    assert "| training loss | 0.875 at step 1 |" in card
    assert "| validation loss | 1.25 at step 0 |" in card
    assert "0.625" not in card
    assert "| data | digits, split train |" in card and "| steps | 1, of 64 images |" in card


def test_it_has_the_probes_and_says_of_which_step_they_are(run, tmp_path):
    write_probe(run / "probes" / "pets", 1, 150)
    write_probe(run / "probes" / "all" / "pets", 3, 160)
    (run / "probes" / "torn").mkdir()
    (run / "probes" / "torn" / "results.json").write_text('{"best": ')
    card = card_of(exported(run, tmp_path / "out", "timm"))
    assert "| linear | pets, test | 75.00% (150 of 200) | 0.0015 | 1 |" in card
    assert "| linear | pets, test | 80.00% (160 of 200) | 0.0015 | 3 (another checkpoint) |" in card
    assert "`probes/torn/results.json` holds no results of a probe." in card
    assert "The learning rate is the best one on the images reported, as published." in card


def test_it_admits_what_it_does_not_know(tmp_path):
    opened = open_checkpoint(golden_run(tmp_path / "golden"))
    bare = save_checkpoint(tmp_path / "bare", opened.config, opened.params)
    card = card_of(exported(bare, tmp_path / "out", "timm"))
    assert "No losses are known" in card and "No probe was trained on these weights" in card


def test_weights_from_elsewhere_are_not_said_to_be_trained_as_the_config_says(run, tmp_path):
    file = exported(run, tmp_path / "first", "published") / "model.safetensors"
    imported = tmp_path / "imported"
    write_checkpoint(import_weights(file), imported)
    for source in (file, imported):
        card = card_of(exported(source, tmp_path / f"out {source.name}", "published"))
        assert "The weights come from `model.safetensors`" in card
        assert "| data |" not in card and "training loss" not in card
    digest = manifest_of(tmp_path / "first")["weights_sha256"]
    assert f"| weights_sha256 | {digest} |" in card  # which the first export said of itself


def test_it_has_the_digest_of_every_file_but_its_own_and_the_manifest(run, tmp_path):
    folder = exported(run, tmp_path / "out", "published")
    files = manifest_of(folder)["files"]
    for name, file in files.items():
        said = f"| `{name}` | {file['bytes']:,} | `{file['sha256']}` |" in card_of(folder)
        assert said == (name != "README.md")


def test_it_has_the_whole_config(run, tmp_path):
    folder = exported(run, tmp_path / "out", "safetensors")
    text = card_of(folder).split("```json\n")[1].split("```")[0]
    assert json.loads(text) == manifest_of(folder)["config"]


def test_it_is_the_same_wherever_the_run_lies(tmp_path):
    first = exported(golden_run(tmp_path / "a" / "run"), tmp_path / "first", "timm")
    second = exported(golden_run(tmp_path / "b" / "run"), tmp_path / "second", "timm")
    assert card_of(first) == card_of(second)
    assert str(tmp_path) not in card_of(first)


def imported_run(tmp_path, named, **flags):
    file, out = tmp_path / "file.safetensors", tmp_path / "imported"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in named.items()}, file)
    imported = import_weights(file, overrides={"model.num_heads": 3}, **flags)
    write_checkpoint(imported, out)
    return file, out


@pytest.mark.parametrize(("names", "whose"), [(as_vit, "timm's Vis"), (as_aim, "AIM; how")])
def test_an_encoder_of_others_is_not_said_to_be_pretrained_as_ours(tmp_path, names, whose):
    file, imported = imported_run(tmp_path, names(tensors()))
    ours = exported(imported, tmp_path / "ours", "safetensors")
    overrides = {"model.num_heads": 3, "model.block_size": 8}
    again = exported(ours / "model.safetensors", tmp_path / "again", "timm", overrides=overrides)
    first = exported(file, tmp_path / "first", "timm", overrides=overrides)
    for folder in (ours, again, first):
        card = card_of(folder)
        assert f"came with the tensor names of {whose}" in card and "XTRA" not in card
        assert "1, of 8 x 8 tokens; a token attends to every other" in card
        assert "never trained" not in card and "block causal mask" not in card
    assert "timm's model gives the same features without it" in card_of(again)

    overrides["model.block_size"] = 2
    masked = card_of(exported(file, tmp_path / "masked", "timm", overrides=overrides))
    assert "which gives other features than the mask" in masked and "never trained" not in masked


def test_our_encoder_stays_ours_under_the_names_of_timm(run, tmp_path):
    folder = exported(run, tmp_path / "timm", "timm")
    overrides = {"model.num_heads": 3, "model.block_size": 2}
    card = card_of(
        exported(folder / "model.safetensors", tmp_path / "out", "timm", overrides=overrides)
    )
    assert "pretrained by predicting images block by block" in card
    assert "which this encoder was never trained for" in card


def test_a_probe_that_came_along_is_said_to_be_left_out(tmp_path):
    file = save_golden_probe(tmp_path / "probe.safetensors", "att")
    config = golden_config()
    write_checkpoint(import_weights(file, config, probe_heads=4, probe_layers=2), tmp_path / "run")
    for number, checkpoint in enumerate((file, tmp_path / "run")):
        out = tmp_path / f"out{number}"
        given = {} if number else {"config": config}
        said = export(checkpoint, str(out), "safetensors", **given)
        assert "the probe that came with these weights is not exported" in said
        card = card_of(out)
        assert "A trained probe came with these weights; it is not part of this" in card
        assert "No probe was trained" not in card
