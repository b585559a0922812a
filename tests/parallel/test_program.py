"""Reading compiled programs: small ones compiled here, and excerpts of what GPUs and TPUs write."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xtra_jax.parallel.hlo import parse
from xtra_jax.parallel.program import (
    aliased_arguments,
    collectives,
    host_transfers,
    memory,
    module_of,
)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def struct(mesh, shape, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def gathering(mesh):
    """Parameters sharded over their rows, gathered whole."""
    out = NamedSharding(mesh, PartitionSpec())
    return compiled(lambda w: w * 2, struct(mesh, (64, 32), "x"), out_shardings=out)


def test_an_all_gather_is_counted_with_the_bytes_of_the_whole(mesh):
    (gather,) = collectives(gathering(mesh))
    assert (gather.kind, gather.dtype, gather.shapes) == ("all-gather", "f32", ((64, 32),))
    assert gather.bytes == 64 * 32 * 4
    assert (gather.group_size, gather.count, gather.count_known) == (8, 1, True)
    assert gather.sent == gather.bytes * 7 / 8


def test_an_all_reduce_is_counted_and_sends_twice_what_a_gather_does(mesh):
    program = compiled(lambda x: x.sum(0), struct(mesh, (16, 24), "x"))
    (reduce,) = collectives(program)
    assert (reduce.kind, reduce.bytes, reduce.group_size) == ("all-reduce", 24 * 4, 8)
    assert reduce.sent == 2 * 24 * 4 * 7 / 8


def test_a_program_of_one_device_has_no_collectives():
    assert collectives(compiled(lambda x: x @ x, jnp.ones((8, 8)))) == []


def test_collectives_in_nested_loops_are_multiplied_by_their_rounds(mesh):
    def step(x, w):
        def inner(x, _):
            y = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(y), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0], None

        return jax.lax.scan(outer, x, length=5)[0]

    program = compiled(step, struct(mesh, (16, 64)), struct(mesh, (64, 64), "x", None))
    inside = [c for c in collectives(program) if (16, 64) in c.shapes]
    assert sum(c.count for c in inside) == 15
    assert all(c.count_known for c in inside)


def test_a_loop_of_unknown_length_counts_once_and_says_so(mesh):
    def step(x, w):
        return jax.lax.while_loop(
            lambda x: x.sum() < 100.0,
            lambda x: jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, PartitionSpec())),
            x,
        )

    program = compiled(step, struct(mesh, (16, 64)), struct(mesh, (64, 64), "x", None))
    inside = [c for c in collectives(program) if (16, 64) in c.shapes]
    assert [c.count for c in inside] == [1]
    assert not any(c.count_known for c in inside)


def test_memory_is_what_the_compiler_says_and_the_peak_holds_all_of_it(mesh):
    def step(w, x):
        loss, gradient = jax.value_and_grad(lambda w: jnp.tanh(jnp.tanh(x @ w) @ w).sum())(w)
        return w - gradient, loss

    arguments = struct(mesh, (64, 64)), struct(mesh, (8 * 128, 64), "x")
    program = compiled(step, *arguments, donate_argnums=0)
    found, stats = memory(program), program.memory_analysis()
    assert found.arguments == stats.argument_size_in_bytes == (64 * 64 + 128 * 64) * 4
    assert found.outputs == stats.output_size_in_bytes
    assert found.aliased == stats.alias_size_in_bytes == 64 * 64 * 4
    assert found.temporaries == stats.temp_size_in_bytes >= 128 * 64 * 4
    assert found.peak >= found.arguments + found.temporaries
    assert found.peak < found.arguments + found.temporaries + found.outputs


def test_donation_shows_in_the_arguments_that_are_reused(mesh):
    def step(state, x):
        return {name: value + x.sum() for name, value in state.items()}

    arguments = {"a": struct(mesh, (8, 8)), "b": struct(mesh, (4,))}, struct(mesh, (8, 2), "x")
    assert aliased_arguments(compiled(step, *arguments, donate_argnums=0)) == {0, 1}
    assert aliased_arguments(compiled(step, *arguments)) == frozenset()


def test_a_callback_is_a_host_transfer():
    def step(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(np.sin, shape, x) + 1

    (transfer,) = host_transfers(compiled(step, jnp.ones(4)))
    assert transfer.kind == "callback"
    assert host_transfers(compiled(lambda x: x + 1, jnp.ones(4))) == []


def test_a_text_a_parsed_module_and_a_compiled_program_read_alike(mesh):
    program = gathering(mesh)
    module = module_of(program)
    assert module_of(module) is module
    assert collectives(module) == collectives(program.as_text()) == collectives(program)


GPU = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), \
{1}: (2, {}, must-alias) }, entry_computation_layout={(f32[2]{0})->f32[2]{0}}, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (p: bf16[96,192]) -> bf16[192,192] {
  %p = bf16[96,192]{1,0} parameter(0)
  %all-gather-start = (bf16[96,192]{1,0}, bf16[192,192]{1,0}) all-gather-start(%p), \
replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}, use_global_device_ids=true
  %reduce-scatter-start = ((f32[384,192]{1,0}), (f32[192,192]{1,0})) reduce-scatter-start(%p), \
replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[96,192]{1,0} reduce-scatter-done(%reduce-scatter-start)
  %both = (f32[8]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%p, %p), replica_groups={}, \
to_apply=%add
  %permute = s32[6]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
  ROOT %all-gather-done = bf16[192,192]{1,0} all-gather-done(%all-gather-start)
}
"""


def test_a_start_and_its_done_are_one_collective():
    found = {(c.kind, c.dtype): c for c in collectives(GPU)}
    assert len(found) == len(collectives(GPU)) == 5
    gather = found["all-gather", "bf16"]
    assert (gather.shapes, gather.group_size) == (((192, 192),), 2)


def test_a_reduce_scatter_is_counted_by_the_whole_that_it_reduces():
    scatter = next(c for c in collectives(GPU) if c.kind == "reduce-scatter")
    assert (scatter.shapes, scatter.group_size) == (((384, 192),), 4)
    assert scatter.sent == 384 * 192 * 4 * 3 / 4


def test_arrays_of_several_dtypes_in_one_collective_are_told_apart():
    reduced = {c.dtype: c for c in collectives(GPU) if c.kind == "all-reduce"}
    assert {dtype: c.bytes for dtype, c in reduced.items()} == {"f32": 32, "bf16": 12}
    assert {c.group_size for c in reduced.values()} == {8}


def test_the_header_tells_devices_and_aliases():
    assert parse(GPU).num_partitions == 8
    assert aliased_arguments(GPU) == {0, 2}


TPU = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%condition (s: (s32[], bf16[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %s = (s32[]{:T(128)}, bf16[8]{0:T(256)(128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%fused.start (p.1: bf16[192,384]) -> bf16[384,384] {
  %p.1 = bf16[192,384]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[384,384]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=64, \
replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_1'}, dimensions={0}
  ROOT %start = (bf16[192,384]{1,0}, bf16[384,384]{1,0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.2: bf16[192,384]) -> bf16[384,384] {
  %p.2 = bf16[192,384]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[384,384]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=64, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

%fused.done (p.3: bf16[192,384]) -> bf16[384,384] {
  %p.3 = bf16[192,384]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.3 = bf16[384,384]{1,0:T(8,128)(2,1)} all-gather(%p.3), channel_id=64, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %done = bf16[384,384]{1,0} custom-call(%p.3, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

%body (t: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %t = (s32[]{:T(128)}, bf16[8]{0:T(256)}) parameter(0)
  %x = bf16[192,384]{1,0} get-tuple-element(%t), index=1
  %fusion.1 = bf16[384,384]{1,0} fusion(%x), kind=kCustom, calls=%fused.start
  %fusion.2 = bf16[384,384]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
  %fusion.3 = bf16[384,384]{1,0} fusion(%x), kind=kCustom, calls=%fused.done
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[8]{0}) tuple(%x, %x)
}

%all-reduce-scatter.2 (q: f32[384,768]) -> f32[192,768] {
  %q = f32[384,768]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[384,768]{1,0:T(8,128)} all-reduce(%q), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice = f32[192,768]{1,0:T(8,128)} dynamic-slice(%all-reduce.9)
}

ENTRY %main_spmd (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %copy = s32[]{:T(128)} copy(%zero)
  %tuple.2 = (s32[]{:T(128)}, bf16[8]{0}) tuple(%copy, %p)
  %while = (s32[]{:T(128)}, bf16[8]{0}) while(%tuple.2), condition=%condition, body=%body
  %scatter = f32[192,768]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %out = bf16[8]{0} get-tuple-element(%while), index=1
}
"""


def test_a_collective_that_tpu_fusions_carry_on_is_counted_where_it_starts():
    gathers = [c for c in collectives(TPU) if c.kind == "all-gather"]
    assert [c.name for c in gathers] == ["all-gather.1"]
    assert (gathers[0].group_size, gathers[0].bytes) == (4, 384 * 384 * 2)


def test_the_rounds_of_a_tpu_loop_are_read_off_its_condition():
    (gather,) = (c for c in collectives(TPU) if c.kind == "all-gather")
    assert (gather.count, gather.count_known) == (4, True)


def test_a_tpu_all_reduce_fused_with_its_slice_is_a_reduce_scatter():
    (scatter,) = (c for c in collectives(TPU) if c.kind != "all-gather")
    assert (scatter.kind, scatter.shapes, scatter.group_size) == (
        "reduce-scatter",
        ((384, 768),),
        2,
    )
