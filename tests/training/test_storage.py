"""Paths of all kinds, and failures of file systems as sentences."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xtra_jax.errors import UserError
from xtra_jax.training.storage import absolute, explained, is_local, write_text


def test_local_paths_become_absolute_and_remote_ones_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(absolute("a/../run")) == str(tmp_path / "run")
    assert os.fspath(absolute(Path("/runs/a"))) == "/runs/a"
    assert os.fspath(absolute("~/run")) == str(Path.home() / "run")
    assert os.fspath(absolute("gs://bucket/run")) == "gs://bucket/run"
    assert is_local(absolute("run")) and not is_local(absolute("gs://bucket/run"))


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path):
    path = absolute(tmp_path / "file")
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_text(absolute(tmp_path / "taken"), "new")
    assert path.read_text() == "old"
    assert not (tmp_path / "taken.tmp").exists()
    write_text(path, "new")
    assert path.read_text() == "new"


class DefaultCredentialsError(Exception):
    __module__ = "google.auth.exceptions"


@pytest.mark.parametrize(
    ("what", "error", "sentence"),
    [
        ("cannot x", OSError(28, "No space left on device"), "cannot x: No space left on device!"),
        (
            "cannot x",
            ValueError("RESOURCE_EXHAUSTED: Error writing a: No space left [os_error_code='28']"),
            "cannot x: No space left!",
        ),
        (
            "cannot x",
            ValueError("PERMISSION_DENIED: Error writing gs://b: denied [source locations='a.cc']"),
            "cannot x: PERMISSION_DENIED: Error writing gs://b: denied!",
        ),
        (
            "cannot read gs://b",
            ImportError("Please install gcsfs"),
            "cannot read gs://b: Please install gcsfs (pip install 'xtra_jax[gcs]')",
        ),
        (
            "cannot read gs://b",
            DefaultCredentialsError("No credentials were found.\nSee ..."),
            "cannot read gs://b: No credentials were found.!",
        ),
    ],
)
def test_a_file_systems_refusal_becomes_a_sentence(what, error, sentence):
    with pytest.raises(UserError) as caught, explained(what, "!"):
        raise error
    assert str(caught.value) == sentence
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("shapes differ"), KeyError("a"), UserError("mine")])
def test_other_failures_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, explained("cannot x"):
        raise error
    assert caught.value is error
