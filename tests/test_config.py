"""Loading a config, overriding its values, and what is said when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from xtra_jax import config as configs
from xtra_jax import config_rules
from xtra_jax.errors import UserError
from xtra_jax.model.attention import IMPLEMENTATIONS
from xtra_jax.model.execution import REMATS
from xtra_jax.model.orders import ORDERS
from xtra_jax.model.xtra import LOSSES

BASE = "configs/base.py"
DIGITS = "configs/probe.py:digits"

SMALL = """
from configs import base

def get_config():
    config = base.get_config()
    {}
    return config
"""


def write(tmp_path, body, name="mine.py"):
    file = tmp_path / name
    file.write_text(body)
    return str(file)


def refusal(argument, overrides=()):
    with pytest.raises(UserError) as caught:
        configs.load(argument, overrides)
    return str(caught.value)


# Overrides


def test_an_override_is_parsed_as_the_type_its_key_has():
    config = configs.load(
        BASE,
        {
            "model.block_size": "2",
            "optim.lr": "1",
            "loss.norm_pix": "False",
            "data.dataset": "folder",
            "data.crop_scale": "0.5,1",
        },
    )
    assert config.model.block_size == 2
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.loss.norm_pix is False
    assert config.data.dataset == "folder"
    assert config.data.crop_scale == (0.5, 1.0)


@pytest.mark.parametrize("text", ["(0.5, 1)", "[0.5,1.0]", "0.5, 1,", (0.5, 1)])
def test_a_tuple_may_be_written_with_and_without_brackets(text):
    assert configs.load(BASE, {"data.crop_scale": text}).data.crop_scale == (0.5, 1.0)


def test_a_single_number_is_a_tuple_of_one():
    assert configs.load(DIGITS, {"rates": "1e-3"}).rates == (1e-3,)


def test_a_list_of_whole_numbers_or_of_truths_stays_one():
    layers = configs.load(DIGITS, {"probe.attentive_layers": "1,4"}).probe.attentive_layers
    assert layers == (1, 4) and all(type(n) is int for n in layers)
    probe = configs.load(DIGITS, {"probe.final_norm": "true, false"}).probe
    assert probe.final_norm == (True, False)


def test_both_ways_of_writing_an_override_are_taken_out_and_the_rest_keeps_its_order():
    overrides, rest = configs.split_overrides(
        ["pretrain", "--config", "a.py", "--config.seed=1", "--workdir", "w", "--config.mesh.data"]
        + ["-1", "--config.model.scan_layers", "--config.data.dataset=x=y", "--config.seed", "2"]
    )
    assert overrides == {
        "seed": "2",
        "mesh.data": "-1",
        "model.scan_layers": None,
        "data.dataset": "x=y",
    }
    assert rest == ["pretrain", "--config", "a.py", "--workdir", "w"]


def test_a_bare_override_switches_on_a_boolean_and_is_refused_elsewhere():
    assert configs.load(BASE, {"model.scan_layers": None}).model.scan_layers is True
    assert "--config.model.depth needs a value" in refusal(BASE, {"model.depth": None})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.blok_size", "model.block_size"),
        ("batchsize", "batch_size"),
        ("model.lr", "optim.lr"),
        ("modle.variant", "model.variant"),
        ("width", "model.width or predictor.width"),
        ("predictor.droppath", "model.drop_path"),
    ],
)
def test_an_unknown_key_names_the_key_that_was_meant(key, meant):
    assert refusal(BASE, {key: "1"}) == f"unknown config key {key!r}: did you mean {meant}?"


def test_an_unknown_key_like_no_other_lists_the_keys_beside_it():
    assert "there are loss.kind, loss.norm_pix" in refusal(BASE, {"loss.zzz": "1"})
    assert "loss, mesh, model" in refusal(BASE, {"zzz.zzz": "1"})


def test_a_group_of_keys_is_not_a_key():
    assert "loss.kind, loss.norm_pix" in refusal(BASE, {"loss": "mse"})


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("batch_size", "2.5", "a whole number"),
        ("batch_size", True, "a whole number"),
        ("loss.norm_pix", "perhaps", "true or false"),
        ("optim.lr", "fast", "a number"),
        ("optim.lr", "nan", "a number"),
        ("optim.lr", "1,2", "a number"),
        ("data.crop_scale", "small,large", "a list of numbers"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_was_given_and_what_is_expected(key, text, expected):
    message = refusal(BASE, {key: text})
    assert message.startswith(f"--config.{key}={str(text).lower()} should be {expected}")
    assert f"as in --config.{key}=" in message


# Files


def test_a_file_outside_the_package_builds_on_the_shipped_base(tmp_path, monkeypatch):
    file = write(tmp_path, SMALL.format("config.model.variant = 'tiny'"))
    monkeypatch.chdir(tmp_path)
    assert configs.load(file).model.variant == "tiny"
    assert configs.load("configs/demo.py").name == "demo"


def test_an_unrelated_folder_named_configs_does_not_get_in_the_way(tmp_path):
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "raise SystemExit('the wrong base')", "base.py")
    file = write(tmp_path, SMALL.format("config.seed = 5"))
    script = f"from xtra_jax import config; print(config.load({file!r}).seed)"
    paths = f"import sys; sys.path = [{str(tmp_path)!r}, {str(configs.shipped_configs().parent)!r}"
    done = subprocess.run(
        [sys.executable, "-c", f"{paths}, *sys.path]; {script}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "5", done.stderr


def test_a_loaded_config_takes_no_new_keys():
    config = configs.load(BASE)
    with pytest.raises(AttributeError):
        config.model.blok_size = 2


def test_a_missing_file_names_the_nearest_one():
    assert refusal("configs/dmo.py").endswith("did you mean configs/demo.py?")
    assert "nor does the folder" in refusal("nowhere/demo.py")
    assert "is a folder" in refusal("configs/pretrain")


def test_a_file_must_be_python(tmp_path):
    assert "must end in .py" in refusal(write(tmp_path, "a: 1", "mine.yaml"))


def test_a_file_without_get_config_says_so(tmp_path):
    assert "has no get_config()" in refusal(write(tmp_path, "x = 1"))
    assert "returns dict" in refusal(write(tmp_path, "def get_config():\n    return {}"))


def test_a_name_is_asked_for_and_the_nearest_comes_first():
    assert "needs one of its names" in refusal("configs/ablations.py")
    assert "knows no 'blocks_1x46': it knows blocks_1x64, blocks_1x16" in refusal(
        "configs/ablations.py:blocks_1x46"
    )
    assert "has no names" in refusal("configs/demo.py:digits")


def test_a_misspelt_key_in_a_file_is_found(tmp_path):
    file = write(tmp_path, SMALL.format("config.model.blok_size = 2"))
    message = refusal(file)
    assert (
        message == f"unknown config key 'model.blok_size' in {file}: did you mean model.block_size?"
    )


def test_keys_that_a_file_leaves_out_are_named(tmp_path):
    assert "lacks model.depth" in refusal(write(tmp_path, SMALL.format("del config.model.depth")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("config.batch_size = 2.5", "in line 6: TypeError"),
        ("config.batch_size = ", "in line 6: SyntaxError"),
        ("config.model.variant.x = 1", "in line 6: AttributeError"),
        ("config.loss = type(config)({'kind': 1, 'norm_pix': True})", "loss.kind must be text"),
    ],
)
def test_a_file_that_fails_says_in_which_line_and_why(tmp_path, line, says):
    assert says in refusal(write(tmp_path, SMALL.format(line)))


# Values


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"steps": "5"}, "exactly one must be above 0"),
        ({"epochs": "0"}, "exactly one must be above 0"),
        ({"epochs": "0", "steps": "5"}, "use optim.warmup_steps"),
        ({"optim.warmup_steps": "5"}, "one of them must be 0"),
        ({"batch_size": "0"}, "batch_size=0 must be at least 1"),
        ({"accumulate": "3"}, "batch_size=2048 is not a multiple of accumulate=3"),
        ({"optim.lr": "0"}, "optim.lr=0.0 must be above 0"),
        ({"optim.end_lr": "0.1"}, "must be at most the peak, optim.lr=0.001"),
        ({"optim.warmup_lr": "0.1"}, "must be at most the peak, optim.lr=0.001"),
        ({"optim.beta2": "1"}, "below 1"),
        ({"model.drop_path": "1"}, "below 1"),
        ({"data.flip": "1.5"}, "data.flip=1.5 must be from 0 to 1"),
        ({"data.crop_scale": "0.3"}, "two numbers"),
        ({"data.crop_scale": "1,0.3"}, "lowest first"),
        ({"data.crop_ratio": "0,1"}, "above 0"),
        ({"data.mean": "0.5,0.5"}, "three numbers"),
        ({"data.eval_resize": "200"}, "smaller than model.image_size=256"),
        ({"model.dtype": "bf16"}, "did you mean 'bfloat16'?"),
        ({"model.remat": "all"}, "there are 'none', 'full', 'dots'"),
        ({"model.attention": "cuddn"}, "did you mean 'cudnn'?"),
        ({"model.attention": "cudnn", "model.dtype": "float32"}, "set model.dtype=bfloat16"),
        ({"model.order": "pseudorandom"}, "did you mean 'pseudo_random'?"),
        ({"model.variant": "hugh"}, "did you mean 'huge'?"),
        ({"loss.kind": "l2"}, "there are 'mse', 'l1'"),
        ({"mesh.fsdp": "-1"}, "mesh.data and mesh.fsdp are both -1"),
        ({"mesh.tensor": "0"}, "-1 for all devices left"),
        ({"model.block_size": "3"}, "1, 2, 4, 8, 16"),
        ({"model.image_size": "250"}, "240 and 256"),
        ({"model.block_size": "16"}, "head.num_tokens=1 needs at least 2 blocks"),
        ({"head.num_tokens": "16"}, "head.num_tokens=16 needs at least 17 blocks"),
        ({"head.num_tokens": "-1"}, "head.num_tokens=-1, and must be 0 or more"),
        ({"model.variant": "custom"}, "model.width=0"),
        ({"model.num_heads": "5"}, "does not divide model.width=768"),
        ({"predictor.num_heads": "5"}, "does not divide predictor.width=768"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_would_be_right(overrides, says):
    assert says in refusal(BASE, overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"kind": "attentiv"}, "did you mean 'attentive'?"),
        ({"data.randaugment": "rand-m5"}, "'rand-m9-mstd0.5-inc1'"),
        ({"rates": ""}, "one or several numbers above 0"),
        ({"rates": "1e-3,0"}, "one or several numbers above 0"),
        ({"rates": "1e-3,0.001"}, "rates=0.001,0.001 must be one or several numbers above 0, all"),
        ({"weight_decays": "-0.1"}, "weight_decays=-0.1 must be one or several numbers, 0 or more"),
        ({"probe.attentive_layers": "0"}, "whole numbers, at least 1"),
        ({"probe.linear_layers": "1,1.5"}, "=1,1.5 must be one or several whole"),
        ({"probe.final_norm": "maybe"}, "probe.final_norm=maybe should be a list"),
        ({"probe.final_norm": "true,true"}, "must be false, true or both"),
        ({"probe.heads_at_once": "-1"}, "0 or more"),
        ({"select": "train"}, "there are 'test', 'heldout'"),
        ({"heldout_fraction": "1"}, "above 0 and below 1"),
        ({"select": "heldout", "data.mixture": "1,2"}, "leave data.mixture empty"),
        ({"label_smoothing": "1"}, "below 1"),
        ({"data.erasing": "2"}, "from 0 to 1"),
        ({"data.num_classes": "1"}, "at least 2"),
    ],
)
def test_a_probe_value_that_cannot_be_is_refused(overrides, says):
    assert says in refusal(DIGITS, overrides)


def test_the_choices_are_those_of_the_model():
    assert config_rules.CHOICES["loss.kind"] == LOSSES
    assert config_rules.CHOICES["model.order"] == ORDERS
    assert config_rules.CHOICES["model.remat"] == REMATS
    assert config_rules.CHOICES["model.attention"] == ("auto", *IMPLEMENTATIONS)


@pytest.mark.parametrize("argument", [BASE, DIGITS])
def test_every_rule_is_about_a_key_that_exists(argument):
    other = DIGITS if argument == BASE else BASE
    known = {*configs.flatten(configs.load(argument)), *configs.flatten(configs.load(other))}
    filled_in = {"data.mean", "data.std"}
    assert not {*config_rules.RANGES, *config_rules.CHOICES} - known - filled_in


def test_a_custom_model_has_the_sizes_it_is_given_and_a_variant_can_be_changed_in_one():
    demo = configs.model_spec(configs.load("configs/demo.py"))
    assert (demo.encoder.width, demo.encoder.depth, demo.encoder.mlp_ratio) == (96, 4, 4.0)
    shallow = configs.model_spec(configs.load(BASE, {"model.depth": 3}))
    assert (shallow.encoder.width, shallow.encoder.depth) == (768, 3)


# Saving and comparing


@pytest.mark.parametrize("argument", [BASE, DIGITS])
def test_a_config_survives_json(argument):
    config = configs.load(argument)
    again = configs.from_dict(json.loads(json.dumps(config.to_dict())))
    assert configs.config_diff(config, again) == {}
    assert again.data.crop_scale == config.data.crop_scale
    assert isinstance(again.data.crop_scale, tuple)
    configs.validate(again)


def test_a_run_older_than_a_key_does_what_it_did():
    config = configs.load("configs/demo.py")
    saved = json.loads(json.dumps(config.to_dict()))
    del saved["data"]["subset"], saved["optim"]["reduce_dtype"], saved["keep_checkpoints"]
    again = configs.saved_config(saved)
    assert (again.data.subset, again.optim.reduce_dtype) == ("", "float32")
    assert set(configs.config_diff(config, again)) <= {"keep_checkpoints"}


def test_the_difference_of_two_configs_is_their_keys_with_both_values():
    a = configs.load(BASE)
    b = configs.load(BASE, {"model.block_size": "2", "seed": "7"})
    assert configs.config_diff(a, b) == {"model.block_size": (4, 2), "seed": (0, 7)}
    probe = configs.load(DIGITS)
    assert configs.config_diff(a, probe)["loss.kind"] == ("mse", None)


# Lengths


def test_a_run_in_epochs_drops_only_its_last_incomplete_batch():
    config = configs.load(BASE, {"batch_size": "128", "epochs": "3", "optim.warmup_epochs": "0"})
    assert configs.total_steps(config, 1442) == 3 * 1442 // 128 == 33


def test_a_run_in_steps_has_that_many():
    demo = configs.load("configs/demo.py")
    assert configs.total_steps(demo, 1442) == demo.steps
    assert configs.warmup_steps(demo, demo.steps) == demo.optim.warmup_steps


def test_warm_up_is_its_share_of_the_steps_rounded_down():
    config = configs.load("configs/pretrain/xtra_b16_in1k.py")
    steps = configs.total_steps(config, 1_281_167)
    assert steps == 800 * 1_281_167 // 2048 == 500_455
    assert configs.warmup_steps(config, steps) == int(15 / 800 * 500_455) == 9383


def test_a_run_of_less_than_one_step_and_a_warm_up_without_an_end_are_refused():
    config = configs.load(BASE, {"epochs": "1", "optim.warmup_epochs": "1"})
    with pytest.raises(UserError, match="less than one step of batch_size=2048"):
        configs.total_steps(config, 2000)
    with pytest.raises(UserError, match=r"optim.warmup_epochs=1 is a warm-up of 10 steps"):
        configs.warmup_steps(config, 10)


# What a probe takes over from its encoder


def test_a_probe_sees_images_as_its_encoder_did():
    encoder = configs.load("configs/pretrain/xtra_b16_in1k.py")
    probe = configs.with_encoder_input(configs.load("configs/probe.py:food101"), encoder)
    assert (probe.data.image_size, probe.data.eval_resize) == (256, 300)
    assert (probe.data.mean, probe.data.std) == (encoder.data.mean, encoder.data.std)
    encoder.data.mean = (0.5, 0.4, 0.3)
    probe = configs.with_encoder_input(configs.load("configs/probe.py:food101"), encoder)
    assert probe.data.mean == (0.5, 0.4, 0.3)


def test_a_probe_at_another_size_must_say_what_to_resize_to():
    encoder = configs.load("configs/pretrain/xtra_b16_in1k.py")
    probe = configs.load("configs/probe.py:food101", {"data.image_size": "224"})
    with pytest.raises(UserError, match=r"data.image_size=224 is not the 256 of the encoder"):
        configs.with_encoder_input(probe, encoder)
    probe.data.eval_resize = 256
    assert configs.with_encoder_input(probe, encoder).data.image_size == 224
