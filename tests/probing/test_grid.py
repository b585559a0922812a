"""From a study's config to its heads."""

import dataclasses

import pytest

from configs import probe_base
from tests.goldens import tiny_spec
from xtra_jax.errors import UserError
from xtra_jax.probing.features import LINEAR, FeatureSpec
from xtra_jax.probing.grid import head_groups
from xtra_jax.probing.sweep import HeadGroup, Setting

SPEC = tiny_spec()  # three layers, width 48


def study(**changes):
    config = probe_base.get_config()
    config.probe.update(attentive_layers=(3,), num_heads=4)
    config.data.num_classes = 7
    config.update_from_flattened_dict(changes)
    return config


def test_a_grid_is_the_product_of_its_lists():
    groups = head_groups(
        study(
            **{
                "kind": "both",
                "rates": (1e-3, 1e-2),
                "weight_decays": (0.1, 0.0),
                "probe.attentive_layers": (3, 1),
                "probe.linear_layers": (1, 2),
                "probe.final_norm": (False, True),
                "probe.num_queries": 2,
            }
        ),
        SPEC,
    )
    assert list(groups) == [
        "attentive_last3",
        "attentive_last3_norm",
        "attentive_last1",
        "attentive_last1_norm",
        "linear_last1",
        "linear_last1_norm",
        "linear_last2",
        "linear_last2_norm",
    ]
    settings = (Setting(1e-3, 0.1), Setting(1e-2, 0.1), Setting(1e-3, 0.0), Setting(1e-2, 0.0))
    assert all(group.settings == settings for group in groups.values())
    assert groups["attentive_last3"] == HeadGroup(
        "attentive", FeatureSpec(3), 48, 7, settings, num_heads=4, num_queries=2
    )
    assert groups["linear_last2_norm"].features == FeatureSpec(2, pool=True, norm=True)


def test_the_published_heads_are_the_default():
    config = probe_base.get_config()
    config.kind = "both"
    tiny = tiny_spec()
    deep = dataclasses.replace(tiny, encoder=dataclasses.replace(tiny.encoder, depth=12))
    groups = head_groups(config, deep)
    assert list(groups) == ["attentive_last6", "linear_last1"]
    assert groups["attentive_last6"].features == FeatureSpec(last_layers=6)
    assert groups["linear_last1"].features == LINEAR
    assert groups["attentive_last6"].num_heads == 16
    assert [setting.weight_decay for setting in groups["linear_last1"].settings] == [0.1] * 7


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"probe.attentive_layers": (4,)}, "^probe.attentive_layers names 4.*1 to 3"),
        ({"probe.num_heads": 5}, "5 heads does not fit features of width 48"),
    ],
)
def test_a_grid_that_cannot_be_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        head_groups(study(**changes), SPEC)


def test_lists_of_a_kind_that_is_not_trained_do_not_matter():
    assert list(head_groups(study(**{"probe.linear_layers": (9,)}), SPEC)) == ["attentive_last3"]
