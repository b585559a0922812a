"""The train step as a program for a mesh: lowered and compiled without any array at hand.

A run compiles it before its first batch is there, and `xtra plan` for devices that aren't there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from xtra_jax.data.transforms import canvas_side
from xtra_jax.errors import UserError
from xtra_jax.model.variants import XTRASpec
from xtra_jax.parallel.mesh import BATCH
from xtra_jax.parallel.sharding import replicated, shardings
from xtra_jax.training.recipe import execution_of, objective_of, orders_of, resizes_on_device
from xtra_jax.training.step import TrainState, init_state, make_train_step


def abstract_state(
    config: ConfigDict, spec: XTRASpec, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The shapes, dtypes and shardings of a run's state: a tree of `jax.ShapeDtypeStruct`.

    Raises:
        UserError: the model is an encoder alone, which has no objective.
    """
    if not spec.head.num_tokens:
        raise UserError("head.num_tokens=0 is an encoder alone, and pretraining needs at least 1")
    shapes = jax.eval_shape(lambda: init_state(spec, optimizer, jax.random.key(config.seed)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What the train step takes beside the state."""
    sharding = NamedSharding(mesh, BATCH)
    size, side = config.batch_size, config.model.image_size
    on_device = resizes_on_device(config)
    if on_device:
        side = canvas_side(side)
    batch = {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8, sharding=sharding),
        "weight": jax.ShapeDtypeStruct((size,), jnp.float32, sharding=sharding),
    }
    if on_device:
        batch["box"] = jax.ShapeDtypeStruct((size, 3), jnp.int32, sharding=sharding)
    return batch


def lower_train_step(
    config: ConfigDict,
    spec: XTRASpec,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    mesh: Mesh,
) -> jax.stages.Lowered:
    """The train step of a config, traced for a mesh; `.compile()` makes it callable.

    Args:
        state: arrays, or what `abstract_state` returns. It is donated: the compiled step writes
            the new state into the memory of the old one.
    """
    step = make_train_step(
        spec,
        optimizer,
        objective_of(config),
        execution_of(config, mesh),
        schedule=schedule,
        seed=config.seed,
        accumulate=config.accumulate,
        orders=orders_of(config, spec),
    )
    placement = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(placement, replicated(mesh)))
    return jitted.lower(state, abstract_batch(config, mesh))
