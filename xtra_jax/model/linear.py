"""Linear layers and MLPs with the published initialisation, and gradients of a stated dtype.

Left to itself, jax computes the gradient of a bfloat16 matrix product in bfloat16, and devices that
share a batch sum their parts of it in bfloat16 too: with n devices, n roundings to 8 bits. Here
`Execution.reduce_dtype` decides.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from xtra_jax.model.execution import Execution

# The published code truncates at +-2 absolute, a hundred standard deviations: no truncation at all.
normal_init = nnx.initializers.normal(0.02)


# What remat can save by name: no policy sees a matrix product inside of a custom gradient.
PRODUCT = "product"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contract(x, kernel, num_inputs: int, reduce_dtype: str, whole: bool = True):
    """x [..., *inputs] times kernel [*inputs, *outputs], in x's dtype: [..., *outputs].

    Args:
        num_inputs: how many axes are contracted.
        reduce_dtype: of the kernel's gradient while it is summed, at least x's own.
        whole: one device has all of x and of the kernel, so that axes can be merged.
    """
    del reduce_dtype
    kernel = kernel.astype(x.dtype)
    rows = x.shape[: x.ndim - num_inputs]
    count = math.prod(rows)
    few = isinstance(count, int) and count < 64  # an exported program's batch is a symbol

    def product(x, kernel):
        last = tuple(range(len(rows), x.ndim))
        return lax.dot_general(x, kernel, ((last, tuple(range(num_inputs))), ((), ())))

    # With few rows XLA's CPU product reads a large kernel in columns, from everywhere in memory.
    # Another of its products, for an x stored in columns, reads whole rows: twice as fast.
    def product_on_cpu(x, kernel):
        columns = lax.optimization_barrier(_matrix(x, len(rows)).T)
        y = lax.dot_general(columns, _matrix(kernel, num_inputs), (((0,), (0,)), ((), ())))
        return y.reshape(*rows, *kernel.shape[num_inputs:])

    if whole and few and kernel.size >= 2**20:
        return lax.platform_dependent(x, kernel, cpu=product_on_cpu, default=product)
    return product(x, kernel)


def _matrix(array, num_rows: int):
    """An array with its first axes merged into one, and its last ones."""
    shape = array.shape
    return array.reshape(math.prod(shape[:num_rows]), math.prod(shape[num_rows:]))


def _contract_forward(x, kernel, num_inputs, reduce_dtype, whole):
    return contract(x, kernel, num_inputs, reduce_dtype, whole), (x, kernel)


def _contract_backward(num_inputs, reduce_dtype, whole, saved, dy):
    x, kernel = saved
    rows = x.ndim - num_inputs

    def spread(dy, kernel):
        trailing = tuple(range(rows, dy.ndim)), tuple(range(num_inputs, kernel.ndim))
        return lax.dot_general(dy, kernel, (trailing, ((), ())))

    # Over several axes XLA would transpose the kernel first on CPUs, and keep that for long.
    def spread_on_cpu(dy, kernel):
        last = ((1,), (1,))
        dx = lax.dot_general(_matrix(dy, rows), _matrix(kernel, num_inputs), (last, ((), ())))
        return dx.reshape(x.shape)

    on_cpu = spread_on_cpu if whole else spread
    dx = lax.platform_dependent(dy, kernel.astype(x.dtype), cpu=on_cpu, default=spread)
    total_dtype = jnp.promote_types(x.dtype, reduce_dtype)

    def total(x, dy):
        summed = (tuple(range(x.ndim - num_inputs)),) * 2
        return lax.dot_general(x, dy, (summed, ((), ())), preferred_element_type=total_dtype)

    # XLA has no product of bfloat16 into float32 on CPUs; products of widened numbers are the same.
    # Nor one that sums over several axes: it would transpose x first, and its GELU along with it.
    def total_on_cpu(x, dy):
        x = x.reshape(-1, *kernel.shape[:num_inputs]).astype(total_dtype)
        return total(x, dy.reshape(-1, *kernel.shape[num_inputs:]).astype(total_dtype))

    dkernel = lax.platform_dependent(x, dy, cpu=total_on_cpu, default=total)
    return dx, dkernel.astype(kernel.dtype)


contract.defvjp(_contract_forward, _contract_backward)


@jax.custom_vjp
def add_shared(x, shared):
    """x [..., *shape] plus what all its rows share [*shape], in x's dtype.

    The gradient of what is shared is summed in float32 (or wider).
    """
    return x + shared.astype(x.dtype)


def _add_backward(shared, dy):
    rows = tuple(range(dy.ndim - shared.ndim))
    total = dy.sum(rows, dtype=jnp.promote_types(dy.dtype, jnp.float32))
    return dy, total.astype(shared.dtype)


add_shared.defvjp(lambda x, shared: (add_shared(x, shared), shared), _add_backward)


@jax.custom_vjp
def gelu(x):
    """The exact GELU, x * Phi(x), in x's dtype; computed in float32, or wider.

    By erf and not by erfc as `jax.nn.gelu` has it, which costs CPUs twice as much. Only x is kept
    for the gradient.
    """
    wide = widened(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x, dy):
    # The barrier keeps XLA from storing what is computed in the forward pass: erf, of x's size. On
    # GPUs it stores nothing anyway, and behind a barrier fuses less.
    x = lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
    wide = widened(x)
    density = jnp.exp(-0.5 * wide * wide) * (2 * math.pi) ** -0.5
    return ((dy * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


def widened(x):
    """x in float32, or its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal_cdf(x):
    return 0.5 + 0.5 * lax.erf(x * 0.5**0.5)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Linear(nnx.Module):
    """A linear layer from the last axes of its input to as many new ones as wanted.

    The kernel is [*inputs, *outputs] and the bias [*outputs], both float32.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        bias: bool = True,
        dtype,
        kernel_init=normal_init,
        rngs: nnx.Rngs,
    ):
        self.num_inputs = len(inputs)
        self.dtype = dtype
        # Initialised as a matrix: initialisers take its first axis for the fan-in.
        matrix = kernel_init(rngs.params(), (math.prod(inputs), math.prod(outputs)))
        self.kernel = nnx.Param(matrix.reshape(*inputs, *outputs))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else nnx.data(None)

    def __call__(self, x, execution: Execution = Execution()):
        """[..., *inputs] to [..., *outputs], in the layer's dtype."""
        x = x.astype(self.dtype)
        whole = execution.num_devices == 1
        y = contract(x, self.kernel[...], self.num_inputs, execution.reduce_dtype, whole)
        y = checkpoint_name(y, PRODUCT)
        return y if self.bias is None else add_shared(y, self.bias[...])


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int,
        *,
        out_bias: bool = True,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.fc1 = Linear((width,), (hidden,), dtype=dtype, rngs=rngs)
        self.fc2 = Linear((hidden,), (out,), bias=out_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x, execution: Execution = Execution()):
        """[..., width] to [..., out]."""
        hidden = execution.place(self.fc1(x, execution), "hidden")
        return self.fc2(gelu(hidden), execution)
