"""What the index of a large data set takes, and that an epoch over one leaves memory as it was."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from tests.data.small_sets import noise, prepare, shard_files
from xtra_jax.data.folder import Names
from xtra_jax.data.pipeline import sample_order
from xtra_jax.data.shared_memory import Shared
from xtra_jax.data.sources import TfdsSource, open_source

IMAGENET_21K = 13_153_500


def with_as_many_records(data_dir, records: int) -> None:
    """Lets the metadata of a small data set say that it has so many, in as many files."""
    file = data_dir / "small" / "1.0.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    (split,) = info["splits"]
    shards = len(split["shardLengths"])
    split["shardLengths"] = [str(records // shards)] * shards
    file.write_text(json.dumps(info))


def test_names_of_files_take_four_bytes_each_beside_their_own():
    texts = [f"n{i:08}/n{i:08}_{i % 1000}.JPEG" for i in range(10_000)]
    names = Names(texts)
    assert list(names) == texts and names[-1] == texts[-1]
    assert names.nbytes == sum(map(len, texts)) + 4 * len(texts)


def test_names_that_are_no_unicode_come_back_as_they_were():
    texts = [os.fsdecode(b"\xff\xfe.png"), "grün.png", "", "日本.jpg"]
    assert list(Names(texts)) == texts


def test_workers_share_the_names_instead_of_copying_them():
    names = Names(f"image-{i}.png" for i in range(100_000))
    pickled = pickle.dumps(names, protocol=5, buffer_callback=lambda buffer: None)
    assert len(pickled) < 1000
    shared = Shared.write(names)
    copy = shared.read()
    assert list(copy) == list(names)
    assert not copy._encoded.flags.owndata and not copy._encoded.flags.writeable
    shared.close()


def test_the_order_of_13_million_records_is_no_table(tmp_path):
    """Nor is there one of the records of a prepared data set: only of its files."""
    prepare(tmp_path, noise(64), shards=64)
    with_as_many_records(tmp_path, IMAGENET_21K // 64 * 64)
    source = TfdsSource(str(tmp_path / "small" / "1.0.0"), "train", check=False)
    assert len(source) > 13_000_000
    order = sample_order(source, 0)
    drawn = {int(order[i]) for i in range(10_000)}
    assert len(drawn) == 10_000 and max(drawn) > 12_000_000
    assert len(pickle.dumps((source, order))) < 10_000


EPOCH = """
    import json, os, sys
    from tests.data.processes import resident, workers_of
    from xtra_jax.data.pipeline import train_batches
    from xtra_jax.data.sources import open_source
    from xtra_jax.data.transforms import PretrainTransform

    source = open_source("small", "train", sys.argv[1])
    steps = len(source) // 1000
    batches = train_batches(source, PretrainTransform(8), batch_size=1000, seed=0, num_workers=2)
    for step, batch in zip(range(steps), batches):
        assert batch["weight"].all()
        if step % (steps // 100) == 0:
            pids = [os.getpid(), *workers_of(os.getpid())]
            print(json.dumps([resident(pid) for pid in pids]), flush=True)
"""


@pytest.mark.slow
def test_an_epoch_over_1300000_records_leaves_the_memory_of_each_process_flat(tmp_path):
    """Measured is what a process holds itself: anonymous and shared pages, not those of files."""
    data_dir = prepare(tmp_path, noise(26, side=8), shards=13)
    with_as_many_records(tmp_path, 1_300_000)
    for file in shard_files(data_dir):
        records = ArrayRecordReader(str(file)).read_all()
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for number in range(100_000):
            writer.write(records[number % len(records)])
        writer.close()
    assert len(open_source("small", "train", data_dir)) == 1_300_000

    script = tmp_path / "epoch.py"
    script.write_text(textwrap.dedent(EPOCH))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), data_dir], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    samples = np.array([json.loads(line) for line in done.stdout.splitlines()])
    assert samples.shape[1] == 3 and len(samples) >= 100
    after_warm_up = samples[5:]
    growth = after_warm_up.max(axis=0) / after_warm_up[0] - 1
    print(f"MB at 5 %: {after_warm_up[0] / 1e6}, growth {growth}")
    assert (growth < 0.05).all()
