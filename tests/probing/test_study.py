"""Studies over several data sets, on replicas of the benchmarks as they are prepared."""

from __future__ import annotations

import json

import pytest

from configs.probe import BENCHMARKS
from tests.probing import tiny
from tests.probing.replicas import IMAGES, write_replica
from xtra_jax.cli import main
from xtra_jax.config import load
from xtra_jax.errors import UserError
from xtra_jax.probing.results import read_results
from xtra_jax.probing.study import configs_of, probe_all
from xtra_jax.training.stopping import Stop

SETTINGS = {
    "epochs": 0.0,
    "steps": 3,
    "eval_every": 3,
    "optim.warmup_epochs": 0.0,
    "batch_size": 8,
    "probe.attentive_layers": (1,),
    "probe.num_heads": 4,
    "data.num_workers": 0,
}
# Of two train splits; two slices of one split, under a name of two parts; two classes.
FEW = ("dtd", "eurosat", "camelyon17")
MISSING = "food101"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, benchmark in BENCHMARKS.items():
        if name != MISSING:
            write_replica(benchmark.dataset or name, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cached(runs):
    """What is compiled once is not compiled again, in as far as sets have as many classes."""
    with runs.cache_here():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("encoder") / "run")


@pytest.fixture(scope="module")
def overrides(data_dir, checkpoint):
    datasets = ",".join((FEW[0], MISSING, *FEW[1:]))
    where = {"data.data_dir": str(data_dir), "checkpoint": str(checkpoint)}
    return SETTINGS | where | {"datasets": datasets, "rates": (1e-3, 1e-2)}


@pytest.fixture(scope="module")
def stopped(overrides, tmp_path_factory):
    """A study that is stopped in its second data set, with its output."""
    folder = tmp_path_factory.mktemp("study")

    class StopInTheSecond(Stop):
        """Stops at the sixth question: four are asked in the first set, from 0 to 3 steps."""

        def reached(self, step):
            assert step == self.asked
            self.asked += 1
            if self.asked == 6:
                self.request("a test")
            return super().reached(step)

    stop = StopInTheSecond()
    stop.asked = 0
    studied = probe_all("configs/probe.py:all", overrides, str(folder), stop=stop)
    return folder, studied


def command(overrides, folder) -> list[str]:
    text = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in overrides.items()}
    keys = [f"--config.{key}={value}" for key, value in text.items()]
    return ["probe", "--config=configs/probe.py:all", f"--out={folder}", *keys]


def test_a_study_that_is_stopped_keeps_what_is_complete_and_knows_where_it_was(stopped):
    folder, studied = stopped
    assert list(studied.results) == ["dtd"] and list(studied.missing) == [MISSING]
    assert studied.stopped.folder == folder / "eurosat" and studied.stopped.stopped_by == "a test"
    assert (folder / "eurosat" / "checkpoints").is_dir()
    assert not (folder / "camelyon17").exists()


def test_the_same_study_goes_on_skips_what_is_done_and_says_what_is_missing(
    stopped, overrides, data_dir, tmp_path, capsys
):
    """And the set that it was stopped in comes to what it comes to alone."""
    folder, _ = stopped
    before = (folder / "dtd" / "results.json").stat().st_mtime_ns
    assert main(command(overrides, folder)) == 2
    out, err = capsys.readouterr()
    assert (folder / "dtd" / "results.json").stat().st_mtime_ns == before
    assert "this probe is complete" in err and "continuing from step 1 of" in err
    remedy = f"`xtra prepare --dataset {MISSING} --data_dir {data_dir}`"
    assert err.count(remedy) == 1
    assert "1 of 4 data sets were left out because they are not prepared: food101" in err
    assert all(name in out for name in FEW) and "Traceback" not in err
    table = (folder / "table.md").read_text()
    assert all(f"| {name} " in table for name in FEW) and (folder / "rates.png").exists()

    alone = tmp_path / "eurosat"
    probe_all("configs/probe.py:eurosat", overrides | {"datasets": ""}, str(alone))
    assert tiny.found(folder / "eurosat") == tiny.found(alone)


@pytest.mark.parametrize("name", FEW)
def test_every_set_has_its_own_classes_splits_and_rates(name, stopped, overrides, data_dir):
    folder, _ = stopped
    if not (folder / name / "results.json").exists():
        main(command(overrides, folder))
    check_set(name, folder, rates=2)


def check_set(name, folder, rates):
    benchmark = BENCHMARKS[name]
    results = read_results(folder / name)
    assert len(results.histories) == rates
    split = 2 if name == "eurosat" else IMAGES  # a fifth
    for history in results.histories:
        assert len(history.class_total) == benchmark.classes
        assert history.test.total == history.class_total.sum() == split
        assert history.last.step == 3
        assert (history.test.correct5 is None) == (benchmark.classes <= 5)
    data = results.provenance.config["data"]
    assert data["train_split"] == benchmark.train_split
    assert not (folder / name / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", ["", "_linear", "_linear_h14"], ids=["attentive", "linear", "linear_h14"]
)
def test_all_fifteen_configs_run_three_steps_on_sets_of_their_classes(
    suffix, checkpoint, data_dir, tmp_path
):
    """With every rate of each; the missing set is written as the remedy would."""
    if not (data_dir / MISSING).exists():
        write_replica(MISSING, data_dir)
    where = {"data.data_dir": str(data_dir), "checkpoint": str(checkpoint)}
    names = [name + suffix for name in BENCHMARKS]
    overrides = SETTINGS | where | {"datasets": ",".join(names)}
    studied = probe_all("configs/probe.py:all", overrides, str(tmp_path))
    assert list(studied.results) == names and not studied.missing and not studied.stopped
    for name, benchmark in BENCHMARKS.items():
        if not suffix:
            check_set(name, tmp_path, rates=len(benchmark.rates))
        results = studied.results[name + suffix]
        assert {history.kind for history in results.histories} == {
            "linear" if suffix else "attentive"
        }
        assert len(results.histories[0].class_total) == benchmark.classes
    assert len((tmp_path / "table.csv").read_text().splitlines()) >= 1 + len(BENCHMARKS)


def test_overrides_of_a_study_are_those_of_all_its_sets_and_its_own_keys_are_their_own():
    configs = configs_of("configs/probe.py:all", "food101,cifar10_linear", {"seed": "3"})
    assert list(configs) == ["food101", "cifar10_linear"]
    for name, config in configs.items():
        alone = load(f"configs/probe.py:{name}", {"seed": 3})
        assert json.dumps(config.to_dict()) == json.dumps(alone.to_dict())


@pytest.mark.parametrize(
    ("datasets", "sentence"),
    [
        ("food101,food101", "names food101 twice"),
        ("all", "names all, which is a study of several itself"),
        ("food102", "knows no 'food102': it knows food101"),
    ],
)
def test_a_study_of_what_is_no_data_set_is_one_sentence(datasets, sentence):
    with pytest.raises(UserError, match=sentence):
        configs_of("configs/probe.py:all", datasets, {})
