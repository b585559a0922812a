"""A pretended machine: the launchers in a checkout, and programs that note how they were called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"

# Notes its process id, words and environment, and ends as it is told to.
_NOTES = """\
#!/usr/bin/env bash
n=$(basename "$0").$(find "$NOTES" -name "$(basename "$0").*.words" | wc -l)
printf '%s\\0' "$@" > "$NOTES/$n.words"
env -0 > "$NOTES/$n.environment"
echo $$ > "$NOTES/$n.pid"
"""
_PROGRAMS = {
    "python3": 'exit "${EXIT_CODE:-0}"',
    "scontrol": 'exit "${SCONTROL_EXIT_CODE:-0}"',
    "nvidia-smi": 'exit "${NVIDIA_SMI_EXIT_CODE:-0}"',
    # Like srun, starts one task per node; its own options all have the form --name=value.
    "srun": 'while [[ "$1" == -* ]]; do shift; done\nSLURM_PROCID=0 "$@" && SLURM_PROCID=1 "$@"',
    # Like ssh, gives the shell of each host one string, in the home folder.
    "gcloud": 'while [ "$1" != --command ]; do shift; done\n'
    'cd "$HOME" && bash -c "$2" && bash -c "$2"',
}


class Machine:
    """Runs launchers in a folder of their own, whose name needs quoting."""

    def __init__(self, folder: Path):
        self.checkout = folder / "home" / "my checkout"
        self.notes = folder / "notes"
        self.bin = folder / "bin"
        self.notes.mkdir()
        self.bin.mkdir()
        shutil.copytree(LAUNCH, self.checkout / "launch")
        for name, body in _PROGRAMS.items():
            (self.bin / name).write_text(f"{_NOTES}{body}\n")
            (self.bin / name).chmod(0o755)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.checkout.parent),
            "NOTES": str(self.notes),
        }

    def in_slurm(self, **variables: str) -> dict[str, str]:
        """What Slurm sets for a batch script."""
        return {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(self.checkout), **variables}

    def on_tpu(self, **variables: str) -> dict[str, str]:
        """What `tpu_pod.sh` asks for."""
        return {"TPU_NAME": "slice", "TPU_ZONE": "us-east5-b", "TPU_DIR": "my checkout"} | variables

    def start(self, script: str | Path, *words: str, **variables: str) -> subprocess.Popen:
        """Starts a launcher, from another folder, with nothing of this test's environment."""
        return subprocess.Popen(
            [self.checkout / "launch" / script, *words],
            env=self.environment | variables,
            cwd=self.notes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str | Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(script, *words, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def calls(self, program: str) -> list[list[str]]:
        """The words of each call of a program."""
        return [
            file.read_text().split("\0")[:-1]
            for file in sorted(self.notes.glob(f"{program}.*.words"))
        ]

    def environments(self, program: str) -> list[dict[str, str]]:
        """The environment of each call of a program."""
        return [
            dict(entry.split("=", 1) for entry in file.read_text().split("\0")[:-1])
            for file in sorted(self.notes.glob(f"{program}.*.environment"))
        ]

    def process_id(self, program: str) -> int:
        """That of a program's first call."""
        return int((self.notes / f"{program}.0.pid").read_text())

    def nothing_ran(self) -> bool:
        return not list(self.notes.iterdir())

    def remove(self, program: str) -> None:
        (self.bin / program).unlink()
