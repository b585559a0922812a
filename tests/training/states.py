"""A small training state and its checkpoints, for the tests of saving and restoring."""

from __future__ import annotations

import contextlib
import dataclasses
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

from xtra_jax.training.checkpoint import Checkpointer
from xtra_jax.training.optimizer import adamw

CONFIG = {"name": "tiny", "model": {"width": 8, "crop": [0.3, 1.0]}, "optim": {"lr": 1e-3}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState


OPTIMIZER = adamw(
    lambda step: 1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.05, clip_norm=1.0
)


def make_state(width: int = 8, depth: int = 2) -> State:
    random = np.random.default_rng(width)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    params = {
        "layers": {str(i): {"kernel": draw(width, 2, 4), "bias": draw(2, 4)} for i in range(depth)},
        "position": draw(16, width),
    }
    return State(jnp.int32(0), params, OPTIMIZER.init(params))


@jax.jit
def advance(state: State) -> State:
    """A train step: gradients that depend on the parameters and the step."""
    gradients = jax.tree.map(lambda p: jnp.sin(p * (state.step + 1)), state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


def state_at(step: int, **sizes) -> State:
    state = make_state(**sizes)
    for _ in range(step):
        state = advance(state)
    return state


def abstract(state, sharding=None):
    """ShapeDtypeStructs of a tree, all on one sharding or on those of `sharding(leaf)`."""
    place = sharding if callable(sharding) else lambda leaf: sharding
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), state
    )


def save_all(directory, steps, *, keep=10, **sizes) -> None:
    with Checkpointer(directory, save_every=1, keep=keep) as checkpointer:
        for step in steps:
            state = state_at(step, **sizes)
            checkpointer.save(step, state, position={"step": step}, config=CONFIG)


def assert_same_bits(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def one_device(index: int = 0) -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[index])


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextlib.contextmanager
def full_disk():
    """No file can grow beyond 10 kB, the test's own report included: hence not for a whole test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
