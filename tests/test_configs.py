"""The configs in `configs/` against the published recipes, written out a second time."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import jax
import pytest

from xtra_jax import config as configs
from xtra_jax.model.xtra import abstract_params

COUNTS = Path(__file__).parent / "golden" / "H_counts.json"

PRETRAINING = ["base.py", "demo.py", "pretrain/xtra_b16_in1k.py", "pretrain/xtra_h14_in21k.py"]
ABLATIONS = importlib.import_module("configs.ablations").NAMES
PROBES = importlib.import_module("configs.probe").NAMES

L7 = [1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3]
L9 = [*L7, 8e-3, 1e-2]
TENTH_OF_L9 = [1e-5, 3e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 4e-4, 8e-4, 1e-3]

# Classes, batch, warm-up epochs, effective rates, TFDS name or our own, training, evaluation split.
BENCHMARKS = {
    "imagenet2012": (1000, 4096, 10, L7, "imagenet2012", "train", "validation"),
    "i_naturalist2018": (8142, 4096, 10, [*L9, 0.1], "i_naturalist2018", "train", "validation"),
    "cifar10": (10, 512, 0, TENTH_OF_L9, "cifar10", "train", "test"),
    "cifar100": (100, 512, 0, TENTH_OF_L9, "cifar100", "train", "test"),
    "food101": (101, 512, 0, TENTH_OF_L9, "food101", "train", "validation"),
    "dtd": (47, 128, 0, TENTH_OF_L9, "dtd", "train+validation", "test"),
    "oxford_iiit_pet": (37, 128, 0, TENTH_OF_L9, "oxford_iiit_pet", "train", "test"),
    "cars196": (196, 128, 0, [*TENTH_OF_L9, 0.01], "cars196", "train", "test"),
    "iwildcam": (182, 512, 0, TENTH_OF_L9, "iwildcam", "train", "val"),
    "camelyon17": (2, 512, 0, TENTH_OF_L9, "camelyon17", "train", "val"),
    "patch_camelyon": (2, 4096, 0, TENTH_OF_L9, "patch_camelyon", "train", "validation"),
    "rxrx1": (1139, 512, 0, TENTH_OF_L9, "rxrx1", "train", "val"),
    "eurosat": (10, 512, 0, TENTH_OF_L9, "eurosat/rgb", "train[:80%]", "train[80%:]"),
    "fmow": (62, 512, 0, TENTH_OF_L9, "fmow", "train", "val"),
    "infograph": (345, 256, 0, [*TENTH_OF_L9, 0.01], "domainnet/infograph", "train", "test"),
}


def load(name, overrides=()):
    return configs.load(f"configs/{name}", overrides)


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_pretraining_config_loads(name):
    assert load(name).name


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_loads(name):
    assert load(f"ablations.py:{name}").name == f"ablation_{name}"


@pytest.mark.parametrize("name", ["base.py", "demo.py", *(f"ablations.py:{n}" for n in ABLATIONS)])
def test_every_config_builds_the_model_it_describes(name):
    config = load(name)
    params = abstract_params(configs.model_spec(config))
    block = config.model.block_size
    assert len(params["predictor"]["layers"]) == config.predictor.depth
    assert len(params["heads"]) == config.head.num_tokens
    embedding, _ = params["heads"]["0"]["fc1"]["kernel"].shape
    assert embedding == block**2 * config.predictor.width
    _, pixels = params["heads"]["0"]["fc2"]["kernel"].shape
    assert pixels == 3 * (block * config.model.patch_size) ** 2


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_loads(name):
    assert load(f"probe.py:{name}").name == name


def test_no_config_file_is_left_out_of_these_tests():
    folder = configs.shipped_configs()
    files = {str(f.relative_to(folder)) for f in folder.rglob("*.py") if f.stem != "__init__"}
    assert files == {*PRETRAINING, "ablations.py", "probe.py", "probe_base.py"}


def test_pretraining_shares_the_published_recipe():
    for name in ("pretrain/xtra_b16_in1k.py", "pretrain/xtra_h14_in21k.py"):
        config = load(name)
        optim, data = config.optim, config.data
        assert (optim.lr, optim.warmup_lr, optim.end_lr) == (1e-3, 1e-4, 1e-6)
        assert (optim.beta1, optim.beta2, optim.eps) == (0.9, 0.95, 1e-8)
        assert (optim.weight_decay, optim.clip_norm) == (0.05, 1.0)
        assert (data.crop_scale, data.crop_ratio, data.flip) == ((0.3, 1.0), (0.75, 1.5), 0.5)
        assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
        assert (config.batch_size, config.loss.kind, config.loss.norm_pix) == (2048, "mse", True)
        assert (config.model.block_size, config.head.num_tokens) == (4, 1)


def test_xtra_b16_is_the_released_run():
    config = load("pretrain/xtra_b16_in1k.py")
    model, predictor = config.model, config.predictor
    assert (model.variant, model.image_size, model.patch_size) == ("base", 256, 16)
    assert (predictor.hidden, predictor.width) == (4096, 768)
    assert (predictor.depth, predictor.num_heads, config.head.hidden) == (8, 6, 6144)
    assert (config.epochs, config.optim.warmup_epochs, model.drop_path) == (800.0, 15.0, 0.1)
    assert (config.data.dataset, config.data.eval_resize) == ("imagenet2012", 300)


def test_xtra_h14_is_the_released_run():
    config = load("pretrain/xtra_h14_in21k.py")
    model, predictor = config.model, config.predictor
    assert (model.variant, model.image_size, model.patch_size) == ("huge", 224, 14)
    assert (predictor.hidden, predictor.width) == (5120, 640)
    assert (predictor.depth, predictor.num_heads, config.head.hidden) == (8, 8, 9408)
    assert (config.epochs, config.optim.warmup_epochs, model.drop_path) == (100.0, 3.0, 0.2)
    assert (config.data.dataset, config.data.eval_dataset) == ("imagenet21k", "imagenet2012")
    assert (config.data.eval_split, config.data.eval_resize) == ("validation", 256)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("pretrain/xtra_b16_in1k.py", "B16_256"), ("pretrain/xtra_h14_in21k.py", "H14_224")],
)
def test_the_published_configs_build_models_of_the_published_size(name, counts):
    params = abstract_params(configs.model_spec(load(name)))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == json.loads(COUNTS.read_text())[counts]["params"]["total"]


def test_the_ablations_baseline_is_the_published_one():
    config = load("ablations.py:baseline")
    predictor = config.predictor
    assert (config.epochs, config.optim.warmup_epochs, config.batch_size) == (100.0, 10.0, 2048)
    assert (predictor.hidden, predictor.width) == (4096, 384)
    assert (predictor.depth, predictor.num_heads, config.head.hidden) == (8, 6, 6144)
    assert (config.model.variant, config.model.image_size) == ("base", 256)
    assert (config.model.drop_path, config.loss.kind) == (0.0, "mse")


ABLATED = {
    "baseline": {},
    "depth_1": {"predictor.depth": 1},
    "depth_2": {"predictor.depth": 2},
    "depth_4": {"predictor.depth": 4},
    "depth_8": {},
    "depth_16": {"predictor.depth": 16},
    "width_192": {"predictor.width": 192},
    "width_384": {},
    "width_576": {"predictor.width": 576},
    "width_768": {"predictor.width": 768},
    "l1": {"loss.kind": "l1"},
    "pseudo_random": {"model.order": "pseudo_random"},
    "blocks_1x16": {"model.block_size": 1},
    "blocks_1x32": {"model.block_size": 2},
    "blocks_1x64": {},
    "blocks_2x16": {"model.block_size": 1, "head.num_tokens": 2},
    "blocks_2x32": {"model.block_size": 2, "head.num_tokens": 2},
    "blocks_2x64": {"head.num_tokens": 2},
    "patch14_1x14": {"model.block_size": 1, "model.patch_size": 14},
    "patch14_1x28": {"model.block_size": 2, "model.patch_size": 14},
    "patch14_1x56": {"model.patch_size": 14},
    "patch16_1x16": {"model.block_size": 1},
    "patch16_1x32": {"model.block_size": 2},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_the_baseline_in_what_it_ablates_only(name):
    different = configs.config_diff(load("ablations.py:baseline"), load(f"ablations.py:{name}"))
    different = {key: ablated for key, (_, ablated) in different.items() if key != "name"}
    if name.startswith("patch"):
        assert (different.pop("model.image_size"), different.pop("data.eval_resize")) == (224, 256)
    assert different == ABLATED[name]


def test_every_published_ablation_has_a_name():
    assert set(ABLATIONS) == set(ABLATED)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_its_published_protocol(name):
    config = load(f"probe.py:{name}")
    classes, batch, warmup, rates, dataset, train, evaluation = BENCHMARKS[name]
    data, optim = config.data, config.optim
    assert (data.num_classes, config.batch_size, optim.warmup_epochs) == (classes, batch, warmup)
    assert list(config.rates) == rates
    assert (data.dataset, data.train_split, data.eval_split) == (dataset, train, evaluation)
    assert (config.epochs, config.label_smoothing) == (100.0, 0.0)
    assert (optim.beta1, optim.beta2, optim.end_lr, optim.clip_norm) == (0.9, 0.95, 1e-5, 3.0)


def test_there_are_fifteen_benchmarks_and_the_digits():
    assert len(BENCHMARKS) == 15
    assert {name.partition("_linear")[0] for name in PROBES} == {*BENCHMARKS, "digits", "all"}


def test_all_is_a_study_of_the_fifteen_attentive_probes_and_no_other_config_is_one():
    studies = {name: load(f"probe.py:{name}").datasets for name in PROBES}
    assert studies.pop("all").split(",") == list(BENCHMARKS)
    assert not any(studies.values())


def recipe(config):
    data = config.data
    return (
        config.kind,
        config.weight_decays,
        data.randaugment,
        data.erasing,
    )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_three_kinds_of_probe_of_a_benchmark_have_their_published_recipes(name):
    strong = ("rand-m9-mstd0.5-inc1", 0.25)
    kinds = [load(f"probe.py:{name}{suffix}") for suffix in ("", "_linear", "_linear_h14")]
    assert [recipe(config) for config in kinds] == [
        ("attentive", (0.1,), *strong),
        ("linear", (0.0,), "", 0.0),
        ("linear", (0.1,), *strong),
    ]
    for config in kinds:
        data = config.data
        assert (data.crop_scale, data.crop_ratio, data.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
        probe = config.probe
        assert (probe.attentive_layers, probe.linear_layers) == ((6,), (1,))
        assert (probe.num_queries, probe.num_heads, probe.final_norm) == (1, 16, (False,))
        assert config.select == "test"  # as published


def test_the_digits_probe_fits_the_demo_encoder():
    demo = load("demo.py")
    probe = configs.with_encoder_input(load("probe.py:digits"), demo)
    assert probe.kind == "both" and len(probe.rates) == 9
    assert max(probe.probe.attentive_layers) <= demo.model.depth
    assert demo.model.width % probe.probe.num_heads == 0
    assert probe.data.dataset == demo.data.dataset == "digits"
    assert probe.data.image_size == demo.model.image_size
