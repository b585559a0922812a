"""Train steps with stochastic depth on subsets: on meshes, in microbatches, with broken images."""

import dataclasses

import jax
import pytest

from tests.training.test_step import SGD, SPEC, assert_same_run, batch, run, schedule
from xtra_jax.model.execution import Execution
from xtra_jax.model.flops import train_flops
from xtra_jax.parallel.mesh import make_mesh, num_batch_shards, put_batch
from xtra_jax.parallel.program import collectives
from xtra_jax.parallel.sharding import activation_placement, replicated, shardings
from xtra_jax.training.step import init_state, make_train_step

BATCH = 32


def dropping(mode):
    encoder = dataclasses.replace(SPEC.encoder, drop_path=0.5, drop_path_mode=mode)
    return dataclasses.replace(SPEC, encoder=encoder)


SUBSET = dropping("subset")
BATCHES = [batch(seed, BATCH) for seed in range(2)]


def on(mesh):
    return Execution(place=activation_placement(mesh), batch_shards=num_batch_shards(mesh))


@pytest.mark.parametrize(
    ("sizes", "accumulate"), [({"data": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)], ids=str
)
def test_devices_that_share_the_batch_compute_what_one_does_with_as_many_shards(sizes, accumulate):
    mesh = make_mesh(sizes)
    how = dict(spec=SUBSET, batches=BATCHES, accumulate=accumulate)
    ours = run(mesh=mesh, execution=on(mesh), **how)
    assert_same_run(ours, run(execution=Execution(batch_shards=num_batch_shards(mesh)), **how))


def test_an_image_of_weight_0_changes_nothing_whatever_it_holds():
    broken, other = batch(size=BATCH), batch(size=BATCH)
    broken["weight"][3] = other["weight"][3] = 0
    broken["image"][3] = 0
    ours, theirs = (run(spec=SUBSET, batches=[data], steps=1) for data in (broken, other))
    assert_same_run(ours, theirs, rtol=1e-7)
    assert ours[1][0]["images"] == BATCH - 1


def compiled(spec, mesh):
    step = make_train_step(spec, SGD, schedule=schedule, execution=on(mesh))
    state = init_state(spec, SGD, jax.random.key(0))
    placement = shardings(state, mesh)
    step = jax.jit(step, out_shardings=(placement, replicated(mesh)))
    return step.lower(jax.device_put(state, placement), put_batch(BATCHES[0], mesh)).compile()


def sent(program):
    """Kinds, dtypes and total bytes of what devices tell each other."""
    return sorted((c.kind, c.dtype, c.bytes) for c in collectives(program))


def test_no_token_leaves_its_device_and_what_is_dropped_is_not_computed():
    mesh = make_mesh({"data": 8})
    bernoulli, subset = (compiled(dropping(mode), mesh) for mode in ("bernoulli", "subset"))
    # All there is is the sum of the gradients and metrics, the same as without subsets.
    assert sent(subset) == sent(bernoulli)
    assert {kind for kind, _, _ in sent(subset)} == {"all-reduce"}
    spared = train_flops(SPEC) - train_flops(SUBSET, shard_size=BATCH // 8)
    fewer = bernoulli.cost_analysis()["flops"] - subset.cost_analysis()["flops"]
    assert fewer >= spared * BATCH // 8  # products, and what is done element by element beside them


def test_with_sharded_parameters_subsets_send_nothing_of_another_kind():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    bernoulli, subset = (compiled(dropping(mode), mesh) for mode in ("bernoulli", "subset"))
    kinds = [[(kind, dtype) for kind, dtype, _ in sent(p)] for p in (bernoulli, subset)]
    assert kinds[0] == kinds[1]
    assert sum(b for *_, b in sent(subset)) <= sum(b for *_, b in sent(bernoulli))
