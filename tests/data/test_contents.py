"""What tells images that are kept from others of the same names."""

import os

import numpy as np
import pytest
from PIL import Image

from xtra_jax.data.contents import contents
from xtra_jax.data.sources import open_source


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.bmp", "a/2.bmp", "b/3.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("subset", ["", "stratified:50%"])
def test_an_edited_file_is_another_one_though_it_has_its_name_and_size(folder, subset):
    def now():
        return contents(open_source(f"folder:{folder}", "all", subset=subset))

    before = now()
    assert now() == before
    file = folder / "a" / "1.bmp"
    pixels = bytearray(file.read_bytes())
    pixels[-1] = 255
    file.write_bytes(pixels)
    os.utime(file, ns=(0, 1))
    assert now() != before


def test_a_set_of_several_has_the_files_of_all(folder, digits_dir):
    names = f"folder:{folder},digits"
    mixed = open_source(names, "all,test", digits_dir)
    assert [os.path.basename(file)[:6] for file in mixed.files()] == [
        *("1.bmp", "2.bmp", "3.bmp", "digits")
    ]
    assert contents(mixed) != contents(open_source("digits", "test", digits_dir))


def test_a_prepared_set_is_told_by_its_files_and_its_split(digits_dir):
    test = open_source("digits", "test", digits_dir)
    assert contents(test) == contents(open_source("digits", "test", digits_dir))
    assert contents(test) != contents(open_source("digits", "test[:50%]", digits_dir))
    (file,) = test.files()
    before, times = contents(test), os.stat(file)
    os.utime(file, ns=(0, 1))
    try:
        assert contents(test) != before
    finally:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
