"""Useful floating-point operations of the model: a multiply-add counts as two.

Only matrix products are counted, attention over the full rectangle of the tokens it is given, and
nothing twice for recomputation: the convention of model FLOPs utilisation (PaLM, appendix B).
"""

from __future__ import annotations

from xtra_jax.model.variants import XTRASpec


def _transformer(tokens: int, width: int, depth: int, hidden: int) -> tuple[int, int]:
    """Of one image: the linear layers (qkv, output and MLP), and attention's two products."""
    linear = depth * 2 * tokens * width * (4 * width + 2 * hidden)
    attention = depth * 2 * 2 * tokens * tokens * width
    return linear, attention


def forward_flops(spec: XTRASpec, *, drop_last_block: bool = False) -> dict[str, int]:
    """The forward pass of one image, part by part and as "total".

    Args:
        drop_last_block: as pretraining runs, without the tokens of the last block.
    """
    grid, encoder, predictor = spec.grid, spec.encoder, spec.predictor
    blocks = grid.num_blocks - drop_last_block
    tokens = blocks * grid.tokens_per_block
    encoder_linear, encoder_attention = _transformer(
        tokens, encoder.width, encoder.depth, encoder.mlp_hidden
    )
    predictor_linear, predictor_attention = _transformer(
        tokens, predictor.width, predictor.depth, 4 * predictor.width
    )
    block_width = grid.tokens_per_block * predictor.width
    parts = {
        "patch_embed": 2 * tokens * grid.patch_dim * encoder.width,
        "encoder_linear": encoder_linear,
        "encoder_attention": encoder_attention,
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


def train_flops(spec: XTRASpec, *, drop_last_block: bool = True) -> int:
    """One image of a training step: the backward pass costs twice the forward pass."""
    return 3 * forward_flops(spec, drop_last_block=drop_last_block)["total"]
