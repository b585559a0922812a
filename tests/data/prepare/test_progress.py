"""What a preparation says of how far it is."""

from __future__ import annotations

import pytest

from xtra_jax.data.prepare import progress
from xtra_jax.data.prepare.progress import Progress, describe, duration


class Clock:
    """In the place of the module `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_off_a_terminal_there_is_a_line_a_minute_and_none_in_between(clock, capsys):
    shown = Progress("fmow", total=1000, done=200)
    for _ in range(300):
        clock.now += 0.5
        shown.add(1)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fmow: 320 of 1,000 images (32.0%), 2 images/s, 5 min 40 s left",
        "fmow: 440 of 1,000 images (44.0%), 2 images/s, 4 min 40 s left",
    ]


def test_on_a_terminal_one_line_renews_itself(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    shown = Progress("fmow", total=4)
    for _ in range(4):
        clock.now += 1
        shown.add(1)
    shown.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith("\n")
    last = err.rstrip().split("\r")[-1]
    assert last.rstrip() == "fmow: 4 of 4 images (100.0%), 1 images/s"


def test_nothing_done_is_nothing_said(clock, capsys):
    Progress("fmow", total=4).close()
    assert capsys.readouterr().err == ""


def test_without_a_known_total_there_is_no_share_and_no_time_left():
    assert describe("imagenet21k", 1234, 0, 56.7) == "imagenet21k: 1,234 images, 57 images/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (90061, "25 h 1 min")],
)
def test_times_are_told_in_two_units(seconds, text):
    assert duration(seconds) == text
