"""The GPU benchmark, where there is no GPU: what it asks, what survives, and what it writes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_profile, gpu_table
from benchmarks.gpu_questions import Case, questions

ROOT = Path(__file__).parent.parent.parent
NOT_ON_A_BARE_GPU_MACHINE = ("grain", "tensorflow_datasets", "clu", "ml_collections", "PIL")


def arguments(folder, **given):
    defaults = dict(minutes=5, only=None, limit=None, platform="cpu", tiny=True)
    return argparse.Namespace(folder=folder, **(defaults | given))


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Replaces the process of a case by a script that finds `case` and `out`."""

    def replace(body: str) -> None:
        script = tmp_path / "child.py"
        begin = "import json, pathlib, sys, time\ncase = json.loads(sys.argv[1])\n"
        script.write_text(f"{begin}out = pathlib.Path(sys.argv[2])\n{body}")
        monkeypatch.setattr(gpu, "CHILD", (sys.executable, str(script)))

    return replace


def measured(folder, **given) -> list[dict]:
    list(gpu.measure(arguments(folder, **given)))
    return gpu.read(folder / gpu.RESULTS)


GOOD = 'out.write_text(json.dumps({"seconds": 0.1, "images_per_s": 40.0}))\n'


def test_a_case_that_fails_is_told_and_the_others_go_on(tmp_path, child):
    child(f"if 'cudnn' in sys.argv[1]: raise ValueError('no such kernel')\n{GOOD}")
    only = [f"step tiny depth=1 batch=4 {name} none bernoulli" for name in ("cudnn", "xla")]
    cudnn, xla = measured(tmp_path / "out", only=only)
    assert cudnn["error"] == "exit code 1: ValueError: no such kernel"
    assert "error" not in xla and xla["seconds"] == 0.1


def test_a_case_out_of_memory_says_so(tmp_path, child):
    child("raise RuntimeError('RESOURCE_EXHAUSTED: 90 GiB wanted')")
    (one,) = measured(tmp_path / "out", only=["rates*"])
    assert one["error"].startswith("out of memory") and "90 GiB" in one["error"]


def test_a_case_beyond_its_own_time_is_told_and_not_tried_again(tmp_path, child):
    child("time.sleep(60)")
    (one,) = measured(tmp_path / "out", only=["rates*"], limit=0.5)
    assert one["error"] == "not done after 0.5 seconds"
    assert len(measured(tmp_path / "out", only=["rates*"], limit=0.5)) == 1


def test_a_case_that_the_call_s_end_cuts_off_is_left_for_the_next_call(tmp_path, child):
    child("time.sleep(60)")
    folder = tmp_path / "out"
    assert measured(folder, only=["rates*"], minutes=1 / 60, limit=100) == []  # no time to begin
    cut = Case("", "rates", {}, limit=100, needs=0)
    assert gpu.run_case(cut, folder, arguments(folder), seconds=0.5) is None
    child(GOOD)
    assert len(measured(folder, only=["rates*"])) == 1


def test_a_further_call_goes_on_behind_a_line_that_was_cut_off(tmp_path, child):
    child(GOOD)
    folder = tmp_path / "out"
    before = measured(folder, only=["rates*", "step tiny depth=1 batch=4 xla none bernoulli"])
    whole = (folder / gpu.RESULTS).read_text()
    (folder / gpu.RESULTS).write_text(whole[:-10])  # as a kill leaves it
    after = measured(folder, only=["rates*", "step tiny depth=1 batch=4 xla none bernoulli"])
    assert [one["case"] for one in after] == [one["case"] for one in before]


def test_results_of_another_gpu_do_not_stand_in_for_this_one_s(tmp_path):
    results = gpu.Results(tmp_path, "NVIDIA H100")
    results.add(Case("", "rates", {}, 1, 1), {"seconds": 1.0})
    assert gpu.Results(tmp_path, "NVIDIA H100").known
    assert not gpu.Results(tmp_path, "NVIDIA H200").known


def answers(seconds_of, until=None):
    """Asks all questions in turn; `seconds_of(case)` measures one, None for a failure."""
    results: dict[str, dict] = {}
    while True:
        case = next((c for c in questions(results) if c.name not in results), None)
        if case is None or case.name == until:
            return results
        seconds = seconds_of(case)
        failed = {"error": "out of memory"}
        results[case.name] = failed if seconds is None else {"seconds": seconds}


def test_the_whole_model_is_compiled_with_the_attention_that_ranks_first():
    def seconds(case):
        per_layer = {"cudnn": 2.0, "xla": 1.0}.get(case.settings.get("attention"), 0.0)
        return 1.0 + per_layer * case.settings.get("depth", 0)

    asked = list(answers(seconds))
    whole = [name for name in asked if name.startswith("step h14 depth=32")]
    assert "xla" in whole[0] and "batch=128" in whole[0]
    assert not any("cudnn" in name for name in whole)


def test_a_whole_model_that_does_not_fit_is_tried_at_a_smaller_batch():
    def seconds(case):
        return None if case.settings.get("batch", 0) > 64 else 1.0

    asked = [name for name in answers(seconds) if name.startswith("step h14 depth=32")]
    assert [name.split()[3] for name in asked[:3]] == ["batch=128", "batch=96", "batch=64"]


def test_the_headline_and_the_peer_come_before_the_details():
    asked = list(answers(lambda case: 1.0))
    kinds = [name.split()[0] for name in asked]
    assert kinds[0] == "rates"
    assert kinds.index("profile") < kinds.index("peer") < 12
    assert len(asked) == len(set(asked))


def test_a_process_that_is_told_to_end_leaves_none_behind(tmp_path, child):
    child("time.sleep(60)")
    case = Case("", "rates", {}, limit=1.0, needs=0)
    pid = tmp_path / "pid"
    child(f"import os; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)")
    assert "error" in gpu.run_case(case, tmp_path, arguments(tmp_path), seconds=50)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def line(depth, seconds, **given):
    settings = dict(model="h14", depth=depth, batch=64, attention="cudnn", remat="none")
    return {
        "machine": "NVIDIA H100",
        "case": f"depth {depth}",
        "question": "attention",
        "kind": "step",
        "flags": "",
        "jax": "0.11.2",
        "settings": settings,
        "seconds": seconds,
        "images_per_s": 64 / seconds,
        "mfu": 0.5,
        "useful_flops_per_image": depth * 32e9,
        "modelled_images_per_s": 64 / seconds,
        "bound_images_per_s": 1000.0,
        "peak_bytes": depth * 2**30,
        **given,
    }


def test_two_depths_are_drawn_out_to_the_whole_model_beside_the_prediction():
    said = gpu_table.table([line(4, 0.024), line(8, 0.040)])
    (row,) = [
        row for row in said.splitlines() if row.startswith("| attention: cudnn") and "462" in row
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["64", "4.000", f"{64 / 0.136:.1f}"]  # 24 ms and 28 layers of 4 ms
    assert cells[-1] == "32.0"


def test_the_table_names_devices_failures_and_the_ratio_to_the_best_peer():
    peer = line(32, 0.2, kind="peer") | {"case": "peer"}
    peer["settings"] = dict(peer["settings"], compiled=True, drop_last_block=True)
    failed = {"machine": "NVIDIA H200", "case": "step x", "error": "out of memory: 1"}
    said = gpu_table.table([line(32, 0.1), peer, failed])
    assert "### NVIDIA H100" in said and "### NVIDIA H200" in said
    assert "- step x: out of memory: 1" in said
    (ours,) = [row for row in said.splitlines() if row.startswith("| attention: cudnn")]
    assert ours.strip("| ").endswith("2.00")


def test_kernels_of_all_layers_are_added_up_and_told_by_kind():
    ms = 1e6
    found = gpu_profile.summed(
        [
            ("nvjet_hsh_128x256 (gemm.7)", 0 * ms, 4 * ms),
            ("loop_add_fusion_3", 4 * ms, 1 * ms),
            ("loop_add_fusion_12", 6 * ms, 1 * ms),
            ("cudnn_generated_sdpa_sm90_flash_bprop_wgmma", 6.5 * ms, 1 * ms),
        ],
        steps=2,
    )
    first, *_, last = found["kernels"]
    assert (first["kind"], first["ms"], first["calls"]) == ("product", 2.0, 0.5)
    fusion = next(one for one in found["kernels"] if one["name"] == "loop_add_fusion")
    assert (fusion["ms"], fusion["calls"], fusion["kind"]) == (1.0, 1.0, "elementwise")
    assert found["kinds"]["attention"] == 0.5
    assert found["busy_ms"] == 6.5 / 2  # overlapping once, the gap not at all
    assert found["span_ms"] == 7.5 / 2
    assert last["ms"] <= first["ms"]


def test_two_cases_run_for_real_without_what_a_bare_gpu_machine_lacks(tmp_path):
    for name in NOT_ON_A_BARE_GPU_MACHINE:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    folder = tmp_path / "out"
    command = ["benchmarks/gpu.sh", str(folder), "--platform=cpu", "--tiny", "--only", "rates*"]
    done = subprocess.run(
        [*command, "step tiny depth=1 batch=4 xla none bernoulli"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    rates, step = gpu.read(folder / gpu.RESULTS)
    assert rates["product_flops"] > 0 and rates["copy_bytes_per_s"] > 0
    assert "error" not in step and "program_error" not in step, step
    assert step["images_per_s"] == pytest.approx(4 / step["seconds"])
    assert step["traffic_bytes"]["rest"] > 0 and step["useful_flops_per_image"] > 0
    assert (folder / "summary.md").read_text().strip() in done.stdout
    assert "### cpu" in done.stdout
