"""Compiling with signs of life, and programs that the next start finds again."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.parallel.test_processes import Members
from xtra_jax.training import compilation
from xtra_jax.training.compilation import (
    compilation_cache_at,
    compile_with_notes,
    default_folder,
    signs_of_life,
)

ONES = np.ones(3, np.float32)  # JAX's own would be the result of one more program


@pytest.fixture(autouse=True)
def everything_is_worth_keeping():
    """Also programs that compile in no time."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def compiled(note):
    jax.clear_caches()
    lowered = jax.jit(lambda x: jnp.tanh(x) * 3.0).lower(ONES)
    return compile_with_notes(lowered, "a program", note)


def programs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*-cache"))


def test_the_second_start_loads_what_the_first_compiled_and_says_so(tmp_path):
    notes, results = [], []
    for _ in range(2):
        with compilation_cache_at(str(tmp_path), notes.append) as publish:
            results.append(compiled(notes.append)(ONES))
            folder = publish()
            assert folder is None or folder.parent == tmp_path
    done = [note for note in notes if " in " in note]
    assert done[0].startswith("compiled a program in")
    assert done[1].startswith("loaded, as compiled earlier, a program in")
    assert (results[0] == results[1]).all()
    assert len(programs(tmp_path)) == 1


def test_what_was_compiled_is_kept_before_the_end_and_nothing_else_stays_behind(tmp_path):
    with compilation_cache_at(str(tmp_path), print) as publish:
        compiled(print)
        assert programs(tmp_path) == []
        assert publish() == programs(tmp_path)[0].parent
        assert publish() is None  # nothing is new
    (kept,) = programs(tmp_path)
    assert list(kept.parent.iterdir()) == [kept]
    assert not jax.config.jax_compilation_cache_dir


def test_a_program_that_is_partitioned_by_a_function_is_found_again(tmp_path):
    """As cuDNN's attention is; another process has the function at another address."""

    def doubled():
        function = custom_partitioning(lambda x: 2 * x)

        def partition(mesh, arguments, result):
            sharding = arguments[0].sharding
            return mesh, lambda x: 2 * x, sharding, (sharding,)

        function.def_partition(
            partition=partition,
            infer_sharding_from_operands=lambda mesh, arguments, result: arguments[0].sharding,
            sharding_rule="i -> i",
        )
        return function

    sharding = NamedSharding(jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]), P("data"))
    functions = [doubled(), doubled()]  # both alive, so at different addresses
    notes = []
    for function in functions:
        jax.clear_caches()
        shape = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)
        with compilation_cache_at(str(tmp_path), notes.append):
            lowered = jax.jit(lambda x, function=function: function(x)).lower(shape)
            compile_with_notes(lowered, "it", notes.append)
    assert notes[-1].startswith("loaded, as compiled earlier, it in")


def test_half_a_program_of_a_killed_process_is_in_nobodys_way(tmp_path):
    with compilation_cache_at(str(tmp_path), print):
        compiled(print)
    (kept,) = programs(tmp_path)
    whole = kept.read_bytes()
    kept.unlink()
    killed = kept.parent / "process-killed"
    killed.mkdir()
    (killed / kept.name).write_bytes(whole[: len(whole) // 2])
    notes = []
    with compilation_cache_at(str(tmp_path), notes.append):
        compiled(notes.append)
    assert notes[-1].startswith("compiled")
    assert kept.read_bytes() and killed.exists()
    os.utime(killed, (0, 0))
    with compilation_cache_at(str(tmp_path), notes.append):
        compiled(notes.append)
    assert notes[-1].startswith("loaded")
    assert not killed.exists()


def left_by(number: int, folder: Path, host: str = "") -> Path:
    """A folder such as a process of that number has, with a program in it."""
    with compilation_cache_at(str(folder), print):
        own = Path(jax.config.jax_compilation_cache_dir)
    start, _, end = own.name.rpartition(f"-{os.getpid()}-")
    left = own.with_name(f"{host or start}-{number}-{end}")
    left.mkdir()
    (left / "evicted-cache").write_bytes(bytes(10))
    return left


def test_what_a_killed_process_of_this_host_left_goes_at_the_next_start(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = left_by(ended.pid, tmp_path)
    ours = left_by(os.getpid(), tmp_path)  # of an earlier process with our number
    alive = left_by(os.getppid(), tmp_path)
    elsewhere = left_by(ended.pid, tmp_path, host="process-elsewhere")
    with compilation_cache_at(str(tmp_path), print):
        assert not dead.exists() and not ours.exists()
        assert alive.exists() and elsewhere.exists()


KEEP = """
import os, jax, jax.numpy as jnp
from xtra_jax.training.compilation import compilation_cache_at
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
rows = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
shape = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=rows)
for folder in {folders}:
    jax.clear_caches()
    with compilation_cache_at(folder, lambda note: print(note, flush=True)):
        own = jax.config.jax_compilation_cache_dir
        print("finds", own and len(os.listdir(own)), flush=True)
        jax.jit(lambda x: jnp.tanh(x).sum()).lower(shape).compile()
"""


def test_two_processes_find_the_same_programs_or_none_at_all(tmp_path):
    """In a folder that they share, and each in its own, where the first alone keeps what it has."""
    shared, first, second = (str(tmp_path / name) for name in ("shared", "first", "second"))
    lines = [KEEP.format(folders=[shared, shared, own, own]) for own in (first, second)]
    with Members(*lines) as members:
        members.join()
        told = [members.end(number, timeout=120) for number in range(2)]
    for code, said, errors in told:
        assert code == 0, errors
        found = [line for line in said.splitlines() if line.startswith(("finds", "compiled"))]
        assert "not all processes find the same ones in" in found.pop(3)
        assert found == ["finds 0", "finds 1", "finds 0", "finds None"]


def test_a_folder_that_cannot_be_made_keeps_nothing_and_fails_nothing(tmp_path):
    (tmp_path / "file").write_text("no folder")
    notes = []
    with compilation_cache_at(str(tmp_path / "file"), notes.append) as publish:
        assert compiled(notes.append)(ONES).shape == (3,)
        assert publish() is None
    assert notes[0].startswith("compiled programs are not kept for the next start: ")


def test_jax_s_own_setting_comes_first(tmp_path):
    theirs = tmp_path / "theirs"
    jax.config.update("jax_compilation_cache_dir", str(theirs))
    try:
        with compilation_cache_at(str(tmp_path / "ours"), print):
            assert jax.config.jax_compilation_cache_dir == str(theirs)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not (tmp_path / "ours").exists()


def test_the_longest_unused_go_when_there_are_too_many(tmp_path, monkeypatch):
    for number in range(4):
        path = tmp_path / f"{number}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - number, 500))
    monkeypatch.setattr(compilation, "MAX_BYTES", 25)
    compilation._evict(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-cache", "1-cache"]


def test_auto_is_the_user_s_folder_of_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/xtra_jax/compiled")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.cache/xtra_jax/compiled")


def test_signs_of_life_come_until_it_is_done_and_no_longer():
    notes = []
    with signs_of_life("compiling", notes.append, every=0.001):
        end = time.monotonic() + 30
        while len(notes) < 3 and time.monotonic() < end:
            time.sleep(0.001)
    told = len(notes)
    assert told >= 3 and notes[0] == "compiling ..." and notes[1].startswith("compiling ... 0 s")
    time.sleep(0.01)
    assert len(notes) == told
    with contextlib.suppress(ZeroDivisionError), signs_of_life("failing", notes.append):
        raise ZeroDivisionError
    assert notes[-1] == "failing ..."
