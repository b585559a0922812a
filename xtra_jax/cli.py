"""The front door: `xtra COMMAND`, one subcommand per job.

Every command's modules are imported when it runs, so that `xtra --help` and mistakes in a command
line answer at once. What the user got wrong is one sentence on stderr and exit code 2; a run that
fails is one sentence and exit code 1.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence

from xtra_jax.errors import RunFailed, UserError

DOES_NOT_FIT = 3  # exit code of a plan whose program the chips have no memory for
_RESUMABLE = (["pretrain"], ["demo"], ["prepare"])
_OVERRIDES = "any config key can be given as --config.KEY=VALUE, e.g. --config.batch_size=1024"


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
        resumes = "; the same command continues the run" if command in _RESUMABLE else ""
        return 130, f"\nxtra: interrupted{resumes}"
    return None


def _run(argv: list[str]) -> int:
    from xtra_jax.config import split_overrides

    overrides, rest = split_overrides(argv)
    args = _parser().parse_args(rest)
    if overrides and "config" not in args:
        raise UserError(
            f"xtra {args.command} takes no config, so --config.{next(iter(overrides))} "
            "would change nothing"
        )
    return args.run(args, overrides) or 0


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
        from xtra_jax.training.pretrain import pretrain

        outcome = pretrain(_load(args, overrides, "pretrain"), args.workdir, stop=stop)
    if _first(group):
        _tell(_said_of(outcome, args.workdir))
    return args.stopped_exit_code if outcome.stopped_by else 0


def _said_of(outcome, workdir: str) -> str:
    if outcome.stopped_by:
        return outcome.stopped()
    return f"checkpoints and metrics are in {workdir}"


def _probe(args, overrides) -> None:
    if args.checkpoint:
        overrides["checkpoint"] = args.checkpoint
    with _joined(args) as group:
        from xtra_jax.probing.job import probe, summary

        histories = probe(_load(args, overrides, "probe"), args.out)
    if _first(group):
        _tell(summary(histories))


def _reconstruct(args, overrides) -> None:
    from xtra_jax.reconstruct import reconstruct

    print(
        reconstruct(args.checkpoint, args.out, images=args.images, count=args.count, step=args.step)
    )


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
    from xtra_jax.plan.job import plan, write
    from xtra_jax.plan.report import describe

    found = plan(
        _load(args, overrides, "plan"),
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


def _demo(args, overrides) -> None:
    from xtra_jax.demo import demo

    _tell(demo(_load(args, overrides, "demo"), args.workdir))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="xtra", description="Pretrain and probe autoregressive vision models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def takes_config(sub, default=None):
        sub.epilog = _OVERRIDES
        sub.add_argument(
            "--config",
            default=default,
            required=default is None,
            metavar="FILE.py[:NAME]",
            help=f"the experiment{f' ({default})' if default else ''}",
        )

    def takes_checkpoint(sub, required=True):
        sub.add_argument(
            "--checkpoint",
            required=required,
            metavar="DIR",
            help="a run's working directory, or one of its checkpoints",
        )

    def takes_processes(sub):
        group = sub.add_argument_group(
            "runs of several processes",
            "The same command is started once per process. On TPU pods, under Slurm's srun and "
            "with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the "
            "environment they find each other without these.",
        )
        group.add_argument(
            "--coordinator", metavar="HOST:PORT", help="host of process 0, and a free port on it"
        )
        group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
        group.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")
        group.add_argument(
            "--start_timeout",
            type=float,
            default=300.0,
            metavar="SECONDS",
            help="how long they wait for each other at the start (300)",
        )

    sub = command("pretrain", _pretrain, "Train; continue by itself when WORKDIR holds a run.")
    takes_config(sub)
    sub.add_argument("--workdir", required=True, metavar="DIR", help="where the run is kept")
    sub.add_argument(
        "--stopped_exit_code",
        type=int,
        default=0,
        metavar="N",
        help="exit code after SIGTERM or SIGUSR1, which save a checkpoint and end the run (0)",
    )
    takes_processes(sub)

    sub = command("probe", _probe, "Train probes on a frozen encoder and write their accuracies.")
    takes_config(sub)
    takes_checkpoint(sub, required=False)
    sub.add_argument(
        "--out",
        default="",
        metavar="FILE.json",
        help="results (probes/NAME.json in the run's working directory)",
    )
    takes_processes(sub)

    sub = command("reconstruct", _reconstruct, "Draw what a model predicts for each block.")
    takes_checkpoint(sub)
    sub.add_argument("--step", type=int, help="which checkpoint of the run (the newest)")
    sub.add_argument("--images", default="", metavar="DIR", help="a folder (the held-out images)")
    sub.add_argument("--count", type=int, default=8, help="how many images (8)")
    sub.add_argument("--out", default="reconstruction.png", metavar="FILE.png")

    sub = command(
        "inspect",
        _inspect,
        "Show what the model will see, of a pretraining or a probe: samples with their labels and "
        "blocks, classes, pixel statistics, unusable images, and how fast all this comes in.",
    )
    takes_config(sub)
    takes_checkpoint(sub, required=False)
    sub.add_argument("--out", default="", metavar="DIR", help="pictures, figures (inspect/NAME)")
    sub.add_argument("--count", type=int, default=24, help="how many samples to draw (24)")
    sub.add_argument(
        "--seconds", type=float, default=5.0, help="how long to look at each of three things (5)"
    )
    sub.add_argument(
        "--workdir", default="", metavar="DIR", help="a run to compare the input's speed with"
    )

    sub = command(
        "plan",
        _plan,
        "Compile a run's train step for accelerators that aren't here, and say whether it fits "
        f"(exit code {DOES_NOT_FIT} if not), what it needs and how long the run takes at least.",
    )
    takes_config(sub)
    sub.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:8x8, v5p:2x2x4, h100:8, ... (one that does not exist lists all)",
    )
    sub.add_argument("--out", default="", metavar="FILE.json", help="write all figures there too")
    sub.add_argument(
        "--largest_batch",
        action="store_true",
        help="find the largest batch that fits, compiling twice more or so",
    )
    sub.add_argument(
        "--examples", type=int, metavar="N", help="training images, where they are not known"
    )

    sub = command("prepare", _prepare, "Build a data set as ArrayRecord, or list what can be.")
    sub.add_argument("--dataset", default="", metavar="NAME", help="which data set")
    sub.add_argument("--list", action="store_true", help="show all, and which are ready in DIR")
    sub.add_argument(
        "--data_dir",
        "--data-dir",
        default="",
        metavar="DIR",
        help="root of the data sets, also gs://... ($TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    sub.add_argument(
        "--archives",
        default="",
        metavar="DIR",
        help="the folder with what was fetched by hand (downloads/manual in --data_dir)",
    )
    sub.add_argument(
        "--max_side",
        "--max-side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="shrink larger images to this longer side, as the data set NAME/max_side_PIXELS",
    )
    sub.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (as many as cores)"
    )
    sub.add_argument(
        "--partial",
        action="store_true",
        help="take a source as it is: leave out what is missing, compare no counts and checksums",
    )

    sub = command("demo", _demo, "Pretrain, probe and draw on real digits, in minutes on a CPU.")
    takes_config(sub, default="configs/demo.py")
    sub.add_argument("--workdir", default="runs/demo", metavar="DIR", help="(runs/demo)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
