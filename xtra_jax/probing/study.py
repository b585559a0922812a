"""The probes of one data set, or of several one after another: what `xtra probe` does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Container, Iterable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from xtra_jax.config import load, with_encoder_input
from xtra_jax.data.sources import NotPrepared
from xtra_jax.errors import UserError
from xtra_jax.parallel.consensus import text_from_the_first
from xtra_jax.probing.job import (
    Outcome,
    encoder_of,
    folder_of,
    open_probed,
    probe,
    probe_encoder,
)
from xtra_jax.probing.results import RESULTS, Results, read_results
from xtra_jax.probing.saves import find_complete
from xtra_jax.probing.table import make_table, write_tables
from xtra_jax.training.progress import Progress
from xtra_jax.training.recipe import open_eval_source, open_training_source
from xtra_jax.training.stopping import Stop


@dataclasses.dataclass(frozen=True)
class Studied:
    """What a study came to.

    Attributes:
        folder: where it is kept.
        results: of the data sets that are complete, by their names in the study.
        missing: how to prepare those that are not prepared, by their names.
        stopped: the probe that was stopped, where one was.
    """

    folder: epath.Path
    results: dict[str, Results]
    missing: dict[str, str]
    stopped: Outcome | None = None

    def check_complete(self) -> None:
        """UserError where data sets were left out."""
        if self.missing:
            raise UserError(
                f"{len(self.missing)} of {len(self.missing) + len(self.results)} data sets were "
                f"left out because they are not prepared: {', '.join(self.missing)}; each has its "
                "own `xtra prepare` command above, and then the same command continues"
            )


def probe_all(
    argument: str,
    overrides: Mapping[str, Any],
    out: str = "",
    *,
    encoder_config: str = "",
    stop: Stop | None = None,
) -> Studied:
    """Probes the data set of a config, or every one that it names in `datasets`.

    The same again goes on where it was interrupted, and does not repeat what is complete. The
    folder holds the results of the one data set; or a folder for each, and a table over all.

    Of several, those that are neither complete nor prepared are told of at once and left out; a
    folder of one that holds another probe is refused at once. What else is wrong with one of them
    ends the study when its turn comes; what the others came to is kept. The table is over all that
    the folder holds of this encoder, so that a study of fewer data sets takes none out of it.

    Args:
        argument: the config, as `xtra_jax.config.load` takes it. What `datasets` names are other
            names of the same file.
        overrides: of the configs of all data sets.
        out: the folder to write; by default `probes/<name>` in the run's working directory.
        encoder_config: the pretraining config of a file of weights, where they don't tell enough.
        stop: what may end it earlier, with a checkpoint; signals do where it is active.

    Raises:
        UserError, RunFailed: as `xtra_jax.probing.job.probe_encoder`.
    """
    config = load(argument, overrides)
    if not config.datasets:
        one = probe(config, out, encoder_config=encoder_config, stop=stop)
        found = {} if one.results is None else {config.name: one.results}
        return Studied(one.folder, found, {}, None if one.results else one)
    configs = configs_of(argument, config.datasets, overrides)
    opened = open_probed(config, encoder_config)
    folder = folder_of(config, opened, out)
    encoder = encoder_of(opened, folder)
    complete = {}
    for name, one in configs.items():
        one = with_encoder_input(one, encoder.pretraining)
        results = find_complete(folder / name, one, encoder.sha256)
        if results is not None:
            complete[name] = results
    missing = left_out(configs, complete)
    main = jax.process_index() == 0
    others = _others(folder, configs, encoder.sha256) if main else {}
    if complete and main:
        write_tables(folder, _in_order(configs, complete) | others)
    say = Progress(0, active=main)
    stop, asked = stop or Stop(), 0
    present = [name for name in configs if name not in missing]
    for number, name in enumerate(present, start=1):
        say.note(f"probing {name}, {number} of {len(present)}")
        outcome = probe_encoder(configs[name], encoder, folder / name, stop=stop, asked=asked)
        if outcome.results is None:
            return Studied(folder, _in_order(configs, complete), missing, outcome)
        asked = max(asked, outcome.asked)
        if name in complete:
            continue
        complete[name] = outcome.results
        if main:
            write_tables(folder, _in_order(configs, complete) | others)
    return Studied(folder, _in_order(configs, complete), missing)


def configs_of(argument: str, datasets: str, overrides: Mapping[str, Any]) -> dict[str, ConfigDict]:
    """The config of every data set of a study, by its name.

    Raises:
        UserError: one of the names is none, comes twice, or is a study itself.
    """
    path = argument.rpartition(":")[0] or argument
    names = [name.strip() for name in datasets.split(",") if name.strip()]
    overrides = {key: value for key, value in overrides.items() if key != "datasets"}
    configs = {name: load(f"{path}:{name}", overrides) for name in names}
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UserError(f"datasets={datasets} names {repeated} twice: every one is probed once")
    for name, config in configs.items():
        if config.datasets:
            raise UserError(f"datasets={datasets} names {name}, which is a study of several itself")
    return configs


def left_out(configs: Mapping[str, ConfigDict], complete: Container[str] = ()) -> dict[str, str]:
    """How to prepare those data sets that are not there, by their names; tells the user of each.

    To be called by all processes of a run.

    Args:
        complete: those that need not be there, as nothing is left to do with them.

    Raises:
        UserError: another process finds other data sets.
    """
    missing = {}
    for name, config in configs.items():
        if name in complete:
            continue
        try:
            open_training_source(config), open_eval_source(config)
        except NotPrepared as error:
            missing[name] = str(error)
        except UserError:
            continue  # raised again when its turn comes
    _check_same_everywhere(missing)
    say = Progress(0, active=jax.process_index() == 0)
    for name, remedy in missing.items():
        say.note(f"{name} is left out: {remedy}")
    return missing


def describe(studied: Studied) -> str:
    """The table of what is complete, where it is kept, and where it was stopped."""
    lines = []
    if studied.results:
        lines.append(make_table(studied.results).markdown())
        lines.append(f"results.json, tables and pictures are in {studied.folder}")
    if studied.stopped:
        lines.append(studied.stopped.stopped())
    return "\n".join(lines)


def _in_order(configs: Iterable[str], results: Mapping[str, Results]) -> dict[str, Results]:
    return {name: results[name] for name in configs if name in results}


def _others(folder: epath.Path, names: Container[str], encoder: str) -> dict[str, Results]:
    """What a study's folder holds of the encoder besides the data sets of these names."""
    found = {}
    for file in sorted(folder.glob(f"*/{RESULTS}")) if folder.is_dir() else ():
        name = file.parent.name
        if name in names:
            continue
        with contextlib.suppress(UserError):  # of a file that is damaged
            results = read_results(file.parent)
            if results.provenance.checkpoint_hash == encoder:
                found[name] = results
    return found


def _check_same_everywhere(missing: Mapping[str, str]) -> None:
    """UserError where processes of a run find different data sets prepared."""
    names = ",".join(missing)
    if names != text_from_the_first(names):
        raise UserError(
            f"process {jax.process_index()} finds other data sets than process 0 (it lacks "
            f"{', '.join(missing) or 'none'}): give all hosts the same data.data_dir"
        )
