"""Prints results: figures by name, and a table with a column for each of several ways."""

from __future__ import annotations

# In the file of --out alone: every turn's value, and what a case is made of.
_LEFT_OUT = ("spec",)


def show(result: dict, indent: int = 0) -> None:
    """Prints figures by name, then what holds figures itself, under its name, and ways last.

    Args:
        result: figures, texts, or more such; "ways" holds one for each way.
    """
    shown = {name: value for name, value in result.items() if not _left_out(name, value)}
    plain = {name: value for name, value in shown.items() if not isinstance(value, dict)}
    width = max((len(name) for name in plain), default=0)
    for name, value in plain.items():
        print(f"{'':{indent}}{name.replace('_', ' '):{width}}  {text(value)}")
    for name, value in shown.items():
        if isinstance(value, dict) and name != "ways":
            print(f"{'':{indent}}{name.replace('_', ' ')}")
            show(value, indent + 2)
    if "ways" in shown:
        table(shown["ways"])


def table(ways: dict[str, dict]) -> None:
    """Prints a column for each way and a row for each figure that one of them has."""
    rows = {
        name: [text(row[name]) if row.get(name) is not None else "" for row in ways.values()]
        for name in dict.fromkeys(name for row in ways.values() for name in row)
        if not all(_left_out(name, row.get(name)) for row in ways.values())
    }
    first = max(map(len, rows))
    cells = zip(ways, *rows.values(), strict=True)
    widths = [2 + max(map(len, column)) for column in cells]
    print("\n" + " " * first + _aligned(ways, widths))
    for name, row in rows.items():
        print(f"{name.replace('_', ' '):{first}}{_aligned(row, widths)}")


def text(value) -> str:
    """A figure with four digits, or all of them before its point."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _aligned(cells, widths: list[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _left_out(name: str, value) -> bool:
    return value is None or name in _LEFT_OUT or name.endswith("_all")
