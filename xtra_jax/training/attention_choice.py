"""Which attention a config's model is computed by, on the devices that there are."""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xtra_jax.errors import UserError
from xtra_jax.model.attention import chosen
from xtra_jax.model.variants import XTRASpec

NAMES = {"cudnn": "cuDNN", "halves": "XLA in halves", "xla": "XLA"}
_NO_MASK_GRADIENT = (0, 11, 1)  # before, jax has cuDNN compute a gradient of the mask as well


def attention_on(choice: str, mesh: Mesh) -> str:
    """The implementation for a mesh: one of `xtra_jax.model.attention.IMPLEMENTATIONS`.

    Args:
        choice: "auto" takes cuDNN on the NVIDIA GPUs that have its fused attention, those of
            compute capability 8.0 or more, XLA in halves on CPUs, and XLA everywhere else; or an
            implementation.

    Raises:
        UserError: cuDNN is asked for by name, and these devices don't have it.
    """
    device = mesh.devices.flat[0]
    if choice == "auto":
        if jax.__version_info__ >= _NO_MASK_GRADIENT and _fuses(device):
            return "cudnn"
        return "halves" if device.platform == "cpu" else "xla"
    if choice == "cudnn" and not _fuses(device):
        raise UserError(
            "model.attention=cudnn needs NVIDIA GPUs of compute capability 8.0 or more, and these "
            f"devices are {device.device_kind}: use auto or xla"
        )
    return choice


def _fuses(device: jax.Device) -> bool:
    # An AMD GPU's is a name such as gfx90a, and what is no GPU has none.
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdecimal() and int(major) >= 8


def encoder_attention(choice: str, spec: XTRASpec, mesh: Mesh, num_tokens: int) -> str:
    """As `attention_on`, of an encoder alone, which may have heads that cuDNN doesn't take."""
    encoder = spec.encoder
    head_dim = encoder.width // encoder.num_heads
    return chosen(attention_on(choice, mesh), spec.dtype, head_dim, num_tokens)


def attention_by_tower(config: ConfigDict, spec: XTRASpec, mesh: Mesh) -> dict[str, str]:
    """What computes the attention of encoder and predictor in training.

    Returns:
        One of `xtra_jax.model.attention.IMPLEMENTATIONS` for each.

    Raises:
        UserError: cuDNN is asked for by name, and does not run on these devices or does not take
            the encoder's heads.
    """
    implementation = attention_on(config.model.attention, mesh)
    tokens = spec.grid.num_tokens
    if config.model.drop_last_block:
        tokens -= spec.grid.tokens_per_block
    towers = {
        "encoder": (spec.encoder, spec.dtype),
        "predictor": (spec.predictor, spec.predictor_dtype),
    }
    found = {
        name: chosen(implementation, dtype, tower.width // tower.num_heads, tokens)
        for name, (tower, dtype) in towers.items()
    }
    if config.model.attention == "cudnn" and found["encoder"] != "cudnn":
        encoder = spec.encoder
        raise UserError(
            "model.attention=cudnn needs an encoder in 16 bits, heads of a multiple of 8 and at "
            f"most 128 wide, and an even number of tokens, and this one has {spec.dtype}, "
            f"{encoder.width // encoder.num_heads} and {tokens}: use auto or xla"
        )
    return found


def described_attention(towers: dict[str, str]) -> str:
    """In words, from what `attention_by_tower` finds."""
    if len(set(towers.values())) == 1:
        return f"attention by {NAMES[towers['encoder']]}"
    said = ", ".join(f"by {NAMES[how]} in the {name}" for name, how in towers.items())
    return f"attention {said}"
