"""What the pictures have in common: colours, text that fits its place, a heading."""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (30, 32, 36)
FAINT: Color = (118, 122, 130)
LINE: Color = (214, 217, 222)
BORDER: Color = (255, 170, 0)  # of blocks
ERASED: Color = (0, 190, 255)
BROKEN: Color = (190, 40, 40)
BAR: Color = (58, 110, 165)
MARGIN = 20
TEXT = 14
SMALL = 12
_TITLE = 20
_LEADING = 6


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def sheet(
    width: int, height: int, title: str, lines: list[str]
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A white page of that much room below its heading.

    Returns:
        The page, a pen for it, and where the room begins.
    """
    wrapped = [part for line in lines for part in wrap(line, TEXT, width - 2 * MARGIN)]
    top = MARGIN + _TITLE + 2 * _LEADING + len(wrapped) * (TEXT + _LEADING) + _LEADING
    page = Image.new("RGB", (width, top + height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 4), title, fill=INK, font=font(_TITLE))
    for i, line in enumerate(wrapped):
        y = MARGIN + _TITLE + _LEADING + i * (TEXT + _LEADING)
        pen.text((MARGIN, y), line, fill=FAINT, font=font(TEXT))
    return page, pen, top


def wrap(line: str, size: int, width: int) -> list[str]:
    """A line broken between words so that each part fits the width."""
    parts, current = [], ""
    for word in line.split(" "):
        longer = f"{current} {word}" if current else word
        if current and font(size).getlength(longer) > width:
            parts.append(current)
            longer = word
        current = longer
    return [*parts, current]


def fitted(text: str, size: int, width: int, *, keep_end: bool = False) -> str:
    """The text, shortened where it is wider; of a path the end says more than the beginning."""
    measure = font(size).getlength
    if measure(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = "..." + text[-length:] if keep_end else text[:length] + "..."
        if measure(short) <= width:
            return short
    return ""
