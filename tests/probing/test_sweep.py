"""Heads that train side by side against the same heads trained alone, and what is counted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import goldens
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.parallel.mesh import make_mesh, put_batch
from xtra_jax.parallel.program import collectives, memory
from xtra_jax.probing import heads, sweep
from xtra_jax.probing.features import (
    LINEAR,
    FeatureSpec,
    encoder_features,
    features_by_spec,
    model_input,
)
from xtra_jax.probing.recipe import Recipe
from xtra_jax.probing.sweep import HeadGroup, ProbeState, Setting
from xtra_jax.training.optimizer import adamw

CLASSES, STEPS, SEED = 7, 20, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The small clip norm is exceeded by some heads in some steps, and not in others.
RECIPE = Recipe(steps=STEPS, steps_per_epoch=5, warmup_steps=4, clip_norm=1.0, label_smoothing=0.1)
SPEC = goldens.tiny_spec()
WIDTH = SPEC.encoder.width


def six_heads():
    """Both kinds, several numbers of layers, the final norm or not, all rates different."""
    group = partial(HeadGroup, width=WIDTH, num_classes=CLASSES, num_heads=4)
    groups = [
        group("attentive", FeatureSpec(3), settings=(Setting(1e-3, 0.1), Setting(1e-2, 0.0))),
        group("attentive", FeatureSpec(2, norm=True), settings=(Setting(3e-2, 0.5),)),
        group("linear", LINEAR, settings=(Setting(2e-3, 0.0), Setting(2e-2, 0.3))),
        group("linear", FeatureSpec(2, pool=True, norm=True), settings=(Setting(5e-3, 0.1),)),
    ]
    return {group.name: group for group in groups}


@pytest.fixture(scope="module")
def encoder_params():
    return goldens.params_of("B_tiny_block_hot", SPEC)["encoder"]


@pytest.fixture(scope="module")
def batches():
    """Five batches of eight images, some of them padding."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(5):
        weight = np.ones(8, np.float32)
        weight[8 - i % 3 :] = 0
        label = np.where(weight > 0, rng.integers(CLASSES, size=8), -1)
        # The class is in the brightness of one quarter, so that there is something to learn.
        image = rng.integers(0, 200, (8, 64, 64, 3))
        image[:, :32, :32] += 8 * np.maximum(label, 0)[:, None, None, None]
        found.append(
            {"image": image.astype(np.uint8), "label": label.astype(np.int32), "weight": weight}
        )
    return found


def train(groups, features, batches, **options):
    state = sweep.init_state(groups, RECIPE, SEED)
    step = jax.jit(sweep.make_train_step(groups, RECIPE, SEED, **options))
    losses = []
    for i in range(STEPS):
        state, loss = step(state, features, batches[i % len(batches)])
        losses.append(loss)
    return state, losses


def train_alone(group, setting, batches):
    """One head, as one would write it down for one head: its parameters, statistics, losses."""
    params, stats = group.init(jax.random.split(jax.random.key(SEED))[0])
    optimizer = adamw(
        RECIPE.schedule(setting.rate),
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=setting.weight_decay,
        clip_norm=RECIPE.clip_norm,
    )

    @jax.jit
    def step(params, stats, opt_state, features, label, weight):
        def loss_fn(params):
            logits, new_stats = group.logits(params, stats, features, weight, train=True)
            loss = heads.cross_entropy(logits, label, weight, label_smoothing=0.1)
            return loss, new_stats

        (loss, stats_after), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        clipped = optax.tree.norm(grads) > RECIPE.clip_norm
        return optax.apply_updates(params, updates), stats_after, opt_state, loss, clipped

    opt_state, losses, clips = optimizer.init(params), [], []
    for i in range(STEPS):
        features, label, weight = batches[i % len(batches)]
        params, stats, opt_state, loss, clipped = step(
            params, stats, opt_state, features, label, weight
        )
        losses.append(float(loss))
        clips.append(bool(clipped))
    return params, stats, losses, clips


def of_the_encoder(params, batch, key, specs):
    del key
    patches = model_input(batch["image"], SPEC.grid, MEAN, STD)
    return features_by_spec(bind_encoder(SPEC, params), patches, specs)


def test_each_of_six_heads_equals_that_head_trained_alone(encoder_params, batches):
    groups = six_heads()
    specs = tuple(group.features for group in groups.values())
    features = jax.tree_util.Partial(partial(of_the_encoder, specs=specs), encoder_params)
    state, losses = train(groups, features, batches)

    @partial(jax.jit, static_argnums=1)
    def of_one(image, spec):
        patches = model_input(image, SPEC.grid, MEAN, STD)
        return encoder_features(bind_encoder(SPEC, encoder_params), patches, spec)

    clips, compared = [], 0
    for name, group in groups.items():
        own = [(of_one(b["image"], group.features), b["label"], b["weight"]) for b in batches]
        for i, setting in enumerate(group.settings):
            params, stats, losses_alone, clips_alone = train_alone(group, setting, own)
            together = jax.tree.map(lambda x, i=i: x[i], state.heads[name])
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                (together["params"], together["stats"]),
                (params, stats),
            )
            np.testing.assert_allclose([x[name][i] for x in losses], losses_alone, rtol=1e-5)
            assert losses_alone[-1] < losses_alone[0]
            clips += clips_alone
            compared += 1
    assert compared == 6
    assert any(clips) and not all(clips)


def stored(batch, key):
    """Features that came with the batch, as a cache has them."""
    del key
    return {spec: batch[spec.name] for spec in (FeatureSpec(2), LINEAR)}


def wide_groups(settings=5):
    settings = tuple(Setting(1e-3 * (1 + i), 0.1 * i) for i in range(settings))
    group = partial(HeadGroup, width=16, num_classes=CLASSES, settings=settings, num_heads=4)
    return {
        group.name: group for group in (group("attentive", FeatureSpec(2)), group("linear", LINEAR))
    }


def feature_batches(count=2, size=16, tokens=24):
    rng = np.random.default_rng(5)
    weight = np.ones(size, np.float32)
    weight[-3:] = 0
    return [
        {
            "last2": rng.normal(size=(size, tokens, 16)).astype(np.float32),
            LINEAR.name: rng.normal(size=(size, 16)).astype(np.float32),
            "label": np.where(weight > 0, rng.integers(CLASSES, size=size), -1).astype(np.int32),
            "weight": weight,
            "unreadable": np.arange(size) == size - 1,
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def all_at_once():
    return train(wide_groups(), jax.tree_util.Partial(stored), feature_batches())


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_heads_in_chunks_equal_heads_all_at_once(all_at_once, at_once):
    groups, features = wide_groups(), jax.tree_util.Partial(stored)
    state, losses = train(groups, features, feature_batches(), heads_at_once=at_once)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (state, losses), all_at_once
    )
    batch = feature_batches()[0]
    chunked = jax.jit(sweep.make_eval_step(groups, heads_at_once=at_once))
    whole = jax.jit(sweep.make_eval_step(groups))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5),
        chunked(state.heads, features, batch),
        whole(state.heads, features, batch),
    )


def test_chunks_hold_one_chunks_activations_and_the_state_is_updated_in_place():
    groups, features = wide_groups(8), jax.tree_util.Partial(stored)
    state = jax.eval_shape(lambda: sweep.init_state(groups, RECIPE, SEED))
    (batch,) = feature_batches(1, size=64, tokens=64)

    def needed(at_once):
        step = sweep.make_train_step(groups, RECIPE, SEED, heads_at_once=at_once)
        step = jax.jit(step, donate_argnums=0)
        return memory(step.lower(state, features, batch).compile())

    whole, chunked = needed(0), needed(1)
    assert chunked.temporaries < whole.temporaries / 4
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert chunked.aliased >= state_bytes


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@pytest.mark.parametrize("at_once", [0, 2])
def test_heads_on_eight_devices_equal_heads_on_one(all_at_once, mesh, at_once):
    groups, features = wide_groups(), jax.tree_util.Partial(stored)
    shapes = jax.eval_shape(lambda: sweep.init_state(groups, RECIPE, SEED))
    placed = sweep.state_shardings(shapes, mesh)
    state = jax.jit(lambda: sweep.init_state(groups, RECIPE, SEED), out_shardings=placed)()
    step = jax.jit(
        sweep.make_train_step(groups, RECIPE, SEED, heads_at_once=at_once, mesh=mesh),
        donate_argnums=0,
        out_shardings=(placed, None),
    )
    batches = [put_batch(batch, mesh) for batch in feature_batches()]
    compiled = step.lower(state, features, batches[0]).compile()
    losses = []
    for i in range(STEPS):
        state, loss = compiled(state, features, batches[i % 2])
        losses.append(loss)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), (state, losses), all_at_once
    )

    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.heads)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    assert len(kernels) == 4 * 3  # and both moments of each
    for kernel in kernels:
        count, width, out = kernel.shape
        assert kernel.addressable_shards[0].data.shape == (count, width // 2, out)
    features_bytes = batches[0]["last2"].nbytes
    assert max(c.bytes for c in collectives(compiled)) < features_bytes / 4  # a device's own

    eval_step = sweep.make_eval_step(groups, heads_at_once=at_once, mesh=mesh)
    found = jax.jit(eval_step)(state.heads, features, batches[0])
    one = sweep.make_eval_step(groups)(all_at_once[0].heads, features, feature_batches()[0])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), found, one)


def test_counts_per_head_and_per_class_are_those_of_numpy(all_at_once):
    groups, heads_trained = wide_groups(), all_at_once[0].heads
    batch = feature_batches()[0]
    found = jax.jit(sweep.make_eval_step(groups))(
        heads_trained, jax.tree_util.Partial(stored), batch
    )
    valid = batch["weight"] > 0
    labels = batch["label"][valid]
    per_class = np.bincount(labels, minlength=CLASSES)
    assert (found["total"], found["unreadable"]) == (13, 1)
    np.testing.assert_array_equal(found["class_total"], per_class)
    for name, group in groups.items():
        for i in range(len(group.settings)):
            head = jax.tree.map(lambda x, i=i: x[i], heads_trained[name])
            logits, _ = group.logits(
                head["params"],
                head["stats"],
                stored(batch, None)[group.features],
                jnp.asarray(batch["weight"]),
                train=False,
            )
            order = np.argsort(-np.asarray(logits)[valid], axis=-1, kind="stable")
            right = order[:, 0] == labels
            assert found["correct"][name][i] == right.sum()
            assert found["correct5"][name][i] == (order[:, :5] == labels[:, None]).sum()
            np.testing.assert_array_equal(
                found["class_correct"][name][i], np.bincount(labels[right], minlength=CLASSES)
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits[valid], labels)
            np.testing.assert_allclose(found["loss_sum"][name][i], losses.sum(), rtol=1e-5)
    assert all(leaf.dtype == np.int32 for leaf in jax.tree.leaves(found["class_correct"]))


def test_five_classes_have_no_top_five():
    group = HeadGroup("linear", LINEAR, 16, 5, (Setting(1e-3, 0.0),))
    state = sweep.init_state({"linear": group}, RECIPE, SEED)
    batch = feature_batches()[0]
    batch["label"] = batch["label"] % 5
    found = jax.eval_shape(
        sweep.make_eval_step({"linear": group}), state.heads, jax.tree_util.Partial(stored), batch
    )
    assert "correct5" not in found
    assert found["correct"]["linear"].shape == (1,)
    assert found["class_correct"]["linear"].shape == (1, 5)


def test_groups_that_look_at_the_same_features_share_their_moments(monkeypatch):
    calls = []
    moments = heads.batch_moments
    monkeypatch.setattr(heads, "batch_moments", lambda *x: calls.append(1) or moments(*x))
    settings = (Setting(1e-3, 0.0), Setting(1e-2, 0.0))
    one = partial(HeadGroup, "attentive", FeatureSpec(2), 16, CLASSES, settings, num_heads=4)
    groups = {"one": one(), "queries": one(num_queries=2)}
    state = sweep.init_state(groups, RECIPE, SEED)
    assert isinstance(state, ProbeState)
    step = sweep.make_train_step(groups, RECIPE, SEED, heads_at_once=1)
    jax.eval_shape(step, state, jax.tree_util.Partial(stored), feature_batches()[0])
    assert len(calls) == 1
