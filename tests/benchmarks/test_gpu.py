"""The GPU benchmark, where there is no GPU: what survives, and what it writes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_profile, gpu_table, gpu_whatif
from benchmarks.gpu_questions import Case
from tests.plan.cuda_environment import has_cuda_plugin

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


CUDNN = "step model=tiny depth=1 batch=4"
XLA = f"{CUDNN} attention=xla"
GOOD = 'out.write_text(json.dumps({"seconds": 0.1, "images_per_s": 40.0}))\n'


def test_a_case_that_fails_is_told_and_the_others_go_on(tmp_path, child):
    child(f"if 'xla' not in sys.argv[1]: raise ValueError('no such kernel')\n{GOOD}")
    *cudnn, xla = measured(tmp_path / "out", only=[CUDNN, XLA])
    for one in cudnn:
        assert one["error"] == "exit code 1: ValueError: no such kernel"
        assert one["failure"] == "other"
    assert "error" not in xla and xla["seconds"] == 0.1


def test_what_fails_for_another_reason_than_memory_is_tried_once_more(tmp_path, child):
    mark = tmp_path / "tried"
    child(
        f"mark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    raise OSError('busy')\n" + GOOD
    )
    first, second = measured(tmp_path / "out", only=[XLA])
    assert "busy" in first["error"] and second["seconds"] == 0.1
    mark.unlink()
    assert len(measured(tmp_path / "out", only=[XLA])) == 2


def test_a_case_out_of_memory_says_so_and_is_not_tried_again(tmp_path, child):
    child("raise RuntimeError('RESOURCE_EXHAUSTED: 90 GiB wanted')")
    (one,) = measured(tmp_path / "out", only=[XLA])
    assert one["error"].startswith("out of memory") and "90 GiB" in one["error"]
    assert one["failure"] == "memory"


def test_a_kernel_that_found_no_memory_while_it_was_tried_is_not_the_reason(tmp_path, child):
    child("print('W autotuner: RESOURCE_EXHAUSTED', flush=True)\nraise ValueError('no mask')")
    one, _ = measured(tmp_path / "out", only=[XLA])
    assert one["failure"] == "other" and "no mask" in one["error"]


def test_a_case_beyond_its_time_is_tried_once_more_with_more_of_it(tmp_path, child):
    child("time.sleep(60)")
    one, other = measured(tmp_path / "out", only=[XLA], limit=0.5)
    assert one["error"] == "not done after 0.5 seconds"
    assert other["error"] == "not done after 0.75 seconds"
    assert len(measured(tmp_path / "out", only=[XLA], limit=0.5)) == 2


def test_the_second_attempt_does_not_begin_where_as_little_time_is_left(tmp_path):
    results = gpu.Results(tmp_path, "NVIDIA H100")
    case = Case("", "step", {"model": "h14"}, needs=250, limit=330)
    results.add(case, {"error": "not done after 330 seconds", "failure": "time"})
    again = results.attempt(case)
    assert (again.needs, again.limit) == (330, 495)


def test_what_a_case_wrote_is_its_result_whatever_became_of_it_then(tmp_path, child):
    child(f"{GOOD}raise SystemError('the profiler')")
    (one,) = measured(tmp_path / "out", only=[XLA])
    assert one["seconds"] == 0.1 and "error" not in one
    assert "exit code 1" in gpu_table.line(one)


def test_a_case_that_the_call_s_end_cuts_off_is_left_for_the_next_call(tmp_path, child):
    child("time.sleep(60)")
    folder = tmp_path / "out"
    assert measured(folder, only=[XLA], minutes=0.5 / 60, limit=100) == []  # no time to begin
    cut = Case("", "rates", {}, needs=0, limit=100)
    assert gpu.run_case(cut, folder, arguments(folder), seconds=0.5) is None
    child(GOOD)
    assert len(measured(folder, only=[XLA])) == 1


def test_a_further_call_goes_on_behind_a_line_that_was_cut_off(tmp_path, child):
    child(GOOD)
    folder, only = tmp_path / "out", ["rates*", XLA]
    before = measured(folder, only=only)
    whole = (folder / gpu.RESULTS).read_text()
    (folder / gpu.RESULTS).write_text(whole[:-10])  # as a copy breaks off
    after = measured(folder, only=only)
    assert [one["case"] for one in after] == [one["case"] for one in before]
    assert all(map(json.loads, (folder / gpu.RESULTS).read_text().splitlines()))


def test_results_of_another_gpu_do_not_stand_in_for_this_one_s(tmp_path):
    results = gpu.Results(tmp_path, "NVIDIA H100")
    results.add(Case("", "rates", {}, 1, 1), {"seconds": 1.0})
    assert gpu.Results(tmp_path, "NVIDIA H100").known
    assert not gpu.Results(tmp_path, "NVIDIA H200").known


def test_a_device_that_cannot_be_used_ends_the_call_in_one_sentence(tmp_path, child):
    child("raise RuntimeError('no CUDA here')")
    with pytest.raises(SystemExit, match="This device cannot be used: .*no CUDA here; .*log.txt"):
        measured(tmp_path / "out")
    assert gpu.read(tmp_path / "out" / gpu.RESULTS) == []  # the next call asks again


def test_on_a_gpu_no_case_may_run_on_the_processor(tmp_path):
    case = Case("", "step", {"model": "h14"}, 1, 1, flags="--xla_gpu_enable_triton_gemm=false")
    env = gpu.environment(arguments(tmp_path, platform="cuda"), case, str(tmp_path))
    assert env["JAX_PLATFORMS"] == "cuda"
    assert env["XLA_FLAGS"].endswith(case.flags)


def test_a_process_that_is_told_to_end_leaves_none_behind(tmp_path, child):
    case = Case("", "rates", {}, needs=0, limit=1.0)
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
    *_, row = [row for row in said.splitlines() if row.startswith("| attention: cudnn")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["64", "4.000", f"{64 / 0.136:.1f}"]  # 24 ms and 28 layers of 4 ms
    assert cells[-1] == "32.0"


def test_the_table_names_devices_failures_and_the_ratio_to_the_best_peer():
    peer = line(32, 0.2, kind="peer") | {"case": "peer"}
    peer["settings"] = dict(model="h14", depth=32, batch=96)
    peer["images_per_s"] = 320.0
    failed = {"machine": "NVIDIA H200", "case": "step x", "error": "out of memory: 1"}
    said = gpu_table.table([line(32, 0.1), peer, failed])
    assert "PyTorch, compiled, bfloat16 sums" in said
    assert "### NVIDIA H100" in said and "### NVIDIA H200" in said
    assert "- step x: out of memory: 1" in said
    (ours,) = [row for row in said.splitlines() if row.startswith("| attention: cudnn")]
    assert ours.strip("| ").endswith("2.00")


def test_the_last_attempt_at_a_case_is_the_one_that_counts():
    failed = line(32, 0.1) | {"error": "exit code 1: busy"}
    assert "busy" not in gpu_table.table([failed, line(32, 0.1)])


def test_each_case_has_a_trace_of_its_own_with_a_name_that_any_system_allows():
    one, other = map(gpu_profile.trace_name, ("step depth=3 --xla_a=b", "step depth=3"))
    assert one != other
    assert one == "step-depth-3---xla_a-b.xplane.pb.gz"


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


def run_on_a_bare_machine(tmp_path, *command, **env):
    """Runs a command where what a rented GPU machine lacks can't be imported."""
    for name in NOT_ON_A_BARE_GPU_MACHINE:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {"PYTHON": sys.executable, "PYTHONPATH": paths, "TMPDIR": str(tmp_path), **env}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_toy(tmp_path, folder, *only):
    command = ["benchmarks/gpu.sh", str(folder), "--platform=cpu", "--tiny", "--only", *only]
    return run_on_a_bare_machine(tmp_path, *command), gpu.read(folder / gpu.RESULTS)


def test_three_cases_run_for_real_without_what_a_bare_gpu_machine_lacks(tmp_path):
    folder = tmp_path / "out"
    said, (rates, attention, step) = run_toy(tmp_path, folder, "rates*", "attention*", XLA)
    assert rates["product_flops"] > 0 and rates["copy_bytes_per_s"] > 0
    assert attention["attention"]["xla"]["deviation"] < 2e-2
    # jax with its CUDA plugin, and no GPU, refuses later and otherwise.
    refused = "dot_product_attention" if has_cuda_plugin() else "cuDNN"
    assert refused in attention["attention"]["cudnn"]["error"]
    assert not attention["cudnn_is_right"]
    assert "error" not in step and "program_error" not in step, step
    assert step["images_per_s"] == pytest.approx(4 / step["seconds"])
    assert step["traffic_bytes"]["rest"] > 0 and step["useful_flops_per_image"] > 0
    assert step["first_loss"] > 0 and step["first_grad_norm"] > 0
    assert (folder / "summary.md").read_text().strip() in said
    assert "### cpu" in said


@pytest.mark.slow
def test_the_traced_whole_model_runs_for_real_and_its_program_is_kept(tmp_path):
    folder, case = tmp_path / "out", "step model=tiny depth=3 batch=4 attention=xla"
    said, (_, whole) = run_toy(tmp_path, folder, "attention*", case)
    assert whole["kernels"] and whole["busy_ms"] > 0 and "afterwards" not in whole
    assert (folder / whole["trace"]).stat().st_size > 0
    assert "Profile of" in said and not whole["compile_cached"]
    _, (_, again) = run_toy(tmp_path, tmp_path / "other", "attention*", case)
    assert again["compile_cached"]


@pytest.mark.slow
def test_the_peer_runs_for_real(tmp_path):
    pytest.importorskip("torch")
    said, (_, bfloat16, float32) = run_toy(
        tmp_path,
        tmp_path / "out",
        *("attention*", "peer model=tiny depth=2 batch=4 compiled=False"),
        "peer model=tiny depth=2 batch=4 compiled=False residual=float32",
    )
    for one in (bfloat16, float32):
        assert one["images_per_s"] == pytest.approx(4 / one["seconds"])
    assert "PyTorch, not compiled, float32 sums" in said


def test_the_peer_says_so_where_pytorch_has_no_gpu(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("here it has one")
    case = Case("", "peer", dict(model="tiny", depth=1, batch=2), needs=1, limit=300)
    result = gpu.run_case(case, tmp_path, arguments(tmp_path, platform="cuda"), seconds=300)
    assert result["error"] == f"exit code 1: PyTorch {torch.__version__} finds no GPU here"


EVERYTHING = """
import importlib, pathlib
for path in sorted(pathlib.Path("benchmarks").glob("gpu*.py")):
    importlib.import_module(f"benchmarks.{path.stem}")
from benchmarks import gpu_step, gpu_whatif
from benchmarks.gpu_settings import Settings
for name in gpu_whatif.CHANGES:
    settings = Settings("tiny", 1, 2, attention="xla", whatif=name)
    with gpu_whatif.changed(name):
        optimizer, step = gpu_step.make_step(settings)
        step.lower(*gpu_step.abstract_arguments(settings, optimizer))
    print(name)
"""


def test_all_of_it_can_be_imported_and_every_change_still_changes_the_model(tmp_path):
    said = run_on_a_bare_machine(tmp_path, sys.executable, "-c", EVERYTHING, JAX_PLATFORMS="cpu")
    assert set(said.split()) == set(gpu_whatif.CHANGES)


def test_a_call_that_is_told_to_end_leaves_whole_results_and_a_summary(tmp_path):
    folder, script = tmp_path / "out", tmp_path / "child.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "if 'rates' not in sys.argv[1]: time.sleep(60)\n"
        "pathlib.Path(sys.argv[2]).write_text(json.dumps({'product_flops': 1e12}))"
    )
    code = (
        f"from benchmarks import gpu; gpu.CHILD = ({sys.executable!r}, {str(script)!r}); gpu.main()"
    )
    command = [sys.executable, "-c", code, str(folder), "--platform=cpu", "--tiny"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while "rates" not in process.stdout.readline():
        pass
    while not gpu.read(folder / gpu.RESULTS):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    (line,) = (folder / gpu.RESULTS).read_text().splitlines()
    assert json.loads(line)["product_flops"] == 1e12
    assert "### cpu" in said and (folder / "summary.md").exists()
