"""Linear layers: their products, and the dtype that gradients are computed and summed in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.model.linear import add_shared, contract, gelu


def inputs(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 5, 4, 3)), dtype)
    kernel = jnp.asarray(rng.normal(size=(4, 3, 2, 7)), jnp.float32)
    return x, kernel


def gradients(function, *arguments):
    def scalar(*arguments):
        y = function(*arguments).astype(jnp.float32)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    return jax.grad(scalar, argnums=(0, 1))(*arguments)


def test_a_linear_layer_contracts_the_last_axes_as_einsum_does():
    x, kernel = inputs(jnp.float32)
    einsum = lambda x, kernel: jnp.einsum("abij,ijkl->abkl", x, kernel)  # noqa: E731
    ours = lambda x, kernel: contract(x, kernel, 2, "float32")  # noqa: E731
    np.testing.assert_allclose(ours(x, kernel), einsum(x, kernel), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(ours, x, kernel), gradients(einsum, x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def random(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.5)])
def test_few_rows_meet_a_large_kernel_row_by_row_with_the_same_result(dtype, tolerance):
    kernel, rows = random(16, 64, 2, 512, dtype=dtype), random(2, 3, 16, 64, dtype=dtype)
    expected = np.einsum("abij,ijkl->abkl", *(np.asarray(a, np.float64) for a in (rows, kernel)))

    def product(rows, kernel, whole=True):
        compiled = jax.jit(lambda x, k: contract(x, k, 2, "float32", whole)).lower(rows, kernel)
        compiled = compiled.compile()
        found = compiled(rows, kernel)
        assert found.dtype == dtype
        return found, "lhs_contracting_dims={0}" in compiled.as_text()

    found, by_columns_of_x = product(rows, kernel)
    assert by_columns_of_x
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance)
    for others in ((rows, kernel[..., :256]), (random(64, 16, 64, dtype=dtype), kernel)):
        assert not product(*others)[1]
    assert not product(rows, kernel, whole=False)[1]


def test_a_large_kernel_takes_as_many_rows_as_an_exported_program_is_given():
    (batch,) = jax.export.symbolic_shape("batch")
    function = jax.jit(lambda x, kernel: contract(x, kernel, 1, "float32"))
    kernel = random(1024, 1024)
    exported = jax.export.export(function)(jax.ShapeDtypeStruct((batch, 1024), jnp.float32), kernel)
    for rows in (3, 70):
        x = random(rows, 1024)
        np.testing.assert_allclose(exported.call(x, kernel), x @ kernel, atol=1e-3)


def test_no_kernel_is_transposed_for_the_gradient_of_its_input():
    kernel, dy = random(128, 3, 4, 64), random(80, 3, 4, 64)

    def gradient(whole):
        backward = lambda dy, k: jax.vjp(  # noqa: E731
            lambda x: contract(x, k, 1, "float32", whole), jnp.zeros((80, 128))
        )[1](dy)[0]
        compiled = jax.jit(backward).lower(dy, kernel).compile()
        return compiled(dy, kernel), compiled.memory_analysis().temp_size_in_bytes

    (merged, memory), (spread, more) = gradient(True), gradient(False)
    np.testing.assert_allclose(merged, spread, atol=1e-3)
    assert memory < kernel.nbytes <= more


def test_no_rows_have_no_products_and_no_gradient():
    kernel = random(1024, 2, 512)
    product, backward = jax.vjp(lambda k: contract(jnp.zeros((0, 1024)), k, 1, "float32"), kernel)
    assert product.shape == (0, 2, 512)
    assert not backward(product)[0].any()


def test_the_gradient_of_a_bfloat16_product_is_float32_unless_asked_otherwise():
    x, kernel = inputs(jnp.bfloat16)

    def gradient(reduce_dtype):
        return gradients(lambda x, k: contract(x, k, 2, reduce_dtype), x, kernel)[1]

    rounded = gradient("bfloat16")
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16).astype(jnp.float32))
    wide = gradient("float32")
    assert (wide != wide.astype(jnp.bfloat16).astype(jnp.float32)).any()
    np.testing.assert_allclose(wide, rounded, rtol=0.01, atol=0.02)


def test_what_computes_in_float32_is_never_summed_in_less():
    x, kernel = inputs(jnp.float32)
    wide, narrow = (
        gradients(lambda x, k, dtype=dtype: contract(x, k, 2, dtype), x, kernel)[1]
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_rows_share_is_added_in_their_dtype_and_its_gradient_summed_in_float32(dtype):
    x = jnp.ones((512, 3), dtype)
    shared = jnp.asarray([0.5, 0.25, 2.0])
    assert add_shared(x, shared).dtype == dtype
    np.testing.assert_array_equal(add_shared(x, shared)[7], 1 + shared)
    # In bfloat16 a sum of ones stops at 256.
    total = jax.grad(lambda shared: add_shared(x, shared).astype(jnp.float32).sum())(shared)
    np.testing.assert_array_equal(total, [512.0] * 3)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 3e-7), (jnp.bfloat16, 2**-8)])
def test_gelu_and_its_gradient_are_exact_to_rounding_of_their_input(dtype, tolerance):
    x = jnp.linspace(-8, 8, 4001).astype(dtype)
    wide = np.asarray(x, np.float64)
    cdf = 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
    density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    y, backward = jax.vjp(gelu, x)
    (gradient,) = backward(jnp.ones_like(x))
    assert y.dtype == gradient.dtype == dtype
    for found, expected in ((y, wide * cdf), (gradient, cdf + wide * density)):
        error = np.abs(np.asarray(found, np.float64) - expected)
        assert (error <= tolerance * np.maximum(1, np.abs(wide))).all(), error.max()
