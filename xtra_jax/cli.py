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
_RESUMABLE = (["pretrain"], ["demo"])
# Commands that may change keys of the config that describes their weights.
_OF_WEIGHTS = ("import", "features", "evaluate", "export")
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

        config = _load(args, overrides, "probe")
        histories = probe(config, args.out, encoder_config=args.encoder_config)
    if _first(group):
        _tell(summary(histories))


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
            metavar="PATH",
            help="a run's working directory, one of its checkpoints, or a file of weights",
        )

    def takes_config_of_weights(sub):
        sub.add_argument(
            "--config",
            metavar="FILE.py[:NAME]",
            help="the pretraining config of a file of weights, where they don't tell enough",
        )
        sub.add_argument("--step", type=int, help="which checkpoint of a run (the newest)")

    def takes_images(sub):
        sub.epilog = (
            "any key of the checkpoint's config can be given as --config.KEY=VALUE, e.g. "
            "--config.data.data_dir=/data, --config.mesh.fsdp=8 or --config.model.dtype=bfloat16"
        )
        sub.add_argument(
            "--images", nargs="+", metavar="PATH", help="a folder, image files, or an array (.npy)"
        )
        sub.add_argument(
            "--dataset", default="", metavar="NAME", help="or a data set (the run's held-out one)"
        )
        sub.add_argument("--split", default="", metavar="NAME", help="of a folder or a data set")
        sub.add_argument(
            "--batch_size",
            type=int,
            default=0,
            metavar="N",
            help="images at once, over all devices (32 for each)",
        )
        sub.add_argument(
            "--image_size",
            type=int,
            default=0,
            metavar="PIXELS",
            help="another size than the model was trained on; its positions are resized",
        )

    def takes_features(sub):
        sub.add_argument(
            "--last_layers",
            type=int,
            default=1,
            metavar="N",
            help="the mean of the last N layers (1)",
        )
        sub.add_argument("--norm", action="store_true", help="apply the encoder's final LayerNorm")
        sub.add_argument(
            "--tokens", action="store_true", help="every token, in raster order, not their mean"
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
    sub.add_argument(
        "--encoder_config",
        default="",
        metavar="FILE.py[:NAME]",
        help="the pretraining config of a file of weights, where they don't tell enough",
    )
    takes_processes(sub)

    sub = command("features", _features, "Write a frozen encoder's features of images to a file.")
    takes_checkpoint(sub)
    takes_config_of_weights(sub)
    takes_images(sub)
    sub.add_argument("--out", required=True, metavar="FILE.npz", help="or FILE.safetensors")
    takes_features(sub)
    sub.add_argument("--dtype", default="float32", metavar="NAME", help="or float16 (float32)")
    takes_processes(sub)

    sub = command(
        "evaluate", _evaluate, "The pretraining loss of any checkpoint on any images, in float32."
    )
    takes_checkpoint(sub)
    takes_config_of_weights(sub)
    takes_images(sub)
    sub.add_argument("--per_image", action="store_true", help="every image's own loss, too")
    sub.add_argument(
        "--probe",
        nargs="?",
        const="",
        metavar="DIR",
        help="the accuracy of the probe that came with an imported encoder, on labelled images",
    )
    sub.add_argument("--out", default="", metavar="FILE.json", help="write all of it there")
    takes_processes(sub)

    sub = command("reconstruct", _reconstruct, "Draw what a model predicts for each block.")
    takes_checkpoint(sub)
    takes_config_of_weights(sub)
    sub.add_argument("--images", default="", metavar="DIR", help="a folder (the held-out images)")
    sub.add_argument("--count", type=int, default=8, help="how many images (8)")
    sub.add_argument("--out", default="reconstruction.png", metavar="FILE.png")

    sub = command(
        "import",
        _import,
        "Make a checkpoint of a file of weights from elsewhere. Nothing in the file is run.",
    )
    sub.epilog = _OVERRIDES
    sub.add_argument("file", metavar="FILE", help="PyTorch's .ckpt, .pt or .pth, or .safetensors")
    sub.add_argument("--out", required=True, metavar="DIR", help="the directory to make")
    sub.add_argument(
        "--config",
        metavar="FILE.py[:NAME]",
        help="a pretraining config to hold the tensors against, where they don't tell enough",
    )
    sub.add_argument(
        "--leave_out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="tensors to pass over, such as 'teacher.*'; several times for several",
    )
    sub.add_argument(
        "--probe_heads", type=int, default=16, metavar="N", help="of a probe in the file (16)"
    )
    sub.add_argument(
        "--probe_layers",
        type=int,
        default=6,
        metavar="N",
        help="the encoder's last layers whose mean a probe in the file takes (6)",
    )

    sub = command("export", _export, "Write weights, or a program, for use elsewhere.")
    takes_checkpoint(sub)
    takes_config_of_weights(sub)
    sub.epilog = _OVERRIDES
    sub.add_argument(
        "--format",
        required=True,
        metavar="NAME",
        help="safetensors (this package's names), published (PyTorch), timm, or stablehlo",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    sub.add_argument(
        "--dtype", default="float32", metavar="NAME", help="or bfloat16, or float16 (float32)"
    )
    sub.add_argument(
        "--container", default="", metavar="NAME", help="published: safetensors or pt only (both)"
    )
    takes_features(sub)
    sub.add_argument("--overwrite", action="store_true", help="replace an export that is there")

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

    sub = command("demo", _demo, "Pretrain, probe and draw on real digits, in minutes on a CPU.")
    takes_config(sub, default="configs/demo.py")
    sub.add_argument("--workdir", default="runs/demo", metavar="DIR", help="(runs/demo)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
