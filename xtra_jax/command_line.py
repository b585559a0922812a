"""The commands of `xtra` and their arguments, without what they do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from xtra_jax.errors import UserError

DOES_NOT_FIT = 3  # exit code of a plan whose program the chips have no memory for
_OVERRIDES = "any config key can be given as --config.KEY=VALUE, e.g. --config.batch_size=1024"


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def make_parser(runs: Mapping[str, Callable]) -> argparse.ArgumentParser:
    """The whole command line; the arguments of a command hold its function as `run`.

    Args:
        runs: what each command runs, by its name.
    """
    parser = Parser(prog="xtra", description="Pretrain and probe autoregressive vision models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=runs[name])
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

    def can_be_stopped(sub):
        sub.add_argument(
            "--stopped_exit_code",
            type=int,
            default=0,
            metavar="N",
            help="exit code after SIGTERM or SIGUSR1, which save a checkpoint and end the run (0)",
        )

    sub = command("pretrain", "Train; continue by itself when WORKDIR holds a run.")
    takes_config(sub)
    sub.add_argument("--workdir", required=True, metavar="DIR", help="where the run is kept")
    can_be_stopped(sub)
    takes_processes(sub)

    sub = command(
        "probe",
        "Train probes on a frozen encoder and write their accuracies, of one data set or of "
        "several one after another; continue by itself where OUT holds what was begun. With "
        "--config.kind=few_shot or --config.kind=knn nothing is trained.",
    )
    takes_config(sub)
    takes_checkpoint(sub, required=False)
    sub.add_argument(
        "--out",
        default="",
        metavar="DIR",
        help="where results are kept (probes/NAME in the run's working directory)",
    )
    can_be_stopped(sub)
    sub.add_argument(
        "--encoder_config",
        default="",
        metavar="FILE.py[:NAME]",
        help="the pretraining config of a file of weights, where they don't tell enough",
    )
    takes_processes(sub)

    sub = command("features", "Write a frozen encoder's features of images to a file.")
    takes_checkpoint(sub)
    takes_config_of_weights(sub)
    takes_images(sub)
    sub.add_argument("--out", required=True, metavar="FILE.npz", help="or FILE.safetensors")
    takes_features(sub)
    sub.add_argument("--dtype", default="float32", metavar="NAME", help="or float16 (float32)")
    takes_processes(sub)

    sub = command("evaluate", "The pretraining loss of any checkpoint on any images, in float32.")
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

    sub = command("reconstruct", "Draw what a model predicts for each block.")
    takes_checkpoint(sub)
    takes_config_of_weights(sub)
    sub.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="a folder, image files or an array .npy (the held-out images)",
    )
    sub.add_argument("--count", type=int, default=8, help="how many images (8)")
    sub.add_argument("--out", default="reconstruction.png", metavar="FILE.png")

    sub = command(
        "inspect",
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
        "import",
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

    sub = command("export", "Write weights, or a program, for use elsewhere.")
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

    sub = command(
        "report",
        "Put what is known of a run on one HTML page: curves, pictures, probes, config, hashes.",
    )
    sub.add_argument("workdir", metavar="RUN", help="the run's working directory")
    sub.add_argument("--out", default="", metavar="FILE.html", help="(report.html in RUN)")

    sub = command("prepare", "Build a data set as ArrayRecord, or list what can be.")
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
        help="take a source, or a prepared set, as it is: compare no counts and checksums",
    )

    sub = command("demo", "Pretrain, probe and draw on real digits, in minutes on a CPU.")
    takes_config(sub, default="configs/demo.py")
    sub.add_argument("--workdir", default="runs/demo", metavar="DIR", help="(runs/demo)")
    return parser
