"""The picture of accuracy against learning rate."""

import io

import numpy as np
from PIL import Image

from tests.probing.studies import RATES, make_histories, make_history, make_results
from xtra_jax.probing.plots import draw_rates, line_styles, rate_curves


def pixels(studies):
    return np.asarray(Image.open(io.BytesIO(draw_rates(studies))).convert("RGB"))


def count(picture, color):
    """Pixels of about that colour."""
    return int((np.abs(picture.astype(int) - color).max(axis=-1) < 8).sum())


BLUE, ORANGE = (0x1F, 0x5F, 0xA8), (0xC4, 0x5A, 0x00)


def test_a_curve_has_the_heads_that_differ_in_their_rate_alone_by_rising_rate():
    heads = make_histories()[::-1] + [make_history(1e-3, 5, final_norm=True)]
    curves = rate_curves(heads)
    assert list(curves) == ["linear, last layer", "attentive, last 6 layers"] + [
        "linear, last layer, final norm"
    ]
    assert tuple(h.setting.rate for h in curves["linear, last layer"]) == RATES


def test_each_kind_has_a_line_of_its_own_colour():
    both = pixels({"digits": make_results()})
    assert count(both, BLUE) > 500 and count(both, ORANGE) > 500
    linear = [h for h in make_histories() if h.kind == "linear"]
    alone = pixels({"digits": make_results(histories=linear)})
    assert count(alone, BLUE) == 0 and count(alone, ORANGE) > 500


def test_every_data_set_has_a_panel():
    one = pixels({"a": make_results()})
    four = pixels({name: make_results() for name in "abcd"})
    assert count(four, BLUE) > 2 * count(one, BLUE)
    assert four.shape[1] > one.shape[1]


def test_no_two_groups_of_a_kind_are_drawn_alike():
    heads = [
        make_history(1e-3, 5, last_layers=n, kind=k)
        for n in range(1, 13)
        for k in ("attentive", "linear")
    ]
    styles = line_styles({"a": make_results(histories=heads)})
    lines = [tuple(style.values()) for style in styles.values()]
    assert len(lines) == len(set(lines)) == 24


def test_a_single_rate_and_a_single_head_can_be_drawn():
    assert pixels({"$a": make_results(histories=[make_history(1e-3, 0)])}).size
