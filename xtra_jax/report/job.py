"""The report job: a run's working directory in, one HTML page out."""

from __future__ import annotations

import datetime
import os

from xtra_jax.errors import UserError
from xtra_jax.report.page import page
from xtra_jax.report.pictures import draw_pictures
from xtra_jax.report.run import read_run
from xtra_jax.training.storage import absolute, explained, write_text


def report(run: os.PathLike | str, out: os.PathLike | str = "") -> str:
    """Writes what is known of a run as one self-contained page.

    What a run does not have yet, the page says, and which command makes it.

    Args:
        run: its working directory.
        out: the page; by default `report.html` in the working directory.

    Returns:
        The path written.

    Raises:
        UserError: there is no such run, or the page can't be written.
    """
    found = read_run(run)
    target = absolute(out) if out else found.path / "report.html"
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; name a file in it")
    now = datetime.datetime.now(datetime.UTC)
    written = page(found, draw_pictures(found), named=os.fspath(run), written=now)
    with explained(f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, written)
    return os.fspath(target)
