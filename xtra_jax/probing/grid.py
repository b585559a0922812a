"""The grid of a study: from its config to the groups of heads that are trained side by side."""

from __future__ import annotations

import itertools

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
        UserError: there are fewer layers than asked for, or the attention heads don't divide the
            width.
    """
    kinds = ("attentive", "linear") if config.kind == "both" else (config.kind,)
    settings = tuple(
        Setting(rate, decay)
        for decay, rate in itertools.product(config.weight_decays, config.rates)
    )
    depth, groups = spec.encoder.depth, {}
    for kind in kinds:
        key = f"{kind}_layers"
        for last_layers, norm in itertools.product(config.probe[key], config.probe.final_norm):
            if last_layers > depth:
                raise UserError(
                    f"probe.{key} names {last_layers}, and the encoder has {depth} layers: name "
                    f"numbers from 1 to {depth}"
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
