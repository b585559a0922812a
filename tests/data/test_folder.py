import os

import pytest

from xtra_jax.data.decode import BadImage
from xtra_jax.data.folder import FolderSource
from xtra_jax.errors import UserError


@pytest.fixture
def make(tmp_path):
    """Creates files whose content is their own relative path."""

    def create(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        return str(tmp_path)

    return create


def keys(source):
    return [source[i]["key"] for i in range(len(source))]


def labels(source):
    return [source[i]["label"] for i in range(len(source))]


def test_images_come_in_the_order_of_their_paths(make):
    source = FolderSource(make("b.png", "sub/x.JPG", "a.jpeg", "sub/deep/c.webp"), "all")
    assert keys(source) == ["a.jpeg", "b.png", "sub/deep/c.webp", "sub/x.JPG"]
    assert source[3]["image"] == b"sub/x.JPG"


def test_subfolders_are_classes_in_the_order_of_their_names(make):
    source = FolderSource(make("dog/1.png", "cat/2.png", "dog/deep/3.png"), "all")
    assert source.class_names == ("cat", "dog")
    assert source.num_classes == 2
    assert list(zip(keys(source), labels(source), strict=True)) == [
        ("cat/2.png", 0),
        ("dog/1.png", 1),
        ("dog/deep/3.png", 1),
    ]


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("1.png", "cat/2.png")])
def test_images_outside_any_subfolder_leave_labels_unknown(make, names):
    source = FolderSource(make(*names), "all")
    assert labels(source) == [-1, -1]
    assert source.num_classes is None
    assert source.class_names == ()


def test_hidden_and_other_files_are_passed_over(make):
    root = make("a.png", ".b.png", "._a.png", "notes.txt", ".cache/c.png", "sub/.d/e.png")
    assert keys(FolderSource(root, "all")) == ["a.png"]


def test_links_are_followed_and_loops_end(make, tmp_path):
    root = make("data/a.png")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.png").write_bytes(b"b")
    os.symlink(outside, tmp_path / "data" / "linked")
    assert keys(FolderSource(os.path.join(root, "data"), "all")) == ["a.png", "linked/b.png"]


def test_split_folders_are_used_where_they_exist(make):
    root = make("train/cat/1.png", "train/dog/2.png", "val/dog/3.png")
    assert keys(FolderSource(root, "train")) == ["cat/1.png", "dog/2.png"]
    assert keys(FolderSource(root, "validation")) == ["dog/3.png"]


def test_a_label_means_the_same_class_in_every_split(make):
    root = make("train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "val/emu/4.png")
    assert labels(FolderSource(root, "train")) == [0, 1]
    assert labels(FolderSource(root, "val")) == [1, 2]
    assert FolderSource(root, "val").class_names == ("cat", "dog", "emu")


def test_a_missing_split_folder_is_named_with_those_there_are(make):
    root = make("train/1.png", "val/3.png")
    with pytest.raises(UserError, match=r"no split 'test'; it has train, val"):
        FolderSource(root, "test")


def test_one_image_in_ten_is_held_out_and_none_is_lost(make):
    root = make(*(f"{i}.png" for i in range(57)))
    train, held_out, everything = (
        keys(FolderSource(root, split)) for split in ("train", "eval", "all")
    )
    assert len(held_out) == 5
    assert sorted(train + held_out) == everything
    for split in ("validation", "val", "test"):
        assert keys(FolderSource(root, split)) == held_out


def test_the_held_out_images_depend_on_names_only(make):
    root = make(*(f"{i}.png" for i in range(30)))
    assert keys(FolderSource(root, "eval")) == ["0.png", "6.png", "8.png"]


def test_two_images_are_one_to_train_on_and_one_held_out(make):
    root = make("a.png", "b.png")
    assert len(FolderSource(root, "train")) == len(FolderSource(root, "eval")) == 1


def test_a_single_image_cannot_be_divided(make):
    root = make("a.png")
    with pytest.raises(UserError, match="single image"):
        FolderSource(root, "train")
    assert keys(FolderSource(root, "all")) == ["a.png"]


def test_an_unknown_split_is_refused(make):
    with pytest.raises(UserError, match=r"no split 'train\[:10%\]'"):
        FolderSource(make("a.png", "b.png"), "train[:10%]")


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        FolderSource(str(tmp_path / "nowhere"), "all")


def test_a_file_in_place_of_a_folder_is_a_user_error(make):
    root = make("a.png")
    with pytest.raises(UserError, match=r"a\.png"):
        FolderSource(os.path.join(root, "a.png"), "all")


def test_a_folder_without_images_is_a_user_error(make):
    with pytest.raises(UserError, match="holds no images"):
        FolderSource(make("readme.txt"), "all")


def test_a_subfolder_that_may_not_be_listed_is_a_user_error(make, monkeypatch):
    root = make("open/a.png", "locked/b.png")
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match="locked cannot be read"):
        FolderSource(root, "all")


def test_a_file_that_vanished_is_one_bad_image(make):
    root = make("a.png", "b.png")
    source = FolderSource(root, "all")
    os.remove(os.path.join(root, "a.png"))
    with pytest.raises(BadImage, match="cannot be read"):
        source[0]
    assert source[1]["key"] == "b.png"
