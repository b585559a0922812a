"""The whole path on real images in minutes: pretrain, probe, draw, and an honest table."""

from __future__ import annotations

import statistics
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import load, model_spec
from xtra_jax.data.decode import decode
from xtra_jax.data.sources import open_source
from xtra_jax.errors import UserError
from xtra_jax.model.xtra import init_params
from xtra_jax.probing.baselines import logistic_regression_accuracy, nearest_neighbour_accuracy
from xtra_jax.probing.job import Encoder, probe_encoder
from xtra_jax.probing.results import best_head
from xtra_jax.probing.signals import make_signals
from xtra_jax.reconstruct import reconstruct
from xtra_jax.training.pretrain import Outcome, pretrain
from xtra_jax.training.stopping import Stop
from xtra_jax.training.storage import absolute
from xtra_jax.training.telemetry import read_metrics

# The study of the digits tries nine: a few of them are enough to see, and keep the demo short.
RATES = (3e-3, 1e-2, 3e-2)


def demo(config: ConfigDict, workdir: str) -> str:
    """Pretrains on the config's data set and probes the encoder beside an untrained one.

    Args:
        config: a pretraining config on a small labelled data set, which is kept in the workdir.

    Returns:
        The table, as text; or a sentence where the pretraining was stopped (see `Stop`).
    """
    run = Path(workdir)
    config.data.data_dir = config.data.data_dir or str(run.absolute() / "data")
    probe_config = probe_config_of(config)
    spec = model_spec(config)
    print(f"pretraining in {run}", flush=True)
    with Stop() as stop:
        trained = pretrain(config, workdir, stop=stop, signals=make_signals, show_parameters=False)
    if trained.stopped_by:
        return trained.stopped()

    encoders = {
        "pretrained": trained.state.params,
        "untrained": init_params(spec, jax.random.key(config.seed)),
    }
    accuracy = {}
    for name, params in encoders.items():
        print(f"probing the {name} encoder", flush=True)
        encoder = Encoder.of(params, config, f"{run.name} ({name})")
        folder = probe_folder(run, name, trained.step)
        histories = probe_encoder(probe_config, encoder, folder).results.histories
        accuracy[name] = {
            kind: best_head(histories, kind).test.accuracy for kind in ("linear", "attentive")
        }
    picture = reconstruct(workdir, str(run / "reconstruction.png"))
    return table(accuracy, pixel_baselines(config), trained, picture, run)


def probe_config_of(config: ConfigDict) -> ConfigDict:
    """The probe of the digits for an encoder of this config.

    Raises:
        UserError: the config is of something else than the digits; said before anything is trained.
    """
    changes = {"data.data_dir": config.data.data_dir, "rates": RATES}
    probe = load("configs/probe.py:digits", changes)
    for key in ("dataset", "eval_split"):
        if config.data[key] != probe.data[key]:
            raise UserError(
                f"the demo needs data.{key}={probe.data[key]}, and the config says "
                f"{config.data[key]!r}: for other data use `xtra pretrain` and `xtra probe`"
            )
    depth = model_spec(config).encoder.depth
    probe.probe.attentive_layers = tuple(min(n, depth) for n in probe.probe.attentive_layers)
    return probe


def probe_folder(run: Path, name: str, step: int) -> epath.Path:
    """Where the demo probes an encoder: each step of the pretrained one has a folder of its own.

    Args:
        name: pretrained or untrained.
        step: how long the pretraining took.
    """
    after = f"_{step}" if name == "pretrained" else ""
    return absolute(run) / "probes" / f"digits_{name}{after}"


def pixel_baselines(config: ConfigDict) -> dict[str, float]:
    """Accuracies of classifiers on the raw pixels of the same split."""

    def arrays(split):
        source = open_source(config.data.dataset, split, config.data.data_dir)
        records = [source[i] for i in range(len(source))]
        images = np.stack([decode(record["image"])[..., 0] for record in records])
        return images, np.array([record["label"] for record in records])

    train, test = arrays(config.data.train_split), arrays(config.data.eval_split)
    return {
        "raw pixels, logistic regression": logistic_regression_accuracy(*train, *test),
        "raw pixels, 5 nearest neighbours": nearest_neighbour_accuracy(*train, *test),
    }


def table(accuracy: dict, baselines: dict, trained: Outcome, picture: str, run: Path) -> str:
    """The results, as a person reads them."""
    speed = statistics.median(m["images_per_s"] for m in read_metrics(run) if "loss" in m)
    lines = [
        "",
        "accuracy on held-out digits            pretrained   untrained",
    ]
    for kind in ("linear", "attentive"):
        pretrained, untrained = accuracy["pretrained"][kind], accuracy["untrained"][kind]
        lines.append(f"  {kind + ' probe':34}{pretrained:12.1%}{untrained:12.1%}")
    for name, value in baselines.items():
        lines.append(f"  {name:34}{value:12.1%}")
    lines += [
        "",
        "  Probes: the best of three learning rates, chosen on these digits. Digits are easy: raw",
        "  pixels do as well. What counts is what pretraining adds to the untrained encoder.",
        "",
        f"  validation loss   {trained.validation['loss']:.4f} after {trained.step} steps",
        f"  pretraining       {speed:.0f} images/s",
        f"  pictures          {picture}",
        f"  checkpoints       {run / 'checkpoints'}",
        f"  metrics           {run / 'metrics.jsonl'}, tensorboard --logdir {run / 'tensorboard'}",
    ]
    return "\n".join(lines)
