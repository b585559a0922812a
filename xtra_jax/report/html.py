"""Pieces of a page. Every text that goes in is escaped here, and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def text(value: object) -> str:
    """A text as it stands in a page, also between quotation marks."""
    return html.escape(str(value), quote=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table whose first column names its rows. It scrolls sideways where it is too wide."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    about = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        '<div class="wide" tabindex="0" role="region" '
        f'aria-label="{text(caption or ", ".join(header))}"><table>{about}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """What there is to know of one thing, by name."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
    return f'<dl class="facts">{items}</dl>'


def notes(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>'


def folded(summary: str, inside: str) -> str:
    """Something that is shown when it is asked for; printing it needs no script."""
    return f"<details><summary>{text(summary)}</summary>{inside}</details>"


def code(content: str) -> str:
    return f'<pre tabindex="0"><code>{text(content)}</code></pre>'


def missing(what: str, command: str = "") -> str:
    """Says that something is not there, and which command makes it."""
    return f'<div class="missing"><p>{text(what)}</p>{code(command) if command else ""}</div>'


def section(identity: str, title: str, *parts: str) -> str:
    """A part of the page that its contents can lead to."""
    inside = "".join(parts)
    return f'<section id="{identity}"><h2>{text(title)}</h2>{inside}</section>'
