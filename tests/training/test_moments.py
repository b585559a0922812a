"""First moments in bfloat16: what is kept, and that a run goes on with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs import assert_same_state, saved_state
from tests.training.test_pretrain import Interrupting, tiny
from xtra_jax.config import load
from xtra_jax.errors import UserError
from xtra_jax.training.optimizer import adamw
from xtra_jax.training.pretrain import pretrain
from xtra_jax.training.progress import Progress
from xtra_jax.training.same_run import check_same_run

BFLOAT16 = {"optim.mu_dtype": "bfloat16"}


def updates(mu_dtype, steps=2):
    optimizer = adamw(
        lambda step: 1e-3,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=0.0,
        mu_dtype=mu_dtype,
    )
    params = {"kernel": jnp.linspace(-1, 1, 64).reshape(8, 8)}
    state, found = optimizer.init(params), []
    for step in range(steps):
        gradients = jax.tree.map(lambda p: jnp.sin(7 * p + step), params)  # noqa: B023
        update, state = optimizer.update(gradients, state, params)
        found.append(np.asarray(update["kernel"]))
    return found, state


def test_only_the_first_moment_is_rounded_and_only_between_steps():
    plain, _ = updates("float32")
    rounded, state = updates("bfloat16")
    moments = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (8, 8)]
    assert sorted(map(str, moments)) == ["bfloat16", "float32"]
    np.testing.assert_array_equal(rounded[0], plain[0])
    assert (rounded[1] != plain[1]).any() and rounded[1].dtype == np.float32
    np.testing.assert_allclose(rounded[1], plain[1], atol=1e-3 * 2**-7)  # of a learning rate


def test_a_run_with_subsets_and_small_moments_goes_on_bit_for_bit(tmp_path):
    def config(**overrides):
        settings = {"batch_size": 32, "model.drop_path_mode": "subset", "profile_at": 3}
        settings |= BFLOAT16 | overrides
        return tiny(tmp_path / "data", **settings | {"mesh.data": 1, "mesh.fsdp": 8})

    pretrain(config(), str(tmp_path / "whole"), progress=Progress(7, active=False))
    with pytest.raises(KeyboardInterrupt):
        pretrain(config(), str(tmp_path / "broken"), progress=Interrupting(5))
    with pytest.raises(UserError, match=r"holds a run with optim\.mu_dtype=bfloat16, and"):
        pretrain(config(**{"optim.mu_dtype": "float32"}), str(tmp_path / "broken"))
    pretrain(config(), str(tmp_path / "broken"), progress=Progress(7, active=False))
    states = [saved_state(tmp_path / name) for name in ("whole", "broken")]
    assert_same_state(*states)
    moments = {str(a.dtype) for name, a in states[0].items() if "mu" in name}
    assert moments == {"bfloat16"}
    assert len(list((tmp_path / "whole" / "profile").rglob("*.xplane.pb"))) == 1


def test_a_run_of_before_these_options_continues_without_them_and_not_with_them():
    config = load("configs/demo.py")
    saved = config.to_dict()
    del saved["model"]["drop_path_mode"], saved["optim"]["mu_dtype"]
    del saved["profile_at"], saved["compilation_cache"]
    assert check_same_run(config, saved, "run") == []
    for key, value in (("model.drop_path_mode", "subset"), ("optim.mu_dtype", "bfloat16")):
        with pytest.raises(UserError, match=f"holds a run with {key}=(bernoulli|float32), and"):
            check_same_run(load("configs/demo.py", {key: value}), saved, "run")
