"""What a study knows of itself: what is complete, what is missing, and the table over all of it.

The probes themselves are left out: what they would write is written at once.
"""

from __future__ import annotations

import shutil

import pytest

from configs.probe import BENCHMARKS
from tests.probing import tiny
from tests.probing.replicas import write_replica
from tests.probing.studies import write_study
from xtra_jax.config import with_encoder_input
from xtra_jax.errors import UserError
from xtra_jax.probing import study
from xtra_jax.probing.job import Outcome
from xtra_jax.probing.saves import find_complete
from xtra_jax.probing.selection import open_images
from xtra_jax.probing.study import probe_all

SETS = ("dtd", "eurosat", "camelyon17")


@pytest.fixture
def data_dir(tmp_path):
    for name in SETS:
        write_replica(BENCHMARKS[name].dataset or name, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("encoder") / "run")


@pytest.fixture
def probed(monkeypatch):
    """The data sets that are really probed, in their order."""
    names = []

    def probe_encoder(config, encoder, folder, *, stop, asked):
        config = with_encoder_input(config, encoder.pretraining)
        results = find_complete(folder, config, encoder.sha256)
        if results is None:
            open_images(config)
            names.append(folder.name)
            write_study(folder, config, encoder.sha256)
            results = find_complete(folder, config, encoder.sha256)
        return Outcome(folder, results, 3)

    monkeypatch.setattr(study, "probe_encoder", probe_encoder)
    return names


@pytest.fixture
def run(data_dir, checkpoint, tmp_path):
    """Studies sets of these names, in one folder."""

    def run(*names, checkpoint=checkpoint, **changes):
        where = {"data.data_dir": str(data_dir), "checkpoint": str(checkpoint)}
        overrides = where | {"datasets": ",".join(names)} | changes
        return probe_all("configs/probe.py:all", overrides, str(tmp_path / "study"))

    return run


def rows(folder) -> list[str]:
    """The data sets of a table, without repetition."""
    lines = (folder / "table.csv").read_text().splitlines()[1:]
    return list(dict.fromkeys(line.split(",")[0] for line in lines))


def test_a_set_that_is_complete_counts_when_its_images_are_gone(run, probed, data_dir, tmp_path):
    run(*SETS)
    shutil.rmtree(data_dir / "dtd")
    studied = run(*SETS, "food101")
    assert list(studied.results) == list(SETS) and list(studied.missing) == ["food101"]
    assert rows(tmp_path / "study") == list(SETS)
    assert probed == list(SETS)  # once


def test_a_study_of_fewer_sets_takes_none_out_of_the_table(run, probed, tmp_path):
    run("dtd", "eurosat")
    studied = run("camelyon17")
    assert list(studied.results) == ["camelyon17"]
    assert sorted(rows(tmp_path / "study")) == sorted(SETS)


def test_a_study_that_goes_on_keeps_its_whole_table_from_the_start(run, probed, tmp_path):
    """Here to where the next set cannot be opened."""
    run("dtd", "camelyon17")
    with pytest.raises(UserError, match=r"data\.num_classes=3"):
        run("eurosat", **{"data.num_classes": 3})
    assert sorted(rows(tmp_path / "study")) == ["camelyon17", "dtd"]


def test_the_table_is_of_one_encoder(run, probed, tmp_path):
    run("dtd")
    run("eurosat", checkpoint=tiny.save_encoder(tmp_path / "other", seed=2))
    assert rows(tmp_path / "study") == ["eurosat"]


def test_what_is_wrong_with_a_set_is_said_in_its_turn(run, probed, data_dir):
    (metadata,) = (data_dir / "camelyon17").rglob("dataset_info.json")
    metadata.write_text("{")
    with pytest.raises(UserError):
        run(*SETS)
    assert probed == ["dtd", "eurosat"]
