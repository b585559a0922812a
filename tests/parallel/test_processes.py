"""Processes find each other, and none outlives another: each says which one ended, and why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from tests.runs import free_port
from xtra_jax.errors import UserError
from xtra_jax.parallel.processes import find_place
from xtra_jax.parallel.referee import PING_SECONDS, SILENCE_SECONDS
from xtra_jax.parallel.watch import Group, Place, say

ROOT = Path(__file__).parents[2]
CLUSTERS = ("SLURM_", "JAX_", "TPU_", "OMPI_", "KUBERNETES_", "MEGASCALE_", "JOB_COMPLETION_INDEX")

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "gpu[07-10]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOB_COMPLETION_INDEX": "1",
    "JAX_COORDINATOR_ADDRESS": "xtra-host-0-0.xtra:8476",
    "JAX_NUM_PROCESSES": "2",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables where no scheduler has set any."""
    for name in list(os.environ):
        if name.startswith(CLUSTERS):
            monkeypatch.delenv(name)

    def set_variables(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        ((None, None, None), {}, None),
        ((None, 1, None), {}, None),
        (("host:1", 1, 0), {}, None),
        (("host:1", 2, 1), {}, Place("host:1", 2, 1)),
        (("host:1", 2, 1), KUBERNETES, Place("host:1", 2, 1)),
        ((None, None, None), KUBERNETES, Place("xtra-host-0-0.xtra:8476", 2, 1)),
        ((None, None, 0), KUBERNETES, Place("xtra-host-0-0.xtra:8476", 2, 0)),
        ((None, None, None), SLURM, Place("gpu07:65682", 8, 3, (1,))),
        ((None, None, None), SLURM | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, Place("gpu07:65682", 8, 3)),
        (("host:1", None, None), SLURM, Place("host:1", 8, 3, (1,))),
        ((None, None, None), SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_flags_come_before_variables_and_both_before_the_cluster(
    environment, flags, variables, expected
):
    environment(variables)
    place = find_place(*flags)
    if expected is not None and expected.coordinator.startswith("gpu07"):
        assert place.coordinator.startswith("gpu07:") and place.address[1] > 60000
        expected = Place(place.coordinator, *list(vars(expected).values())[1:])
    assert place == expected


def test_a_lone_pod_of_kubernetes_is_one_process_and_hears_no_warning(environment):
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_place() is None


def test_a_worker_of_a_tpu_pod_finds_its_place_and_keeps_all_its_chips(environment, monkeypatch):
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    environment(
        {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost,127.0.0.1",
            "TPU_WORKER_ID": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": "1",
        }
    )
    assert find_place() == Place("localhost:8482", 4, 3)


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        (("host:1", None, None), {}, "--num_processes (JAX_NUM_PROCESSES) and --process_id"),
        (("host:1", 2, None), {}, "--coordinator and --num_processes without --process_id"),
        ((None, 2, 1), {}, "without --coordinator (JAX_COORDINATOR_ADDRESS)"),
        ((None, None, 1), {}, "without --coordinator"),
        (("host:1", 2, 2), {}, "--process_id=2 is not one of 2 processes, whose numbers are 0 to"),
        (("host:1", 2, -1), {}, "--process_id=-1"),
        (("host:1", 1, 1), {}, "whose numbers are 0 to 0"),
        (("host:1", 0, 0), {}, "--num_processes=0 must be at least 1"),
        (("host", 2, 0), {}, "is not HOST:PORT: give the host of process 0 and a free port"),
        ((":1234", 2, 0), {}, "e.g. localhost:1234"),
        (("host:70000", 2, 0), {}, "--coordinator=host:70000 is not HOST:PORT"),
        ((None, 4, None), SLURM, "--num_processes=4 contradicts Slurm, where it is 8"),
        ((None, None, 0), SLURM, "--process_id=0 contradicts Slurm, where it is 3"),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "8,8"}, "was started by Slurm, whose"),
        ((None, None, None), KUBERNETES | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
    ],
)
def test_what_makes_no_place_is_one_sentence(environment, flags, variables, expected):
    environment(variables)
    with pytest.raises(UserError) as error:
        find_place(*flags)
    assert expected in str(error.value)


def test_one_process_alone_starts_nothing():
    code = (
        "from xtra_jax.parallel.processes import find_place, joined\n"
        "import sys, threading\n"
        "with joined(find_place(), lambda error: None) as group:\n"
        "    assert group is None and threading.active_count() == 1\n"
        "    assert 'jax._src.distributed' not in sys.modules or "
        "sys.modules['jax._src.distributed'].global_state.client is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def refusal(*place, timeout=1.0) -> str:
    with pytest.raises(UserError) as error:
        Group(Place(*place), timeout)
    return str(error.value)


def test_a_process_that_does_not_come_is_named():
    said = refusal(f"127.0.0.1:{free_port()}", 3, 0)
    assert "waited 1 s for processes 1, 2 of 3" in said


def test_a_coordinator_that_nobody_is_at_is_named():
    port = free_port()
    said = refusal(f"127.0.0.1:{port}", 2, 1)
    assert f"process 1 found no process 0 at 127.0.0.1:{port} within 1 s" in said


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"process 0 cannot listen on port {port}" in refusal(f"127.0.0.1:{port}", 2, 0)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((3, 1), "process 1 was told that the run has 3 processes, and process 0 that it has 2"),
        ((2, 0), "there is a process 0 already"),
    ],
)
def test_processes_that_were_told_different_things_all_say_so(monkeypatch, second, expected):
    """On other hosts, that is: on this one a second process 0 would find the port taken."""
    address = f"127.0.0.1:{free_port()}"
    said = []

    def first():
        said.append(refusal(address, 2, 0, timeout=30))

    thread = threading.Thread(target=first)
    thread.start()
    while not thread.is_alive():
        time.sleep(0.01)
    time.sleep(0.5)
    monkeypatch.setattr("xtra_jax.parallel.watch._start_referee", lambda place, timeout: None)
    said.append(refusal(address, *second, timeout=30))
    thread.join(60)
    assert len(said) == 2 and all(expected in sentence for sentence in said)


MEMBER = """
import os, sys, time
from xtra_jax.cli import _described
from xtra_jax.errors import UserError
from xtra_jax.parallel.processes import find_place, joined

place = find_place()
with joined(place, lambda error: _described(error, ["pretrain"])) as group:
    group.last_saved = lambda: 7
    print("joined", flush=True)
    exec(sys.argv[1 + place.process_id])
print("left", flush=True)
"""
IMPATIENT = """
from xtra_jax.parallel import referee, watch
referee.SILENCE_SECONDS = watch.SILENCE_SECONDS = {}
referee.PING_SECONDS = watch.PING_SECONDS = {}
"""
WAIT = "time.sleep(600)"
COMPILE = """
import functools, jax, jax.numpy as jnp
end = time.monotonic() + 12
while time.monotonic() < end:
    chain = functools.reduce(lambda f, _: lambda x: jnp.sin(f(x)) @ x, range(400), lambda x: x)
    jax.jit(chain).lower(jnp.ones((8, 8))).compile()
    jax.clear_caches()
"""


class Members:
    """Two processes that run a line of Python each once they have joined.

    Args:
        host: where process 0 is looked for.
        patience: seconds of silence after which a process counts as dead, if not the usual ones.
    """

    def __init__(self, *lines: str, host: str = "127.0.0.1", patience: float | None = None):
        script = MEMBER if patience is None else IMPATIENT.format(patience, patience / 8) + MEMBER
        variables = {name: v for name, v in os.environ.items() if not name.startswith(CLUSTERS)}
        variables |= {"JAX_COORDINATOR_ADDRESS": f"{host}:{free_port()}", "JAX_PLATFORMS": "cpu"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, *lines],
                cwd=ROOT,
                env=variables | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.communicate()

    def join(self):
        for process in self.processes:
            assert process.stdout.readline() == "joined\n"

    def end(self, number: int, timeout: float = 60) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.processes[number]
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err.strip()


@pytest.mark.parametrize("host", ["127.0.0.1", socket.gethostname()])
def test_who_is_ready_first_waits_for_the_others_and_all_end_in_silence(host):
    with Members("time.sleep(8)", "pass", host=host) as members:
        members.join()
        begin = time.monotonic()
        assert members.end(1) == (0, "left\n", "")
        assert time.monotonic() - begin > 2
        assert members.end(0) == (0, "left\n", "")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_within_a_minute_which_says_who_it_was(victim):
    with Members(WAIT, WAIT) as members:
        members.join()
        members.processes[victim].kill()
        code, out, said = members.end(1 - victim, timeout=60)
    assert (code, out) == (1, "") and len(said.splitlines()) == 1
    assert f"process {victim} of 2 ({socket.gethostname()}) ended without a word" in said
    assert "run the same command again on all, which continues from the checkpoint of st" in said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_falls_silent_ends_the_other(victim):
    """As when its host is gone: its connections stay open, and nothing comes."""
    assert SILENCE_SECONDS + 2 * PING_SECONDS < 60
    with Members(WAIT, WAIT, patience=4) as members:
        members.join()
        members.processes[victim].send_signal(signal.SIGSTOP)
        code, _, said = members.end(1 - victim)
    assert code == 1 and len(said.splitlines()) == 1
    assert f"process {victim} of 2" in said and "has said nothing for 4 s" in said


def test_a_process_that_fails_tells_the_others_why():
    with Members(WAIT, "raise UserError('the disk is full')") as members:
        members.join()
        assert members.end(1) == (2, "", "xtra: the disk is full")
        code, _, said = members.end(0)
    assert code == 1 and len(said.splitlines()) == 1
    assert said.startswith(f"xtra: process 1 of 2 ({socket.gethostname()}) failed: the disk is")
    assert said.endswith("the last checkpoint is that of step 7")


def test_what_all_processes_fail_of_is_said_once():
    mistake = "raise UserError('batch_size=3 does not divide')"
    with Members("time.sleep(2); " + mistake, mistake) as members:
        members.join()
        assert members.end(1) == (2, "", "")
        assert members.end(0) == (2, "", "xtra: batch_size=3 does not divide")


def test_an_unforeseen_error_shows_where_it_happened_and_only_there():
    with Members(WAIT, "{}['nowhere']") as members:
        members.join()
        code, _, own = members.end(1)
        assert code == 1 and "Traceback" in own and "KeyError: 'nowhere'" in own
        code, _, said = members.end(0)
    assert code == 1 and "process 1 of 2" in said and "failed: KeyError: 'nowhere'" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_process_that_compiles_for_long_is_not_taken_for_dead():
    with Members(COMPILE, COMPILE, patience=4) as members:
        members.join()
        ends = [members.end(0), members.end(1)]
    assert [code for code, _, _ in ends] == [0, 0], ends


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_run_ends_when_one_of_its_processes_is_killed_and_goes_on_afterwards(
    runs, tmp_path, victim
):
    pair = runs.start_two(tmp_path / "run", {"steps": 5000})
    assert pair[0].wait_until(lambda: pair[0].step() >= 8)
    pair[victim].kill()
    survivor = pair[1 - victim]
    begin = time.monotonic()
    assert survivor.wait(60) == 1
    print(f"the survivor of process {victim} ended after {time.monotonic() - begin:.2f} s")
    assert f"process {victim} of 2" in survivor.sentence
    assert "continues from the checkpoint of step" in survivor.sentence
    assert "Check failure stack trace" not in survivor.output
    first, second = runs.start_two(tmp_path / "run", {"steps": 15})
    assert first.succeed().continued_from() or first.step() == 0
    second.succeed()


def test_a_mesh_that_does_not_fit_is_said_once_by_all_processes(runs, tmp_path):
    first, second = runs.start_two(tmp_path / "run", {"mesh.tensor": 3})
    assert first.wait(120) == 2 and second.wait(120) == 2
    assert "there are 4" in first.sentence
    assert "xtra: " not in second.output and "Traceback" not in second.output


def test_last_words_to_a_connection_that_broke_keep_no_process_from_ending():
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as broken:
        say((broken, "who ended, and why"), (broken, ""))
