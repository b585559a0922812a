"""The command: mistakes end it with one sentence before anything starts, and results are read."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks import attention, cases, compile_time, probe_sweep, show, startup, train_step
from benchmarks import device as devices
from benchmarks.__main__ import main
from benchmarks.cases import Way, model
from benchmarks.subset_depth import main as compare_subsets

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing_starts(monkeypatch):
    """Fails where a process is started."""

    def start(*arguments, **options):
        raise AssertionError("a process was started before the mistake was told")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    monkeypatch.setattr(subprocess, "Popen", start)


@pytest.fixture
def without_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )


def sentence(capsys) -> str:
    """What was said: one line, and nothing on stdout."""
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("step --ways bogus", "'bogus' is neither 'ours' nor 'peer'"),
        ("step --ways ours,bogus", "'bogus' is none of all_blocks"),
        ("step --ways ours --baseline peer", "baseline 'peer' is none of the ways: ours"),
        ("step --ways ours ours", "named twice"),
        ("step --image_size 100", "100 is not a multiple"),
        ("step --image_size 0", "--image_size: 0 is too few"),
        ("step --repeats many", "'many' is no whole number"),
        ("step --out {folder}", "cannot be written: Is a directory"),
        ("step --out {folder}/none/x.json", "cannot be written: No such file"),
        ("attention --ways bogus", "no way 'bogus' of attention, only xla"),
        ("compile --ways peer", "'peer' has no step to compile"),
        ("compile --ways ours --baseline theirs", "baseline 'theirs' is none of the ways: ours"),
        ("bogus", "invalid choice: 'bogus'"),
    ],
)
def test_a_mistake_ends_it_with_one_sentence_before_anything_starts(
    arguments, said, nothing_starts, tmp_path, capsys
):
    assert main(arguments.format(folder=tmp_path).split()) == 2
    assert said in sentence(capsys)


@pytest.mark.parametrize("arguments", ["step --ways ours peer", "attention --ways xla torch"])
def test_without_pytorch_its_ways_are_refused_and_it_says_how_to_install_it(
    arguments, nothing_starts, without_torch, capsys
):
    assert main(arguments.split()) == 2
    said = sentence(capsys)
    assert "needs PyTorch, which is missing" in said
    assert f"{sys.executable} -m pip install torch" in said


def test_without_tcmalloc_its_ways_are_refused(monkeypatch, nothing_starts, capsys):
    monkeypatch.setattr(cases, "find_library", lambda name: None)
    assert main(["step", "--ways", "ours", "ours,tcmalloc"]) == 2
    assert "needs gperftools' tcmalloc, which is missing" in sentence(capsys)


def test_a_file_for_results_keeps_what_it_holds_where_nothing_is_timed(nothing_starts, tmp_path):
    kept, new = tmp_path / "kept.json", tmp_path / "new.json"
    kept.write_text("{}")
    for file in (kept, new):
        assert main(["step", "--ways", "bogus", "--out", str(file)]) == 2
    assert kept.read_text() == "{}" and not new.exists()


def test_too_few_seeds_to_compare_are_refused(nothing_starts, capsys):
    assert compare_subsets(["--seeds", "1"]) == 2
    assert "--seeds: 1 is too few: at least 2" in sentence(capsys)


def test_pytorchs_step_is_among_those_timed_where_it_is_installed(monkeypatch):
    for installed, ways in ((True, ("peer", *train_step.WAYS)), (False, train_step.WAYS)):
        monkeypatch.setattr(train_step, "have_torch", lambda installed=installed: installed)
        assert train_step.default_ways() == ways


def test_compiling_applies_all_of_a_way(monkeypatch):
    """Way by way, what is compiled is the very step that is timed."""
    raced = {}
    monkeypatch.setattr(compile_time, "here", lambda: devices.Device("cpu", "cpu"))
    monkeypatch.setattr(
        compile_time, "race", lambda contestants, *_, **__: raced.update(contestants)
    )
    monkeypatch.setattr(cases, "find_tcmalloc", lambda: "libtcmalloc.so")
    names = ("ours", "ours,bfloat16,tcmalloc,scan_layers")
    compile_time.run(1, ways=names)
    changed = raced[names[1]]
    assert changed.environment == Way(names[1]).environment != {}
    assert changed.arguments[2] == Way(names[1])
    text = {
        name: train_step.lowered_step(model("tiny", 64, 1), 1, Way(name))[0].as_text()
        for name in names
    }
    assert "bf16" in text[names[1]] and "bf16" not in text[names[0]]


def test_this_process_is_left_without_a_device_of_its_own(tmp_path):
    """What holds a TPU would keep contestants from it, and on a GPU hold the most of its memory."""
    out = tmp_path / "attention.json"
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import jax
            from benchmarks.__main__ import main

            if __name__ == "__main__":
                assert main(["attention", "--repeats=1", "--ways=xla", "--out={out}"]) == 0
                # JAX refuses this once it has found its devices.
                jax.config.update("jax_num_cpu_devices", 3)
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, script], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())["ways"]["xla"]
    assert row["images_per_s"] == 16 / row["seconds"]
    assert row["mfu"] is None and row["host_peak_mib"] > 1
    assert "mfu" not in done.stdout and "images per s" in done.stdout


def test_where_a_peak_is_known_attention_has_its_share_of_it(monkeypatch):
    raced = {"seconds": 0.5}
    monkeypatch.setattr(attention, "here", lambda: devices.Device("tpu", "TPU v4"))
    monkeypatch.setattr(
        attention, "race", lambda *_, in_turns, **__: {"xla": raced | {"t": in_turns}}
    )
    found = attention.run(1, ways=("xla",), batch_size=8)
    row, width, tokens = found["ways"]["xla"], 192, 60
    assert row["images_per_s"] == 16
    # Forward two products of the queries' and the tokens' rectangle, and backward twice that.
    assert row["mfu"] == pytest.approx(16 * 3 * 2 * 2 * tokens**2 * width / 275e12)
    assert row["t"] is False and "one after the other" in found["order"]


def test_a_step_of_ten_heads_is_told_in_times_of_the_step_of_one(monkeypatch):
    monkeypatch.setattr(probe_sweep, "here", lambda: devices.Device("gpu", "NVIDIA H100 80GB HBM3"))
    found = {"clock": {1: [1.0, 2.0], 10: [2.0, 8.0]}, "processor": {1: [1.0] * 2, 10: [1.5] * 2}}
    row = probe_sweep._row(found, 10, flops=10**12)
    assert (row["seconds"], row["times_one head"], row["cpu_times_one head"]) == (5, 3, 1.5)
    assert row["images_per_s"] == probe_sweep.BATCH / 5
    assert row["mfu"] == pytest.approx(row["images_per_s"] * 1e12 / (989e12 / 2))


def test_no_device_to_time_on_is_one_sentence(monkeypatch, capsys):
    def none(*_):
        raise RuntimeError("Unable to initialize backend 'rocm'\nand more")

    devices.here.cache_clear()
    monkeypatch.setattr(devices, "_elsewhere", none)
    assert main(["checkpoint"]) == 2
    assert "finds no device to time on: Unable to initialize backend 'rocm'" in sentence(capsys)


def test_figures_stand_apart_from_their_names_and_in_columns(capsys):
    ways = {
        "a": {"milliseconds": 5578.0, "a_much_longer_name_than_the_others": 1.0, "t_all": [1]},
        "a way with a long name": {"milliseconds": 2.34567, "mfu": None, "peak_mib": 12.0},
    }
    show.show(
        {"case": "x", "a_rather_long_name_of_a_figure": 5578, "inner": {"b": 0.5}, "ways": ways}
    )
    lines = capsys.readouterr().out.splitlines()
    assert "a rather long name of a figure  5578" in lines
    assert "  b  0.5" in lines
    table = lines[lines.index("") + 1 :]
    assert len({len(line) for line in table}) == 1, "columns are not aligned"
    assert table[1].split() == ["milliseconds", "5,578", "2.346"]
    assert [line.split("  ")[0] for line in table[1:]] == [
        "milliseconds",
        "a much longer name than the others",
        "peak mib",
    ]


def test_a_start_is_printed_with_its_ratio_to_the_one_without_a_cache(capsys):
    turn = dict.fromkeys(startup.STAGES, 1.0) | {"cpu imports": 0.5, "host peak mib": 900.0}
    none, full = turn | {"total": 30.0, "cpu total": 20.0}, turn | {"total": 10.0, "cpu total": 8.0}
    rows = {
        cache: startup._summary([one], [none])
        for cache, one in zip(startup.CACHES, (none, none, full), strict=True)
    }
    startup.show({"case": "x", "baseline": "cache none", "demo": rows})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "total 30.00 (20.0) 30.00 (20.0) 10.00 (8.0)" in lines
    assert "speed over none 1 1 3" in lines and "cpu speed over none 1 1 2.5" in lines
    assert "host peak mib 900 900 900" in lines
