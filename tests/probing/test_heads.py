"""Probe heads against the published ones (golden tensors) and against their textbook form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.goldens import load
from xtra_jax.probing import heads

GOLDEN = load("F_probe_heads_uses_B_hot_weights")
GOLDEN_NUM_HEADS = 4

# The published name of every tensor, by its path in our trees.
ATTENTIVE = {
    ("query",): "cls_token",
    ("key", "kernel"): "k.weight",
    ("value", "kernel"): "v.weight",
    ("classifier", "kernel"): "linear.weight",
    ("classifier", "bias"): "linear.bias",
}
PARAMS = {
    "att": ATTENTIVE,
    "att_q3_bias": ATTENTIVE | {("key", "bias"): "k.bias", ("value", "bias"): "v.bias"},
    "att_outbn": ATTENTIVE
    | {("classifier", "kernel"): "linear.1.weight", ("classifier", "bias"): "linear.1.bias"},
    "linear_bn": {("classifier", "kernel"): "1.weight", ("classifier", "bias"): "1.bias"},
    "linear_nobn": {("classifier", "kernel"): "weight", ("classifier", "bias"): "bias"},
}
STATS = {
    "att": {"tokens": "bn"},
    "att_q3_bias": {"tokens": "bn"},
    "att_outbn": {"tokens": "bn", "pooled": "linear.0"},
    "linear_bn": {"features": "0"},
    "linear_nobn": {},
}


def golden_params(head, group="param"):
    tree = {}
    for path, name in PARAMS[head].items():
        value = GOLDEN[f"{head}/{group}/{name}"]
        if name == "cls_token":
            value = value[0]
        elif name.endswith("weight"):
            value = value.T
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def golden_stats(head, group="param"):
    return {
        name: {
            "mean": GOLDEN[f"{head}/{group}/{published}.running_mean"],
            "var": GOLDEN[f"{head}/{group}/{published}.running_var"],
        }
        for name, published in STATS[head].items()
    }


def golden_features(head, mode):
    return GOLDEN[f"{'att' if head.startswith('att') else 'linear_bn'}/{mode}_features"]


def logits_fn(head):
    """The compiled logits function of a golden head."""
    if head.startswith("att"):
        return jax.jit(
            partial(heads.attentive_logits, num_heads=GOLDEN_NUM_HEADS), static_argnames="train"
        )
    return jax.jit(heads.linear_logits, static_argnames="train")


def plain_attentive_logits(params, stats, tokens, *, num_heads):
    """The head as one would write it down: normalise, project keys and values, attend, average."""
    stats = stats["tokens"]
    tokens = (tokens - stats["mean"]) / np.sqrt(stats["var"] + heads.BATCH_NORM_EPS)
    split = (*tokens.shape[:2], num_heads, -1)
    keys, values = (
        (tokens @ params[name]["kernel"] + params[name].get("bias", 0.0)).reshape(split)
        for name in ("key", "value")
    )
    queries = params["query"].reshape(len(params["query"]), num_heads, -1)
    scores = np.einsum("qhe,bthe->bqht", queries, keys) / np.sqrt(queries.shape[-1])
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    output = np.einsum("bqht,bthe->bqhe", attention, values)
    output = output.reshape(*output.shape[:2], -1).mean(axis=1)
    return output @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize("head", PARAMS)
def test_training_logits_loss_gradients_and_statistics_are_the_published_ones(head):
    features = golden_features(head, "train")
    labels = GOLDEN["targets_train"]
    weight = np.ones(len(labels), np.float32)

    def loss_fn(params):
        logits, stats = logits_fn(head)(params, golden_stats(head), features, weight, train=True)
        return heads.cross_entropy(logits, labels, weight), (logits, stats)

    params = golden_params(head)
    (loss, (logits, stats)), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)

    np.testing.assert_allclose(logits, GOLDEN[f"{head}/train_logits"], atol=5e-5)
    np.testing.assert_allclose(loss, GOLDEN[f"{head}/train_ce"], rtol=1e-6)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        stats,
        golden_stats(head, "after_train"),
    )
    expected = golden_params(head, "train_grad")
    if "bias" in expected.get("key", {}):
        # It cancels in the softmax: published rounding noise, here exactly zero.
        assert np.abs(expected["key"].pop("bias")).max() < 1e-6
        assert not np.any(grads["key"].pop("bias"))
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=0, atol=1e-4 * np.abs(e).max()),
        grads,
        expected,
    )


@pytest.mark.parametrize("head", PARAMS)
def test_evaluation_logits_are_the_published_ones_and_leave_the_statistics_alone(head):
    features = golden_features(head, "eval")
    stats = golden_stats(head, "eval_buffers")
    logits, new_stats = logits_fn(head)(
        golden_params(head), stats, features, np.ones(len(features)), train=False
    )
    np.testing.assert_allclose(logits, GOLDEN[f"{head}/eval_logits"], atol=5e-5)
    jax.tree.map(np.testing.assert_array_equal, new_stats, stats)


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("kv_bias", [False, True])
def test_keys_folded_into_the_query_equal_keys_and_values_of_every_token(num_queries, kv_bias):
    rng = np.random.default_rng(0)
    params, stats = heads.attentive_init(
        jax.random.key(0), width=12, num_classes=5, num_queries=num_queries, kv_bias=kv_bias
    )
    # Large queries make the attention far from uniform, so that a wrong score shows.
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    params["query"] = rng.normal(scale=5.0, size=params["query"].shape)
    stats["tokens"] = {"mean": rng.normal(size=12), "var": rng.uniform(0.3, 3.0, 12)}
    tokens = rng.normal(size=(4, 7, 12))

    folded, _ = heads.attentive_logits(
        params, stats, jnp.asarray(tokens), jnp.ones(4), num_heads=3, train=False
    )
    plain = plain_attentive_logits(params, stats, tokens, num_heads=3)
    np.testing.assert_allclose(folded, plain, atol=2e-5)


def test_an_offset_common_to_all_tokens_does_not_spoil_the_folded_scores():
    rng = np.random.default_rng(1)
    params, stats = heads.attentive_init(jax.random.key(0), width=8, num_classes=3)
    offset = rng.normal(scale=30.0, size=8)  # as a few features of large ViTs have it
    params["query"] = jnp.asarray(rng.normal(size=params["query"].shape), jnp.float32)
    stats["tokens"] = {"mean": offset, "var": np.ones(8)}
    tokens = rng.normal(size=(4, 7, 8)) + offset

    folded, _ = heads.attentive_logits(
        params, stats, jnp.asarray(tokens), jnp.ones(4), num_heads=2, train=False
    )
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    plain = plain_attentive_logits(exact, stats, tokens, num_heads=2)
    np.testing.assert_allclose(folded, plain, atol=1e-4)


@pytest.mark.parametrize("head", ["att", "att_outbn", "linear_bn", "linear_nobn"])
def test_padding_of_weight_zero_changes_neither_logits_nor_statistics_nor_loss_nor_hits(head):
    features = golden_features(head, "train")
    labels = GOLDEN["targets_train"]
    junk = np.full((3, *features.shape[1:]), 7.0, np.float32)
    padded = np.concatenate([features[:2], junk, features[2:]])
    padded_labels = np.concatenate([labels[:2], [-1, -1, -1], labels[2:]])
    weight = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float32)

    def outcome(features, labels, weight):
        logits, stats = logits_fn(head)(
            golden_params(head), golden_stats(head), features, weight, train=True
        )
        loss = heads.cross_entropy(logits, labels, weight, label_smoothing=0.1)
        hits = heads.hits(logits, labels, weight).sum()
        return logits[weight > 0], stats, loss, hits

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        outcome(padded, padded_labels, weight),
        outcome(features, labels, np.ones(8, np.float32)),
    )


@pytest.mark.parametrize("head", ["att", "att_outbn", "linear_bn"])
def test_a_batch_of_nothing_but_padding_leaves_the_statistics_and_the_loss_is_zero(head):
    features = golden_features(head, "train")
    stats = golden_stats(head, "eval_buffers")
    nothing = np.zeros(len(features), np.float32)

    def loss_fn(params):
        logits, new_stats = logits_fn(head)(params, stats, features, nothing, train=True)
        return heads.cross_entropy(logits, GOLDEN["targets_train"], nothing), new_stats

    loss_and_grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, new_stats), grads = loss_and_grads(golden_params(head))
    assert loss == 0
    jax.tree.map(np.testing.assert_array_equal, new_stats, stats)
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_heads_stacked_under_one_vmap_equal_heads_one_by_one(kind):
    init = {
        "attentive": partial(heads.attentive_init, num_queries=2, kv_bias=True, output_norm=True),
        "linear": heads.linear_init,
    }[kind]
    logits = {
        "attentive": partial(heads.attentive_logits, num_heads=2),
        "linear": heads.linear_logits,
    }[kind]
    shape = (6, 5, 8) if kind == "attentive" else (6, 8)
    features = jax.random.normal(jax.random.key(1), shape)
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    init = jax.jit(partial(init, width=8, num_classes=3))
    singles = [init(jax.random.key(seed)) for seed in range(4)]
    params, stats = jax.tree.map(lambda *x: jnp.stack(x), *singles)

    logits = partial(logits, train=True)
    stacked = jax.jit(jax.vmap(logits, in_axes=(0, 0, None, None)))(params, stats, features, weight)
    one_by_one = [jax.jit(logits)(p, s, features, weight) for p, s in singles]
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        stacked,
        jax.tree.map(lambda *x: jnp.stack(x), *one_by_one),
    )


@pytest.mark.parametrize("train", [True, False])
def test_stacked_heads_never_hold_a_copy_of_the_features_per_head(train):
    num_stacked, batch, tokens, width, num_classes = 5, 3, 7, 8, 2
    params, stats = jax.vmap(
        lambda key: heads.attentive_init(key, width=width, num_classes=num_classes)
    )(jax.random.split(jax.random.key(0), num_stacked))

    def loss_fn(params, stats, features):
        logits, _ = heads.attentive_logits(
            params, stats, features, jnp.ones(batch), num_heads=2, train=train
        )
        return heads.cross_entropy(logits, jnp.zeros(batch, int), jnp.ones(batch))

    jaxpr = jax.make_jaxpr(jax.vmap(jax.grad(loss_fn), in_axes=(0, 0, None)))(
        params, stats, jnp.ones((batch, tokens, width))
    )
    largest = max(var.aval.size for equation in jaxpr.eqns for var in equation.outvars)
    assert largest < num_stacked * batch * tokens * width


def test_label_smoothing_spreads_its_share_evenly_over_all_classes():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 1, 2])
    weight = np.array([1, 0, 1, 1, 1], np.float32)
    targets = 0.8 * np.eye(4)[labels] + 0.2 / 4
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(targets * log_probs).sum(-1)[weight > 0].mean()
    loss = heads.cross_entropy(logits, labels, weight, label_smoothing=0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_only_valid_examples_with_finite_logits_can_be_correct():
    logits = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [np.nan, np.nan], [2.0, -np.inf]])
    labels = np.array([0, 0, 0, 0, 0])
    weight = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(heads.hits(logits, labels, weight), [True, *[False] * 4])
    np.testing.assert_array_equal(
        heads.hits(logits, labels, weight, top=2), [True, False, True, False, False]
    )


@pytest.mark.parametrize("top", [1, 5])
def test_hits_are_those_of_a_stable_sort_also_where_logits_are_equal(top):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 9)).astype(np.float32)  # full of ties
    labels = rng.integers(0, 9, 200)
    first = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    expected = (first == labels[:, None]).any(axis=-1)
    assert 0 < expected.sum() < 200
    np.testing.assert_array_equal(heads.hits(logits, labels, np.ones(200), top=top), expected)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_moments_computed_before_change_nothing(kind):
    rng = np.random.default_rng(0)
    weight = np.array([1.0, 1.0, 0.0, 1.0, 1.0], np.float32)
    if kind == "attentive":
        init, logits = heads.attentive_init, partial(heads.attentive_logits, num_heads=2)
        features = rng.normal(size=(5, 3, 8)).astype(np.float32)
    else:
        init, logits = heads.linear_init, heads.linear_logits
        features = rng.normal(size=(5, 8)).astype(np.float32)
    params, stats = init(jax.random.key(0), width=8, num_classes=3)
    moments = heads.batch_moments(features, weight)
    np.testing.assert_allclose(
        moments.var, features[weight > 0].reshape(-1, 8).var(axis=0), rtol=1e-5
    )
    given = logits(params, stats, features, weight, train=True, moments=moments)
    jax.tree.map(
        np.testing.assert_array_equal, given, logits(params, stats, features, weight, train=True)
    )


def test_layers_start_in_pytorchs_default_range_and_queries_near_zero():
    params, stats = heads.attentive_init(
        jax.random.key(0), width=64, num_classes=50, num_queries=40, output_norm=True
    )
    for name in ("key", "value", "classifier"):
        kernel = np.asarray(params[name]["kernel"])
        assert 0.95 / 8 < np.abs(kernel).max() <= 1 / 8
        np.testing.assert_allclose(kernel.std(), 1 / 8 / np.sqrt(3), rtol=0.03)
    assert "bias" not in params["key"] and "bias" not in params["value"]
    assert 0.8 / 8 < np.abs(params["classifier"]["bias"]).max() <= 1 / 8
    np.testing.assert_allclose(np.std(params["query"]), 0.02, rtol=0.05)
    assert not np.any(stats["pooled"]["mean"]) and np.all(stats["pooled"]["var"] == 1)
