"""Worker processes: they die with their parent, leave nothing, and their own end is told."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import uuid

import numpy as np
import pytest

from tests.data.processes import (
    holders,
    marked,
    named_shared_memory,
    shared_memory,
    wait_until,
    workers_of,
)
from xtra_jax.data import ahead, workers
from xtra_jax.data.pipeline import eval_batches, train_batches
from xtra_jax.data.transforms import EvalTransform
from xtra_jax.errors import RunFailed

KEEP = EvalTransform(4, 4)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Greys:
    """Record `i` is an image of grey level `i`; what `trouble` does happens before one is read."""

    num_classes = 3
    class_names = tuple("abc")

    def __init__(self, encode, trouble=None, at=-1, count=40):
        self.images = [encode(np.full((4, 4, 3), i, np.uint8)) for i in range(count)]
        self.trouble, self.at = trouble, at

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.at:
            self.trouble()
        return {"image": self.images[index], "label": index % 3, "key": f"grey-{index}"}

    def where(self, index):
        return f"shelf {index}"


class Unportable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def slow():
    time.sleep(1.5)


def mistake():
    raise TypeError("a mistake in the code")


def unportable():
    raise Unportable("this", "that")


def batches_of(source, num_workers, **how):
    return train_batches(source, KEEP, batch_size=4, seed=0, num_workers=num_workers, **how)


def index_of(batches, count):
    return [batch["index"].tolist() for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("num_workers", [1, 4])
def test_a_killed_worker_ends_the_run_with_a_sentence_that_names_it(encode, num_workers):
    with contextlib.closing(batches_of(Greys(encode), num_workers)) as batches:
        next(batches)
        alive = workers_of(os.getpid())
        assert len(alive) == num_workers
        os.kill(alive[-1], signal.SIGKILL)
        begin = time.monotonic()
        name = rf"worker {num_workers} of {num_workers} \(process {alive[-1]}\)"
        with pytest.raises(RunFailed, match=rf"^{name}.* was killed by SIGKILL.*memory runs out"):
            for _ in range(1000):
                next(batches)
        assert time.monotonic() - begin < 60
    assert not workers_of(os.getpid())


def test_a_worker_that_a_library_crashes_tells_what_it_was_reading(encode):
    with pytest.raises(RunFailed, match="was killed by SIGSEGV while reading shelf 7"):
        list(eval_batches(Greys(encode, crash, 7), KEEP, batch_size=4, num_workers=2))


def test_a_worker_that_leaves_ends_the_run(encode):
    with pytest.raises(RunFailed, match="ended with exit code 3 while reading shelf 7"):
        list(eval_batches(Greys(encode, leave, 7), KEEP, batch_size=4, num_workers=1))


def test_what_is_raised_in_a_worker_is_raised_with_its_type_and_its_traceback(encode):
    with pytest.raises(TypeError, match="a mistake in the code") as found:
        list(eval_batches(Greys(encode, mistake, 7), KEEP, batch_size=4, num_workers=2))
    (note,) = found.value.__notes__
    assert "in worker 2 of 2" in note and "in mistake" in note
    assert not workers_of(os.getpid())


def test_an_error_that_cannot_travel_still_says_what_happened(encode):
    with pytest.raises(RuntimeError, match="Unportable: this and that"):
        list(eval_batches(Greys(encode, unportable, 7), KEEP, batch_size=4, num_workers=1))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_slow_disk_is_told_with_what_is_being_read_and_changes_no_batch(
    encode, num_workers, monkeypatch, capfd
):
    expected = list(eval_batches(Greys(encode), KEEP, batch_size=4))
    monkeypatch.setattr(ahead, "PATIENCE", 0.2)
    how = dict(batch_size=4, num_workers=num_workers, prefetch=1)
    found = list(eval_batches(Greys(encode, slow, 21), KEEP, **how))
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    lines = capfd.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("No batch for ")]
    assert any(line.endswith("is reading shelf 21.") for line in told)
    assert any(line.startswith("Batches go on after ") for line in lines)


def test_signals_meant_for_the_parent_end_no_worker(encode):
    with contextlib.closing(batches_of(Greys(encode), 2)) as batches:
        found = index_of(batches, 1)
        for pid in workers_of(os.getpid()):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        found += index_of(batches, 30)
    assert found == index_of(batches_of(Greys(encode), 0), 31)


def test_workers_end_when_the_batches_are_closed_or_dropped_or_read_to_the_end(encode):
    def ended():
        return not workers_of(os.getpid())

    batches = batches_of(Greys(encode), 2)
    next(batches)
    os.kill(workers_of(os.getpid())[0], signal.SIGSTOP)  # as one that hangs
    batches.close()
    assert ended()
    batches = batches_of(Greys(encode), 2)
    next(batches)
    del batches
    assert ended()
    list(eval_batches(Greys(encode), KEEP, batch_size=4, num_workers=3))
    assert ended()


def test_no_more_workers_start_than_there_are_batches(encode):
    batches = eval_batches(Greys(encode), KEEP, batch_size=20, num_workers=4)
    next(batches)
    assert len(workers_of(os.getpid())) == 2
    assert len(list(batches)) == 1


class Surroundings:
    """Says in its labels how a worker is set up."""

    num_classes = 1000
    class_names = ()

    def __init__(self, image):
        self.image = image

    def __len__(self):
        return len(workers._ONE_THREAD) + 1

    def __getitem__(self, index):
        if index == len(workers._ONE_THREAD):
            return {"image": self.image, "label": "jax" in os.environ["JAX_PLATFORMS"], "key": ""}
        label = int(os.environ.get(workers._ONE_THREAD[index], 999))
        return {"image": self.image, "label": label, "key": ""}


def test_libraries_start_one_thread_in_a_worker(encode):
    source = Surroundings(encode(np.zeros((4, 4, 3), np.uint8)))
    (batch,) = eval_batches(source, KEEP, batch_size=len(source), num_workers=1)
    assert batch["label"].tolist() == [1] * len(workers._ONE_THREAD) + [0]


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [(1, "", 0), (2, "", 1), (8, "", 7), (500, "", 32), (64, "400000 100000", 3), (4, "max 1", 3)],
)
def test_workers_are_chosen_from_the_cores_at_hand(cores, quota, expected, monkeypatch, tmp_path):
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    measured = workers._quota(str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(workers, "_quota", lambda: measured)
    assert workers.default_workers() == expected


SLURM = {"SLURM_STEP_TASKS_PER_NODE": "8(x2),3", "SLURM_CPUS_ON_NODE": "64"}


@pytest.mark.parametrize(
    ("usable", "variables", "expected"),
    [
        (64, {"LOCAL_WORLD_SIZE": "8"}, 7),
        (64, {"LOCAL_WORLD_SIZE": "many"}, 32),
        (64, SLURM | {"SLURM_NODEID": "1"}, 7),
        (64, SLURM | {"SLURM_NODEID": "2"}, 20),
        (8, SLURM | {"SLURM_NODEID": "0"}, 7),  # bound to cores of its own
        (64, SLURM | {"SLURM_NODEID": "9"}, 32),
        (16, {"SLURM_STEP_TASKS_PER_NODE": "2"}, 7),
        (64, {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 15),
        (16, {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 15),
        (4, {"LOCAL_WORLD_SIZE": "8"}, 0),
    ],
)
def test_processes_of_a_run_on_one_host_share_its_cores(usable, variables, expected, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", *SLURM, "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(workers, "_quota", lambda: float("inf"))
    assert workers.default_workers() == expected


def test_batches_of_the_default_workers_take_a_quarter_of_the_memory_at_most(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(17)))
    monkeypatch.setattr(workers, "_quota", lambda: float("inf"))
    monkeypatch.setattr(workers, "_memory", lambda: 64e9)
    assert workers.default_workers(400_000_000, prefetch=1) == 16
    assert workers.default_workers(800_000_000, prefetch=1) == 10
    assert workers.default_workers(800_000_000, prefetch=3) == 5
    assert workers.default_workers(20_000_000_000, prefetch=1) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers.default_workers(800_000_000, prefetch=1) == 5


@pytest.mark.parametrize(
    ("file", "text"), [("memory.max", "1000\n"), ("memory/memory.limit_in_bytes", "1000\n")]
)
def test_a_containers_memory_is_known(file, text, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("max\n")
    machine = workers._memory(str(tmp_path))
    assert 1e8 < machine < 1e15
    (tmp_path / file).write_text(text)
    assert workers._memory(str(tmp_path)) == 1000


def test_the_pipeline_tells_what_a_batch_takes(encode, monkeypatch):
    told = []
    monkeypatch.setattr("xtra_jax.data.pipeline.default_workers", lambda *how: told.append(how))
    next(batches_of(Greys(encode), -1, prefetch=3))
    assert told == [(4 * (4 * 4 * 3 + 4 + 4 + 8), 3)]


def test_minus_one_worker_means_those(encode, monkeypatch):
    monkeypatch.setattr("xtra_jax.data.pipeline.default_workers", lambda *_: 1)
    with contextlib.closing(batches_of(Greys(encode), -1)) as batches:
        next(batches)
        assert len(workers_of(os.getpid())) == 1


def script(folder, text):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def test_a_script_needs_no_guard_and_may_define_its_own_source(tmp_path):
    """And what workers print does not mix with what it prints."""
    command = script(
        tmp_path,
        """
        import io, numpy as np
        from PIL import Image
        from xtra_jax.data.pipeline import eval_batches
        from xtra_jax.data.transforms import EvalTransform

        class Blacks:
            num_classes, class_names = None, ()
            def __len__(self):
                return 5
            def __getitem__(self, index):
                file = io.BytesIO()
                Image.new("RGB", (4, 4)).save(file, "PNG")
                return {"image": file.getvalue(), "label": index, "key": ""}

        for batch in eval_batches(Blacks(), EvalTransform(4, 4), batch_size=3, num_workers=2):
            print(batch["label"].tolist())
        """,
    )
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[0, 1, 2]", "[3, 4, -1]"]


TRAINER = """
    from xtra_jax.data.pipeline import train_batches
    from xtra_jax.data.sources import open_source
    from xtra_jax.data.transforms import PretrainTransform

    source = open_source("digits", "train", {digits_dir!r})
    batches = train_batches(source, PretrainTransform(64), batch_size=64, seed=0, num_workers=4)
    print("starting", flush=True)
    for batch in batches:
        print("batch", flush=True)
"""


class Trainer:
    """A process with four workers, which can be found by a mark whoever their parent is."""

    def __init__(self, folder, digits_dir):
        self.mark = f"trainer-{uuid.uuid4()}"
        self.process = subprocess.Popen(
            script(folder, TRAINER.format(digits_dir=digits_dir)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**ENVIRONMENT, "XTRA_TEST": self.mark},
        )
        assert self.process.stdout.readline() == b"starting\n"

    def kill(self):
        """Kills it; everything of it has to be gone within ten seconds."""
        pid = self.process.pid
        memory = set().union(*map(shared_memory, [pid, *workers_of(pid)]))
        named = set().union(*map(named_shared_memory, [pid]))
        self.process.kill()
        self.process.stdout.close()
        self.process.wait()
        assert wait_until(lambda: not marked(self.mark) and not holders(memory), 10)
        assert not named
        return len(memory)


@pytest.fixture
def start(tmp_path, digits_dir):
    trainers = []

    def new():
        trainers.append(Trainer(tmp_path, digits_dir))
        return trainers[-1]

    yield new
    for trainer in trainers:
        trainer.process.kill()
        trainer.process.wait()


def test_a_killed_trainer_leaves_no_worker_and_no_shared_memory(start):
    trainer = start()
    assert trainer.process.stdout.readline() == b"batch\n"
    assert len(workers_of(trainer.process.pid)) == 4
    for pid in workers_of(trainer.process.pid):
        assert not named_shared_memory(pid)
    assert trainer.kill() == 5  # one of each worker, and the job


@pytest.mark.slow
def test_a_trainer_killed_at_any_of_thirty_moments_leaves_nothing(start):
    """While workers start, too."""
    moments = random.Random(0)
    held = []
    for _ in range(30):
        trainer = start()
        time.sleep(moments.random() * 6)
        held.append(trainer.kill())
    assert max(held) == 5 and held.count(5) >= 15
