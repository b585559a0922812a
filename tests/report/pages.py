"""Runs made of nothing to be reported on, and pages taken apart."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from tests import goldens
from tests.saved import golden_config, save_checkpoint
from xtra_jax.training.telemetry import MetricWriter

_VOID = {"meta", "link", "img", "br", "input"}


def make_run(workdir: Path, *, metrics: bool = True, images: bool = True, **changes) -> Path:
    """A run of the golden model over a folder of noise, with one checkpoint, at step 1."""
    folder = workdir.parent / f"{workdir.name}_images"
    if images:
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (9, 70, 66, 3), dtype=np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{i}.png")
    data = {"data.dataset": "folder", "data.data_dir": str(folder), "data.eval_split": ""}
    config = golden_config(**(data | changes))
    params = goldens.params_of("B_tiny_block_hot", goldens.tiny_spec())
    save_checkpoint(workdir, config, params)
    if metrics:
        with MetricWriter(workdir) as writer:
            for step in range(10, 460, 10):
                writer.write(step, {"loss": 5 / step, "lr": 1e-3, "images_per_s": 100 + step})
            writer.write(450, {"validation/loss": 0.0123})
    return workdir


class Page(HTMLParser):
    """What is on a page.

    Attributes:
        tags: (name, attributes) of every element, in order.
        text: all text outside of the style, with single spaces.
        unbalanced: tags that close nothing, or are not closed.
    """

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.source = source
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.unbalanced: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(source)
        self.close()
        self.unbalanced += self._open
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if "style" not in self._open:
            self._text.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def charts(self) -> list[str]:
        """What every chart says to those who cannot see it."""
        return [a["aria-label"] for a in self.of("svg") if a.get("role") == "img"]
