"""Compiling: signs of life meanwhile, and programs kept on disk for the next start.

JAX keeps compiled programs in a folder by itself, but writes them in place: a process that is
killed meanwhile leaves half a program, which fails to load ever after, and nothing bounds the
folder. So JAX gets a folder of this process's own, that begins with hard links to what is kept, and
what it adds there is moved, whole, to where it is kept.

Of several processes all find a program or none does: some of XLA's compilers share out their work
among the processes that compile, and would wait for one that has loaded it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from xtra_jax.parallel.consensus import on_all, text_from_the_first
from xtra_jax.training.host_memory import give_back_freed_memory

NOTE_EVERY = 10.0  # seconds between signs of life while the compiler is at work
MAX_BYTES = 4 * 2**30  # of programs kept; the ones longest unused go first
Publish = Callable[[], Path | None]

_STALE = 30 * 86400.0  # seconds after which the folder of another host's process is abandoned
_PROGRAM = "-cache"  # how the names of JAX's files of programs end
_OWN = "process-"


@contextlib.contextmanager
def signs_of_life(
    doing: str, note: Callable[[str], None], every: float = NOTE_EVERY
) -> Iterator[None]:
    """Tells `note` what is being done, and every so many seconds for how long it has been."""
    done = threading.Event()
    begin = time.monotonic()

    def run() -> None:
        note(f"{doing} ...")
        while not done.wait(every):
            note(f"{doing} ... {time.monotonic() - begin:.0f} s")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


_loaded = 0  # programs that JAX has found in its cache


def _count(event: str, **details) -> None:
    global _loaded
    _loaded += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count)


def compile_with_notes(
    lowered: jax.stages.Lowered, name: str, note: Callable[[str], None]
) -> jax.stages.Compiled:
    """Compiles, or loads what was compiled before, and tells `note` which and how long it took.

    The memory that the compiler is done with goes back to the system.
    """
    begin, before = time.monotonic(), _loaded
    with signs_of_life(f"compiling {name}", note):
        compiled = lowered.compile()
    give_back_freed_memory()
    done = "loaded, as compiled earlier," if _loaded > before else "compiled"
    note(f"{done} {name} in {time.monotonic() - begin:.0f} s")
    return compiled


@contextlib.contextmanager
def compilation_cache_at(folder: str, note: Callable[[str], None]) -> Iterator[Publish]:
    """Keeps what is compiled in a folder, and takes from there what was compiled before.

    Where JAX was told of a folder itself, as by JAX_COMPILATION_CACHE_DIR, that is left as it is.
    A folder that can't be written is no reason to fail: then nothing is kept. Nor is one that
    several processes don't share: then nothing is taken from there either. All of them are to
    call this.

    Args:
        folder: "auto" for the user's (see `default_folder`), "" for none.
        note: is told why nothing is kept.

    Yields:
        A function that puts what has been compiled so far where it is kept, as the end does too. It
        returns the folder where that is more than before, and None otherwise.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        yield lambda: None
        return
    kept = (default_folder() if folder == "auto" else Path(folder).expanduser()) / _machine()
    own, programs, failure = None, [], ""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(kept)
        own = Path(tempfile.mkdtemp(prefix=f"{_OWN}{_here()}-{os.getpid()}-", dir=kept))
        programs = sorted(path.name for path in kept.glob(f"*{_PROGRAM}"))
    except OSError as error:
        failure = str(error)
    if jax.process_count() > 1:
        programs = json.loads(text_from_the_first(json.dumps(programs)))
    if not on_all(own is not None and _take(programs, kept, own)):
        failure = failure or f"not all processes find the same ones in {kept}, a folder to share"
        note(f"compiled programs are not kept for the next start: {failure}")
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
        yield lambda: None
        return

    def publish() -> Path | None:
        try:
            added = _give(own, kept)
            _evict(kept)
        except OSError:  # a full disk keeps nothing, and fails nothing
            return None
        return kept if added else None

    settings = {
        "jax_compilation_cache_dir": str(own),
        # XLA's own caches would lie in that folder, whose name would become part of JAX's keys.
        "jax_persistent_cache_enable_xla_caches": "",
        # Where cuDNN's attention runs on several GPUs, the program that is looked for holds an
        # address in this process's memory, and would never be found again.
        "jax_remove_custom_partitioning_ptr_from_cache_key": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        _configure(settings)
        yield publish
    finally:
        _configure(before)
        publish()
        shutil.rmtree(own, ignore_errors=True)


def _configure(settings: dict) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at them once, at the first compilation


def default_folder() -> Path:
    """The user's folder of compiled programs: xtra_jax in $XDG_CACHE_HOME, or in ~/.cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(caches) / "xtra_jax" / "compiled"


def _machine() -> str:
    """A name for machines that run the same programs.

    JAX's keys tell accelerators and versions apart, but not the instructions that a CPU knows, and
    clusters share homes among unlike hosts.
    """
    try:
        with open("/proc/cpuinfo") as file:
            known = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        known = ""
    return hashlib.sha256(" ".join(sorted(known.split())).encode()).hexdigest()[:12]


def _here() -> str:
    """Within what a process's number is its own: this host, and in it this container."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}-{namespace}"


def _remove_abandoned(kept: Path) -> None:
    """Removes what processes left that were killed: their links keep evicted programs on disk."""
    here = f"{_OWN}{_here()}-"
    for path in kept.glob(f"{_OWN}*"):
        with contextlib.suppress(OSError):
            number = path.name.removeprefix(here).partition("-")[0]
            if path.name.startswith(here) and number.isdecimal():
                abandoned = not _runs(int(number))
            else:
                abandoned = time.time() - path.stat().st_mtime > _STALE
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)


def _runs(number: int) -> bool:
    """Whether another process has this number; one that had ours is gone."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _take(programs: list[str], kept: Path, own: Path) -> bool:
    """Links programs that are kept into this process's folder; whether all are there."""
    for name in programs:
        try:
            _link(kept / name, own / name)
        except OSError:
            (own / name).unlink(missing_ok=True)
            if jax.process_count() > 1:
                return False  # alone, a process compiles what another has just removed
    return True


def _give(own: Path, kept: Path) -> int:
    """Moves new programs to where they are kept, each in one stroke; returns how many."""
    added = 0
    for path in own.glob(f"*{_PROGRAM}"):
        if not (kept / path.name).exists():
            whole = own / f"{path.name}.whole"
            _link(path, whole)
            whole.replace(kept / path.name)
            added += 1
    return added


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # some file systems have no links
        shutil.copyfile(path, to)


def _evict(kept: Path) -> None:
    """Removes programs, the longest unused first, until the rest is at most `MAX_BYTES`."""
    found = [(path, path.stat()) for path in kept.glob(f"*{_PROGRAM}")]
    total = sum(stat.st_size for _, stat in found)
    for path, stat in sorted(found, key=lambda of: max(of[1].st_atime, of[1].st_mtime)):
        if total <= MAX_BYTES:
            return
        total -= stat.st_size
        path.unlink(missing_ok=True)
