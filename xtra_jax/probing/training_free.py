"""Few-shot and nearest neighbours of any checkpoint: what its features tell without training.

It is a probe config with kind=few_shot or kind=knn. Shots and neighbours come from its training
split, and are tried on its evaluation split; the images of both come in as in evaluation, and what
is classified is the mean token of the layers that a linear probe would see.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import load, model_spec, with_encoder_input
from xtra_jax.data.bad_images import BadImages
from xtra_jax.data.sources import Source
from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.probing.cache import cached_features
from xtra_jax.probing.features import FeatureSpec
from xtra_jax.probing.few_shot import few_shot_accuracy
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.job import Encoder, encoder_of, folder_of, open_probed
from xtra_jax.probing.kept import Kept
from xtra_jax.probing.knn import TEMPERATURE, knn_accuracy
from xtra_jax.probing.saves import refuse_others
from xtra_jax.probing.selection import open_images
from xtra_jax.probing.study import Studied, configs_of, left_out
from xtra_jax.training.agreement import check_same_run_everywhere
from xtra_jax.training.recipe import evaluation_transform
from xtra_jax.training.storage import explained, write_text

KINDS = ("few_shot", "knn")
_MEMORY_GIB = 16  # features of one split that are kept in no files


def measure_all(
    argument: str, overrides: Mapping[str, Any], out: str = "", *, encoder_config: str = ""
) -> Studied:
    """Measures the data set of a config, or every one that it names in `datasets`.

    Arguments and errors are those of `xtra_jax.probing.study.probe_all`, and so is what becomes of
    data sets that are not prepared. The results are those of `measure`.
    """
    config = load(argument, overrides)
    opened = open_probed(config, encoder_config)
    folder = folder_of(config, opened, out)
    encoder = encoder_of(opened, folder)
    if not config.datasets:
        return Studied(folder, {config.name: measure(config, encoder, folder)}, {})
    configs = configs_of(argument, config.datasets, overrides)
    missing = left_out(configs)
    found = {
        name: measure(one, encoder, folder / name)
        for name, one in configs.items()
        if name not in missing
    }
    return Studied(folder, found, missing)


def measure(config: ConfigDict, encoder: Encoder, folder: epath.Path) -> dict[str, Any]:
    """Few-shot or k-NN of an encoder, as the config's `kind` says.

    Returns:
        What JSON can hold, which is also written to `few_shot.json` or `knn.json` in the folder:
        `results`, an entry for each of the features and each number of shots or neighbours, and
        what they were measured of and on. Accuracies are from 0 to 1.

    Raises:
        UserError: config, encoder, data and mesh don't fit together; the folder holds the same
            of another encoder or config; or features are too large for memory.
        RunFailed: features are not finite.
    """
    begin = time.monotonic()
    config = with_encoder_input(config, encoder.pretraining)
    path = folder / f"{config.kind}.json"
    if jax.process_index() == 0:
        _refuse_others(path, config, encoder.sha256)
    specs = [
        FeatureSpec(last_layers, pool=True, norm=norm)
        for last_layers, norm in itertools.product(
            config.probe.linear_layers, config.probe.final_norm
        )
    ]
    images = open_images(config)
    mesh = make_mesh(dict(config.mesh))
    check_same_run_everywhere(config, len(images.train), images.digest())
    frozen = FrozenEncoder.of(encoder.params, encoder.sha256, config, encoder.pretraining, mesh)
    for spec in specs:
        spec.check(model_spec(encoder.pretraining).encoder.depth)
    train, test = (
        _features(frozen, specs, source, config, encoder.kept or folder)
        for source in (images.train, images.test)
    )
    results = []
    for spec in specs:
        splits = train.labelled(spec), test.labelled(spec)
        told = {"features": spec.name, "last_layers": spec.last_layers, "final_norm": spec.norm}
        if config.kind == "few_shot":
            accuracies = few_shot_accuracy(*splits, config.data.num_classes)
            results += [
                told | {"shots": k, "accuracy": float(np.mean(draws)), "of_draws": draws.tolist()}
                for k, draws in accuracies.items()
            ]
        else:
            accuracies = knn_accuracy(*splits, config.data.num_classes, mesh=mesh)
            results += [
                told | {"neighbours": k, "temperature": TEMPERATURE, "accuracy": accuracy}
                for k, accuracy in accuracies.items()
            ]
    found = {
        "kind": config.kind,
        "name": config.name,
        "results": results,
        "train_images": int((train.weight > 0).sum()),
        "test_images": int((test.weight > 0).sum()),
        "unreadable": int((train.weight == 0).sum() + (test.weight == 0).sum()),
        "checkpoint": encoder.name,
        "checkpoint_hash": encoder.sha256,
        "seconds": time.monotonic() - begin,
        "config": config.to_dict(),
        "pretraining": encoder.pretraining.to_dict(),
    }
    if jax.process_index() == 0:
        with explained(f"cannot write {path}"):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(found, indent=2, allow_nan=False) + "\n")
    return found


def describe(studied: Studied) -> str:
    """A line for each set and each of its features, and where more is written."""
    lines = []
    for name, found in studied.results.items():
        lines.append(
            f"{name}: {found['test_images']:,} test images, {found['train_images']:,} to take "
            f"{'shots' if found['kind'] == 'few_shot' else 'neighbours'} from"
        )
        for features, results in itertools.groupby(found["results"], lambda r: r["features"]):
            said = "   ".join(map(_said, results))
            lines.append(f"  {features:18} {said}")
        lines.append(f"  {found['kind']}.json is in {studied.folder}")
    return "\n".join(lines)


def _said(result: Mapping[str, Any]) -> str:
    if "neighbours" in result:
        return f"{result['neighbours']} neighbours {result['accuracy']:.2%}"
    shots, draws = result["shots"], result["of_draws"]
    return f"{shots} shot{'s' if shots > 1 else ''} {result['accuracy']:.2%} +- {np.std(draws):.2%}"


def _refuse_others(path: epath.Path, config: ConfigDict, encoder: str) -> None:
    """UserError where a file tells of another encoder or config; a damaged one is written anew."""
    with explained(f"cannot read {path}"):
        text = path.read_text() if path.exists() else "{}"
    try:
        found = json.loads(text)
        theirs = found["config"], found["checkpoint_hash"]
    except (ValueError, LookupError, TypeError):
        return
    refuse_others(path, config=(theirs[0], config), encoder=(theirs[1], encoder))


def _features(
    frozen: FrozenEncoder,
    specs: list[FeatureSpec],
    source: Source,
    config: ConfigDict,
    folder: epath.Path,
) -> Kept:
    """Features of a split: from files, or in memory where they are kept in none.

    Args:
        folder: that files lie with.
    """
    transform = evaluation_transform(config, config.data.image_size)
    how = dict(
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        bad_images=BadImages(),
    )
    kept = cached_features(config, folder, frozen, specs, source, transform, **how)
    if kept is not None:
        return kept
    size = sum(4 * math.prod(frozen.shape(spec, len(source))) for spec in specs) / 2**30
    if size > _MEMORY_GIB:
        raise UserError(
            f"features of {len(source):,} images of {config.name} take {size:.1f} GiB, are not "
            f"kept in files, and in memory at most {_MEMORY_GIB} GiB are: raise "
            f"cache.max_gib={config.cache.max_gib:g} above that, or ask for fewer of "
            "probe.linear_layers and probe.final_norm at once"
        )
    with contextlib.closing(frozen.features(specs, source, transform, **how)) as passed:
        return Kept.collected(source, specs, passed)
