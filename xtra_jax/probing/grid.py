"""The grid of a study: from its config to the groups of heads that are trained side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from ml_collections import ConfigDict

from xtra_jax.errors import UserError
from xtra_jax.model.variants import XTRASpec
from xtra_jax.probing.features import FeatureSpec
from xtra_jax.probing.sweep import HeadGroup, Setting


def head_groups(config: ConfigDict, spec: XTRASpec) -> dict[str, HeadGroup]:
    """The heads to train: the product of all lists in the config, by the names of their groups.

    The keys that say what the heads are:

        kind                     "attentive", "linear" or "both"
        rates, weight_decays     one head for each pair of the two, rates varying last
        probe.attentive_layers   one group of attentive heads for each number of last layers
        probe.linear_layers      one group of linear heads for each number of last layers
        probe.final_norm         and for each of these: (False,), (True,) or both
        probe.num_heads, probe.num_queries    of every attentive head
        data.num_classes         of every head

    A group's features are the mean over its last layers, each before the encoder's final LayerNorm
    or (final_norm) after it; a linear head sees their mean over the tokens.

    Raises:
        UserError: a list is empty or names something twice, there are fewer layers than asked for,
            or the attention heads don't divide the width.
    """
    kinds = ("attentive", "linear") if config.kind == "both" else (config.kind,)
    lists = {
        "rates": config.rates,
        "weight_decays": config.weight_decays,
        "probe.final_norm": config.probe.final_norm,
    }
    for kind in kinds:
        lists[f"probe.{kind}_layers"] = config.probe[f"{kind}_layers"]
    for key, values in lists.items():
        _check_list(key, values)
    settings = tuple(
        Setting(rate, decay)
        for decay, rate in itertools.product(config.weight_decays, config.rates)
    )
    groups = {}
    for kind in kinds:
        key = f"probe.{kind}_layers"
        for last_layers, norm in itertools.product(lists[key], config.probe.final_norm):
            if not 1 <= last_layers <= spec.encoder.depth:
                raise UserError(
                    f"{key} names {last_layers}, and the encoder has {spec.encoder.depth} layers: "
                    f"name numbers from 1 to {spec.encoder.depth}"
                )
            group = HeadGroup(
                kind,
                FeatureSpec(last_layers, pool=kind == "linear", norm=norm),
                spec.encoder.width,
                config.data.num_classes,
                settings,
                num_heads=config.probe.num_heads,
                num_queries=config.probe.num_queries,
            )
            groups[group.name] = group
    return groups


def _check_list(key: str, values: Iterable) -> None:
    values = tuple(values)
    if not values:
        raise UserError(f"{key} is empty: name at least one")
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise UserError(f"{key} names {repeated} twice: every head is trained once")
