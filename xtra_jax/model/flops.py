"""Useful floating-point operations of the model: a multiply-add counts as two.

Only matrix products are counted, attention over the full rectangle of the tokens it is given, also
where what the mask hides is not computed, and nothing twice for recomputation: the convention of
model FLOPs utilisation (PaLM, appendix B).
"""

from __future__ import annotations

from xtra_jax.model.stochastic_depth import subset_sizes
from xtra_jax.model.variants import EncoderSpec, XTRASpec


def _transformer(tokens: int, width: int, depth: float, hidden: int) -> tuple[float, float]:
    """Of one image: the linear layers (qkv, output and MLP), and attention's two products."""
    linear = depth * 2 * tokens * width * (4 * width + 2 * hidden)
    attention = depth * 2 * 2 * tokens * tokens * width
    return linear, attention


def computed_layers(spec: EncoderSpec, shard_size: int) -> float:
    """The layers that stochastic depth computes for an image on average: all of them by Bernoulli.

    Args:
        shard_size: images that a device's subsets are drawn from, 0 where nothing is dropped.
    """
    if spec.drop_path_mode != "subset" or not shard_size:
        return spec.depth
    return sum(subset_sizes(spec.depth, spec.drop_path, shard_size)) / shard_size


def forward_flops(
    spec: XTRASpec, *, drop_last_block: bool = False, shard_size: int = 0
) -> dict[str, int]:
    """The forward pass of one image, part by part and as "total".

    Args:
        drop_last_block: as pretraining runs, without the tokens of the last block.
        shard_size: as in `computed_layers`, for a training step: an image's mean share.
    """
    grid, encoder, predictor = spec.grid, spec.encoder, spec.predictor
    blocks = grid.num_blocks - drop_last_block
    tokens = blocks * grid.tokens_per_block
    encoder_linear, encoder_attention = _transformer(
        tokens, encoder.width, computed_layers(encoder, shard_size), encoder.mlp_hidden
    )
    predictor_linear, predictor_attention = _transformer(
        tokens, predictor.width, predictor.depth, 4 * predictor.width
    )
    block_width = grid.tokens_per_block * predictor.width
    parts = {
        "patch_embed": 2 * tokens * grid.patch_dim * encoder.width,
        "encoder_linear": round(encoder_linear),
        "encoder_attention": round(encoder_attention),
        "projection": 2 * tokens * predictor.hidden * (encoder.width + predictor.width),
        "predictor_linear": predictor_linear,
        "predictor_attention": predictor_attention,
        "heads": spec.head.num_tokens
        * 2
        * blocks
        * spec.head.hidden
        * (block_width + grid.block_dim),
    }
    return parts | {"total": sum(parts.values())}


def train_flops(spec: XTRASpec, *, drop_last_block: bool = True, shard_size: int = 0) -> int:
    """One image of a training step: the backward pass costs twice the forward pass."""
    forward = forward_flops(spec, drop_last_block=drop_last_block, shard_size=shard_size)
    return 3 * forward["total"]
