"""Finished studies out of nothing, for the tests of what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xtra_jax.probing.results import Evaluation, History, Provenance, Results, write_results
from xtra_jax.probing.sweep import Setting

RATES = (1e-4, 1e-3, 1e-2)


def make_history(
    rate: float,
    *correct: int,
    kind: str = "linear",
    total: int = 100,
    classes: int = 10,
    weight_decay: float = 0.1,
    last_layers: int = 1,
    final_norm: bool = False,
    loss: float = 0.5,
    test: int | None = None,
) -> History:
    """A head that was evaluated after every epoch of ten steps.

    Args:
        correct: right answers out of `total` at each evaluation.
        test: those on the reported examples; the last of `correct` by default.
    """

    def evaluation(epoch: int, hits: int) -> Evaluation:
        correct5 = (hits + total) // 2 if classes > 5 else None
        return Evaluation(10 * epoch, float(epoch), 0.7, loss, hits, correct5, total)

    evaluations = tuple(evaluation(epoch, hits) for epoch, hits in enumerate(correct, start=1))
    reported = evaluation(len(correct), correct[-1] if test is None else test)
    # The first classes are the easy ones, so that their mean is not the accuracy.
    sizes = np.bincount(np.arange(total) ** 2 % (7 * classes) % classes, minlength=classes)
    hits = np.clip(reported.correct - np.concatenate([[0], np.cumsum(sizes)[:-1]]), 0, sizes)
    group = f"{kind}_last{last_layers}{'_norm' if final_norm else ''}"
    setting = Setting(rate, weight_decay)
    return History(
        group, kind, last_layers, final_norm, setting, evaluations, reported, hits, sizes
    )


def make_results(
    dataset: str = "digits",
    histories: Sequence[History] = (),
    *,
    select: str = "test",
    split: str = "test",
    variant: str = "base",
    unreadable: int = 0,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Results:
    """A study of a set; the heads of `make_histories` by default.

    Args:
        data, model: what else the configs of the study and of the encoder say.
    """
    provenance = Provenance(
        checkpoint="demo, step 450",
        checkpoint_hash="0123456789abcdef" * 4,
        config={
            "name": f"probe_{dataset}",
            "rates": RATES,
            "data": {
                "dataset": dataset,
                "train_split": "train",
                "subset": "",
                "eval_dataset": "",
                "eval_split": split,
                "image_size": 256,
                **(data or {}),
            },
        },
        pretraining={
            "name": "demo",
            "model": {"variant": variant, "patch_size": 16, **(model or {})},
        },
        select=select,
        unreadable=unreadable,
        seconds=12.5,
    )
    return Results(tuple(histories or make_histories()), provenance)


def make_histories(**changes) -> list[History]:
    """Three rates of each kind: the best attentive one is in the middle, the best linear last."""
    attentive = {"kind": "attentive", "last_layers": 6, **changes}
    return [
        *(make_history(r, n - 5, n, **attentive) for r, n in zip(RATES, (80, 91, 87), strict=True)),
        *(make_history(r, n - 5, n, **changes) for r, n in zip(RATES, (60, 71, 79), strict=True)),
    ]


def write_study(folder: Path, config: ConfigDict, encoder: str) -> None:
    """Writes a folder as if the probe of a config were complete.

    Args:
        encoder: SHA-256 of its encoder.
    """
    histories, provenance = make_results(config.data.dataset)
    provenance = dataclasses.replace(provenance, config=config.to_dict(), checkpoint_hash=encoder)
    write_results(folder, histories, provenance)
