"""Plans of tiny configs for chips that aren't here, through the command line."""

from __future__ import annotations

import json

import jax
import pytest

from xtra_jax.cli import main
from xtra_jax.command_line import DOES_NOT_FIT
from xtra_jax.config import load, model_spec
from xtra_jax.parallel.mesh import make_mesh
from xtra_jax.parallel.topologies import devices_of, find_topology
from xtra_jax.training.recipe import make_optimizer, make_schedule
from xtra_jax.training.train_program import abstract_state, lower_train_step

TINY = {
    "batch_size": "8",
    "model.width": "24",
    "model.depth": "1",
    "model.image_size": "16",
    "model.patch_size": "4",
    "predictor.width": "24",
    "predictor.hidden": "16",
    "predictor.depth": "1",
    "head.hidden": "16",
    "data.eval_resize": "16",
    "mesh.data": "1",
    "mesh.fsdp": "-1",
}
# Weights of which one layer alone is more than a v5e chip holds.
HUGE = {**TINY, "model.width": "24576"}


def run(tmp_path, overrides, *more):
    out = tmp_path / "plans" / "plan.json"
    given = [f"--config.{key}={value}" for key, value in overrides.items()]
    code = main(["plan", "--config=configs/demo.py", f"--out={out}", *given, *more])
    return code, json.loads(out.read_text()) if out.exists() else None


@pytest.fixture(scope="module")
def v5e(tmp_path_factory):
    pytest.importorskip("libtpu")
    code, plan = run(tmp_path_factory.mktemp("v5e"), TINY, "--topology=v5e:2x2")
    assert code == 0
    return plan


def test_the_peak_agrees_with_memory_analysis(v5e):
    config = load("configs/demo.py", TINY)
    spec = model_spec(config)
    mesh = make_mesh(dict(config.mesh), devices_of(find_topology("v5e:2x2")))
    schedule = make_schedule(config, config.steps)
    optimizer = make_optimizer(config, schedule)
    state = abstract_state(config, spec, optimizer, mesh)
    program = lower_train_step(config, spec, optimizer, schedule, state, mesh).compile()
    stats, memory = program.memory_analysis(), v5e["memory"]
    assert memory["arguments"] == stats.argument_size_in_bytes
    assert memory["aliased"] == stats.alias_size_in_bytes
    assert memory["temporaries"] == pytest.approx(stats.temp_size_in_bytes, rel=0.02)
    reserved = memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporaries"]
    assert memory["peak"] == pytest.approx(
        max(reserved + memory["code"], stats.peak_memory_in_bytes), rel=0.02
    )


def test_a_plan_says_what_the_chips_exchange_and_compute(v5e):
    assert v5e["fits"] and v5e["topology"]["chips"] == 4 and v5e["mesh"]["fsdp"] == 4
    assert {one["kind"] for one in v5e["collectives"]} & {"all-gather", "all-reduce"}
    assert all(one["count_known"] for one in v5e["collectives"])
    assert v5e["host_transfers"] == []
    assert v5e["attention"] == {"encoder": "xla", "predictor": "xla"}
    assert v5e["flops"]["useful"] > 0 and v5e["memory_traffic"] > 0
    step = v5e["step"]
    assert step["seconds"] == max(step["compute"], step["memory"], step["interconnect"])
    assert v5e["run"]["steps"] == 450
    assert v5e["run"]["days"] == pytest.approx(450 * step["seconds"] / 86_400)
    assert v5e["config"]["model"]["width"] == 24


def test_a_config_that_does_not_fit_says_so_with_the_figures(tmp_path, capsys):
    pytest.importorskip("libtpu")
    code, plan = run(tmp_path, HUGE, "--topology=v5e:1x1")
    assert code == DOES_NOT_FIT == 3
    assert not plan["fits"]
    assert plan["memory"]["required"] > plan["memory"]["available"] == int(15.75 * 2**30)
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "of the 15.75 GiB" in said


def test_a_made_up_topology_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    code, plan = run(tmp_path, TINY, "--topology=v5e:9x9")
    said = capsys.readouterr().err
    assert (code, plan) == (2, None)
    assert "v5e:1x1, 2x2, 2x4" in said and "Traceback" not in said


def test_a_mesh_that_does_not_fit_the_topology_is_said_before_anything_compiles(tmp_path, capsys):
    pytest.importorskip("libtpu")
    overrides = {**TINY, "mesh.data": "3", "mesh.fsdp": "1"}
    assert run(tmp_path, overrides, "--topology=v5e:2x2") == (2, None)
    assert "mesh.data=3" in capsys.readouterr().err


def test_a_data_set_of_unknown_size_asks_for_it(tmp_path, capsys):
    overrides = {**TINY, "steps": "0", "epochs": "1", "data.dataset": "folder"}
    overrides["data.data_dir"] = str(tmp_path)
    assert run(tmp_path, overrides, "--topology=v5e:2x2") == (2, None)
    assert "--examples N" in capsys.readouterr().err


def test_a_plan_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    from xtra_jax.errors import UserError
    from xtra_jax.plan.job import write

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write --out="):
        write({}, str(tmp_path / "file" / "plan.json"))


@pytest.mark.slow
def test_a_plan_for_eight_gpus(tmp_path, capsys):
    pytest.importorskip("jax_plugins.xla_cuda13")
    code, plan = run(tmp_path, {**TINY, "model.dtype": "bfloat16"}, "--topology=h100:8")
    assert code == 0
    assert plan["attention"] == {"encoder": "cudnn", "predictor": "xla"}
    assert "attention by cuDNN in the encoder, by XLA in the predictor" in capsys.readouterr().out
    assert plan["topology"]["chips"] == plan["mesh"]["fsdp"] == 8
    assert plan["memory"]["available"] == int(0.92 * 84_929_347_584)


def test_planning_does_not_move_this_process_off_its_devices():
    assert jax.devices()[0].platform == "cpu"
