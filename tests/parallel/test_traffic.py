"""The bytes that a program moves through memory, against programs small enough to count by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from xtra_jax.parallel.traffic import memory_traffic, traffic_parts

ROWS = 256 * 1024 * 4  # bytes of a float32 [256, 1024]


def traffic(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return memory_traffic(jax.jit(function).lower(*arguments).compile())


def test_what_is_fused_reads_its_operands_and_writes_its_result_once():
    assert traffic(lambda x, y: jnp.tanh(x * y) + x, (256, 1024), (256, 1024)) == 3 * ROWS


def test_a_matrix_product_moves_its_three_matrices():
    moved = traffic(lambda x, y: x @ y, (256, 1024), (1024, 256))
    assert moved == pytest.approx(2 * ROWS + 256 * 256 * 4, rel=0.01)


def test_a_loop_moves_its_body_as_often_as_it_runs():
    def repeated(x, rounds):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x), None), x, length=rounds)[0]

    few = traffic(lambda x: repeated(x, 10), (256, 1024))
    many = traffic(lambda x: repeated(x, 20), (256, 1024))
    assert many - few == pytest.approx(10 * 2 * ROWS, rel=0.02)


def test_a_loop_over_an_array_reads_every_row_once_and_not_the_array_each_time():
    def summed(x):
        return jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros(1024), x)[0]

    # A row is read, and the total read and written, 256 times: not 256 times the whole array.
    assert traffic(summed, (256, 1024)) < 4 * ROWS


SLICES = """HloModule step

%fused (p: f32[256,1024], i: s32[]) -> f32[1,1024] {
  %p = f32[256,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = f32[1,1024]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,1024}
}

ENTRY %main (x: f32[256,1024], i: s32[]) -> f32[1,1024] {
  %x = f32[256,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,1024]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %near = f32[1,1024]{1,0:T(8,128)S(1)} copy(%row)
  ROOT %twice = f32[1,1024]{1,0} add(%near, %near)
}
"""


def test_slices_count_what_they_take_and_on_chip_memory_is_free():
    row = 1024 * 4
    # The slice is read and written, the copy reads it, the sum is written: the index is 4 bytes.
    assert memory_traffic(SLICES) == 4 * row + 4


GPU = """HloModule jit_step, is_scheduled=true

%triton (a: bf16[64,32], b: bf16[32,16]) -> bf16[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  ROOT %dot = bf16[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%added (c: bf16[64,16]) -> bf16[64,16] {
  %c = bf16[64,16]{1,0} parameter(0)
  ROOT %sum = bf16[64,16]{1,0} add(%c, %c)
}

ENTRY %main (x: bf16[64,32], w: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %gemm = bf16[64,16]{1,0} fusion(%x, %w), kind=kCustom, calls=%triton
  %cublas = (bf16[64,16]{1,0}, s8[4096]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$gemm"
  %fmha = (bf16[64,16]{1,0}, u8[0]{0}) custom-call(%gemm), \
custom_call_target="__cudnn$fmhaScaleBiasSoftmax"
  ROOT %out = bf16[64,16]{1,0} fusion(%gemm), kind=kLoop, calls=%added
}
"""


def test_matrix_products_and_fused_attention_are_told_from_what_only_waits_for_memory():
    x, w, y = 64 * 32 * 2, 32 * 16 * 2, 64 * 16 * 2
    assert traffic_parts(GPU) == {"products": 2 * (x + w + y), "attention": 2 * y, "rest": 2 * y}
    assert memory_traffic(GPU) == sum(traffic_parts(GPU).values())
