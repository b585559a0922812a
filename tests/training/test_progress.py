"""The progress line, on what says it is a terminal and on what is a log."""

from __future__ import annotations

import io
import os
import re

import pytest

from xtra_jax.training import progress
from xtra_jax.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def shown(self) -> list[str]:
        """The lines on the screen: a carriage return goes back, what follows overwrites."""
        lines = []
        for line in self.getvalue().split("\n"):
            screen = ""
            for part in line.split("\r"):
                screen = part + screen[len(part) :]
            lines.append(screen.rstrip())
        return lines


class Clock:
    """Moves on by `tick` seconds whenever it is read."""

    def __init__(self, tick: float):
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def columns(monkeypatch):
    def set_to(number: int):
        monkeypatch.setattr(
            progress.shutil, "get_terminal_size", lambda: os.terminal_size((number, 24))
        )

    set_to(100)
    return set_to


def test_a_log_gets_one_plain_line_per_update():
    log = io.StringIO()
    with Progress(200, log, clock=Clock(10)) as progress:
        progress.update(10, loss=0.51234, images_per_s=2345.6, input_wait=0.031)
        progress.update(20, loss=0.5, images_per_s=99.96)
    assert log.getvalue() == (
        "step 10/200  loss 0.5123  2,346 images/s  -:--:-- left  input wait 3%\n"
        "step 20/200  loss 0.5000  100.0 images/s  0:03:00 left\n"
    )


def test_a_terminal_shows_only_the_newest_update_on_one_line(columns):
    terminal = Terminal()
    with Progress(2000, terminal, clock=Clock(1)) as progress:
        progress.update(10, loss=123.456, images_per_s=1234.0, input_wait=0.5)
        progress.update(1010, loss=0.5)
    assert terminal.shown() == ["step 1010/2000  loss 0.5000  0:00:01 left", ""]


def test_time_left_follows_the_pace_between_updates():
    log = io.StringIO()
    progress = Progress(100_000, log, clock=Clock(7.3))
    for step in range(0, 600, 10):
        progress.update(step)
    # 99,410 steps at 0.73 seconds are 72,569 seconds.
    assert log.getvalue().splitlines()[-1] == "step 590/100000  20:09:29 left"


def test_time_left_adapts_to_the_recent_pace():
    log, clock = io.StringIO(), Clock(100)
    progress = Progress(1000, log, clock=clock)
    for step in range(10):
        progress.update(step)
    clock.tick = 1
    for step in range(10, 40):
        progress.update(step)
    assert log.getvalue().splitlines()[-1] == "step 39/1000  0:16:01 left"


def test_a_finished_run_has_no_time_left():
    log = io.StringIO()
    progress = Progress(20, log, clock=Clock(1))
    progress.update(10)
    progress.update(20)
    assert log.getvalue().endswith("step 20/20  0:00:00 left\n")


@pytest.mark.parametrize("width", [80, 60, 45, 30, 20, 8])
def test_a_narrow_terminal_gets_fewer_fields_and_never_a_wrapped_line(columns, width):
    columns(width)
    terminal = Terminal()
    progress = Progress(1000, terminal, clock=Clock(1))
    for step in (10, 20, 30):
        progress.update(step, loss=0.5, images_per_s=1234.0, input_wait=0.25)
    parts = re.split("[\r\n]", terminal.getvalue())
    assert all(len(part) < width for part in parts)
    assert terminal.shown()[0].startswith("step 30/1000"[: width - 1])
    assert ("input wait" in terminal.getvalue()) == (width == 80)


def test_a_terminal_made_narrower_is_not_padded_beyond_its_width(columns):
    terminal = Terminal()
    progress = Progress(1000, terminal, clock=Clock(1))
    progress.update(10, loss=0.5, images_per_s=1234.0, input_wait=0.25)
    columns(30)
    progress.update(20, loss=0.5)
    assert len(terminal.getvalue().split("\r")[-1]) < 30


def test_a_note_stays_above_the_live_line(columns):
    terminal = Terminal()
    with Progress(100, terminal, clock=Clock(1)) as progress:
        progress.update(10, loss=0.5, images_per_s=1234.0)
        progress.note("validation loss 0.4")
        progress.update(20, loss=0.5)
    assert terminal.shown() == [
        "validation loss 0.4",
        "step 20/100  loss 0.5000  0:00:08 left",
        "",
    ]


def test_a_note_in_a_log_is_a_line():
    log = io.StringIO()
    Progress(100, log).note("resumed from step 10")
    assert log.getvalue() == "resumed from step 10\n"


def test_a_loss_that_is_not_finite_is_shown_as_it_is():
    log = io.StringIO()
    Progress(100, log).update(10, loss=float("nan"))
    assert "loss nan" in log.getvalue()


def test_an_inactive_one_prints_nothing(columns):
    terminal = Terminal()
    with Progress(100, terminal, active=False) as progress:
        progress.update(10, loss=0.5)
        progress.note("hello")
    assert terminal.getvalue() == ""


def test_a_log_that_cannot_be_written_ends_nothing():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with Progress(100, Full()) as progress:
        progress.update(10)
        progress.note("hello")
