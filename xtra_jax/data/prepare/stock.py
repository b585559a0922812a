"""Prepares a data set with TFDS's own builder, as ArrayRecord."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants
from tensorflow_datasets.core.download import checksums

from xtra_jax.data.prepare.archives import BROKEN, Archives, reason
from xtra_jax.data.prepare.catalogue import Archive, DataSet
from xtra_jax.data.prepare.files import locked, make_folder
from xtra_jax.data.prepare.progress import Progress
from xtra_jax.errors import RunFailed, UserError

EXTRA = "pip install 'xtra_jax[prepare]'"
# What some of TFDS's builders import apart from TensorFlow.
_ALSO = {"cars196": ("scipy",), "patch_camelyon": ("h5py",)}


def tell(text: str) -> None:
    """Says on stderr what is being done."""
    print(text, file=sys.stderr, flush=True)


def prepare_stock(
    dataset: DataSet,
    data_dir: str,
    archives: str = "",
    verify: bool = True,
    progress: Callable[[str], None] | None = tell,
) -> str:
    """Prepares a data set, which is not there yet, with the builder that TFDS has for it.

    Everything is built in a folder of its own below `data_dir`, and moved to its place when the
    numbers of images are right: an interrupted preparation leaves nothing that looks finished, and
    the next attempt removes what it left. Downloaded archives stay in `data_dir/downloads`.

    Args:
        dataset: what is known of it; its checksums count more than TFDS's.
        data_dir: root of the TFDS data sets, local or remote (gs://); empty for TFDS's default.
        archives: folder with the original archives under their own names, which are downloaded
            where it lacks them; empty for `data_dir/downloads/manual`.
        verify: whether the archives and the numbers of images have to be the known ones.
        progress: is told what is being done; None for silence.

    Returns:
        The folder with the prepared data set.

    Raises:
        UserError: TensorFlow or another package is missing, files that have to be fetched by hand
            are missing or not the known ones, its folder is there already or cannot be made,
            another process is preparing it, or the numbers of images are not the known ones.
        RunFailed: a download failed, the disk is full, or TFDS's builder failed.
    """
    say = progress or (lambda text: None)
    root = epath.Path(os.path.expanduser(data_dir or constants.DATA_DIR))
    local = _local_root(root)
    folder = epath.Path(os.path.expanduser(archives)) if archives else local / "downloads/manual"
    name = dataset.name.replace("/", "-")
    work = local / "downloads" / "preparing" / name
    source = Archives(
        dataset,
        folder=folder,
        downloads=os.fspath(local / "downloads" / name),
        unpacked=os.fspath(work / "unpacked"),
        verify=verify,
        say=say,
    )
    with _explained(dataset, local):
        _require_all(dataset, source, asked_for=archives)
    with _explained(dataset, local), _workspace(local, work):
        _require_space(dataset, local, work)
        source.check_manual()
        builder = _builder(dataset, work)
        source.recorded = _recorded_by_tfds(builder)
        target = root / epath.Path(builder.data_dir).relative_to(work)
        if target.exists():
            raise UserError(
                f"{target} is in the way of the data set; delete it, or choose another data_dir."
            )
        say(f"{dataset.name}: building version {builder.version} with TFDS's builder")
        _build(dataset, builder, source, show=progress is not None)
        difference = dataset.difference(_counts(builder)) if verify else ""
        if difference:
            raise UserError(
                f"{dataset.name} has {difference}, so its archives are not the known ones "
                "(--partial takes them)."
            )
        _move(epath.Path(builder.data_dir), target)
    say(f"{dataset.name}: prepared in {target}")
    return os.fspath(target)


def _require_all(dataset: DataSet, source: Archives, asked_for: str) -> None:
    """Says all that a user has to provide at once, before the first of it is fetched."""
    if asked_for and not source.manual_dir.exists():
        raise UserError(f"The folder of archives {asked_for} does not exist.")
    lacking = [*_lacking_files(source, asked_for), *_lacking_packages(dataset)]
    if lacking:
        raise UserError(f"{dataset.name} cannot be prepared yet: {'; and '.join(lacking)}.")


def _lacking_files(source: Archives, asked_for: str) -> Iterator[str]:
    missing = source.missing()
    if missing:
        files = "; ".join(
            f"{archive.name}, from {archive.source} ({archive.url})" for archive in missing
        )
        other = "" if asked_for else ", or name the folder that has them with --archives"
        yield (
            f"it needs files that only you can fetch, so put them into {source.manual_dir} under "
            f"these names{other}: {files}"
        )


def _lacking_packages(dataset: DataSet) -> Iterator[str]:
    if dataset.how != "stock+tensorflow":
        return
    wanted = ("tensorflow", "importlib_resources", *_ALSO.get(dataset.name, ()))
    missing = [package for package in wanted if not _installed(package)]
    if missing:
        names = " and ".join("TensorFlow" if name == "tensorflow" else name for name in missing)
        there = "which is not installed" if len(missing) == 1 else "which are not installed"
        yield (
            f"TFDS's builder for {dataset.name} needs {names} to prepare it (not to read it), "
            f"{there}: {EXTRA}, or copy the folder that another machine prepared"
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require_space(dataset: DataSet, local: epath.Path, work: epath.Path) -> None:
    free = shutil.disk_usage(work).free
    if free < dataset.size:
        raise UserError(
            f"Preparing {dataset.name} takes about {dataset.size / 1e9:.1f} GB for the result "
            f"alone, and {local} has {free / 1e9:.1f} GB left; choose another data_dir."
        )


def _builder(dataset: DataSet, work: epath.Path):
    # Before TensorFlow is first imported: its start-up notices are nothing to a user.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return tfds.builder(dataset.name, data_dir=os.fspath(work), file_format="array_record")


def _recorded_by_tfds(builder) -> dict[str, Archive]:
    """Returns what TFDS's package knows of files, by their addresses."""
    recorded = {**checksums.get_all_url_infos(), **(builder.url_infos or {})}
    return {
        url: Archive(info.filename or "", url=url, size=int(info.size), sha256=info.checksum)
        for url, info in recorded.items()
    }


def _build(dataset: DataSet, builder, source: Archives, show: bool) -> None:
    """Runs the builder with TFDS's own bars on a terminal, and else with a line a minute."""
    bars = show and sys.stderr.isatty()
    progress = Progress(dataset.name, sum(dataset.images.values()))
    generate = builder._generate_examples

    def counted(*args, **kwargs):
        for example in generate(*args, **kwargs):
            yield example
            progress.add(1)

    if show and not bars:
        builder._generate_examples = counted
    builder._make_download_manager = lambda **_: source
    with _quiet(bars):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


@contextlib.contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Leaves TFDS only its bars, on a terminal, and stdout to the caller."""
    from tensorflow_datasets.core.utils import tqdm_utils

    before = tqdm_utils._active
    tqdm_utils.display_progress_bar(bars)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        tqdm_utils.display_progress_bar(before)


def _counts(builder) -> dict[str, int]:
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def _local_root(root: epath.Path) -> epath.Path:
    """Returns where archives go and sets are built: `root` itself unless that is remote."""
    if "://" not in os.fspath(root):
        return root
    return epath.Path(tempfile.gettempdir()) / "xtra_jax_prepare"


@contextlib.contextmanager
def _workspace(local: epath.Path, work: epath.Path) -> Iterator[None]:
    """Makes a folder that is removed in the end, also the one that a killed process left."""
    make_folder(work.parent)
    busy = f"Another process is preparing {work.name} in {local}; wait until it is done."
    with locked(work.parent / f"{work.name}.lock", busy):
        work.rmtree(missing_ok=True)
        work.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _move(built: epath.Path, target: epath.Path) -> None:
    """Moves a finished set to its place: in one rename or, to a remote one, metadata last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # TFDS notes there which configuration is meant by the name alone.
    default, place = (path.parent.parent / ".config" for path in (built, target))
    if default.exists() and not place.exists():
        place.mkdir(parents=True, exist_ok=True)
        _copy_all(default, place)
    if "://" not in os.fspath(target):
        built.rename(target)
        return
    target.mkdir(parents=True, exist_ok=True)
    _copy_all(built, target)


def _copy_all(source: epath.Path, target: epath.Path) -> None:
    for path in sorted(source.iterdir(), key=lambda path: (path.suffix == ".json", path.name)):
        path.copy(target / path.name, overwrite=True)


@contextlib.contextmanager
def _explained(dataset: DataSet, local: epath.Path) -> Iterator[None]:
    """Turns what goes wrong in TFDS's builder into a sentence."""
    try:
        yield
    except (UserError, RunFailed):
        raise
    except ImportError as error:
        raise UserError(
            f"TFDS's builder for {dataset.name} needs a package that is not installed "
            f"({reason(error)}): {EXTRA}."
        ) from error
    except BROKEN as error:
        raise UserError(
            f"An archive of {dataset.name} is broken ({reason(error)}); fetch it again."
        ) from error
    except Exception as error:
        if _is_full_disk(error):
            raise RunFailed(
                f"The disk that holds {local} is full; {dataset.name} takes about "
                f"{dataset.size / 1e9:.1f} GB, and as much again while its archives are unpacked. "
                "What was begun is removed, what was downloaded is kept."
            ) from error
        if isinstance(error, PermissionError):
            raise UserError(
                f"{dataset.name} cannot be written to {local} ({reason(error)}); choose another "
                "data_dir."
            ) from error
        raise RunFailed(
            f"TFDS's builder for {dataset.name} failed with {type(error).__name__}: "
            f"{reason(error)}; nothing was left but what was downloaded."
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Also where TensorFlow or TFDS has wrapped it."""
    while error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
