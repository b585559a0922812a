"""The training and the evaluation of many heads at once, on a frozen stand-in for an encoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtra_jax.errors import UserError
from xtra_jax.probing import heads, sweep
from xtra_jax.probing.probe import evaluate, train_probe
from xtra_jax.probing.sweep import HeadGroup, Recipe, Setting
from xtra_jax.training.optimizer import adamw

SIZE, WIDTH, CLASSES, EXAMPLES = 4, 8, 3, 24


def extract(kernel, images, key):
    """Every row of an image is a token; the linear probe gets their mean."""
    tokens = images.reshape(len(images), SIZE, -1).astype(jnp.float32) / 255 @ kernel
    return {"attentive": tokens, "normalised": tokens, "linear": tokens.mean(axis=1)}


FEATURES = jax.tree_util.Partial(
    extract, np.random.default_rng(0).normal(size=(SIZE * 3, WIDTH)).astype(np.float32)
)


def examples(count=EXAMPLES):
    """Images whose class is the colour channel that is brightest."""
    rng = np.random.default_rng(1)
    labels = rng.integers(CLASSES, size=count).astype(np.int32)
    images = rng.integers(0, 160, (count, SIZE, SIZE, 3))
    images[np.arange(count), ..., labels] += 90
    return images.astype(np.uint8), labels


def epoch(batch_size, count=EXAMPLES, unreadable=()):
    """One pass over the examples; the last batch is padded with bright images of label -1."""
    images, labels = examples(count)
    for start in range(0, count, batch_size):
        index = np.arange(start, start + batch_size)
        there = index < count
        chosen = np.minimum(index, count - 1)
        yield {
            "image": np.where(there[:, None, None, None], images[chosen], 255).astype(np.uint8),
            "label": np.where(there, labels[chosen], -1).astype(np.int32),
            "weight": (there & ~np.isin(index, unreadable)).astype(np.float32),
            "index": np.where(there, index, -1),
        }


def endless(batch_size, count=EXAMPLES):
    while True:
        yield from epoch(batch_size, count)


def group(kind, *settings, **options):
    settings = tuple(Setting(*setting) for setting in settings)
    return HeadGroup(kind, WIDTH, CLASSES, settings, num_heads=2, **options)


def recipe(**changes):
    # The small clip norm is exceeded in some steps by some heads, and not in others.
    return Recipe(
        **{"steps": 20, "steps_per_epoch": 3, "clip_norm": 0.5, "label_smoothing": 0.1} | changes
    )


def train(groups, recipe, *, batch_size=8, eval_batch_size=8, **options):
    return train_probe(
        groups,
        FEATURES,
        endless(batch_size),
        lambda: epoch(eval_batch_size, count=13),
        recipe,
        **options,
    )


def accuracies(histories):
    return [[e.accuracy for e in history.evaluations] for history in histories]


def make_step_alone(group, recipe):
    """One step of a single head, without vmap and groups."""

    @jax.jit
    def step(params, stats, opt_state, batch, rate, weight_decay):
        def loss_fn(params):
            features = FEATURES(batch["image"], None)[group.kind]
            logits, new_stats = group.logits(params, stats, features, batch["weight"], train=True)
            loss = heads.cross_entropy(logits, batch["label"], batch["weight"], label_smoothing=0.1)
            return loss, new_stats

        grads, new_stats = jax.grad(loss_fn, has_aux=True)(params)
        optimizer = adamw(
            lambda _: rate,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=weight_decay,
            clip_norm=recipe.clip_norm,
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        clipped = optax.tree.norm(grads) > recipe.clip_norm
        return optax.apply_updates(params, updates), new_stats, opt_state, clipped

    return step


def train_alone(group, setting, recipe, step):
    head = sweep.init_state({"alone": group}, recipe, seed=0).heads["alone"]
    params, stats = jax.tree.map(lambda x: x[0], (head["params"], head["stats"]))
    opt_state = recipe.optimizer(0.0, 0.0).init(params)
    rates = recipe.schedule(setting.rate)(jnp.arange(recipe.steps))
    clips = []
    for batch, rate in zip(endless(8), rates, strict=False):
        params, stats, opt_state, clipped = step(
            params, stats, opt_state, batch, rate, setting.weight_decay
        )
        clips.append(bool(clipped))
    return params, stats, clips


def test_a_head_among_others_equals_that_head_trained_alone():
    settings = [(1e-3, 0.1), (1e-2, 0.0), (3e-2, 0.5)]
    groups = {
        "attentive": group("attentive", *settings, num_queries=2, kv_bias=True),
        # Not both: an output normalisation takes the values' bias out again, and Adam would turn
        # the rounding of a zero gradient into steps of full length.
        "normalised": group("attentive", *settings, output_norm=True),
        "linear": group("linear", *settings),
    }
    protocol = recipe(warmup_steps=5)
    state, _ = train(groups, protocol)

    clips = []
    for name, one in groups.items():
        step_alone = make_step_alone(one, protocol)
        for i, setting in enumerate(one.settings):
            params, stats, clips_alone = train_alone(one, setting, protocol, step_alone)
            together = jax.tree.map(lambda x, i=i: x[i], state.heads[name])
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                (together["params"], together["stats"]),
                (params, stats),
            )
            clips += clips_alone
    assert any(clips) and not all(clips)


def test_a_head_that_diverges_leaves_the_others_alone_and_is_never_right():
    # Without weight decay: a weight that is not finite then stays what it is.
    groups = {"linear": group("linear", (1e-2, 0.0), (1e38, 0.0))}
    _, (steady, diverged) = train(groups, recipe())
    _, (alone,) = train({"linear": group("linear", (1e-2, 0.0))}, recipe())
    assert accuracies([steady]) == accuracies([alone])
    assert not np.isfinite(diverged.last.loss)
    assert diverged.last.accuracy == 0


@pytest.fixture(scope="module")
def trained():
    groups = {"attentive": group("attentive", (1e-2, 0.0)), "linear": group("linear", (1e-2, 0.0))}
    state, _ = train(groups, recipe())
    return groups, state


@pytest.mark.parametrize("batch_size", [1, 5, 8, 13, 16])
def test_every_example_counts_exactly_once_when_the_batch_does_not_divide_the_set(
    trained, batch_size
):
    groups, state = trained
    images, labels = examples(13)
    scores = evaluate(groups, state.heads, FEATURES, epoch(batch_size, 13))

    assert scores.total == 13
    assert scores.unreadable == 0
    for name, one in groups.items():
        head = jax.tree.map(lambda x: x[0], state.heads[name])
        logits, _ = one.logits(
            head["params"], head["stats"], FEATURES(images, None)[name], jnp.ones(13), train=False
        )
        assert scores.correct[name][0] == np.sum(logits.argmax(-1) == labels)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        np.testing.assert_allclose(scores.loss[name][0], loss, rtol=1e-5)


def test_an_unreadable_image_is_counted_apart_from_the_examples():
    groups = {"linear": group("linear", (1e-2, 0.0))}
    state = sweep.init_state(groups, recipe(), seed=0)
    scores = evaluate(groups, state.heads, FEATURES, epoch(5, 13, unreadable=(2, 7)))
    assert (scores.total, scores.unreadable) == (11, 2)


def test_a_batch_sharded_over_eight_devices_gives_what_one_device_gives():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    groups = {
        "attentive": group("attentive", (1e-3, 0.1), (1e-2, 0.1), output_norm=True),
        "linear": group("linear", (1e-2, 0.0)),
    }
    one, one_histories = train(groups, recipe(steps=10))
    eight, eight_histories = train(
        groups,
        recipe(steps=10),
        put=lambda batch: jax.device_put(batch, rows),
        sharding=jax.NamedSharding(mesh, jax.P()),
    )
    assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(eight))
    assert accuracies(one_histories) == accuracies(eight_histories)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, eight)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    groups = {"linear": group("linear", (1e-2, 0.1))}
    first, first_histories = train(groups, recipe(), seed=3)
    again, again_histories = train(groups, recipe(), seed=3)
    other, _ = train(groups, recipe(), seed=4)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first_histories == again_histories
    kernels = [s.heads["linear"]["params"]["classifier"]["kernel"] for s in (first, other)]
    assert not np.array_equal(*kernels)


def test_features_get_a_fresh_key_in_every_training_step_and_none_in_evaluation():
    keys = []

    def features(images, key):
        keys.append(key if key is None else tuple(jax.random.key_data(key).tolist()))
        return FEATURES(images, key)

    groups = {"linear": group("linear", (1e-2, 0.0))}
    batch = next(epoch(8)) | {"unreadable": np.zeros(8, bool)}
    for seed in (0, 0, 1):
        state = sweep.init_state(groups, recipe(), seed)
        train_step = sweep.make_train_step(groups, recipe(), seed)
        for _ in range(2):
            state, _ = train_step(state, features, batch)
    sweep.make_eval_step(groups)(state.heads, features, batch)

    assert keys[:2] == keys[2:4]
    assert len(set(keys)) == 5
    assert keys[-1] is None


def test_both_kinds_of_probe_learn_what_the_features_hold():
    groups = {"attentive": group("attentive", (3e-2, 0.0)), "linear": group("linear", (3e-2, 0.0))}
    _, histories = train(groups, recipe(steps=80, eval_every=80, clip_norm=3.0))
    assert accuracies(histories) == [[1.0], [1.0]]


def test_evaluations_follow_every_epoch_and_the_last_step():
    losses, seen = [], []
    _, (history,) = train(
        {"linear": group("linear", (1e-2, 0.0))},
        recipe(steps=8),
        on_step=lambda step, loss: losses.append(float(loss["linear"][0])),
        on_evaluation=lambda step, scores: seen.append((step, int(scores.correct["linear"][0]))),
    )
    assert [e.step for e in history.evaluations] == [3, 6, 8]
    assert [e.epoch for e in history.evaluations] == [1, 2, 8 / 3]
    assert seen == [(e.step, e.correct) for e in history.evaluations]
    means = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])]
    np.testing.assert_allclose([e.train_loss for e in history.evaluations], means, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps, first", [(0, 0.02), (5, 0.002)])
def test_a_head_reaches_its_rate_with_and_without_a_warm_up(warmup_steps, first):
    schedule = recipe(warmup_steps=warmup_steps).schedule(0.02)
    rates = np.array([schedule(step) for step in range(21)])
    np.testing.assert_allclose(rates[0], first, rtol=1e-6)
    np.testing.assert_allclose(rates.max(), 0.02, rtol=1e-6)
    np.testing.assert_allclose(rates[-1], 1e-5, rtol=1e-5)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_refused_by_record(label):
    def batches():
        for batch in epoch(8):
            batch["label"][5] = label
            yield batch

    with pytest.raises(UserError, match=f"record 5 is {label}.*from 0 to 2"):
        train_probe(
            {"linear": group("linear", (1e-2, 0.0))}, FEATURES, batches(), batches, recipe()
        )


def test_an_evaluation_without_a_readable_example_is_refused():
    groups = {"linear": group("linear", (1e-2, 0.0))}
    state = sweep.init_state(groups, recipe(), seed=0)
    with pytest.raises(UserError, match="no readable example"):
        evaluate(groups, state.heads, FEATURES, epoch(8, 4, unreadable=range(4)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "cubic"}, "not 'cubic'"),
        ({"settings": ()}, "no learning rate"),
        ({"num_heads": 3}, "3 heads does not fit features of width 8"),
    ],
)
def test_a_head_that_cannot_be_is_one_sentence(options, message):
    fits = {
        "kind": "attentive",
        "width": WIDTH,
        "num_classes": CLASSES,
        "settings": (Setting(1e-3, 0.1),),
        "num_heads": 2,
    }
    with pytest.raises(UserError, match=message):
        HeadGroup(**fits | options)
