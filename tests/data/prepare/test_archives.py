"""Archives on their way to TFDS's builders: downloaded, checked, unpacked."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import random
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from tests.data.prepare.tiny_stock import ARCHIVE, TINY, write_archive
from xtra_jax.data.prepare import archives as module
from xtra_jax.data.prepare.archives import Archives
from xtra_jax.data.prepare.catalogue import CATALOGUE, Archive
from xtra_jax.errors import RunFailed, UserError


@pytest.fixture
def open_archives(tmp_path):
    def open_them(dataset=TINY, **options):
        return Archives(
            dataset,
            folder=epath.Path(tmp_path / "manual"),
            downloads=str(tmp_path / "downloads"),
            unpacked=str(tmp_path / "unpacked"),
            **options,
        )

    return open_them


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


@contextlib.contextmanager
def serving(data, *, breaks_after=0, status=200, ranges=True):
    """Serves `data` under any address; the first answer breaks off after so many bytes."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if ranges else 0
            asked.append(start)
            if status != 200:
                self.send_error(status)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            stop = breaks_after if breaks_after and len(asked) == 1 else len(data)
            self.wfile.write(data[start:stop])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/some/where/{ARCHIVE}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_downloaded_archive_is_kept_and_used_again(open_archives, tmp_path):
    data = write_archive(tmp_path).read_bytes()
    with serving(data) as (url, asked):
        first = open_archives().download_and_extract({"all": url})["all"]
        assert sorted(path.name for path in (first / "test").iterdir()) == [
            "cat_0.png",
            "dog_1.png",
        ]
        again = open_archives()
        assert again.download(url).read_bytes() == data
        assert again.downloaded_size == len(data)
    assert asked == [0]


@pytest.mark.parametrize("ranges", [True, False], ids=["goes_on", "begins_anew"])
def test_a_download_that_breaks_off_is_completed(ranges, open_archives, no_waiting):
    data = random.Random(0).randbytes(3 * module.BLOCK)
    with serving(data, breaks_after=2 * module.BLOCK + 5, ranges=ranges) as (url, asked):
        assert open_archives().download(url).read_bytes() == data
    assert asked == [0, 2 * module.BLOCK if ranges else 0]


def test_a_download_with_a_wrong_checksum_is_deleted(open_archives, tmp_path):
    known = Archive(ARCHIVE, sha256=hashlib.sha256(b"something else").hexdigest())
    with serving(b"a page that says sorry") as (url, _):
        archives = open_archives(replace(TINY, recorded=(known,)))
        with pytest.raises(RunFailed, match=f"What {url} gave is not the known file: its SHA-256"):
            archives.download(url)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_what_tfds_knows_of_an_address_is_checked_too(open_archives, tmp_path):
    with serving(b"short") as (url, _):
        archives = open_archives()
        archives.recorded = {url: Archive(ARCHIVE, url=url, size=6)}
        with pytest.raises(RunFailed, match="it has 5 bytes and should have 6"):
            archives.download(url)


def test_an_address_that_has_gone_is_said_at_once(open_archives, tmp_path, no_waiting):
    complaint = f"cannot be downloaded .it answers 404.*{ARCHIVE} by hand"
    with serving(b"", status=404) as (url, asked), pytest.raises(RunFailed, match=complaint):
        open_archives().download(url)
    assert len(asked) == 1


def test_a_server_in_trouble_is_asked_again_and_then_given_up(open_archives, no_waiting):
    complaint = "cannot be downloaded .*503"
    with serving(b"", status=503) as (url, asked), pytest.raises(RunFailed, match=complaint):
        open_archives().download(url)
    assert len(asked) == module.ATTEMPTS


def test_without_a_network_there_is_one_sentence(open_archives, tmp_path, no_waiting):
    with pytest.raises(RunFailed) as caught:
        open_archives().download(f"http://127.0.0.1:9/{ARCHIVE}")
    assert "\n" not in str(caught.value)
    assert f"{ARCHIVE} by hand into {tmp_path / 'manual'}" in str(caught.value)


def test_a_broken_archive_is_one_sentence(open_archives, tmp_path):
    whole = write_archive(tmp_path / "manual")
    whole.write_bytes(whole.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{whole} cannot be unpacked"):
        open_archives().download_and_extract(f"http://example.invalid/{ARCHIVE}")


def test_entries_that_lead_out_of_the_folder_are_not_unpacked(open_archives, tmp_path):
    write_archive(tmp_path / "manual")
    open_archives().download_and_extract(f"http://example.invalid/{ARCHIVE}")
    unpacked = {path.name for path in (tmp_path / "unpacked").rglob("*") if path.is_file()}
    assert unpacked.isdisjoint({"outside.png", "absolute.png", ".hidden"})
    assert not (tmp_path / "unpacked" / "outside.png").exists()
    assert not (tmp_path / "outside.png").exists()


def test_zip_and_gzip_are_unpacked_and_other_files_stay_as_they_are(open_archives, tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    with zipfile.ZipFile(manual / "some.zip", "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/a.txt", b"a")
        archive.writestr("../b.txt", b"b")
    (manual / "some.h5.gz").write_bytes(gzip.compress(b"contents"))
    (manual / "some.mat").write_bytes(b"matrix")
    names = {"zip": "some.zip", "gz": "some.h5.gz", "mat": "some.mat"}
    paths = open_archives().download_and_extract(
        {key: f"http://example.invalid/{name}" for key, name in names.items()}
    )
    assert [path.name for path in Path(paths["zip"]).rglob("*.txt")] == ["a.txt"]
    assert paths["gz"].read_bytes() == b"contents"
    assert paths["mat"] == epath.Path(manual / "some.mat")


def test_an_archive_can_be_read_without_unpacking_it(open_archives, tmp_path):
    path = write_archive(tmp_path / "manual", images=2)
    names = {name: file.read()[:4] for name, file in open_archives().iter_archive(path)}
    assert set(names) == {f"train/{n}" for n in ("dog_0.png", "cat_1.png")} | {
        "test/cat_0.png",
        "test/dog_1.png",
    }
    assert set(names.values()) == {b"\x89PNG"}


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "as_on_kaggle"])
def test_the_folder_of_an_archive_does_in_its_place(nested, open_archives, tmp_path):
    manual = tmp_path / "manual"
    parent = manual / "cars_train" if nested else manual
    (parent / "cars_train").mkdir(parents=True)
    archives = open_archives(CATALOGUE["cars196"])
    assert [archive.name for archive in archives.missing()] == [
        "cars_test.tgz",
        "car_devkit.tgz",
        "cars_test_annos_withlabels.mat",
    ]
    taken = archives.download_and_extract("http://example.invalid/car196/cars_train.tgz")
    assert taken == epath.Path(parent)
