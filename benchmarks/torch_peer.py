"""What a user would train XTRA with instead: plain PyTorch, written as an expert would.

Blocks as in timm: one projection to queries, keys and values, `scaled_dot_product_attention` under
the boolean mask, exact GELU, pre-norm. AdamW is the fused one, over two groups of parameters.
Tensors have the names and layouts of the published checkpoints. As published, every token runs
through the model; `drop_last_block` leaves the last block out, as ours does, so that a comparison
can tell what that idea gives from what the framework gives.

Two options are for speed. The attention, because PyTorch's fused one isn't faster everywhere:
"sdpa", or "plain", which writes the products and the softmax out. And the dtype of the sum that
runs through the blocks: autocast leaves it in float32, as the positions are, at twice the bytes.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn import functional as F

from xtra_jax.model.grid import Grid
from xtra_jax.model.variants import XTRASpec


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, kind: str):
        super().__init__()
        self.num_heads, self.kind = num_heads, kind
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask, bias):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.kind == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            logits = (query * self.scale) @ key.transpose(-1, -2)
            mixed = (logits + bias).softmax(-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, hidden: int, attention: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x, mask, bias):
        x = x + self.attn(self.norm1(x), mask, bias)
        return x + self.mlp(self.norm2(x))


def block_by_block(x, side, k):
    """Tokens [batch, tokens, width] in raster order, to those of one block after the other.

    Reshaped and not indexed: the gradient of an index is a scatter.
    """
    batch, tokens, width = x.shape
    x = x.reshape(batch, side, k, side, k, width).transpose(2, 3)
    return x.reshape(batch, tokens, width)


class PatchEmbed(nn.Module):
    """The convolution of the published code, as the matrix product that it is."""

    def __init__(self, grid: Grid, width: int):
        super().__init__()
        self.side, self.k, self.p = grid.blocks_per_side, grid.block_size, grid.patch_size
        self.proj = nn.Conv2d(3, width, self.p, stride=self.p)

    def forward(self, images, tokens):
        batch, side, k, p = len(images), self.side, self.k, self.p
        patches = images.reshape(batch, 3, side, k, p, side, k, p)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, -1, 3 * p * p)
        return F.linear(patches[:, :tokens], self.proj.weight.flatten(1), self.proj.bias)


class Tower(nn.Module):
    """Positions, blocks and a final norm; with `embeds`, images come in, and else tokens."""

    def __init__(self, grid, width, depth, num_heads, hidden, attention, residual, embeds=False):
        super().__init__()
        if embeds:
            self.patch_embed = PatchEmbed(grid, width)
        self.side, self.k, self.residual = grid.blocks_per_side, grid.block_size, residual
        self.pos_embed = nn.Parameter(torch.zeros(1, grid.num_tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, hidden, attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x, mask, bias):
        tokens = len(mask)
        if hasattr(self, "patch_embed"):
            x = self.patch_embed(x, tokens)
        x = x + block_by_block(self.pos_embed, self.side, self.k)[:, :tokens]
        if self.residual is not None:
            x = x.to(self.residual)
        for block in self.blocks:
            x = block(x, mask, bias)
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
    """Tokens are in the order of blocks throughout, the last one's left out on request.

    Args:
        residual: a dtype for the sum through the blocks; None leaves it to autocast.
    """

    def __init__(
        self,
        spec: XTRASpec,
        *,
        drop_last_block: bool = False,
        attention: str = "sdpa",
        residual: torch.dtype | None = None,
    ):
        super().__init__()
        encoder, predictor, grid = spec.encoder, spec.predictor, spec.grid
        width, self.k, self.p = predictor.width, grid.block_size, grid.patch_size
        self.side = grid.blocks_per_side
        self.enc = Tower(
            grid,
            encoder.width,
            encoder.depth,
            encoder.num_heads,
            encoder.mlp_hidden,
            attention,
            residual,
            embeds=True,
        )
        self.proj = TwoLayers(encoder.width, predictor.hidden, width, bias=False)
        self.predictor = Tower(
            *(grid, width, predictor.depth, predictor.num_heads, 4 * width, attention, residual)
        )
        self.aim_proj = nn.ModuleList(
            TwoLayers(self.k**2 * width, spec.head.hidden, grid.block_dim, bias=True)
            for _ in range(spec.head.num_tokens)
        )
        block = torch.arange(self.side**2 - drop_last_block).repeat_interleave(self.k**2)
        mask = block[:, None] >= block[None, :]
        self.register_buffer("mask", mask, persistent=False)
        bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        self.register_buffer("bias", bias, persistent=False)

    def cut(self, images):
        """[batch, 3, S, S] to [batch, blocks, 3 * c * c], channels first."""
        size = self.k * self.p
        x = images.reshape(len(images), 3, self.side, size, self.side, size)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(len(images), self.side**2, -1)

    def forward(self, images):
        """Every stage by the name it has in the golden files, tokens in the order of blocks."""
        out = {}
        out["enc_out"] = self.enc(images, self.mask, self.bias)
        out["proj_out"] = self.proj(out["enc_out"])
        tokens = self.predictor(out["proj_out"], self.mask, self.bias)
        out["predictor_out"] = tokens
        blocks = tokens.unflatten(1, (-1, self.k**2))
        out["block_embeds"] = blocks.transpose(2, 3).flatten(2)
        for j, head in enumerate(self.aim_proj):
            out[f"preds_{j}"] = head(out["block_embeds"])
        return out

    def loss(self, images, predictions):
        """Mean squared error of normalised pixels, over predicted blocks and heads."""
        target = self.cut(images)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
        losses = []
        for j, prediction in enumerate(predictions):
            wanted = target[:, 1 + j :]
            losses.append(F.mse_loss(prediction[:, : wanted.shape[1]], wanted))
        return sum(losses) / len(losses)

    def objective(self, images):
        """float32 [batch, 3, S, S], normalised, to the loss."""
        stages = self(images)
        return self.loss(images, [stages[f"preds_{j}"] for j in range(len(self.aim_proj))])


class TrainStep:
    """One step per call: loss, gradients, clipping, AdamW.

    Args:
        model: on its device, with its weights.
        autocast: a dtype to compute in, such as torch.bfloat16; None computes in float32.
        compiled: through `torch.compile`.
    """

    def __init__(
        self,
        model: XTRA,
        *,
        lr=1e-4,
        weight_decay=0.05,
        clip_norm=1.0,
        autocast=None,
        compiled=False,
    ):
        self.model, self.clip_norm, self.autocast = model, clip_norm, autocast
        self.objective = torch.compile(model.objective) if compiled else model.objective
        matrices = [p for n, p in model.named_parameters() if p.ndim >= 2]
        others = [p for n, p in model.named_parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)

    def __call__(self, images):
        """Normalised float32 [batch, 3, S, S] on the model's device to the loss, not fetched."""
        context = contextlib.nullcontext()
        if self.autocast is not None:
            context = torch.autocast(images.device.type, self.autocast)
        with context:
            loss = self.objective(images)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
