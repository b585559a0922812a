"""Features that are kept: the bits of those just computed, and never those of something else."""

import dataclasses
import errno
import io
import os
import shutil
import subprocess
import sys
import textwrap
from itertools import islice
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from tests.probing import tiny
from tests.runs import ROOT
from xtra_jax.config import load, model_spec
from xtra_jax.data import pipeline
from xtra_jax.data.sources import open_source
from xtra_jax.data.transforms import EvalTransform, PretrainTransform
from xtra_jax.errors import RunFailed, UserError
from xtra_jax.model.xtra import init_params
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.probing import cache
from xtra_jax.probing.cache import cached_features
from xtra_jax.probing.features import FeatureSpec
from xtra_jax.probing.frozen import FrozenEncoder
from xtra_jax.probing.kept import Kept

TOKENS, POOLED = FeatureSpec(2), FeatureSpec(1, pool=True, norm=True)
TRANSFORM = EvalTransform(20, 16)
WHOLE = PretrainTransform(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
TINY = tiny.PRETRAINING | {"model.depth": 2}
CONFIG = load("configs/probe.py:digits")


@pytest.fixture(scope="module")
def encoder():
    config = load("configs/demo.py", TINY)
    params = init_params(model_spec(config), jax.random.key(0))["encoder"]
    probe = load("configs/probe.py:digits", {"data.image_size": 16})
    with probe.unlocked():
        probe.data.mean, probe.data.std = config.data.mean, config.data.std
    return FrozenEncoder.of(params, "0123", probe, config, make_mesh({"data": 4, "fsdp": 2}))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Nineteen images in three classes, of which the eighth is broken."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(19):
        file = folder / f"{i % 3}" / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file)
    broken = folder / "1" / "07.png"
    broken.write_bytes(broken.read_bytes()[:50])
    return folder


@pytest.fixture
def source(images):
    return open_source(f"folder:{images}", "all")


@pytest.fixture
def passes(monkeypatch):
    """The specs of every pass of the encoder over a set."""
    noted, compute = [], FrozenEncoder.features

    def features(self, specs, *args, **how):
        noted.append(list(specs))
        return compute(self, specs, *args, **how)

    monkeypatch.setattr(FrozenEncoder, "features", features)
    return noted


def kept(folder, encoder, source, specs=(TOKENS, POOLED), transform=TRANSFORM, config=CONFIG):
    return cached_features(config, folder, encoder, specs, source, transform)


def files(folder):
    return sorted((folder / "features").iterdir())


def assert_same(ours, theirs):
    for spec in theirs.features:
        np.testing.assert_array_equal(ours.features[spec], theirs.features[spec])
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_array_equal(ours.weight, theirs.weight)


def test_what_is_kept_is_what_was_computed_bit_for_bit(encoder, source, passes, tmp_path):
    specs = (TOKENS, POOLED)
    computed = Kept.collected(source, specs, encoder.features(specs, source, TRANSFORM))
    first = kept(tmp_path, encoder, source)
    again = kept(tmp_path, encoder, source)
    assert len(passes) == 2  # by ourselves, and when nothing was kept yet
    for found in (first, again):
        assert_same(found, computed)
        assert isinstance(found.features[TOKENS], np.memmap)
    assert computed.features[TOKENS].shape == (19, 16, 16)
    assert computed.weight.tolist() == [i != 9 for i in range(19)]  # 1/07.png comes tenth
    assert len(files(tmp_path)) == 2


def test_only_what_is_not_there_yet_is_computed(encoder, source, passes, tmp_path):
    kept(tmp_path, encoder, source, [POOLED])
    found = kept(tmp_path, encoder, source)
    assert passes == [[POOLED], [TOKENS]] and found.features.keys() == {TOKENS, POOLED}


def test_nothing_is_used_for_another_checkpoint_transform_split_or_spec(
    encoder, source, images, tmp_path, monkeypatch
):
    passes = []

    def made_up(self, specs, source, transform, **how):
        passes.append(specs)
        rows = {spec.name: np.zeros(self.shape(spec, len(source)), np.float32) for spec in specs}
        labels = np.zeros(len(source), np.int32)
        yield rows | {"label": labels, "weight": labels + 1.0, "drawn": labels > 0}

    monkeypatch.setattr(FrozenEncoder, "features", made_up)
    deeper = dataclasses.replace(encoder.spec.encoder, num_heads=4)
    others = [
        {"encoder": dataclasses.replace(encoder, sha256="4567")},
        {"encoder": dataclasses.replace(encoder, mean=(0.5, 0.5, 0.5))},
        {"encoder": dataclasses.replace(encoder, std=(0.5, 0.5, 0.5))},
        {
            "encoder": dataclasses.replace(encoder, image_size=32),
            "transform": EvalTransform(32, 32),
        },
        {
            "encoder": dataclasses.replace(
                encoder, spec=dataclasses.replace(encoder.spec, dtype="bfloat16")
            )
        },
        {
            "encoder": dataclasses.replace(
                encoder, spec=dataclasses.replace(encoder.spec, encoder=deeper)
            )
        },
        {"transform": EvalTransform(18, 16)},
        {"transform": WHOLE},
        {"transform": dataclasses.replace(WHOLE, flip=1.0)},
        {"transform": dataclasses.replace(WHOLE, resize="fast")},
        {"source": open_source(f"folder:{images}", "all", subset="50%", seed=1)},
        {"source": open_source(f"folder:{images}", "all", subset="50%", seed=2)},
        {"specs": [dataclasses.replace(POOLED, norm=False)]},
        {"specs": [dataclasses.replace(POOLED, last_layers=2)]},
    ]
    usual = {"encoder": encoder, "source": source, "specs": [POOLED]}
    kept(tmp_path, **usual)
    for number, changes in enumerate(others, start=1):
        kept(tmp_path, **usual | changes)
        assert len(passes) == len(files(tmp_path)) == number + 1, changes
    kept(tmp_path, **usual)
    assert len(passes) == len(others) + 1


def test_images_that_were_replaced_under_their_names_are_others(encoder, images, passes, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(images), str(copy)], check=True)
    kept(tmp_path, encoder, open_source(f"folder:{copy}", "all"), [POOLED])
    file = copy / "0" / "00.png"
    Image.open(file).rotate(90).save(file)
    kept(tmp_path, encoder, open_source(f"folder:{copy}", "all"), [POOLED])
    assert len(passes) == 2


def flip_a_bit(content):
    content[len(content) * 2 // 3] ^= 1


def cut_short(content):
    del content[-5:]


def lose_the_header(content):
    content[:20] = bytes(20)


def lose_everything(content):
    content.clear()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lose_the_header, lose_everything])
def test_a_damaged_file_is_told_of_and_made_anew(damage, encoder, source, passes, tmp_path, capfd):
    expected = {
        name: np.array(x) for name, x in kept(tmp_path, encoder, source, [POOLED]).features.items()
    }
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    whole = bytes(content)
    damage(content)
    file.write_bytes(content)
    found = kept(tmp_path, encoder, source, [POOLED])
    np.testing.assert_array_equal(found.features[POOLED], expected[POOLED])
    assert file.read_bytes() == whole and len(passes) == 2
    assert capfd.readouterr().err.count(f"{file} is not used, and made anew: ") == 1


def test_a_file_of_other_features_under_the_name_is_told_of_and_made_anew(
    encoder, source, passes, tmp_path, capfd
):
    kept(tmp_path, encoder, source, [POOLED])
    (file,) = files(tmp_path)
    expected = file.read_bytes()
    other = dataclasses.replace(encoder, sha256="4567")
    kept(tmp_path / "other", other, source, [POOLED])
    file.write_bytes(files(tmp_path / "other")[0].read_bytes())
    kept(tmp_path, encoder, source, [POOLED])
    assert file.read_bytes() == expected and len(passes) == 3
    assert "it holds other features than its name says" in capfd.readouterr().err


def test_a_write_that_is_interrupted_leaves_nothing(encoder, source, tmp_path, monkeypatch):
    compute = FrozenEncoder.features

    def interrupted(self, *args, **how):
        yield from islice(compute(self, *args, **how), 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FrozenEncoder, "features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept(tmp_path, encoder, source)
    assert files(tmp_path) == []
    assert len(files(tmp_path)) == 0 and kept(tmp_path, encoder, source) is not None


def test_a_write_that_is_killed_leaves_what_the_next_one_removes(encoder, source, tmp_path):
    kept(tmp_path, encoder, source, [POOLED])
    (file,) = files(tmp_path)
    expected = file.read_bytes()
    file.unlink()
    script = f"""
        import os, signal
        from pathlib import Path
        import numpy as np
        from xtra_jax.probing.cache import _File
        with _File(Path({str(file)!r}), "{{}}", (19, 16)).writer() as writer:
            writer.add(np.ones((7, 16), np.float32))
            writer._opened.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment)
    assert killed.returncode == -9
    (left,) = files(tmp_path)
    assert left.name.startswith(file.name) and left.suffix == ".tmp"
    mine = left.with_name(left.name.replace(left.stem.rpartition("-")[2], str(os.getppid())))
    mine.write_bytes(b"of a process that is still at work")
    kept(tmp_path, encoder, source, [POOLED])
    assert set(files(tmp_path)) == {file, mine} and file.read_bytes() == expected


def test_what_is_too_large_is_not_kept(encoder, source, passes, tmp_path):
    gib = 4 * 19 * 16 * (16 + 1) / 2**30  # of both specs together
    for limit, fits in ((gib, True), (gib * 0.999, False), (0.0, False)):
        config = load("configs/probe.py:digits", {"cache.max_gib": limit})
        found = kept(tmp_path / str(limit), encoder, source, config=config)
        assert (found is not None) == (tmp_path / str(limit)).exists() == fits
    assert len(passes) == 1


def test_features_lie_where_the_config_says_or_with_the_results(encoder, source, tmp_path):
    config = load("configs/probe.py:digits", {"cache.dir": str(tmp_path / "here")})
    kept(tmp_path / "probe", encoder, source, [POOLED], config=config)
    assert len(list((tmp_path / "here").iterdir())) == 1 and not (tmp_path / "probe").exists()
    assert kept("gs://bucket/probe", encoder, source, [POOLED]) is None
    config.cache.dir = "gs://bucket/features"
    with pytest.raises(UserError, match=r"cache.dir=gs://bucket/features must be a local folder"):
        kept(tmp_path, encoder, source, [POOLED], config=config)


def no_folder(folder, monkeypatch):
    (folder / "features").write_text("a file")


def little_room(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))


def full_at_the_end(folder, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache._Writer, "finish", refuse)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (no_folder, "File exists"),
        (little_room, "No space left"),
        (full_at_the_end, "No space left"),
    ],
)
def test_without_room_for_features_a_probe_goes_on_without_and_says_so(
    refusal, reason, encoder, source, tmp_path, monkeypatch, capfd
):
    refusal(tmp_path, monkeypatch)
    assert kept(tmp_path, encoder, source) is None
    told = capfd.readouterr().err
    assert f"features are not kept in {tmp_path / 'features'}, and the run goes on without" in told
    assert reason in told and told.count("features are not kept") == 1
    assert not (tmp_path / "features").is_dir() or files(tmp_path) == []


def test_a_disk_that_fills_ends_the_pass_and_closes_what_it_began(
    encoder, source, tmp_path, monkeypatch
):
    taken = []

    def passed(self, specs, *args, **how):
        for number in range(9):
            taken.append(number)
            rows = {spec.name: np.zeros((2, 16), np.float32) for spec in specs}
            yield rows | {"label": np.zeros(2), "weight": np.zeros(2), "drawn": np.zeros(2)}

    class Full(io.BytesIO):
        """What is in its buffer when the disk is full cannot be written when it is closed, too."""

        def write(self, data):
            if isinstance(data, np.ndarray):  # the header fits in the buffer
                raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FrozenEncoder, "features", passed)
    monkeypatch.setattr(cache, "open", lambda *args: Full(), raising=False)
    assert kept(tmp_path, encoder, source, [POOLED]) is None
    assert taken == [0]


def test_the_images_files_are_looked_at_once_for_all_features(
    encoder, source, tmp_path, monkeypatch
):
    looked, look = [], cache.contents
    monkeypatch.setattr(cache, "contents", lambda source: looked.append(source) or look(source))
    assert kept(tmp_path, encoder, source) is not None
    assert looked == [source]


def test_a_folder_that_not_all_processes_see_is_told_as_the_key_that_names_it(
    tmp_path, monkeypatch
):
    def described(directory, wanted):
        raise UserError(wanted)

    monkeypatch.setattr(cache, "check_shared", described)
    file = cache._File(tmp_path / "file", "{}", (1, 1))
    with pytest.raises(UserError, match="a cache.dir that all hosts share"):
        cache._written(iter(()), {POOLED: file}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_not_kept(encoder, source, tmp_path):
    params = jax.tree.map(lambda x: x * np.nan, encoder.params)
    with pytest.raises(RunFailed, match="0/00.png are not finite"):
        kept(tmp_path, dataclasses.replace(encoder, params=params), source)
    assert files(tmp_path) == []


def test_crops_that_leave_nothing_to_chance_are_kept_and_others_are_not(
    encoder, source, images, tmp_path
):
    assert kept(tmp_path, encoder, source, [POOLED], WHOLE) is not None
    assert kept(tmp_path, encoder, source, [POOLED], PretrainTransform(16)) is None
    odd = tmp_path / "odd"
    subprocess.run(["cp", "-r", str(images), str(odd)], check=True)
    Image.new("RGB", (24, 25)).save(odd / "2" / "00.png")
    assert kept(tmp_path, encoder, open_source(f"folder:{odd}", "all"), [POOLED], WHOLE) is None
    assert len(files(tmp_path)) == 1


SHARE = {"batch_size": 8, "shards": (1, 3), "num_shards": 4}


def assert_same_batches(ours, theirs, found, images_of):
    """Of features, and of the images that they are of."""
    for batch, expected in zip(ours, theirs, strict=True):
        for name in ("label", "weight", "index"):
            assert batch[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(batch[name], expected[name])
        assert "image" not in batch and batch[POOLED.name].dtype == np.float32
        for row, index in enumerate(expected["index"]):
            rows = batch[POOLED.name][row]
            np.testing.assert_array_equal(rows, images_of[index] if index >= 0 else 0)


def test_batches_are_those_of_the_images(encoder, source, tmp_path):
    found = kept(tmp_path, encoder, source, [POOLED])
    features = np.array(found.features[POOLED])
    theirs = list(pipeline.eval_batches(source, TRANSFORM, **SHARE))
    ours = list(found.eval_batches(**SHARE))
    assert len(ours) == 3 and (ours[-1]["index"] == -1).sum() == 3
    assert_same_batches(ours, theirs, found, features)
    how = SHARE | {"seed": 5, "start_step": 2}
    theirs = list(islice(pipeline.train_batches(source, WHOLE, **how), 6))
    assert_same_batches(islice(found.train_batches(**how), 6), theirs, found, features)
