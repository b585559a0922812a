"""Golden weights under other names and in other containers, as published files have them."""

from __future__ import annotations

import jax
import numpy as np

from tests import goldens
from tests.interop import torch_files

SPEC = goldens.tiny_spec()
HEADS = {"model.num_heads": 3, "predictor.num_heads": 2}
FLAGS = [f"--config.{key}={value}" for key, value in HEADS.items()]
ENCODER = {"model.num_heads": 3, "model.block_size": 2}


def tensors():
    return goldens.subset(goldens.load("B_tiny_block_hot"), "param/")


def prefixed(named, prefix):
    return {prefix + name: tensor for name, tensor in named.items()}


def encoder_only(named):
    return {name: tensor for name, tensor in named.items() if name.startswith("enc.")}


def as_vit(named):
    return {name.removeprefix("enc."): t for name, t in encoder_only(named).items()}


def as_aim(named):
    renamed = {}
    for name, tensor in as_vit(named).items():
        name = name.replace("norm1", "norm_1").replace("norm2", "norm_2")
        if name.startswith("blocks."):
            name = f"trunk.{name}"
        elif name.startswith("norm."):
            name = f"trunk.post_trunk_{name}"
        else:
            name = f"preprocessor.{name.replace('patch_embed', 'patchifier')}"
        renamed[name] = tensor
    return renamed


def optimizer_state(named):
    """AdamW's, as Lightning keeps it."""
    state = {
        i: {"step": np.ones(1, np.float32), "exp_avg": 2 * t, "exp_avg_sq": t * t}
        for i, t in enumerate(named.values())
    }
    return {"state": state, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1]}]}


def lightning(path, named):
    content = {
        "epoch": 799,
        "global_step": 490400,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": named,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": named["enc.norm.bias"]}},
        "optimizer_states": [optimizer_state(named)],
        "lr_schedulers": [],
        "hparams_name": "config",
        "hyper_parameters": torch_files.Hyperparameters(lr=1e-3, arch="vit_b"),
    }  # fmt: skip
    return torch_files.save(path, content)


def deepspeed(path, named):
    content = {
        "module": prefixed(named, "_forward_module."),
        "buffer_names": [],
        "optimizer": optimizer_state(named),
        "param_shapes": [{name: tensor.shape for name, tensor in named.items()}],
        "lr_scheduler": None,
        "sparse_tensor_module_names": {"none"},
        "skipped_steps": 0,
        "global_steps": 51200,
        "dp_world_size": 72,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.14.0",
        "hyper_parameters": torch_files.Hyperparameters(lr=1e-3),
    }
    return torch_files.save(path, content)


def bare(path, named):
    return torch_files.save(path, named)


def legacy(path, named):
    return torch_files.save_legacy(path, {"state_dict": named})


CONTAINERS = {
    "epoch=799.ckpt": lightning,
    "mp_rank_00_model_states.pt": deepspeed,
    "bare.pth": bare,
    "old.pth": legacy,
    "model.safetensors": torch_files.save_safetensors,
}


def equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def changed(named, **changes):
    named = dict(named)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del named[name]
        else:
            named[name] = tensor
    return named
