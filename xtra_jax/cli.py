"""The front door: `xtra COMMAND`, one subcommand per job.

Every command's modules are imported when it runs, so that `xtra --help` and mistakes in a command
line answer at once. What the user got wrong is one sentence on stderr and exit code 2; a run that
fails is one sentence and exit code 1.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence

from xtra_jax.command_line import DOES_NOT_FIT, make_parser
from xtra_jax.errors import RunFailed, UserError

# What the same command continues after an interruption.
_CONTINUED = {"pretrain": " the run", "probe": " it", "demo": " the run", "prepare": ""}
# Commands that may change keys of the config that describes their weights.
_OF_WEIGHTS = ("import", "features", "evaluate", "export")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        code, sentence = _described(error, argv[:1])
        print(sentence, file=sys.stderr)
        return code


def _described(error: BaseException, command: list[str]) -> tuple[int, str] | None:
    """The exit code and the sentence of an error that is not a mistake in this program."""
    if isinstance(error, (UserError, RunFailed)):
        return 2 if isinstance(error, UserError) else 1, f"xtra: {error}"
    if isinstance(error, KeyboardInterrupt):
        continued = _CONTINUED.get(command[0]) if command else None
        resumes = f"; the same command continues{continued}" if continued is not None else ""
        return 130, f"\nxtra: interrupted{resumes}"
    return None


def _run(argv: list[str]) -> int:
    from xtra_jax.config import split_overrides

    overrides, rest = split_overrides(argv)
    args = make_parser(_RUNS).parse_args(rest)
    if overrides and not _takes_overrides(args):
        raise UserError(
            f"xtra {args.command} takes no config, so --config.{next(iter(overrides))} "
            "would change nothing"
        )
    return args.run(args, overrides) or 0


def _takes_overrides(args) -> bool:
    """Whether there is a config to change: one that is named, or what describes the weights."""
    if "config" not in args:
        return False
    file = os.path.isfile(getattr(args, "checkpoint", "") or "")
    return args.config is not None or args.command in _OF_WEIGHTS or file


def _load(args, overrides, job: str):
    """The config of a job: that of a probe for "probe", else that of a pretraining run."""
    from xtra_jax.config import load

    config = load(args.config, overrides)
    kind = "probe" if "probe" in config else "pretraining"
    if (kind == "probe") != (job == "probe"):
        right = "configs/probe.py:NAME" if job == "probe" else "one of configs/pretrain/"
        raise UserError(f"{args.config} is a {kind} config, and xtra {job} needs {right}")
    return config


def _joined(args):
    """Among the other processes of a run that has several; gives the group of them, or None."""
    from xtra_jax.parallel.processes import find_place, joined

    place = find_place(args.coordinator, args.num_processes, args.process_id)
    describe = functools.partial(_described, command=[args.command])
    return joined(place, describe, args.start_timeout)


def _tell(text: str) -> None:
    """Prints a result, unless the terminal is gone: that makes no failure of what was done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would find the pipe broken once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _first(group) -> bool:
    """Whether this process is the one that speaks for all."""
    return group is None or group.place.process_id == 0


def _pretrain(args, overrides) -> int:
    from xtra_jax.training.stopping import Stop

    with Stop(args.stopped_exit_code) as stop, _joined(args) as group:
        stop.share(group)
        config = _load(args, overrides, "pretrain")
        from xtra_jax.probing.signals import make_signals
        from xtra_jax.training.pretrain import pretrain

        outcome = pretrain(config, args.workdir, stop=stop, signals=make_signals)
    if _first(group):
        _tell(_said_of(outcome, args.workdir))
    return args.stopped_exit_code if outcome.stopped_by else 0


def _said_of(outcome, workdir: str) -> str:
    if outcome.stopped_by:
        return outcome.stopped()
    return f"checkpoints and metrics are in {workdir}"


def _probe(args, overrides) -> int:
    from xtra_jax.training.stopping import Stop

    if args.checkpoint:
        overrides["checkpoint"] = args.checkpoint
    with Stop(args.stopped_exit_code) as stop, _joined(args) as group:
        stop.share(group)
        config = _load(args, overrides, "probe")
        from xtra_jax.probing import study, training_free

        named = {"out": args.out, "encoder_config": args.encoder_config}
        if config.kind in training_free.KINDS:
            studied = training_free.measure_all(args.config, overrides, **named)
            said = training_free.describe(studied)
        else:
            studied = study.probe_all(args.config, overrides, stop=stop, **named)
            said = study.describe(studied)
    if _first(group):
        _tell(said)
    if studied.stopped:
        return args.stopped_exit_code
    studied.check_complete()
    return 0


def _reconstruct(args, overrides) -> None:
    from xtra_jax.reconstruct import reconstruct

    written = reconstruct(
        args.checkpoint,
        args.out,
        images=args.images,
        count=args.count,
        step=args.step,
        config=args.config or "",
        overrides=overrides,
    )
    _tell(written)


def _features(args, overrides) -> None:
    with _joined(args) as group:
        from xtra_jax.features.job import SETTINGS, extract_features
        from xtra_jax.probing.features import FeatureSpec

        opened, source, described = _opened(args, overrides, SETTINGS)
        written = extract_features(
            opened,
            source,
            args.out,
            FeatureSpec(args.last_layers, pool=not args.tokens, norm=args.norm, raster=args.tokens),
            described_as=described,
            dtype=args.dtype,
            image_size=args.image_size,
            batch_size=args.batch_size,
        )
    if _first(group):
        _tell(written.described())


def _evaluate(args, overrides) -> None:
    with _joined(args) as group:
        from xtra_jax.evaluate import SETTINGS, describe, evaluate, write
        from xtra_jax.interop.open_checkpoint import open_probe
        from xtra_jax.probing.results import check_writable

        if args.out and _first(group):
            check_writable(args.out)
        opened, source, described = _opened(args, overrides, SETTINGS)
        found = evaluate(
            opened,
            source,
            described_as=described,
            per_image=args.per_image,
            batch_size=args.batch_size,
            image_size=args.image_size,
            probe=None if args.probe is None else open_probe(opened, args.probe),
        )
        if _first(group) and args.out:
            write(found, args.out)
    if _first(group):
        _tell(describe(found))


def _import(args, overrides) -> None:
    from xtra_jax.interop.imported import check_free, describe, write_checkpoint
    from xtra_jax.interop.importer import import_weights

    check_free(args.out)
    imported = import_weights(
        args.file,
        args.config,
        overrides,
        leave_out=args.leave_out,
        probe_heads=args.probe_heads,
        probe_layers=args.probe_layers,
    )
    _tell(describe(imported, write_checkpoint(imported, args.out)))


def _export(args, overrides) -> None:
    from xtra_jax.export.job import export
    from xtra_jax.probing.features import LINEAR, FeatureSpec

    asked = FeatureSpec(args.last_layers, pool=not args.tokens, norm=args.norm, raster=args.tokens)
    written = export(
        args.checkpoint,
        args.out,
        args.format,
        dtype=args.dtype,
        containers=(args.container,) if args.container else (),
        features=None if asked == LINEAR else asked,
        config=args.config or "",
        overrides=overrides,
        step=args.step,
        overwrite=args.overwrite,
    )
    _tell(written)


def _opened(args, overrides, settings):
    """The checkpoint that a command line names, its images, and what to call these."""
    from xtra_jax.interop.open_checkpoint import open_checkpoint
    from xtra_jax.training.one_pass import chosen_images

    opened = open_checkpoint(
        args.checkpoint,
        config=args.config or "",
        overrides=overrides,
        settings=settings,
        step=args.step,
    )
    return opened, *chosen_images(opened.config, args.images or (), args.dataset, args.split)


def _inspect(args, overrides) -> None:
    from xtra_jax.config import load
    from xtra_jax.inspection.job import inspect
    from xtra_jax.inspection.report import describe

    config = load(args.config, overrides)
    if args.checkpoint and "probe" not in config:
        raise UserError(
            f"--checkpoint names the encoder of a probe, and {args.config} is a pretraining config"
        )
    if args.checkpoint:
        config.checkpoint = args.checkpoint
    found = inspect(
        config,
        args.out,
        count=args.count,
        seconds=args.seconds,
        workdir=args.workdir,
    )
    _tell(describe(found))


def _plan(args, overrides) -> int:
    config = _load(args, overrides, "plan")
    from xtra_jax.plan.job import plan, write
    from xtra_jax.plan.report import describe

    found = plan(
        config,
        args.topology,
        largest=args.largest_batch,
        examples=args.examples,
    )
    _tell(describe(found))
    if args.out:
        write(found, args.out)
    return 0 if found["fits"] else DOES_NOT_FIT


def _prepare(args, overrides) -> None:
    if args.list:
        from xtra_jax.data.prepare.listing import listing

        _tell(listing(args.data_dir))
        return
    if not args.dataset:
        raise UserError("name a data set with --dataset; `xtra prepare --list` shows them all")
    from xtra_jax.data.prepare.job import prepare, wanted_name

    directory = prepare(
        args.dataset,
        args.data_dir,
        archives=args.archives,
        max_side=args.max_side,
        workers=args.workers,
        partial=args.partial,
    )
    name = wanted_name(args.dataset, args.max_side)
    _tell(f"{name} is ready in {directory}; --config.data.dataset={name} reads it")


def _report(args, overrides) -> None:
    from xtra_jax.report.job import report

    _tell(report(args.workdir, args.out))


def _demo(args, overrides) -> None:
    config = _load(args, overrides, "demo")
    from xtra_jax.demo import demo

    _tell(demo(config, args.workdir))


_RUNS = {
    "prepare": _prepare,
    "pretrain": _pretrain,
    "probe": _probe,
    "reconstruct": _reconstruct,
    "features": _features,
    "evaluate": _evaluate,
    "inspect": _inspect,
    "import": _import,
    "export": _export,
    "plan": _plan,
    "report": _report,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
