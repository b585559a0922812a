"""Which attention a tower gets: cuDNN's kernel is for what it takes, and XLA's for the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.model.attention import attend, chosen
from xtra_jax.model.execution import Execution
from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import EncoderSpec, HeadSpec, PredictorSpec, XTRASpec
from xtra_jax.model.xtra import bind, init_params, xtra_losses

# Heads of 8 in both towers, in 16 bits in the encoder alone, as the published recipe has it.
SPEC = XTRASpec(
    EncoderSpec(Grid(16, 4, 2), width=16, depth=2, num_heads=2),
    PredictorSpec(hidden=16, width=32, depth=1, num_heads=4),
    HeadSpec(hidden=16),
    dtype="bfloat16",
    predictor_dtype="float32",
)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "num_tokens", "how"),
    [
        ("bfloat16", 80, 240, "cudnn"),
        ("bfloat16", 128, 2, "cudnn"),
        ("float32", 80, 240, "xla"),
        ("bfloat16", 4, 240, "xla"),
        ("bfloat16", 136, 240, "xla"),
        ("bfloat16", 80, 225, "xla"),
    ],
)
def test_cudnn_gets_what_it_takes_and_no_more(dtype, head_dim, num_tokens, how):
    assert chosen("cudnn", dtype, head_dim, num_tokens) == how
    assert chosen("xla", dtype, head_dim, num_tokens) == "xla"


@pytest.fixture
def fused(monkeypatch):
    """Calls of jax's fused attention, which are computed by XLA: no GPU is needed."""
    plain, calls = jax.nn.dot_product_attention, []

    def recorded(query, key, value, *, mask, implementation):
        calls.append((query.dtype, query.shape, implementation))
        return plain(query, key, value, mask=mask)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return calls


def loss(spec, attention):
    params = init_params(spec, jax.random.key(0))
    patches = jax.random.normal(jax.random.key(1), (2, 16, 48))
    return xtra_losses(bind(spec, params), patches, execution=Execution(attention)).mean()


def test_a_float32_predictor_leaves_the_encoder_its_fused_attention(fused):
    found = loss(SPEC, "cudnn")
    assert fused == [(jnp.bfloat16, (2, 12, 2, 8), "cudnn")] * 2
    fused.clear()
    np.testing.assert_allclose(found, loss(SPEC, "xla"), rtol=1e-3)
    assert fused == []


def test_a_bfloat16_predictor_has_it_too_and_narrow_heads_never(fused):
    loss(dataclasses.replace(SPEC, predictor_dtype="bfloat16"), "cudnn")
    assert [shape for _, shape, _ in fused] == [(2, 12, 2, 8)] * 2 + [(2, 12, 4, 8)]
    fused.clear()
    encoder = dataclasses.replace(SPEC.encoder, num_heads=4)
    loss(dataclasses.replace(SPEC, encoder=encoder), "cudnn")
    assert fused == []


def test_the_mask_that_cudnn_is_given_is_the_one_that_xla_applies(fused):
    qkv = jax.random.normal(jax.random.key(0), (2, 6, 3, 2, 8))
    mask = np.kron(np.tri(3, dtype=bool), np.ones((2, 2), bool))
    for given in (mask, None):
        found = attend(qkv, given, "cudnn")
        np.testing.assert_allclose(found, attend(qkv, given, "xla"), atol=1e-6)
    assert len(fused) == 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_written_gradient_of_attention_is_the_derived_one(dtype, tolerance):
    qkv, ours = jax.random.normal(jax.random.key(0), (2, 2, 6, 3, 2, 8)).astype(dtype)
    ours = ours[:, :, 0]
    mask = np.kron(np.tri(3, dtype=bool), np.ones((2, 2), bool))

    def derived(qkv):
        query, key, value = (qkv.astype(jnp.float32)[:, :, i] for i in range(3))
        logits = jnp.einsum("bthd,bshd->bhts", query, key) / 8**0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
        return jnp.einsum("bhts,bshd->bthd", weights, value)

    (gradient,) = jax.vjp(lambda qkv: attend(qkv, mask), qkv)[1](ours)
    (expected,) = jax.vjp(derived, qkv)[1](ours.astype(jnp.float32))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance
    )
