"""Contestants in turns: each in its own process and environment, one at a time."""

import fcntl
import os
import signal
import time

import pytest

from benchmarks import device
from benchmarks.cases import VARIANTS, Way, model
from benchmarks.memory import forget_the_host_peak, host_peak_mib
from benchmarks.turns import Contestant, race
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.model.execution import Execution


def sleeper(seconds: float):
    """A turn that sleeps, and who and where it is."""
    names = ("SEEN", *device.SHARE_A_GPU)
    facts = {"pid": os.getpid(), **{name: os.environ.get(name) for name in names}}
    return (lambda: time.sleep(seconds)), facts


def holder(path: str):
    """A turn of a process that holds a file for itself until it ends, as one holds a TPU."""
    file = open(path, "w")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file.flush, {}


def victim():
    """A turn in which the process is killed, as for want of memory."""
    return (lambda: os.kill(os.getpid(), signal.SIGKILL)), {}


def refuses():
    raise UserError("this is not to be had")


def seven_mib():
    return 7.0


def test_contestants_are_compared_turn_by_turn_in_processes_of_their_own():
    contestants = {
        "slow": Contestant(sleeper, (0.2,)),
        "fast": Contestant(sleeper, (0.0,), {"SEEN": "yes"}, seven_mib),
    }
    found = race(contestants, "slow", repeats=2, warm_up=0)
    assert found["slow"]["speed_over_slow"] == 1
    assert found["fast"]["speed_over_slow"] > 1
    assert found["slow"]["seconds"] >= 0.2
    assert [len(row["seconds_all"]) for row in found.values()] == [2, 2]
    assert len({os.getpid(), found["slow"]["pid"], found["fast"]["pid"]}) == 3
    assert (found["slow"]["SEEN"], found["fast"]["SEEN"]) == (None, "yes")
    assert "SEEN" not in os.environ
    assert found["fast"]["host_peak_mib"] > 1
    assert found["fast"]["device_peak_mib"] == 7
    assert "device_peak_mib" not in found["slow"]
    for row in found.values():
        assert row["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false", "one would take the whole GPU"


def test_where_one_process_holds_the_device_each_contestant_ends_before_the_next_starts(tmp_path):
    contestants = {name: Contestant(holder, (str(tmp_path / "device"),)) for name in "ab"}
    found = race(contestants, "a", repeats=2, warm_up=0, in_turns=False)
    rows = found.values()
    assert [len(row["seconds_all"]) for row in rows] == [2, 2]
    assert found["b"]["speed_over_a"] == found["a"]["seconds"] / found["b"]["seconds"]
    assert not any("speed_over_a_all" in row for row in rows), "nothing was paired"


def test_a_contestant_that_cannot_start_is_named(tmp_path):
    contestants = {name: Contestant(holder, (str(tmp_path / "device"),)) for name in "ab"}
    with pytest.raises(RunFailed, match="'b' ended with exit code 1 before its first turn"):
        race(contestants, "a", repeats=1)


def test_a_contestant_that_is_killed_is_named():
    with pytest.raises(RunFailed, match="'victim' ended with signal SIGKILL during its turns"):
        race({"victim": Contestant(victim)}, "victim", repeats=1)


def test_what_a_contestant_refuses_is_told_as_it_says_it():
    with pytest.raises(UserError, match="^'picky': this is not to be had$"):
        race({"picky": Contestant(refuses)}, "picky", repeats=1)


def test_a_baseline_that_is_not_timed_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="'c' is none of those timed: 'a'"):
        race({"a": Contestant(None)}, "c", repeats=1)


def test_only_a_tpu_allows_no_turns_and_the_results_say_so():
    tpu, gpu, cpu = (device.Device(name, "kind") for name in ("tpu", "gpu", "cpu"))
    assert (tpu.in_turns, gpu.in_turns, cpu.in_turns) == (False, True, True)
    assert "one after the other" in tpu.order and "in turns" in gpu.order


def test_the_peak_rate_is_that_of_the_dtype_and_unknown_for_cpus():
    h100 = device.Device("gpu", "NVIDIA H100 80GB HBM3")
    assert h100.peak_flops("bfloat16") == 989e12
    assert h100.peak_flops("float32") == 989e12 / 2
    assert device.Device("cpu", "cpu").peak_flops("float32") is None


def test_the_peak_of_memory_is_that_since_it_was_forgotten():
    bytearray(b"x") * (200 << 20)  # freed at once
    with_it = host_peak_mib()
    forget_the_host_peak()
    assert host_peak_mib() < with_it - 100


@pytest.mark.parametrize("name", ["theirs", "ours,compiled", "peer,remat=full"])
def test_a_way_that_does_not_exist_is_refused(name):
    with pytest.raises(UserError, match=repr(name)):
        Way(name)


def test_a_way_that_cannot_be_computed_is_refused():
    with pytest.raises(UserError, match="two kinds of remat"):
        Way("ours,remat=full,remat=dots")
    with pytest.raises(UserError, match="two kinds of attention"):
        Way("ours,halves,cudnn,bfloat16")
    with pytest.raises(UserError, match="add ,bfloat16"):
        Way("ours,cudnn")
    with pytest.raises(UserError, match="needs an NVIDIA GPU, and here is a cpu"):
        Way("ours,cudnn,bfloat16").check_on(device.Device("cpu", "cpu"))


def test_a_way_says_how_a_step_is_computed():
    way = Way("ours,all_blocks,bfloat16,remat=dots,scan_layers")
    assert (way.drop_last_block, way.dtype) == (False, "bfloat16")
    assert (way.execution().remat, way.execution().scan_layers) == ("dots", True)
    assert Way("ours").drop_last_block and Way("ours").execution() == Execution()
    for name, attention in (("ours,halves", "halves"), ("ours,cudnn,bfloat16", "cudnn")):
        assert Way(name).execution() == Execution(attention)


def test_every_variant_can_be_timed_and_the_default_is_the_recorded_case():
    for name in VARIANTS:
        assert model(name).encoder.depth >= 12
    tiny = model("tiny")
    assert (tiny.grid.image_size, tiny.grid.num_tokens, tiny.head.hidden) == (128, 64, 1536)
    assert model("base", image_size=128, depth=2).grid.num_tokens == 64
