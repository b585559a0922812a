"""The training and the evaluation of many heads at once, on a frozen stand-in for an encoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtra_jax.errors import UserError
from xtra_jax.parallel.mesh import make_mesh, put_batch
from xtra_jax.probing import sweep
from xtra_jax.probing.features import LINEAR, FeatureSpec
from xtra_jax.probing.probe import train_probe
from xtra_jax.probing.recipe import Recipe
from xtra_jax.probing.scores import evaluate
from xtra_jax.probing.sweep import HeadGroup, Setting

SIZE, WIDTH, CLASSES, EXAMPLES = 4, 8, 3, 24
TOKENS = FeatureSpec()


def extract(kernel, batch, key):
    """Every row of an image is a token; the linear probe gets their mean."""
    images = batch["image"]
    tokens = images.reshape(len(images), SIZE, -1).astype(jnp.float32) / 255 @ kernel
    return {TOKENS: tokens, LINEAR: tokens.mean(axis=1)}


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


def endless(batch_size, first_step=0):
    """The batches after so many steps; the batches of an epoch are whole."""
    steps = EXAMPLES // batch_size
    while True:
        for step, batch in enumerate(epoch(batch_size)):
            if first_step <= step:
                yield batch
        first_step = max(0, first_step - steps)


def group(kind, *settings, **options):
    settings = tuple(Setting(*setting) for setting in settings)
    features = LINEAR if kind == "linear" else TOKENS
    return HeadGroup(kind, features, WIDTH, CLASSES, settings, num_heads=2, **options)


def recipe(**changes):
    # The small clip norm is exceeded in some steps by some heads, and not in others.
    return Recipe(
        **{"steps": 20, "steps_per_epoch": 3, "clip_norm": 0.5, "label_smoothing": 0.1} | changes
    )


def train(groups, recipe, *, batch_size=8, eval_batch_size=8, **options):
    return train_probe(
        groups,
        FEATURES,
        partial(endless, batch_size),
        lambda: epoch(eval_batch_size, count=13),
        recipe,
        **options,
    )


def accuracies(histories):
    return [[e.accuracy for e in history.evaluations] for history in histories]


def test_a_head_that_diverges_leaves_the_others_alone_and_is_never_right():
    # Without weight decay: a weight that is not finite then stays what it is.
    groups = {"linear": group("linear", (1e-2, 0.0), (1e38, 0.0))}
    steady, diverged = train(groups, recipe()).histories
    (alone,) = train({"linear": group("linear", (1e-2, 0.0))}, recipe()).histories
    assert accuracies([steady]) == accuracies([alone])
    assert not np.isfinite(diverged.last.loss)
    assert diverged.last.accuracy == 0


@pytest.fixture(scope="module")
def trained():
    groups = {"attentive": group("attentive", (1e-2, 0.0)), "linear": group("linear", (1e-2, 0.0))}
    return groups, train(groups, recipe()).state


@pytest.mark.parametrize("batch_size", [1, 5, 8, 13, 16])
def test_every_example_counts_exactly_once_when_the_batch_does_not_divide_the_set(
    trained, batch_size
):
    groups, state = trained
    images, labels = examples(13)
    scores = evaluate(groups, state.heads, FEATURES, epoch(batch_size, 13))

    assert scores.total == 13
    assert scores.unreadable == 0
    np.testing.assert_array_equal(scores.class_total, np.bincount(labels, minlength=CLASSES))
    for name, one in groups.items():
        head = jax.tree.map(lambda x: x[0], state.heads[name])
        logits, _ = one.logits(
            head["params"],
            head["stats"],
            FEATURES({"image": images}, None)[one.features],
            jnp.ones(13),
            train=False,
        )
        right = np.asarray(logits.argmax(-1)) == labels
        assert scores.correct[name][0] == np.sum(right)
        per_class = np.bincount(labels[right], minlength=CLASSES)
        np.testing.assert_array_equal(scores.class_correct[name][0], per_class)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        np.testing.assert_allclose(scores.loss[name][0], loss, rtol=1e-5)


def test_an_unreadable_image_is_counted_apart_from_the_examples():
    groups = {"linear": group("linear", (1e-2, 0.0))}
    state = sweep.init_state(groups, recipe(), seed=0)
    scores = evaluate(groups, state.heads, FEATURES, epoch(5, 13, unreadable=(2, 7)))
    assert (scores.total, scores.unreadable) == (11, 2)


def test_a_probe_on_eight_devices_gives_what_one_device_gives():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    groups = {
        "attentive": group("attentive", (1e-3, 0.1), (1e-2, 0.1)),
        "linear": group("linear", (1e-2, 0.0)),
    }
    one = train(groups, recipe(steps=10))
    eight = train(groups, recipe(steps=10), put=lambda batch: put_batch(batch, mesh), mesh=mesh)
    assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(eight.state))
    assert accuracies(one.histories) == accuracies(eight.histories)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one.state, eight.state)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    groups = {"linear": group("linear", (1e-2, 0.1))}
    first, again, other = (train(groups, recipe(), seed=seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first.state, again.state)
    assert first.histories[0].evaluations == again.histories[0].evaluations
    kernels = [t.state.heads["linear"]["params"]["classifier"]["kernel"] for t in (first, other)]
    assert not np.array_equal(*kernels)


def test_features_get_a_fresh_key_in_every_training_step_and_none_in_evaluation():
    keys = []

    def features(batch, key):
        keys.append(key if key is None else tuple(jax.random.key_data(key).tolist()))
        return FEATURES(batch, key)

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
    trained = train(groups, recipe(steps=80, eval_every=80, clip_norm=3.0))
    assert accuracies(trained.histories) == [[1.0], [1.0]]


def test_evaluations_follow_every_epoch_and_the_last_step():
    seen = []
    groups = {"linear": group("linear", (1e-2, 0.0))}
    trained = train(
        groups,
        recipe(steps=8),
        on_evaluation=lambda step, scores: seen.append((step, int(scores.correct["linear"][0]))),
    )
    (history,) = trained.histories
    assert [e.step for e in history.evaluations] == [3, 6, 8]
    assert [e.epoch for e in history.evaluations] == [1, 2, 8 / 3]
    assert seen == [(e.step, e.correct) for e in history.evaluations]
    assert history.test == history.last and trained.test.total == 13

    step, losses = jax.jit(sweep.make_train_step(groups, recipe(steps=8), 0)), []
    state = sweep.init_state(groups, recipe(steps=8), 0)
    for _, batch in zip(range(8), endless(8), strict=False):
        state, loss = step(state, FEATURES, batch)
        losses.append(float(loss["linear"][0]))
    means = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])]
    np.testing.assert_allclose([e.train_loss for e in history.evaluations], means, rtol=1e-6)


def test_heads_are_chosen_by_one_set_and_reported_on_another():
    groups = {"linear": group("linear", (1e-2, 0.0))}
    trained = train(groups, recipe(steps=6), test_batches=lambda: epoch(8, count=5))
    (history,) = trained.histories
    assert [e.total for e in history.evaluations] == [13, 13]
    assert (history.test.total, history.test.step, history.class_total.sum()) == (5, 6, 5)
    scores = evaluate(groups, trained.state.heads, FEATURES, epoch(8, count=5))
    assert history.test.correct == scores.correct["linear"][0] == history.class_correct.sum()


@pytest.mark.parametrize("warmup_steps, first", [(0, 0.02), (5, 0.002)])
def test_a_head_reaches_its_rate_with_and_without_a_warm_up(warmup_steps, first):
    schedule = recipe(warmup_steps=warmup_steps).schedule(0.02)
    rates = np.array([schedule(step) for step in range(21)])
    np.testing.assert_allclose(rates[0], first, rtol=1e-6)
    np.testing.assert_allclose(rates.max(), 0.02, rtol=1e-6)
    np.testing.assert_allclose(rates[-1], 1e-5, rtol=1e-5)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_refused_by_record(label):
    def batches(first_step=0):
        for batch in epoch(8):
            batch["label"][5] = label
            yield batch

    with pytest.raises(UserError, match=f"record 5 is {label}.*from 0 to 2"):
        train_probe({"linear": group("linear", (1e-2, 0.0))}, FEATURES, batches, batches, recipe())


def test_an_evaluation_without_a_readable_example_is_refused():
    groups = {"linear": group("linear", (1e-2, 0.0))}
    state = sweep.init_state(groups, recipe(), seed=0)
    with pytest.raises(UserError, match="no readable example"):
        evaluate(groups, state.heads, FEATURES, epoch(8, 4, unreadable=range(4)))
