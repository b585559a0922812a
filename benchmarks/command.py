"""How a benchmark's command ends where something is wrong: with one sentence, before any timing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from xtra_jax.errors import RunFailed, UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def exit_code(run: Callable[[], None]) -> int:
    """Runs a command. Mistakes in what it was given are 2, and what failed on the way is 1."""
    try:
        run()
    except (UserError, RunFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def at_least(least: int) -> Callable[[str], int]:
    """A whole number, as the type of an argument."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is too few: at least {least}")
        return number

    return whole


def check_writable(path: str) -> None:
    """Raises UserError where a file for results cannot be written. Its contents stay."""
    new = not Path(path).exists()
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
    if new:
        Path(path).unlink()
