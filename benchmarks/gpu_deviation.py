"""Whether variants of a step compute the same: their first steps' loss and gradient, compared.

All variants begin with the same weights, images and draws of stochastic depth, so that those which
only compute in another way differ by rounding. With a width of 192 and 4 layers, bfloat16 changes
the loss by 2e-5 and the gradient's norm by 7e-4; attention without its mask, by 5e-4 and 3e-2.
"""

from __future__ import annotations

import math

from benchmarks.gpu_settings import name_of

# Relative, beyond what rounding to bfloat16 explains.
LOSS, GRAD_NORM = 1e-4, 5e-3

# Changes of `gpu_whatif` that compute the same in another way; the others are other functions.
SAME_FUNCTION = ("", "jax_gelu", "fast_variance", "jax_attention")


def deviation(one: dict, lines: dict[str, dict]) -> tuple[float, float] | None:
    """Of a step's first loss and gradient norm from the plain step's, relative.

    Args:
        one: a result.
        lines: results by case. The reference is the step of the same model and batch with attention
            by XLA and nothing else changed; or, where that was not measured, the default.

    Returns:
        Infinities where one of the numbers is none; None without a reference.
    """
    if one["kind"] != "step" or "first_loss" not in one:
        return None
    same = {key: one["settings"].get(key) for key in ("model", "depth", "batch")}
    same |= {"drop_path": one["settings"].get("drop_path", "bernoulli")}
    for settings in (same | {"attention": "xla"}, same):
        name = name_of("step", settings)
        reference = lines.get(name, {})
        if name == one["case"]:
            return None
        if "first_loss" in reference:
            return (
                _relative(one["first_loss"], reference["first_loss"]),
                _relative(one["first_grad_norm"], reference["first_grad_norm"]),
            )
    return None


def _relative(value: float | None, reference: float | None) -> float:
    if value is None or reference is None:
        return math.inf
    return abs(value - reference) / max(abs(reference), 1e-30)


def wrong(one: dict, lines: dict[str, dict]) -> bool:
    """Whether a step that should compute the same as the plain one does not."""
    if one["settings"].get("whatif", "") not in SAME_FUNCTION:
        return False
    found = deviation(one, lines)
    return found is not None and (found[0] > LOSS or found[1] > GRAD_NORM)
