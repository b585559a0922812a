"""Every launcher runs the command it was given, word by word, and ends as the run ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.machine import LAUNCH, Machine

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
NAMES = [script.name for script in SCRIPTS]

# What shells like to change: spaces, quotes, variables, globs, and a word with nothing in it.
COMMAND = [
    "pretrain",
    "--config",
    "configs/my experiment.py:it's",
    '--workdir=runs/"quoted" $HOME `date` \\',
    "--config.note=a;b&c|d>e *?[a] {1,2} ~ #",
    "",
]
STOPPED = ["--stopped_exit_code", "85"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def environment_for(machine, script) -> dict[str, str]:
    """What must be set before a launcher runs."""
    if script == "slurm.sh":
        return machine.in_slurm()
    return machine.on_tpu() if script == "tpu_pod.sh" else {}


def launch(machine, script, *words, **variables):
    return machine.run(script, *words, **environment_for(machine, script) | variables)


def sentence(done) -> str:
    """What a launcher that refuses says: one line, on stderr."""
    assert done.returncode != 0
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_shellcheck_finds_nothing(script):
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("script", NAMES)
def test_the_command_arrives_word_by_word(machine, script):
    assert launch(machine, script, *COMMAND).returncode == 0
    more = STOPPED if script == "slurm.sh" else []
    processes = 2 if script in ("slurm.sh", "tpu_pod.sh") else 1
    assert machine.calls("python3") == [["-m", "xtra_jax", *COMMAND, *more]] * processes
    for environment in machine.environments("python3"):
        assert environment["PYTHONPATH"] == str(machine.checkout)


@pytest.mark.parametrize("script", NAMES)
@pytest.mark.parametrize("code", [1, 2, 85, 137])
def test_a_launcher_ends_with_the_exit_code_of_the_run(machine, script, code):
    assert launch(machine, script, "pretrain", EXIT_CODE=str(code)).returncode == code


@pytest.mark.parametrize("script", ["local.sh", "multi_gpu.sh"])
def test_signals_reach_the_run_itself(machine, script):
    process = machine.start(script, "pretrain")
    process.communicate(timeout=60)
    assert machine.process_id("python3") == process.pid


def test_the_command_runs_for_real():
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [LAUNCH / "local.sh", "pretrain", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("usage: xtra pretrain")


@pytest.mark.parametrize("script", NAMES)
def test_what_is_set_beforehand_is_kept(machine, script):
    given = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "JAX_PLATFORMS": "cpu"}
    launch(machine, script, "pretrain", **given, CUDA_VISIBLE_DEVICES="2,3")
    for environment in machine.environments("python3"):
        assert given.items() <= environment.items()
        assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_a_multi_gpu_run_never_falls_back_to_the_cpu(machine):
    launch(machine, "multi_gpu.sh", "pretrain")
    [environment] = machine.environments("python3")
    assert environment["JAX_PLATFORMS"].split(",")[0] == "cuda"
    done = launch(machine, "multi_gpu.sh", "pretrain", NVIDIA_SMI_EXIT_CODE="9")
    assert "finds no GPU" in sentence(done)
    assert len(machine.calls("python3")) == 1


@pytest.mark.parametrize("code", [0, 1, 2, 85, 137])
def test_slurm_requeues_a_run_that_was_stopped_and_no_other(machine, code):
    done = launch(machine, "slurm.sh", "pretrain", EXIT_CODE=str(code))
    assert done.returncode == code
    assert machine.calls("scontrol") == ([["requeue", "Incomplete", "7"]] if code == 85 else [])


def test_slurm_says_when_it_cannot_requeue(machine):
    done = launch(machine, "slurm.sh", "pretrain", EXIT_CODE="85", SCONTROL_EXIT_CODE="1")
    assert "can't be requeued" in sentence(done)


def test_slurm_signals_every_process_in_time_and_not_the_script():
    text = (LAUNCH / "slurm.sh").read_text()
    [signal] = re.findall(r"^#SBATCH --signal=(\S+)", text, re.MULTILINE)
    # "B:" would signal the script alone: https://slurm.schedmd.com/sbatch.html#OPT_signal
    name, seconds = re.fullmatch(r"(\w+)@(\d+)", signal).groups()
    assert name == "USR1"
    assert int(seconds) >= 180
    # Slurm reads directives up to the first command only.
    head = text[: text.index("set -euo pipefail")]
    for option in ("--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"\n#SBATCH {option}\n" in head
    assert f"\n#SBATCH --signal={signal}\n" in head


@pytest.mark.parametrize(
    ("slurm", "devices"),
    [
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}, "0,1,2,3"),
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "1"}, "0"),
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"SLURM_NTASKS_PER_NODE": "1"}, None),
    ],
)
def test_one_process_per_node_drives_all_its_gpus(machine, slurm, devices):
    launch(machine, "slurm.sh", "pretrain", **slurm)
    for environment in machine.environments("python3"):
        assert environment.get("JAX_LOCAL_DEVICE_IDS") == devices


@pytest.mark.parametrize(
    ("command", "asked"),
    [("pretrain", ["--stopped_exit_code", "85"]), ("probe", ["--stopped_exit_code", "85"])]
    + [("features", [])],
)
def test_what_can_be_stopped_and_continued_is_asked_for_an_exit_code(machine, command, asked):
    launch(machine, "slurm.sh", command, "--checkpoint", "runs/b16")
    for words in machine.calls("python3"):
        assert words == ["-m", "xtra_jax", command, "--checkpoint", "runs/b16", *asked]


def test_every_host_of_a_tpu_slice_is_told(machine):
    launch(machine, "tpu_pod.sh", "pretrain")
    [words] = machine.calls("gcloud")
    assert words[:5] == ["compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert words[words.index("--zone") + 1] == "us-east5-b"
    assert words[words.index("--worker") + 1] == "all"


@pytest.mark.parametrize(("script", "program"), [("slurm.sh", "srun"), ("tpu_pod.sh", "gcloud")])
def test_a_dry_run_prints_what_would_run_and_runs_nothing(machine, script, program):
    launch(machine, script, *COMMAND)
    [words] = machine.calls(program)
    for file in machine.notes.iterdir():
        file.unlink()

    for missing in ("srun", "scontrol", "gcloud"):
        machine.remove(missing)
    environment = machine.on_tpu() if script == "tpu_pod.sh" else {}
    done = machine.run(script, "--dry-run", *COMMAND, **environment)
    assert done.returncode == 0
    assert done.stderr == ""
    *rest, printed = done.stdout.splitlines()
    assert all(line.startswith("#") for line in rest)
    assert shlex.split(printed) == [program, *words]
    assert machine.nothing_ran()


@pytest.mark.parametrize(
    ("script", "changed", "words", "says"),
    [
        ("slurm.sh", {}, [], "say what to run"),
        ("slurm.sh", {}, ["--dry-run"], "say what to run"),
        ("slurm.sh", {"SLURM_JOB_ID": ""}, ["pretrain"], "submit it with sbatch"),
        ("slurm.sh", {"SLURM_SUBMIT_DIR": "/"}, ["pretrain"], "submit from the checkout"),
        ("tpu_pod.sh", {}, [], "say what to run"),
        ("tpu_pod.sh", {"TPU_NAME": ""}, ["pretrain"], "TPU_NAME is not set"),
        ("tpu_pod.sh", {"TPU_ZONE": ""}, ["--dry-run", "pretrain"], "TPU_ZONE is not set"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(machine, script, changed, words, says):
    assert says in sentence(launch(machine, script, *words, **changed))
    assert machine.nothing_ran()


def test_a_missing_gcloud_is_said_in_one_sentence(machine):
    machine.remove("gcloud")
    (machine.bin / "bash").symlink_to(shutil.which("bash"))
    done = launch(machine, "tpu_pod.sh", "pretrain", PATH=str(machine.bin))
    assert "gcloud is not installed" in sentence(done)


def test_the_readme_names_every_launcher():
    readme = (LAUNCH / "README.md").read_text()
    for file in [*SCRIPTS, *LAUNCH.glob("*.yaml")]:
        assert f"`{file.name}`" in readme
