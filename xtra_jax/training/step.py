"""The train step and the evaluation step, as pure functions of a state and a batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xtra_jax.model.execution import Execution
from xtra_jax.model.patches import normalise_patches, patchify
from xtra_jax.model.variants import XTRASpec
from xtra_jax.model.xtra import bind, init_params, xtra_losses


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes: the number of steps taken, parameters and optimizer state."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, and how images become the model's input.

    Attributes:
        kind: "mse" or "l1".
        norm_pix: targets are normalised block by block.
        drop_last_block: see `xtra_losses`.
        mean, std: of the RGB channels, for images in [0, 1].
    """

    kind: str = "mse"
    norm_pix: bool = True
    drop_last_block: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def init_state(spec: XTRASpec, optimizer: optax.GradientTransformation, key) -> TrainState:
    params = init_params(spec, key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def squares(batch: dict, size: int) -> jax.Array:
    """The images of a batch, uint8 [batch, size, size, 3], resized where they are canvases."""
    if "box" in batch:
        # Not above: the step alone has to run where Pillow isn't installed.
        from xtra_jax.data.device_resize import resize_on_device

        return resize_on_device(batch["image"], batch["box"], size)
    return batch["image"]


def image_losses(
    params: dict,
    images,
    spec: XTRASpec,
    objective: Objective,
    execution: Execution,
    *,
    order=None,
    key=None,
):
    """The objective of every image: uint8 [batch, size, size, 3] to float32 [batch]."""
    patches = patchify(images, spec.grid)
    return xtra_losses(
        bind(spec, params),
        normalise_patches(patches, objective.mean, objective.std),
        kind=objective.kind,
        norm_pix=objective.norm_pix,
        drop_last_block=objective.drop_last_block,
        order=order,
        execution=execution,
        key=key,
    )


def make_train_step(
    spec: XTRASpec,
    optimizer: optax.GradientTransformation,
    objective: Objective = Objective(),
    execution: Execution = Execution(),
    *,
    schedule: optax.Schedule,
    seed: int = 0,
    accumulate: int = 1,
    orders: np.ndarray | None = None,
):
    """Builds `train_step(state, batch) -> (state, metrics)`.

    Args:
        schedule: step to learning rate, for the metrics only.
        seed: of stochastic depth and of the order drawn; with the step it fixes both.
        accumulate: microbatches whose gradients are summed before the one update. The result is
            that of the whole batch (but for rounding, and other draws of stochastic depth).
        orders: int [orders, blocks]: each step draws one, the pseudo-random order ablation.

    The batch holds `image` (uint8 [batch, size, size, 3]) and `weight` (float32 [batch]; images of
    weight 0 count for nothing). With a `box` (int32 [batch, 3]) as well, images are canvases, and
    are resized first; see `xtra_jax.data.device_resize`. Metrics are scalars: loss, grad_norm,
    param_norm (of the new parameters), lr, and images (valid ones).
    """

    def microbatches(array):
        # Strided, so that every device's share of the batch is split among the microbatches.
        parts = array.reshape(-1, accumulate, *array.shape[1:])
        return parts.swapaxes(0, 1)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        order_key, drop_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        order = None
        if orders is not None:
            order = jnp.asarray(orders)[jax.random.randint(order_key, (), 0, len(orders))]
        weight = batch["weight"]
        total = jnp.maximum(weight.sum(), 1.0)

        def loss_fn(params, batch, key):
            images = squares(batch, spec.grid.image_size)
            losses = image_losses(params, images, spec, objective, execution, order=order, key=key)
            return (batch["weight"] * losses).sum() / total

        if accumulate == 1:
            loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, drop_key)
        else:

            def add(sums, microbatch):
                parts = jax.value_and_grad(loss_fn)(state.params, *microbatch)
                return jax.tree.map(jnp.add, sums, parts), None

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            keys = jax.random.split(drop_key, accumulate)
            (loss, grads), _ = jax.lax.scan(add, zeros, (jax.tree.map(microbatches, batch), keys))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "lr": schedule(state.step),
            "images": weight.sum(),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(
    spec: XTRASpec,
    objective: Objective = Objective(),
    execution: Execution = Execution(),
    *,
    orders: np.ndarray | None = None,
):
    """Builds `eval_step(params, batch) -> (sum of losses, number of images)`, without randomness.

    With `orders`, the first is used.
    """
    order = None if orders is None else orders[0]

    def eval_step(params: dict, batch: dict):
        losses = image_losses(params, batch["image"], spec, objective, execution, order=order)
        weight = batch["weight"]
        return (weight * losses).sum(), weight.sum()

    return eval_step
