"""The archives that TFDS's builders ask for: found or downloaded, checked, and unpacked.

Stands in for TFDS's download manager, which cannot be told to look for archives under their own
names where the checksums are missing from its package, does not go on with a broken download,
unpacks through TensorFlow while it holds whole files in memory, and keeps what it unpacked.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO
from urllib.parse import urlparse

from etils import epath
from tqdm import tqdm

from xtra_jax.data.prepare.catalogue import Archive, DataSet
from xtra_jax.errors import RunFailed, UserError

BLOCK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60.0  # seconds without a byte
# What reading a broken archive raises.
BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error)
_TAR = (".tar", ".tar.gz", ".tgz")


class Archives:
    """The archives of one data set, with the methods of TFDS's download manager.

    Attributes:
        manual_dir: the folder with the archives that were fetched by hand, which comes first.
        recorded: what TFDS knows of files, by their addresses.
        downloaded_size: bytes of all archives that were asked for.
    """

    def __init__(
        self,
        dataset: DataSet,
        *,
        folder: epath.Path,
        downloads: str,
        unpacked: str,
        verify: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ):
        """Names the places; nothing is read yet.

        Args:
            dataset: whose archives they are. What it says of a file counts more than TFDS's word.
            folder: where archives lie under their own names, local or remote.
            downloads: the local folder for downloaded archives, which stay there.
            unpacked: the local folder for what they hold, which the caller removes.
            verify: whether sizes and checksums have to be the known ones.
            say: tells what takes long.
        """
        self._name, self._manual = dataset.name, dataset.manual
        self._known = {archive.name: archive for archive in (*dataset.manual, *dataset.recorded)}
        self.recorded: dict[str, Archive] = {}
        self._downloads, self._unpacked, self._verify = downloads, unpacked, verify
        self._say = say
        self._sizes: dict[str, int] = {}
        self.manual_dir = folder

    @property
    def downloaded_size(self) -> int:
        return sum(self._sizes.values())

    def missing(self) -> list[Archive]:
        """Returns the files fetched by hand that are not there."""
        return [
            archive
            for archive in self._manual
            if not (self.manual_dir / archive.name).exists() and not self._stand_in(archive.name)
        ]

    def check_manual(self) -> None:
        """Checks the files that were fetched by hand, before any work is put into them.

        Raises:
            UserError: one is another file than the known one.
        """
        for archive in self._manual:
            path = self.manual_dir / archive.name
            if path.exists():
                self._check_by_hand(path, archive)

    def download(self, urls: Any) -> Any:
        """Returns the paths of the archives, in the structure in which the addresses came.

        Raises:
            UserError: a file fetched by hand is another than the known one.
            RunFailed: one cannot be downloaded, or is another than the known one.
        """
        return _map(self._fetch, urls)

    def extract(self, paths: Any) -> Any:
        """Returns the folders (for a .gz the file) with what the archives hold.

        Raises:
            UserError: an archive is broken.
        """
        return _map(self._extract, paths)

    def download_and_extract(self, urls: Any) -> Any:
        """Downloads and extracts, unless the folder that an archive would give is there."""
        return _map(self._fetch_and_extract, urls)

    def iter_archive(self, resource: Any) -> Iterator[tuple[str, BinaryIO]]:
        """Yields the name and the contents of each file of an archive, without unpacking it."""
        path = epath.Path(getattr(resource, "path", None) or resource)
        with _broken_is_said(path):
            yield from _members(path)

    def _fetch_and_extract(self, resource: Any) -> epath.Path:
        stand_in = self._stand_in(_file_name(_url_of(resource)))
        if stand_in:
            self._say(f"{self._name}: taking the unpacked folder in {stand_in}")
            return stand_in
        path = self._fetch(resource)
        # A resource may say that it is to stay packed.
        method = getattr(resource, "_extract_method", None)
        if method is not None and method.name == "NO_EXTRACT":
            return path
        return self._extract(path)

    def _stand_in(self, name: str) -> epath.Path | None:
        """Returns the folder that holds what an archive would give, if the archive is not there."""
        folder = self._known[name].folder if name in self._known else ""
        if not folder or (self.manual_dir / name).exists():
            return None
        # Kaggle's archives have the folder twice, as in cars_train/cars_train.
        for parent in (self.manual_dir / folder, self.manual_dir):
            if (parent / folder).is_dir():
                return parent
        return None

    def _fetch(self, resource: Any) -> epath.Path:
        url = _url_of(resource)
        name = _file_name(url)
        known = self._known.get(name) or self.recorded.get(url) or Archive(name)
        by_hand = self.manual_dir / name
        if by_hand.exists():
            self._check_by_hand(by_hand, known)
            return by_hand
        downloaded = epath.Path(self._downloads) / name
        if not downloaded.exists():
            self._say(f"{self._name}: downloading {url}")
            _download(url, str(downloaded), by_hand)
        difference = self._difference(downloaded, known)
        if difference:
            downloaded.unlink()
            raise RunFailed(
                f"What {url} gave is not the known file: {difference}. It was deleted; try again, "
                f"or fetch {name} from elsewhere into {self.manual_dir}."
            )
        return downloaded

    def _check_by_hand(self, path: epath.Path, known: Archive) -> None:
        difference = self._difference(path, known)
        if difference:
            again = f"; fetch it again from {known.url}" if known.url else "; fetch it again"
            raise UserError(
                f"{path} is not the known file: {difference}{again}, or take it as it is with "
                "--partial."
            )

    def _difference(self, path: epath.Path, known: Archive) -> str:
        """Says in which way a file differs from the known one; looks once at each."""
        if str(path) in self._sizes:
            return ""
        size = path.stat().length
        if self._verify and known.size and size != known.size:
            return f"it has {size:,} bytes and should have {known.size:,}"
        if self._verify and known.sha256:
            self._say(f"{self._name}: checking {path.name} ({size / 1e9:.2f} GB)")
            found = _sha256(path)
            if found != known.sha256:
                return f"its SHA-256 is {found} and should be {known.sha256}"
        self._sizes[str(path)] = size
        return ""

    def _extract(self, resource: Any) -> epath.Path:
        path = epath.Path(getattr(resource, "path", None) or resource)
        target = os.path.join(self._unpacked, path.name)
        if not path.name.endswith((*_TAR, ".zip", ".gz")):
            return path
        if not os.path.exists(target):
            self._say(f"{self._name}: unpacking {path.name}")
            with _broken_is_said(path):
                for name, contents in _shown(_members(path), f"Unpacking {path.name}"):
                    _write(contents, os.path.join(target, name) if name else target)
        return epath.Path(target)


def _members(path: epath.Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yields name and contents of each plain file; the one of a .gz has no name."""
    with path.open("rb") as file:
        if path.name.endswith(_TAR):
            # The compression is told from the contents: DTD's .tar.gz is a plain tar.
            with tarfile.open(fileobj=file, mode="r:*") as tar:
                for member in tar:
                    contents = tar.extractfile(member)
                    if contents and _is_wanted(member.name):
                        yield os.path.normpath(member.name), contents
        elif path.name.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir() and _is_wanted(entry.filename):
                        with archive.open(entry) as contents:
                            yield os.path.normpath(entry.filename), contents
        else:
            with gzip.GzipFile(fileobj=file) as contents:
                yield "", contents


def _is_wanted(name: str) -> bool:
    """Refuses paths that lead out of the folder, hidden files and back-ups, as TFDS does."""
    name = os.path.normpath(name)
    hidden = name.startswith(".") or os.path.basename(name).startswith(".")
    return not (hidden or name.endswith("~") or os.path.isabs(name))


def _write(contents: BinaryIO, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(contents, file, BLOCK)


def _download(url: str, path: str, by_hand: epath.Path) -> None:
    """Writes the file at an address to `path`, going on where an earlier attempt stopped."""
    import requests

    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.part"
    for attempt in range(ATTEMPTS):
        try:
            _download_rest(url, part)
            os.replace(part, path)
            return
        except requests.RequestException as error:
            answer = error.response
            lasting = answer is not None and answer.status_code < 500
            if lasting or attempt == ATTEMPTS - 1:
                why = f"it answers {answer.status_code}" if lasting else reason(error)
                raise RunFailed(
                    f"{url} cannot be downloaded ({why}); try again, which goes on where this "
                    f"stopped, or fetch {by_hand.name} by hand into {by_hand.parent}."
                ) from error
            time.sleep(2**attempt)


def _download_rest(url: str, part: str) -> None:
    import requests

    start = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the part is all there is; the checksum will tell
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        length = int(answer.headers.get("Content-Length", 0))
        before = start if resumed else 0
        with (
            open(part, "ab" if resumed else "wb") as file,
            _bar(_file_name(url), before + length, unit="B", initial=before) as bar,
        ):
            for block in answer.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, _bar(f"Checking {path.name}", path.stat().length, "B") as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _bar(text: str, total: int | None, unit: str, initial: int = 0) -> tqdm:
    """Returns a bar that is seen on a terminal only."""
    return tqdm(
        desc=text,
        total=total or None,
        initial=initial,
        unit=unit,
        unit_scale=True,
        leave=False,
        disable=not sys.stderr.isatty(),
    )


def _shown(items: Iterator, text: str) -> Iterator:
    with _bar(text, None, unit=" files") as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def _broken_is_said(path: epath.Path) -> Iterator[None]:
    """Turns what goes wrong inside an archive into a sentence."""
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{path} cannot be unpacked ({reason(error)}); fetch it again.") from error


def _map(function: Callable[[Any], epath.Path], items: Any) -> Any:
    if isinstance(items, dict):
        return {name: _map(function, item) for name, item in items.items()}
    if isinstance(items, list | tuple):
        return [_map(function, item) for item in items]
    return function(items)


def _url_of(resource: Any) -> str:
    return resource if isinstance(resource, str) else resource.url


def _file_name(url: str) -> str:
    return os.path.basename(urlparse(url).path)


def reason(error: BaseException) -> str:
    """Returns what went wrong at the bottom of a chain of errors, in a line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
