from __future__ import annotations

import dataclasses

import pytest

from tests.data.prepare.wilds_replicas import MAKERS
from xtra_jax.data.prepare import catalogue


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    return folder


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def known_counts(monkeypatch):
    """Makes the catalogue know other numbers of images of a data set."""

    def know(name, images, **others):
        known = dataclasses.replace(catalogue.CATALOGUE[name], images=images, **others)
        monkeypatch.setitem(catalogue.CATALOGUE, name, known)

    return know


@pytest.fixture
def replica(archives, known_counts):
    """Makes the replica of a WILDS release, whose counts the catalogue then takes for the known."""

    def make(name):
        expected = MAKERS[name](archives)
        known_counts(name, {split: len(rows) for split, rows in expected.items()})
        return expected

    return make
