"""Files that appear whole or not at all, in folders that one command has to itself."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from etils import epath

from xtra_jax.errors import RunFailed, UserError

TEMPORARY = "tmp-"  # how the names of files begin that are not complete
# What keeps a folder from being made today, and may not tomorrow.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
KEPT = "the shards that are finished are kept, and the same command continues"


def is_local(path: os.PathLike | str) -> bool:
    return "://" not in os.fspath(path)


def make_folder(path: epath.Path) -> None:
    """Makes the folder that all else goes into, so nothing is begun where it cannot be made.

    Raises:
        UserError: it cannot be made there, now or later.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise _unwritable(path, error) from error


def put(path: epath.Path, data: bytes) -> None:
    """Writes a small file of which nobody ever sees a part."""
    if not is_local(path):
        path.write_bytes(data)  # object stores show whole objects only
        return
    temporary = path.parent / f"{TEMPORARY}{path.name}"
    temporary.write_bytes(data)
    temporary.replace(path)


@contextlib.contextmanager
def locked(lock: epath.Path, busy: str) -> Iterator[None]:
    """Keeps a second command out by a local file, made if need be; the lock ends with the process.

    Args:
        busy: what to say where another command holds it.

    Raises:
        UserError: another command does.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None
    if fcntl is None or not is_local(lock):
        yield
        return
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError:  # a file system without locks
            pass
        yield


@contextlib.contextmanager
def explained(path: epath.Path) -> Iterator[None]:
    """Turns what file systems and ArrayRecord answer to writing `path` into one sentence."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise _unwritable(path, error) from error
    except OSError as error:
        raise RunFailed(f"{path} cannot be written ({error.strerror or error}); {KEPT}") from error
    except RuntimeError as error:
        # ArrayRecord: "write() failed: No space left on device; writing FILE; at byte N; ..."
        what, _, reason = str(error).split(";")[0].partition(" failed: ")
        if not what.endswith("()"):
            raise
        raise RunFailed(f"{path} cannot be written ({reason}); {KEPT}") from error


def _unwritable(path: epath.Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{path} cannot be written ({reason}): name another --data_dir")


@contextlib.contextmanager
def reached(path: epath.Path) -> Iterator[None]:
    """Turns refusals of a remote service, and lack of its library, into one sentence."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except ImportError as error:
        if is_local(path):
            raise
        hint = "(pip install 'xtra_jax[gcs]')"
        raise UserError(f"{path} cannot be reached: {error} {hint}") from error
    except Exception as error:
        if not from_a_remote_service(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunFailed(f"{path} cannot be reached ({reason})") from error


def from_a_remote_service(error: Exception) -> bool:
    """Whether a library for object stores raised it; they have no base class in common."""
    module = type(error).__module__
    # Not google.protobuf, which reads local files too.
    services = ("google.api_core", "google.auth", "google.cloud", "gcsfs", "aiohttp", "requests")
    return module.startswith(services)
