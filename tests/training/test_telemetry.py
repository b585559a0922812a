"""metrics.jsonl and the event files: valid, once per step, and honest about failures."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from tests.training.states import full_disk
from xtra_jax.errors import UserError
from xtra_jax.training import telemetry
from xtra_jax.training.telemetry import MetricWriter, read_metrics


def lines(workdir) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir) -> list[Event]:
    """All events in the order TensorBoard reads them, their checksums verified."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            header = data[at : at + 8]
            (length,) = struct.unpack("<Q", header)
            crc_header, body, crc_body = struct.unpack_from(f"<I{length}sI", data, at + 8)
            assert (crc_header, crc_body) == (masked_crc32c(header), masked_crc32c(body))
            found.append(Event.FromString(body))
            at += 16 + length
    return found


def visible(workdir) -> list[tuple[int, str, float]]:
    """The scalars TensorBoard shows: a session's start hides earlier ones from its step on."""
    shown = []
    for event in events(workdir):
        if event.session_log.status == SessionLog.START:
            shown = [scalar for scalar in shown if scalar[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def write(workdir, values: dict[int, float], step: int = 0) -> None:
    with MetricWriter(workdir, step=step) as writer:
        for at, value in values.items():
            writer.write(at, {"loss": value})


def test_both_files_hold_every_scalar(tmp_path):
    with MetricWriter(tmp_path / "new" / "run") as writer:
        writer.write(10, {"loss": np.float32(0.5), "lr": 1e-3})
        writer.write(20, {"loss": 0.25})
    written = lines(tmp_path / "new" / "run")
    assert all(line.pop("time") > 1.6e9 for line in written)
    assert written == [{"step": 10, "loss": 0.5, "lr": 1e-3}, {"step": 20, "loss": 0.25}]
    shown = visible(tmp_path / "new" / "run")
    assert shown == [(10, "loss", 0.5), (10, "lr", np.float32(1e-3)), (20, "loss", 0.25)]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(10, {"loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [10]
    writer.close()


def test_values_that_are_not_finite_are_strings_that_float_understands(tmp_path):
    write(tmp_path, {1: math.nan, 2: math.inf, 3: -math.inf})
    assert [line["loss"] for line in lines(tmp_path)] == ["NaN", "Infinity", "-Infinity"]
    values = [record["loss"] for record in read_metrics(tmp_path)]
    assert math.isnan(values[0]) and values[1:] == [math.inf, -math.inf]
    assert math.isnan(visible(tmp_path)[0][2])


def test_a_resumed_run_tells_each_step_once(tmp_path):
    write(tmp_path, {10: 1.0, 20: 2.0, 30: 3.0})
    write(tmp_path, {30: 3.5, 40: 4.0}, step=20)
    expected = [(10, 1.0), (20, 2.0), (30, 3.5), (40, 4.0)]
    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == expected
    assert [(step, value) for step, _, value in visible(tmp_path)] == expected


def test_a_run_that_starts_again_from_nothing_forgets_what_was_written(tmp_path):
    write(tmp_path, {10: 1.0})
    write(tmp_path, {10: 2.0})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [2.0]
    assert visible(tmp_path) == [(10, "loss", 2.0)]


def test_runs_restarted_within_a_second_do_not_overwrite_event_files(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry.time, "time", lambda: 1.7e9)
    for step in range(3):
        write(tmp_path, {step + 1: 1.0}, step=step)
    assert [step for step, _, _ in visible(tmp_path)] == [1, 2, 3]


def test_a_line_torn_by_a_kill_is_dropped_and_not_continued(tmp_path):
    write(tmp_path, {10: 1.0, 20: 2.0})
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-8])
    assert [record["step"] for record in read_metrics(tmp_path)] == [10]
    write(tmp_path, {30: 3.0}, step=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 30]


def test_resuming_leaves_a_file_without_later_steps_untouched(tmp_path):
    write(tmp_path, {10: 1.0})
    before = (tmp_path / "metrics.jsonl").stat()
    write(tmp_path, {}, step=10)
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_where_files_cannot_be_appended_to_they_are_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "is_local", lambda path: False)
    write(tmp_path, {10: 1.0, 20: 2.0})
    write(tmp_path, {20: 2.5, 30: 3.0}, step=10)
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.5, 3.0]


def test_what_was_flushed_is_there_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "is_local", lambda path: False)
    writer = MetricWriter(tmp_path)
    writer.write(10, {"loss": 1.0})
    writer.flush()
    writer.write(20, {"loss": 2.0})
    assert [line["loss"] for line in lines(tmp_path)] == [1.0]
    writer.close()


def test_only_an_active_writer_touches_the_directory(tmp_path):
    with MetricWriter(tmp_path / "run", active=False) as writer:
        writer.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write metrics to .*/file/run: Not a directory"):
        MetricWriter(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot read .*metrics.jsonl: No such file"):
        read_metrics(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_full_disk_is_told_by_the_write_that_meets_it_and_never_waited_for(tmp_path, capfd):
    with (
        full_disk(),
        pytest.raises(UserError, match="cannot write metrics to .*: File too large"),
        MetricWriter(tmp_path) as writer,
    ):
        for step in range(10_000):
            writer.write(step, {"loss": 1.0})
    del writer
    assert 0 < len(read_metrics(tmp_path)) < 10_000
    assert capfd.readouterr().err == ""
