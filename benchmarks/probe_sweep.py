"""What more heads cost a probe: ten attentive heads against one on the same frozen encoder.

The step is that of `xtra probe`: ViT-B/16 at 256 px with random weights in float32, features of its
last six layers, heads of 1000 classes, an optimizer step of every head. The two steps take turns in
one process, and ratios to the step of one head are medians of those of each turn; MFU is printed
where the peak rate of the device is known. The process's peak memory is that of both steps, so each
has that of its compiled program beside it. For ViT-H/14 at 224 px, where CPUs say nothing, the
matrix products are counted, and memory is that of the compiled step.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device import here
from benchmarks.memory import forget_the_host_peak, host_peak_mib, jax_peak_mib
from xtra_jax.config import load, model_spec
from xtra_jax.model.flops import forward_flops
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind_encoder, init_params
from xtra_jax.parallel.program import memory
from xtra_jax.probing import sweep
from xtra_jax.probing.features import FeatureSpec, features_by_spec, model_input
from xtra_jax.probing.recipe import Recipe
from xtra_jax.probing.sweep import HeadGroup, Setting

BATCH, HEADS, CLASSES = 16, 10, 1000
NAMES = {1: "one head", HEADS: "ten heads"}
LAST = FeatureSpec(last_layers=6)
B16, H14 = "configs/pretrain/xtra_b16_in1k.py", "configs/pretrain/xtra_h14_in21k.py"
DTYPE = "float32"
MEMORY_HEADS, MEMORY_BATCH = 40, 128  # of the study whose memory is told, images on one device
RECIPE = Recipe(steps=1000, steps_per_epoch=100, warmup_steps=10)


def attentive_heads(spec: XTRASpec, count: int) -> dict[str, HeadGroup]:
    settings = tuple(Setting(1e-4 * (1 + i), 0.1) for i in range(count))
    group = HeadGroup("attentive", LAST, spec.encoder.width, CLASSES, settings)
    return {group.name: group}


def extract(params: dict, batch: dict, key, *, spec: XTRASpec) -> dict[FeatureSpec, jax.Array]:
    del key
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    patches = model_input(batch["image"], spec.grid, mean, std)
    return features_by_spec(bind_encoder(spec, params), patches, [LAST])


def stored(batch: dict, key) -> dict[FeatureSpec, jax.Array]:
    del key
    return {LAST: batch["features"]}


def encoder_flops(spec: XTRASpec) -> int:
    """The frozen encoder's forward pass for one image."""
    parts = forward_flops(spec)
    return sum(parts[name] for name in ("patch_embed", "encoder_linear", "encoder_attention"))


def head_flops(spec: XTRASpec, num_heads: int = 16, num_queries: int = 1) -> int:
    """Training one attentive head on one image: forward, and backward to its parameters.

    Left out is what is done once per batch, such as folding the key matrix into the query.
    """
    tokens, width = spec.grid.num_tokens, spec.encoder.width
    scores = 2 * tokens * num_heads * num_queries * width
    pooling = 2 * tokens * num_heads * width
    # Features need no gradient: backward costs as much as forward, and twice that on from there.
    return 2 * (scores + pooling) + 3 * 2 * width * (width + CLASSES)


def seconds_in_turns(steps: dict, states: dict, features, batch, turns: int) -> dict:
    """Seconds by the clock and of the processor, of every step in every turn."""
    clock, processor = ({name: [] for name in steps} for _ in range(2))
    for turn in range(turns + 1):
        # Every other turn in the other order, so that neither is always the first.
        for name in sorted(steps, reverse=turn % 2 == 1):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            states[name], losses = steps[name](states[name], features, batch)
            jax.block_until_ready((states[name], losses))
            if turn:
                clock[name].append(time.perf_counter() - begin)
                processor[name].append(time.process_time() - begin_cpu)
    return {"clock": clock, "processor": processor}


def timed(turns: int) -> dict:
    """Steps of one and of ten heads, in turns."""
    spec = model_spec(load(B16, {"model.dtype": DTYPE}))
    params = jax.jit(lambda: init_params(spec, jax.random.key(0))["encoder"])()
    features = jax.tree_util.Partial(partial(extract, spec=spec), params)
    rng = np.random.default_rng(0)
    size = spec.grid.image_size
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8),
            "label": rng.integers(0, CLASSES, BATCH, dtype=np.int32),
            "weight": np.ones(BATCH, np.float32),
        }
    )
    steps, states = {}, {}
    for count in NAMES:
        groups = attentive_heads(spec, count)
        states[count] = jax.jit(partial(sweep.init_state, groups, RECIPE, 0))()
        step = jax.jit(sweep.make_train_step(groups, RECIPE, 0), donate_argnums=0)
        steps[count] = step.lower(states[count], features, batch).compile()
    forget_the_host_peak()
    found = seconds_in_turns(steps, states, features, batch, turns)
    peaks = {"host_peak_mib": host_peak_mib(), "device_peak_mib": jax_peak_mib()}
    ways = {
        name: _row(found, count, encoder_flops(spec) + count * head_flops(spec))
        | {"program_mib": memory(steps[count]).peak / 2**20}
        for count, name in NAMES.items()
    }
    return {"baseline": NAMES[1], **peaks, "ways": ways}


def _row(found: dict, count: int, flops: int) -> dict:
    """The figures of one step; `flops` are those of one image."""
    clock, processor = found["clock"], found["processor"]
    seconds, peak = statistics.median(clock[count]), here().peak_flops(DTYPE)
    row = {
        "seconds": seconds,
        "cpu_seconds": statistics.median(processor[count]),
        "images_per_s": BATCH / seconds,
        "mfu": BATCH * flops / seconds / peak if peak else None,
    }
    for kind, times in (("times", clock), ("cpu_times", processor)):
        ratios = [mine / one for one, mine in zip(times[1], times[count], strict=True)]
        name = f"{kind}_{NAMES[1]}"
        row |= {name: statistics.median(ratios), f"{name}_all": ratios}
    return row


def counted(config: str) -> dict:
    """FLOPs per image of an encoder and of a head, and what ten heads cost by them."""
    spec = model_spec(load(config))
    encoder, head = encoder_flops(spec), head_flops(spec)
    return {
        "encoder_gflop_per_image": encoder / 1e9,
        "head_gflop_per_image": head / 1e9,
        "ten_over_one": (encoder + HEADS * head) / (encoder + head),
    }


def compiled_memory(heads_at_once: int, device: jax.Device | None = None) -> dict:
    """MiB that training 40 attentive heads on ViT-H/14 takes, beside the encoder.

    Args:
        device: that the step is compiled for; by default the first one here.
    """
    spec = model_spec(load(H14))
    groups = attentive_heads(spec, MEMORY_HEADS)
    tokens, width = spec.grid.num_tokens, spec.encoder.width
    sharding = jax.sharding.SingleDeviceSharding(device or jax.devices()[0])
    arguments = (
        jax.eval_shape(partial(sweep.init_state, groups, RECIPE, 0)),
        jax.tree_util.Partial(stored),
        {
            "features": jax.ShapeDtypeStruct((MEMORY_BATCH, tokens, width), jnp.float32),
            "label": jax.ShapeDtypeStruct((MEMORY_BATCH,), jnp.int32),
            "weight": jax.ShapeDtypeStruct((MEMORY_BATCH,), jnp.float32),
        },
    )
    step = sweep.make_train_step(groups, RECIPE, 0, heads_at_once=heads_at_once)
    step = jax.jit(step, donate_argnums=0, in_shardings=sharding, out_shardings=sharding)
    found = memory(step.lower(*arguments).compile())
    parameters = sum(
        leaf.size
        for state in arguments[0].heads.values()
        for leaf in jax.tree.leaves(state["params"])
    )
    return {
        "parameters": parameters,
        "state_mib": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments[0])) / 2**20,
        "features_mib": MEMORY_BATCH * tokens * width * 4 / 2**20,
        "temporaries_mib": found.temporaries / 2**20,
        "updated_in_place_mib": found.aliased / 2**20,
    }


def run(repeats: int = 15) -> dict:
    """The ratio of ten heads to one, and counts of FLOPs and memory."""
    here()
    return {
        "case": f"probe step, ViT-B/16 256 px, {HEADS} attentive heads against one, batch {BATCH}, "
        f"{DTYPE}",
        **timed(repeats),
        "ViT-B/16, matrix products": counted(B16),
        "ViT-H/14, matrix products": counted(H14),
        f"ViT-H/14, {MEMORY_HEADS} heads, {MEMORY_BATCH} images, compiled": {
            f"{at_once or 'all'} heads at once": compiled_memory(at_once) for at_once in (0, 10, 5)
        },
    }
