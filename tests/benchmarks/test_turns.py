"""Contestants in turns: each in its own process and environment, one at a time."""

import os
import time

import pytest

from benchmarks.cases import VARIANTS, Way, model
from benchmarks.turns import Contestant, race


def sleeper(seconds: float):
    """A turn that sleeps, and who and where it is."""
    return (lambda: time.sleep(seconds)), {"pid": os.getpid(), "seen": os.environ.get("SEEN")}


def test_contestants_are_compared_turn_by_turn_in_processes_of_their_own():
    contestants = {
        "slow": Contestant(sleeper, (0.2,)),
        "fast": Contestant(sleeper, (0.0,), {"SEEN": "yes"}),
    }
    found = race(contestants, "slow", repeats=2, warm_up=0)
    assert found["slow"]["speed_over_slow"] == 1
    assert found["fast"]["speed_over_slow"] > 1
    assert found["slow"]["seconds"] >= 0.2
    assert [len(row["seconds_all"]) for row in found.values()] == [2, 2]
    assert len({os.getpid(), found["slow"]["pid"], found["fast"]["pid"]}) == 3
    assert (found["slow"]["seen"], found["fast"]["seen"]) == (None, "yes")
    assert "SEEN" not in os.environ
    assert found["fast"]["peak_mib"] > 1


@pytest.mark.parametrize("name", ["theirs", "ours,compiled", "peer,remat=full"])
def test_a_way_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=repr(name)):
        Way(name)


def test_a_way_says_how_a_step_is_computed():
    way = Way("ours,all_blocks,bfloat16,remat=dots,scan_layers")
    assert (way.drop_last_block, way.dtype) == (False, "bfloat16")
    assert (way.execution().remat, way.execution().scan_layers) == ("dots", True)
    assert Way("ours").drop_last_block and Way("ours").execution().remat == "none"


def test_every_variant_can_be_timed_and_the_default_is_the_recorded_case():
    for name in VARIANTS:
        assert model(name).encoder.depth >= 12
    tiny = model("tiny")
    assert (tiny.grid.image_size, tiny.grid.num_tokens, tiny.head.hidden) == (128, 64, 1536)
    assert model("base", image_size=128, depth=2).grid.num_tokens == 64
