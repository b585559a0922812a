"""Each option that computes or keeps numbers in bfloat16 learns as float32 does: minutes each."""

from pathlib import Path

import numpy as np
import pytest

from xtra_jax.config import load
from xtra_jax.training.pretrain import pretrain
from xtra_jax.training.progress import Progress
from xtra_jax.training.telemetry import read_metrics

COMPUTING = {"model.dtype": "bfloat16", "predictor.dtype": "bfloat16"}
# Gradients are summed in bfloat16 where they are of products in bfloat16.
SUMMING = COMPUTING | {"optim.reduce_dtype": "bfloat16"}
MOMENTS = {"optim.mu_dtype": "bfloat16"}


def fifty_steps_of_the_demo(folder: Path, overrides: dict[str, str]) -> list[float]:
    """The losses of every five steps."""
    settings = {
        "steps": 50,
        "optim.warmup_steps": 5,
        "log_every": 5,
        "eval_every": 0,
        "save_every": 100,
        "data.data_dir": str(folder.parent / "data"),
    }
    config = load("configs/demo.py", settings | overrides)
    pretrain(config, str(folder), progress=Progress(50, active=False))
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory):
    """Losses by overrides; the runs that several tests look at are made once."""
    folder, losses = tmp_path_factory.mktemp("runs"), {}

    def run(overrides: dict[str, str]) -> list[float]:
        name = "-".join(overrides) or "float32"
        if name not in losses:
            losses[name] = fifty_steps_of_the_demo(folder / name, overrides)
        return losses[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "without"),
    [(COMPUTING, {}), (SUMMING, COMPUTING), (MOMENTS, {})],
    ids=["computing", "summing", "moments"],
)
def test_fifty_steps_of_the_demo_end_at_the_same_loss(runs_of, overrides, without):
    plain, rounded = runs_of({}), runs_of(overrides)
    assert plain[-1] < 0.9 * plain[0]
    print(f"largest deviation {np.abs(np.subtract(rounded, plain)).max():.2g}")
    np.testing.assert_allclose(rounded, plain, atol=1e-2)
    assert rounded != runs_of(without)  # it does something
