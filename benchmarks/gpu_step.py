"""Our train step as a benchmark runs it on a GPU: built from settings, compiled, and timed.

Needs jax, flax, optax and numpy, and of xtra_jax only what needs no more than they.
"""

from __future__ import annotations

import math
import statistics
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu_whatif
from benchmarks.gpu_settings import Settings
from xtra_jax.model.execution import Execution
from xtra_jax.model.flops import forward_flops, train_flops
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec, variant
from xtra_jax.model.xtra import abstract_params
from xtra_jax.parallel.hlo import Module
from xtra_jax.parallel.peaks import Accelerator
from xtra_jax.parallel.program import memory, module_of
from xtra_jax.parallel.traffic import traffic_parts
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.step import Objective, TrainState, make_train_step

# What predictions assume: the share of its peak that an H100 reaches in large bfloat16 products,
# and that of the memory's nominal rate in kernels which only wait for it.
PRODUCT_SHARE = 750 / 989
MEMORY_SHARE = 0.8


def spec_of(settings: Settings) -> XTRASpec:
    """The model of the settings, in bfloat16."""
    if settings.model == "h14":
        sizes, grid, rate = variant("huge"), Grid(224, 14, 4), 0.2
        predictor, head = PredictorSpec(5120, 640, 8, 8), HeadSpec(9408)
    elif settings.model == "b16":
        sizes, grid, rate = variant("base"), Grid(256, 16, 4), 0.1
        predictor, head = PredictorSpec(4096, 768, 8, 6), HeadSpec(6144)
    else:
        sizes, grid, rate = variant("tiny")._replace(width=32, depth=3, num_heads=2), None, 0.2
        grid = Grid(16, 4, 2)
        predictor, head = PredictorSpec(32, 32, 1, 2), HeadSpec(32)
    encoder = EncoderSpec(
        grid,
        sizes.width,
        settings.depth or sizes.depth,
        sizes.num_heads,
        sizes.mlp_ratio,
        0.0 if settings.drop_path == "none" else rate,
        "bernoulli" if settings.drop_path == "none" else settings.drop_path,
    )
    return XTRASpec(encoder, predictor, head, "bfloat16", settings.predictor_dtype)


def execution_of(settings: Settings) -> Execution:
    return Execution(
        attention=settings.attention,
        scan_layers=settings.scan,
        remat=settings.remat,
        reduce_dtype=settings.reduce_dtype,
    )


def useful_flops(settings: Settings) -> int:
    """Useful operations of one image.

    Those of the blocks that predict, whether or not the last one is computed as well, and of the
    samples that stochastic depth computes.
    """
    return train_flops(spec_of(settings), shard_size=settings.batch)


def product_flops(settings: Settings) -> int:
    """Operations in matrix products of one image, those that remat repeats included."""
    spec = spec_of(settings)
    forward = forward_flops(
        spec, drop_last_block=settings.drop_last_block, shard_size=settings.batch
    )
    again = 0.0
    if settings.remat != "none":
        again += forward["encoder_attention"] + forward["predictor_attention"]
    if settings.remat == "full":  # all but a layer's last product, which nothing in it needs
        width, hidden = spec.encoder.width, spec.encoder.mlp_hidden
        again += forward["encoder_linear"] * (4 * width + hidden) / (4 * width + 2 * hidden)
        again += forward["predictor_linear"] * 8 / 12
    return round(3 * forward["total"] + again)


def make_step(settings: Settings):
    """The optimizer and the jitted step, the state donated, of the settings."""
    optimizer = adamw(
        lambda step: 1e-4,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=1.0,
        mu_dtype=settings.mu_dtype,
    )
    step = make_train_step(
        spec_of(settings),
        optimizer,
        Objective(drop_last_block=settings.drop_last_block),
        execution_of(settings),
        schedule=lambda step: 1e-4,
    )
    return optimizer, jax.jit(step, donate_argnums=0)


def abstract_arguments(settings: Settings, optimizer, sharding=None) -> tuple[TrainState, dict]:
    """Shapes and dtypes of the step's arguments, on a device of choice."""

    def placed(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def state():
        params = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(spec_of(settings))
        )
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    size = spec_of(settings).grid.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((settings.batch, size, size, 3), jnp.uint8),
        "weight": jax.ShapeDtypeStruct((settings.batch,), jnp.float32),
    }
    return jax.tree.map(placed, (jax.eval_shape(state), batch))


def arguments(settings: Settings, optimizer) -> tuple[TrainState, dict]:
    """A fresh state and a batch of noise, on the device.

    Weights are drawn leaf by leaf, which compiles once per shape and not once per layer.
    """

    def draw(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        if name == "bias":
            return jnp.zeros(leaf.shape, leaf.dtype)
        seed = zlib.crc32(jax.tree_util.keystr(path).encode())
        return normal(jax.random.key(seed), leaf.shape)

    @jax.jit(static_argnums=1)
    def normal(key, shape):
        return 0.02 * jax.random.normal(key, shape)

    params = jax.tree_util.tree_map_with_path(draw, abstract_params(spec_of(settings)))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    rng = np.random.default_rng(0)
    size = spec_of(settings).grid.image_size
    batch = {
        "image": rng.integers(0, 256, (settings.batch, size, size, 3), dtype=np.uint8),
        "weight": np.ones(settings.batch, np.float32),
    }
    return state, jax.device_put(batch)


def compile_step(settings: Settings, sharding=None, compiler_options=None):
    """The compiled step and its optimizer.

    Args:
        sharding: of a device to compile for; None for the one that is there.
    """
    with gpu_whatif.changed(settings.whatif):
        optimizer, step = make_step(settings)
        lowered = step.lower(*abstract_arguments(settings, optimizer, sharding))
        return lowered.compile(compiler_options=compiler_options), optimizer


def program_facts(compiled, module: Module | None = None) -> dict:
    """What can be read off a compiled step: bytes of memory that it takes and moves, per step.

    Args:
        module: the program's text, where it was read already.
    """
    return {
        "program_peak_bytes": memory(compiled).peak,
        "program_temporary_bytes": memory(compiled).temporaries,
        "traffic_bytes": traffic_parts(module or module_of(compiled)),
    }


def flops_facts(settings: Settings) -> dict:
    return {
        "useful_flops_per_image": useful_flops(settings),
        "product_flops_per_image": product_flops(settings),
    }


def predicted(facts: dict, settings: Settings, chip: Accelerator | None) -> dict:
    """Images/s before anything is timed.

    Returns:
        "bound": useful operations at the device's peak; "modelled": products at `PRODUCT_SHARE`,
        then all other bytes at `MEMORY_SHARE` of the memory's rate. None where unknown.
    """
    if chip is None:
        return {"bound_images_per_s": None, "modelled_images_per_s": None}
    modelled = None
    if moved := facts.get("traffic_bytes"):
        seconds = settings.batch * facts["product_flops_per_image"]
        seconds /= PRODUCT_SHARE * chip.flops
        seconds += (moved["rest"] + moved["attention"]) / (MEMORY_SHARE * chip.bandwidth)
        modelled = settings.batch / seconds
    return {
        "bound_images_per_s": chip.flops / facts["useful_flops_per_image"],
        "modelled_images_per_s": modelled,
    }


def timed(
    step, state, batch, *, rounds: int = 5, round_seconds: float = 1.0
) -> tuple[dict, TrainState]:
    """Seconds per step: the median of rounds, each of as many steps as last about a second.

    Nothing is fetched within a round, as in training: steps are queued and the last one awaited.

    Returns:
        The times, the last loss, and the first step's loss and gradient norm, from which variants
        can be compared; and the state after it all.
    """
    begin = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    first = time.perf_counter() - begin
    told = {f"first_{name}": _number(metrics[name]) for name in ("loss", "grad_norm")}
    begin = time.perf_counter()
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    steps = max(2, math.ceil(2 * round_seconds / (time.perf_counter() - begin)))
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - begin) / steps)
    return {
        "seconds": statistics.median(seconds),
        "seconds_rounds": seconds,
        "steps_per_round": steps,
        "first_step_seconds": first,
        "loss": _number(metrics["loss"]),
        **told,
    }, state


def _number(value: jax.Array) -> float | None:
    """None for what is no number, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None
