"""Which attention a tower gets, and what each computes."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtra_jax.model.attention import attend, chosen, visible_parts
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


def test_only_towers_of_128_tokens_or_more_have_their_attention_in_halves():
    assert chosen("halves", "float32", 64, 128) == chosen("halves", "bfloat16", 7, 225) == "halves"
    assert chosen("halves", "float32", 64, 127) == "xla"


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
    for given in (block_causal(3, 2), None):
        found = attend(qkv, given, "cudnn")
        np.testing.assert_allclose(found, attend(qkv, given, "xla"), atol=1e-6)
    assert len(fused) == 2


def block_causal(blocks, size):
    return np.kron(np.tri(blocks, dtype=bool), np.ones((size, size), bool))


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        (block_causal(15, 16), ((0, 112, 112), (112, 240, 240))),
        (block_causal(4, 64), ((0, 128, 128), (128, 256, 256))),
        (block_causal(3, 48), ((0, 48, 48), (48, 144, 144))),
        (block_causal(1, 144), ((0, 144, 144),)),
        (np.ones((144, 144), bool), ((0, 144, 144),)),
        (block_causal(144, 1).T, ((0, 144, 144),)),
        (np.fliplr(block_causal(144, 1)), ((0, 144, 144),)),
    ],
)
def test_no_logits_are_left_out_of_the_halves_but_masked_ones(mask, parts):
    assert visible_parts(mask) == parts
    covered = np.zeros_like(mask)
    for first, end, columns in parts:
        covered[first:end, :columns] = True
    assert covered[mask].all()


def test_half_of_what_a_block_causal_mask_hides_is_not_computed():
    qkv = jax.ShapeDtypeStruct((1, 240, 3, 2, 32), jnp.float32)

    def products(mask):
        forward = jax.jit(lambda qkv: attend(qkv, mask, "halves")).lower(qkv).compile()
        dots = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", forward.as_text())
        return sum(math.prod(map(int, shape.split(","))) for shape in dots)

    logits, mixed = 2 * 240 * 240, 2 * 240 * 32
    assert products(None) == logits + mixed
    assert products(block_causal(15, 16)) == 2 * (112 * 112 + 128 * 240) + mixed


@pytest.mark.parametrize("how", ["xla", "halves"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_attention_and_its_written_gradient_are_the_derived_ones(how, dtype, tolerance):
    mask = block_causal(3, 2)
    qkv, ours = jax.random.normal(jax.random.key(0), (2, 2, len(mask), 3, 2, 8)).astype(dtype)
    ours = ours[:, :, 0]

    def derived(qkv):
        query, key, value = (qkv.astype(jnp.float32)[:, :, i] for i in range(3))
        logits = jnp.einsum("bthd,bshd->bhts", query, key) / 8**0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
        return jnp.einsum("bhts,bshd->bthd", weights, value)

    mixed, backward = jax.vjp(lambda qkv: attend(qkv, mask, how), qkv)
    expected, derived_backward = jax.vjp(derived, qkv)
    pairs = [(mixed, expected), (backward(ours)[0], *derived_backward(ours.astype(jnp.float32)))]
    for found, wanted in pairs:
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found.astype(jnp.float32), wanted.astype(jnp.float32), atol=tolerance
        )
