"""Few-shot and k-NN of a checkpoint from the command line."""

import json

import jax
import numpy as np
import pytest

from tests.probing import tiny
from tests.saved import save_checkpoint
from xtra_jax.cli import main
from xtra_jax.config import load, model_spec
from xtra_jax.data.decode import decode
from xtra_jax.data.digits import prepare_digits
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import UserError
from xtra_jax.model.xtra import init_params
from xtra_jax.probing import training_free
from xtra_jax.probing.features import FeatureSpec, load_encoder
from xtra_jax.probing.few_shot import few_shot_accuracy
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.knn import knn_accuracy
from xtra_jax.training.one_pass import chosen_images

TINY = tiny.PRETRAINING | {"model.depth": 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_digits(str(folder))
    return folder


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The checkpoint of an untrained encoder."""
    config = load("configs/demo.py", TINY | {"data.data_dir": str(data_dir)})
    params = init_params(model_spec(config), jax.random.key(1))
    return save_checkpoint(tmp_path_factory.mktemp("runs") / "run", config, params)


def probe(run, data_dir, out, kind, *more) -> int:
    return main(
        [
            *("probe", "--config=configs/probe.py:digits", f"--config.kind={kind}"),
            *(f"--checkpoint={run}", f"--config.data.data_dir={data_dir}", f"--out={out}"),
            *more,
        ]
    )


def expected(run, data_dir, kind, spec):
    """Accuracies from features that came another way."""
    encode = load_encoder(str(run))
    config = load("configs/demo.py", TINY | {"data.data_dir": str(data_dir)})
    splits = []
    for split in ("train", "test"):
        source, _ = chosen_images(config, dataset="digits", split=split)
        records = [source[i] for i in range(len(source))]
        images = np.stack([EvalTransform(16, 16)(decode(record["image"])) for record in records])
        labels = np.array([record["label"] for record in records])
        splits.append((np.asarray(encode(images, spec)), labels))
    measured = few_shot_accuracy if kind == "few_shot" else knn_accuracy
    return {k: np.mean(accuracy) for k, accuracy in measured(*splits, 10).items()}


def test_both_are_printed_and_written_for_every_layer_asked_for_and_repeats_use_what_is_kept(
    run, data_dir, tmp_path, capsys, monkeypatch
):
    more = ("--config.probe.linear_layers=1,2", "--config.probe.final_norm=true")
    for kind, counts, key in (
        ("knn", (10, 20), "neighbours"),
        ("few_shot", (1, 5, 10), "shots"),
    ):
        assert probe(run, data_dir, tmp_path, kind, *more) == 0
        printed = capsys.readouterr().out
        found = json.loads((tmp_path / f"{kind}.json").read_text())
        assert (found["train_images"], found["test_images"], found["unreadable"]) == (1442, 355, 0)
        assert found["config"]["kind"] == kind and len(found["checkpoint_hash"]) == 64
        entries = iter(found["results"])
        for layers in (1, 2):
            accuracies = expected(run, data_dir, kind, FeatureSpec(layers, pool=True, norm=True))
            for count in counts:
                entry = next(entries)
                assert (entry["last_layers"], entry["final_norm"]) == (layers, True)
                assert entry[key] == count
                assert entry["accuracy"] == pytest.approx(accuracies[count], abs=0.004)
                assert f"{entry['accuracy']:.2%}" in printed
        assert next(entries, None) is None

        # What the second kind, and the second time, need is there.
        monkeypatch.setattr(FrozenEncoder, "features", None)
    assert not (tmp_path / "features").exists() and (run / "features").is_dir()
    first = found["results"]
    assert probe(run, data_dir, tmp_path, "few_shot", *more) == 0
    assert json.loads((tmp_path / "few_shot.json").read_text())["results"] == first


def test_features_that_are_not_kept_give_the_same_numbers(run, data_dir, tmp_path):
    results = []
    for limit in ("8", "0"):
        out = tmp_path / limit
        cache = (f"--config.cache.max_gib={limit}", f"--config.cache.dir={out / 'features'}")
        assert probe(run, data_dir, out, "knn", *cache) == 0
        results.append(json.loads((out / "knn.json").read_text())["results"])
        assert (out / "features").exists() == (limit == "8")
    assert results[0] == results[1]


def test_of_several_sets_those_that_are_not_prepared_are_left_out_and_told(
    run, data_dir, tmp_path, capsys
):
    assert probe(run, data_dir, tmp_path, "knn", "--config.datasets=digits,cifar10") == 2
    told = capsys.readouterr()
    assert "digits: 355 test images" in told.out
    assert "cifar10" in told.err and "Traceback" not in told.err
    assert (tmp_path / "digits" / "knn.json").exists()


def test_what_was_measured_of_something_else_is_not_overwritten(run, data_dir, tmp_path, capsys):
    assert probe(run, data_dir, tmp_path, "knn") == 0
    file = tmp_path / "knn.json"
    content = file.read_bytes()
    other = tiny.save_encoder(tmp_path / "other", seed=2)
    capsys.readouterr()
    for args, sentence in (
        ((other, data_dir, tmp_path, "knn"), "holds a probe of another encoder"),
        ((run, data_dir, tmp_path, "knn", "--config.probe.linear_layers=2"), "linear_layers=(1,)"),
    ):
        assert probe(*args) == 2
        told = capsys.readouterr().err
        assert f"{file} holds a probe" in told and sentence in told and told.count("\n") == 1
        assert file.read_bytes() == content
    for damaged in ("{", "{}", "[]"):
        file.write_text(damaged)
        assert probe(run, data_dir, tmp_path, "knn") == 0
        assert json.loads(file.read_text())["results"] == json.loads(content)["results"]


def test_processes_with_other_test_images_are_not_taken_for_the_same(
    run, data_dir, tmp_path, monkeypatch
):
    seen = []

    def check(config, examples, records):
        seen.append((examples, records))
        raise UserError("that is enough")

    monkeypatch.setattr(training_free, "check_same_run_everywhere", check)
    for split in ("test", "test[:9]"):
        assert probe(run, data_dir, tmp_path, "knn", f"--config.data.eval_split={split}") == 2
    assert seen[0][0] == seen[1][0] and seen[0][1] != seen[1][1]


def test_features_too_large_for_memory_are_refused(run, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_free, "_MEMORY_GIB", 1e-5)
    assert probe(run, data_dir, tmp_path, "knn", "--config.cache.max_gib=0") == 2
    told = capsys.readouterr().err
    assert "features of 1,442 images of digits take 0.0 GiB" in told and told.count("\n") == 1
    assert "raise cache.max_gib=0 above that" in told


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--config.probe.linear_layers=3",), "the encoder has 2 layers: ask for 1 to 2"),
        (("--config.data.num_classes=11",), "has 10 classes, and data.num_classes=11"),
    ],
)
def test_what_does_not_fit_is_one_sentence(run, data_dir, tmp_path, capsys, more, sentence):
    assert probe(run, data_dir, tmp_path, "knn", *more) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
    assert not (tmp_path / "knn.json").exists()
