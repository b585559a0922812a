"""XTRA in plain PyTorch, module by module as the published checkpoints name their tensors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from xtra_jax.model.variants import XTRASpec


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / (width / self.num_heads) ** 0.5
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x, mask):
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """Positions, blocks and a final norm; with `patch_size`, images come in, and else tokens."""

    def __init__(self, tokens, width, depth, num_heads, hidden, patch_size=None):
        super().__init__()
        if patch_size:
            self.patch_embed = PatchEmbed(patch_size, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x, mask):
        if hasattr(self, "patch_embed"):
            x = self.patch_embed(x)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TwoLayers(nn.Module):
    def __init__(self, width: int, hidden: int, out: int, bias: bool):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out, bias=bias)
        )

    def forward(self, x):
        return self.mlp(x)


class XTRA(nn.Module):
    """Tokens are in raster order throughout."""

    def __init__(self, spec: XTRASpec):
        super().__init__()
        encoder, predictor, grid = spec.encoder, spec.predictor, spec.grid
        width, self.k, self.p = predictor.width, grid.block_size, grid.patch_size
        self.side = grid.blocks_per_side
        self.enc = Tower(
            grid.num_tokens,
            encoder.width,
            encoder.depth,
            encoder.num_heads,
            encoder.mlp_hidden,
            grid.patch_size,
        )
        self.proj = TwoLayers(encoder.width, predictor.hidden, width, bias=False)
        self.predictor = Tower(
            grid.num_tokens, width, predictor.depth, predictor.num_heads, 4 * width
        )
        self.aim_proj = nn.ModuleList(
            TwoLayers(self.k**2 * width, spec.head.hidden, grid.block_dim, bias=True)
            for _ in range(spec.head.num_tokens)
        )

    def mask(self):
        """Bool [tokens, tokens], true where the row's token attends to the column's."""
        along = torch.arange(self.side).repeat_interleave(self.k)
        block = (along[:, None] * self.side + along[None, :]).flatten()
        return block[:, None] >= block[None, :]

    def cut(self, images, channels: int, size: int):
        """[batch, channels, S, S] to [batch, blocks, channels * size * size], channels first."""
        x = images.reshape(len(images), channels, self.side, size, self.side, size)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(len(images), self.side**2, -1)

    def forward(self, images):
        """Every stage by the name it has in the golden files."""
        mask, out = self.mask(), {}
        out["enc_out"] = self.enc(images, mask)
        out["proj_out"] = self.proj(out["enc_out"])
        out["predictor_out"] = tokens = self.predictor(out["proj_out"], mask)
        g = self.side * self.k
        square = tokens.transpose(1, 2).reshape(len(tokens), -1, g, g)
        out["block_embeds"] = self.cut(square, square.shape[1], self.k)
        for j, head in enumerate(self.aim_proj):
            out[f"preds_{j}"] = head(out["block_embeds"])
        return out

    def loss(self, images, predictions):
        """Mean squared error of normalised pixels, over predicted blocks and heads."""
        target = self.cut(images, 3, self.k * self.p)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
        losses = [
            F.mse_loss(prediction[:, : -1 - j], target[:, 1 + j :])
            for j, prediction in enumerate(predictions)
        ]
        return sum(losses) / len(losses)
