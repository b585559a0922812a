"""Paths that are local or remote, and what file systems answer, as one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec.config
from etils import epath

from xtra_jax.errors import UserError

# gcsfs would remember what a directory holds, and miss what TensorStore and other processes write.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def absolute(path: os.PathLike | str) -> epath.Path:
    """The path without `~` and made absolute; gs://bucket/... and the like stay as they are."""
    path = epath.Path(path).expanduser()
    # Not path.absolute() or .resolve(): they take gs:// for the start of a relative path.
    return path if path.is_absolute() else epath.Path(os.path.abspath(path))


def is_local(path: os.PathLike | str) -> bool:
    """Whether files at this path can be renamed in one stroke and appended to."""
    return "://" not in os.fspath(path)


def write_text(path: epath.Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Like `write_text`."""
    if not is_local(path):
        path.write_bytes(content)  # object stores replace whole files in one stroke
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def explained(what: str, consequence: str = "") -> Iterator[None]:
    """Turns refusals of a file system into `UserError`; any other exception passes.

    Args:
        what: what could not be done, to what: the start of the sentence. The reason follows.
        consequence: the end of the sentence.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        # etils and tensorboardX import what remote paths need when they meet one.
        hint = " (pip install 'xtra_jax[gcs]')" if "gs://" in what else ""
        raise UserError(f"{what}: {error}{hint}") from error
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}{consequence}") from error
    except Exception as error:
        reason = tensorstore_reason(str(error)) if isinstance(error, ValueError) else None
        if _from_a_remote_service(error):  # no credentials, no permission, no connection
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason is None:
            raise
        raise UserError(f"{what}: {reason}{consequence}") from error


def _from_a_remote_service(error: Exception) -> bool:
    """Whether a library for object stores raised it; they have no base class in common."""
    return type(error).__module__.split(".")[0] in {"google", "gcsfs", "aiohttp", "requests"}


def tensorstore_reason(message: str) -> str | None:
    """What the system said, out of TensorStore's ValueErrors; None for other messages.

    Theirs read "STATUS_CODE: what was done to which file: what the system said [...]".
    """
    if not re.match(r"[A-Z_]{6,}: ", message):
        return None
    said = re.search(r"([^:]+) \[os_error_code=", message)
    return said[1].strip() if said else message.split(" [")[0]
