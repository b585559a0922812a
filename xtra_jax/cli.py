"""The front door: `xtra COMMAND`, one subcommand per job.

Every command's modules are imported when it runs, so that `xtra --help` and mistakes in a command
line answer at once. What the user got wrong is one sentence on stderr and exit code 2; a run that
fails is one sentence and exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from xtra_jax.errors import RunFailed, UserError

_RESUMABLE = (["pretrain"], ["demo"])
_OVERRIDES = "any config key can be given as --config.KEY=VALUE, e.g. --config.batch_size=1024"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except UserError as error:
        print(f"xtra: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"xtra: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = "; the same command continues the run" if argv[:1] in _RESUMABLE else ""
        print(f"\nxtra: interrupted{resumes}", file=sys.stderr)
        return 130


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


def _pretrain(args, overrides) -> None:
    from xtra_jax.training.pretrain import pretrain

    pretrain(_load(args, overrides, "pretrain"), args.workdir)
    print(f"checkpoints and metrics are in {args.workdir}")


def _probe(args, overrides) -> None:
    from xtra_jax.probing.job import probe, summary

    if args.checkpoint:
        overrides["checkpoint"] = args.checkpoint
    print(summary(probe(_load(args, overrides, "probe"), args.out)))


def _reconstruct(args, overrides) -> None:
    from xtra_jax.reconstruct import reconstruct

    print(
        reconstruct(args.checkpoint, args.out, images=args.images, count=args.count, step=args.step)
    )


def _demo(args, overrides) -> None:
    from xtra_jax.demo import demo

    print(demo(_load(args, overrides, "demo"), args.workdir))


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

    sub = command("pretrain", _pretrain, "Train; continue by itself when WORKDIR holds a run.")
    takes_config(sub)
    sub.add_argument("--workdir", required=True, metavar="DIR", help="where the run is kept")

    sub = command("probe", _probe, "Train probes on a frozen encoder and write their accuracies.")
    takes_config(sub)
    takes_checkpoint(sub, required=False)
    sub.add_argument(
        "--out",
        default="",
        metavar="FILE.json",
        help="results (probes/NAME.json in the run's working directory)",
    )

    sub = command("reconstruct", _reconstruct, "Draw what a model predicts for each block.")
    takes_checkpoint(sub)
    sub.add_argument("--step", type=int, help="which checkpoint of the run (the newest)")
    sub.add_argument("--images", default="", metavar="DIR", help="a folder (the held-out images)")
    sub.add_argument("--count", type=int, default=8, help="how many images (8)")
    sub.add_argument("--out", default="reconstruction.png", metavar="FILE.png")

    sub = command("demo", _demo, "Pretrain, probe and draw on real digits, in minutes on a CPU.")
    takes_config(sub, default="configs/demo.py")
    sub.add_argument("--workdir", default="runs/demo", metavar="DIR", help="(runs/demo)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
