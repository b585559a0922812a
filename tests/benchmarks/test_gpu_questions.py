"""What the GPU benchmark asks, in which order, and what follows from the answers."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import gpu_table
from benchmarks.gpu_deviation import deviation, wrong
from benchmarks.gpu_questions import REAL, TOY, Case, questions
from benchmarks.gpu_settings import PeerSettings, Settings

RIGHT = {"cudnn_is_right": True}


def answers(seconds_of, attention=RIGHT, scale=REAL) -> list[Case]:
    """Asks all questions in turn, until none is left.

    Args:
        seconds_of: measures a case; a string is why it failed.
    """
    results: dict[str, dict] = {}
    asked = []
    while case := next((c for c in questions(results, scale) if c.name not in results), None):
        asked.append(case)
        seconds = attention if case.kind == "attention" else seconds_of(case)
        if isinstance(seconds, str):
            seconds = {"error": seconds, "failure": seconds}
        elif not isinstance(seconds, dict):
            seconds = {"seconds": seconds}
        results[case.name] = dataclasses.asdict(case) | {"case": case.name, **seconds}
    return asked


def whole(asked, kind="step"):
    """The cases of the whole model, what scanning would be apart."""
    cases = [c for c in asked if c.kind == kind and c.settings["depth"] == 32]
    return [c for c in cases if not c.settings.get("scan")]


def linear(case):
    """Seconds that grow with depth and batch, with remat and attention by XLA slower."""
    settings = case.settings
    layer = 1.0 + 0.2 * (settings.get("attention") == "xla") + 0.3 * ("remat" in settings)
    return settings.get("batch", 1) * (1.0 + layer * settings.get("depth", 0))


def xla_is_faster(case):
    return 1.0 + (1.0 if case.settings.get("attention") == "xla" else 2.0) * case.settings.get(
        "depth", 0
    )


@pytest.mark.parametrize("scale", [REAL, TOY], ids=["real", "toy"])
@pytest.mark.parametrize("attention", [RIGHT, {"cudnn_is_right": False}])
@pytest.mark.parametrize("seconds", [linear, xla_is_faster, lambda case: "memory"])
def test_cases_of_one_name_are_the_same_case(scale, attention, seconds):
    asked = answers(seconds, attention, scale)
    defaults = {"step": Settings("", 0, 0), "peer": PeerSettings("", 0, 0)}
    told = {}
    for case in [*asked, *questions({}, scale)]:
        given = case.settings
        if case.kind in defaults:
            given = dataclasses.asdict(dataclasses.replace(defaults[case.kind], **given))
        same = (case.kind, case.flags, sorted(given.items()))
        assert told.setdefault(case.name, same) == same
    everything = list(told.values())
    assert all(everything.count(same) == 1 for same in everything)


def test_every_setting_is_part_of_the_name():
    plain = Case("", "step", dict(model="h14", depth=4, batch=64), 1, 1)
    names = {plain.name}
    for field in dataclasses.fields(Settings)[3:]:
        value = not field.default if isinstance(field.default, bool) else "other"
        names.add(dataclasses.replace(plain, settings=plain.settings | {field.name: value}).name)
    assert len(names) == 1 + len(dataclasses.fields(Settings)[3:])
    default = dataclasses.replace(plain, settings=plain.settings | dict(drop_last_block=True))
    assert default.name == plain.name == "step model=h14 depth=4 batch=64"


def test_the_whole_model_and_the_peer_come_first_then_both_attentions():
    first, second, *others = answers(linear)
    assert (first.kind, second.kind) == ("rates", "attention")
    ours, peer, *ranked = others[:6]
    assert ours.name == "step model=h14 depth=32 batch=128" and ours.traced
    assert peer.name == "peer model=h14 depth=32 batch=128"
    assert [(c.settings["depth"], c.settings.get("attention", "cudnn")) for c in ranked] == [
        *((4, "cudnn"), (4, "xla"), (8, "cudnn"), (8, "xla"))
    ]


@pytest.mark.parametrize("attention", [{"cudnn_is_right": False}, "other"])
def test_where_cudnn_is_not_right_all_is_done_by_xla(attention):
    asked = [case for case in answers(linear, attention) if case.kind == "step"]
    assert all(case.settings["attention"] == "xla" for case in asked)


def test_the_faster_attention_is_compiled_whole_too():
    asked = [case.name for case in whole(answers(xla_is_faster))]
    assert asked == [
        "step model=h14 depth=32 batch=128",
        "step model=h14 depth=32 batch=128 attention=xla",
    ]


def test_a_faster_attention_that_computes_something_else_does_not_win():
    def seconds(case):
        if case.kind != "step":
            return 1.0
        cudnn = case.settings.get("attention", "cudnn") == "cudnn"
        slow = 1.0 + (1 if cudnn else 2) * case.settings["depth"]
        return {"seconds": slow, "first_loss": 1.1 if cudnn else 1.0, "first_grad_norm": 1.0}

    *_, last = whole(answers(seconds))
    assert last.settings["attention"] == "xla"


@pytest.mark.parametrize(("failure", "batches"), [("memory", [128, 96, 64]), ("time", [128])])
def test_a_smaller_batch_is_tried_only_for_want_of_memory(failure, batches):
    def seconds(case):
        return failure if case.settings.get("batch", 0) > 64 else 1.0

    for kind in ("step", "peer"):
        asked = [case for case in whole(answers(seconds), kind)]
        assert [case.settings["batch"] for case in asked if len(case.settings) < 5] == batches


def test_a_larger_batch_that_is_faster_is_run_whole_where_it_fits():
    def seconds(room):
        def of(case):
            batch = case.settings.get("batch", 1)
            layers = 1 + case.settings.get("depth", 0)
            memory = {"peak_bytes": 100, "memory_limit_bytes": room}
            return {"seconds": layers * batch / (2.0 if batch == 160 else 1.0), **memory}

        return of

    assert whole(answers(seconds(125)))[-1].settings["batch"] == 160
    assert {case.settings["batch"] for case in whole(answers(seconds(124)))} == {128}


def test_no_whole_program_is_started_where_it_could_not_be_finished():
    for case in whole(answers(linear)) + whole(answers(linear), "peer"):
        assert case.needs >= 250


def step(**given):
    numbers = {key: given.pop(key) for key in list(given) if key.startswith("first_")}
    case = Case("", "step", dict(model="h14", depth=4, batch=64) | given, 1, 1)
    told = {"first_loss": 1.0, "first_grad_norm": 2.0} | numbers
    timed = {"machine": "H100", "seconds": 1.0, "images_per_s": 64.0}
    return dataclasses.asdict(case) | {"case": case.name, **told, **timed}


@pytest.mark.parametrize(
    ("given", "is_wrong"),
    [
        (dict(first_loss=1.00002, first_grad_norm=2.002), False),  # what bfloat16 does
        (dict(first_loss=1.0005), True),
        (dict(first_grad_norm=2.06), True),  # attention without its mask
        (dict(first_loss=None), True),  # no number
        (dict(whatif="no_norm", first_loss=1.5), False),  # another function, not a wrong one
        (dict(whatif="fast_variance", first_loss=1.5), True),
        (dict(drop_path="none", first_loss=1.5), False),  # nothing to compare it with
    ],
)
def test_a_step_is_wrong_where_it_differs_by_more_than_rounding(given, is_wrong):
    one, plain = step(**given), step(attention="xla")
    lines = {each["case"]: each for each in (plain, one)}
    assert wrong(one, lines) == is_wrong
    assert ("WRONG" in gpu_table.table(lines.values())) == is_wrong


def test_the_plain_step_is_compared_with_nothing():
    plain = step(attention="xla")
    assert deviation(plain, {plain["case"]: plain}) is None
