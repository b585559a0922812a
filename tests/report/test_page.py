"""The page of a run: complete, in one file, and honest about what is not there."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from tests.probing.studies import make_histories, make_history, make_results
from tests.report.pages import Page, make_run
from xtra_jax.cli import main
from xtra_jax.errors import UserError
from xtra_jax.interop.open_checkpoint import open_checkpoint, weights_sha256
from xtra_jax.probing.results import write_results
from xtra_jax.probing.table import make_table
from xtra_jax.report.job import report
from xtra_jax.report.probes import highlights
from xtra_jax.report.run import Study
from xtra_jax.training.loop import Meter
from xtra_jax.training.telemetry import MetricWriter

STUDIES = {
    "probe_digits": {"digits": make_results()},
    "all": {
        "imagenet2012": make_results("imagenet2012", make_histories(loss=math.nan)),
        "oxford_iiit_pet": make_results("oxford_iiit_pet", select="heldout", unreadable=2),
    },
}


def page_of(workdir, **how) -> Page:
    return Page(Path(report(workdir, **how)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with everything in it."""
    workdir = make_run(tmp_path_factory.mktemp("full") / "run")
    write_results(workdir / "probes" / "probe_digits", *STUDIES["probe_digits"]["digits"])
    for name, results in STUDIES["all"].items():
        write_results(workdir / "probes" / "all" / name, *results)
    return workdir


@pytest.fixture(scope="module")
def page(workdir):
    return page_of(workdir)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The page of a run with a checkpoint and nothing else."""
    return page_of(make_run(tmp_path_factory.mktemp("empty") / "run", metrics=False, images=False))


@pytest.mark.parametrize("which", ["page", "empty"])
def test_a_page_needs_no_network_and_no_script(which, request):
    page = request.getfixturevalue(which)
    assert not page.of("script") and not page.of("iframe")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        source = attributes.get("src", "data:") if tag != "a" else "data:"
        assert source.startswith("data:")
        if tag == "link":
            assert attributes["href"].startswith("data:")
    links = [attributes["href"] for attributes in page.of("a")]
    assert {link for link in links if not link.startswith("#")} == {
        "https://arxiv.org/abs/2411.15648"
    }
    style = re.search("<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("which", ["page", "empty"])
def test_a_page_is_well_formed_and_its_contents_lead_somewhere(which, request):
    page = request.getfixturevalue(which)
    assert page.unbalanced == []
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    for attributes in page.of("a"):
        if attributes["href"].startswith("#"):
            assert attributes["href"][1:] in names


def test_what_can_be_seen_is_also_said(page):
    assert all(attributes["alt"] for attributes in page.of("img")) and page.of("img")
    for attributes in page.of("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_it_suits_a_phone_and_a_dark_screen(page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    assert "prefers-color-scheme: dark" in page.source


def test_every_cell_and_note_of_the_tables_is_on_the_page(page):
    for studies in STUDIES.values():
        table = make_table(studies)
        for text in (*table.header, *(cell for row in table.lines for cell in row), *table.notes):
            assert text in page.text


def test_every_head_is_on_the_page(page):
    for results in (results for studies in STUDIES.values() for results in studies.values()):
        for history in results.histories:
            assert f"{100 * history.test.accuracy:.2f}" in page.text
    assert "attentive_last6_0.001_0.1" in page.text and "linear_last1_0.01_0.1" in page.text


def test_curves_have_units_and_begin_and_end_where_the_metrics_do(page):
    loss, rate, speed = page.charts()[:3]
    assert loss.startswith("Loss: mean squared error of normalised pixels against step.")
    assert "training: 0.5 at 10, 0.0111111 at 450." in loss
    assert "validation: 0.0123 at 450, 0.0123 at 450." in loss
    assert "learning rate against step" in rate
    assert "images per second against step. Speed: 110 at 10, 550 at 450." in speed


def test_all_that_a_training_logs_has_a_title_of_its_own_and_shares_are_in_percent(tmp_path):
    run = make_run(tmp_path / "run", metrics=False, images=False)
    meter = Meter(batch_size=8, flops_per_image=1.0, peak_flops=1.0)
    with MetricWriter(run) as writer:
        for step in (1, 2):
            loss = dict.fromkeys(("loss", "grad_norm", "param_norm", "lr"), np.float32(1))
            meter.add(step, loss | {"images": np.float32(8)})
            logged = meter.report()
            writer.write(step, logged)
    charts = page_of(run).charts()
    assert len(charts) == len(logged)
    titles = [said.split(":")[0].split(" against")[0] for said in charts]
    assert not set(titles) & {name.replace("_", " ") for name in logged}
    for share in (
        "Waiting for the devices",
        "Waiting for input",
        "Dispatching, logging and saving",
    ):
        (said,) = [said for said in charts if said.startswith(share)]
        assert "share of the time, %" in said


def test_each_study_has_a_plot_of_accuracy_against_effective_rate(page):
    plots = [said for said in page.charts() if "against effective learning rate" in said]
    assert len(plots) == 3
    (digits,) = (said for said in plots if said.startswith("digits (test), chosen on these images"))
    assert "top-1 accuracy, %" in digits
    assert "attentive, last 6 layers: 80 at 0.0001, 87 at 0.01." in digits
    assert any(s.startswith("oxford_iiit_pet (test), chosen on held-out training") for s in plots)


def test_pictures_are_drawn_from_the_newest_checkpoint(page):
    names = [attributes["alt"] for attributes in page.of("img")]
    assert len(names) == 3 * 8
    assert names[:3] == ["image 1: image", "image 1: prediction"] + [
        "image 1: absolute error, times 2"
    ]
    assert "Held-out images at step 1." in page.text


def test_the_hash_is_that_of_the_newest_encoder(workdir, page):
    params = open_checkpoint(workdir).params
    assert weights_sha256({"encoder": params["encoder"]}) in page.text


def test_a_study_of_the_newest_encoder_is_among_the_first_numbers(tmp_path, workdir, page):
    assert "attentive probe 91.00 % digits" not in page.text
    params = open_checkpoint(workdir).params
    run = make_run(tmp_path / "run")
    found = make_results()
    object.__setattr__(
        found.provenance, "checkpoint_hash", weights_sha256({"encoder": params["encoder"]})
    )
    write_results(run / "probes" / "probe_digits", *found)
    text = page_of(run).text
    assert "attentive probe 91.00 % digits" in text
    assert "the newest of this run" in text


def test_the_config_is_there_and_what_differs_from_the_base_comes_first(workdir, page):
    changed = page.text.index("model.patch_size 8 (base: 16)")
    whole = page.text.index('"patch_size": 8')
    assert changed < whole
    assert "model.mlp_ratio" not in page.text
    (text,) = re.findall("<pre[^>]*><code>({.*?})</code>", page.source, re.DOTALL)
    saved = json.loads(Page(text).text)
    assert saved == json.loads(json.dumps(open_checkpoint(workdir).config.to_dict()))


def test_two_studies_of_the_same_set_are_told_apart_by_their_own_names(tmp_path):
    run = make_run(tmp_path / "run", metrics=False, images=False)
    for name in ("digits_pretrained", "digits_untrained"):
        write_results(run / "probes" / name, *make_results())
    text = page_of(run).text
    assert "digits_pretrained attentive 91.00" in text
    assert "digits_untrained attentive 91.00" in text


def test_few_shot_and_nearest_neighbours_are_on_the_page(tmp_path):
    run = make_run(tmp_path / "run", images=False)
    with MetricWriter(run, step=450) as writer:
        for step in (450, 460):
            signals = {"few_shot_5": step / 1000, "knn_20": 0.75, "seconds": 2.5}
            writer.write(step, {f"signals/{name}": value for name, value in signals.items()})
    found = {
        "config": {"data": {"dataset": "digits"}},
        "results": [{"features": "linear_last1", "neighbours": 20, "accuracy": 0.8123}],
        "test_images": 1234,
        "checkpoint": "run, step 1",
    }
    (run / "probes" / "knn").mkdir(parents=True)
    (run / "probes" / "knn" / "knn.json").write_text(json.dumps(found))
    page = page_of(run)
    assert "digits 20 nearest neighbours linear_last1 81.23 1,234" in page.text
    assert "Few-shot: accuracy, % against step. 5 per class: 45 at 450, 46 at 460." in page.charts()
    assert any("20 neighbours: 75 at 450" in said for said in page.charts())
    assert "were not measured" not in page.text


def test_what_is_missing_is_said_with_the_command_that_makes_it(empty):
    assert "No metrics were logged here yet" in empty.text
    assert "No probe has been trained on this run" in empty.text
    assert "xtra probe --config configs/probe.py:NAME --checkpoint " in empty.text
    assert "Pictures could not be drawn with this page: " in empty.text
    assert "xtra reconstruct --checkpoint " in empty.text
    assert "devices of the training not recorded" in empty.text
    assert empty.charts() == []


def test_an_earlier_picture_is_shown_where_none_can_be_drawn(tmp_path):
    run = make_run(tmp_path / "run", images=False)
    (run / "reconstruction.png").write_bytes(b"a picture")
    page = page_of(run)
    assert "These are of an earlier xtra reconstruct" in page.text
    assert [a["src"] for a in page.of("img")] == ["data:image/png;base64,YSBwaWN0dXJl"]


def test_a_run_without_a_checkpoint_has_a_page_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "begun", "steps": 100}))
    page = page_of(tmp_path)
    assert "begun" in page.text and "none complete" in page.text


def test_what_is_not_finite_leaves_a_gap(tmp_path):
    run = make_run(tmp_path / "run", metrics=False, images=False)
    with MetricWriter(run) as writer:
        for step, loss in enumerate([1.0, 0.5, math.nan, math.inf, 0.25], start=1):
            writer.write(step, {"loss": loss})
    page = page_of(run)
    assert "training: 1 at 1, 0.25 at 5." in page.charts()[0]
    assert not re.search(r' (points|cx|cy|d)="[^"]*(nan|inf)', page.source)


def test_nothing_that_a_run_is_called_becomes_part_of_the_page(tmp_path):
    evil = "<script>alert('1')</script>&\"'><b>"
    run = make_run(tmp_path / "a b", metrics=False, images=False, name=evil)
    with MetricWriter(run) as writer:
        writer.write(1, {"loss": 0.5, evil.replace("/", ""): 1.0})
    results = make_results(evil.replace("/", "|"), [make_history(1e-3, 5, kind="attentive")])
    write_results(run / "probes" / "odd <i>", *results)
    page = page_of(run)
    assert not page.of("script") and not page.of("b") and not page.of("i")
    assert page.unbalanced == []
    assert evil in page.text
    assert f"--checkpoint '{run}'" in page.text


def test_a_damaged_study_takes_nothing_else_from_the_page(tmp_path):
    run = make_run(tmp_path / "run", images=False)
    write_results(run / "probes" / "good", *make_results())
    (run / "probes" / "bad").mkdir()
    (run / "probes" / "bad" / "results.json").write_text("{")
    page = page_of(run)
    assert "bad/results.json is not the file of a study of probes" in page.text
    assert "attentive 91.00" in page.text


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("knn.json", "{", "bad/knn.json is damaged: it is not a JSON object"),
        ("knn.json", "{}", "bad/knn.json is not the file of a few-shot or nearest-neighbour"),
        ("few_shot.json", '{"kind": "knn"}', "bad/few_shot.json is not the file of a few-shot"),
        (
            "knn.json",
            '{"config": {"data": {"dataset": "a"}}, "results": [3]}',
            "bad/knn.json is not the file of a few-shot or nearest-neighbour",
        ),
        ("results.json", '{"heads": [], "provenance": {}}', "bad/results.json is not the file"),
    ],
)
def test_damaged_measurements_are_told_of_beside_the_others(tmp_path, name, text, sentence):
    (tmp_path / "config.json").write_text(json.dumps({"name": "begun", "steps": 100}))
    write_results(tmp_path / "probes" / "good", *make_results())
    (tmp_path / "probes" / "bad").mkdir()
    (tmp_path / "probes" / "bad" / name).write_text(text)
    page = page_of(tmp_path)
    assert sentence in page.text and "attentive 91.00" in page.text


def test_a_measurement_on_another_set_is_called_by_that_set(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "begun", "steps": 100}))
    found = {
        "config": {"data": {"dataset": "digits", "eval_dataset": "other_digits"}},
        "results": [{"features": "linear_last1", "shots": 5, "accuracy": 0.5}],
        "test_images": 10,
        "checkpoint": "run, step 1",
    }
    (tmp_path / "probes" / "few").mkdir(parents=True)
    (tmp_path / "probes" / "few" / "few_shot.json").write_text(json.dumps(found))
    assert "other_digits 5 of each class linear_last1 50.00 10" in page_of(tmp_path).text


def test_the_first_numbers_count_every_data_set_once_and_say_of_several_studies():
    def study(name, dataset, correct):
        return Study(name, {name: make_results(dataset, [make_history(1e-3, correct)])})

    encoder = make_results().provenance.checkpoint_hash
    twice = [study("a", "eurosat", 40), study("b", "eurosat:2.0.0", 60)]
    assert highlights(twice, encoder) == [("linear", "60.00 %", "eurosat, the best of 2 studies")]
    mean = highlights([*twice, study("c", "dtd", 80)], encoder)
    assert mean == [("linear", "70.00 %", "mean of 2 data sets, the best study of each")]
    assert highlights(twice[:1], encoder) == [("linear", "40.00 %", "eurosat")]
    assert highlights(twice, "another") == []


def test_the_page_is_written_where_it_is_asked_for(workdir, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(workdir), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out) and out.read_text().endswith("</html>\n")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda path: None, "does not exist: give the working directory of a run"),
        (lambda path: path.write_text(""), "is a file: give the working directory of a run"),
        (lambda path: path.mkdir(), "holds no run: it has neither a config.json nor"),
    ],
)
def test_what_is_no_run_is_one_sentence(tmp_path, make, sentence, capsys):
    make(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xtra: ") and sentence in error and error.count("\n") == 1


def test_a_damaged_config_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(UserError, match="config.json is damaged: it is not a JSON object"):
        report(tmp_path)


def test_a_page_that_cannot_be_written_is_one_sentence(workdir, tmp_path):
    with pytest.raises(UserError, match="it is a folder; name a file in it"):
        report(workdir, tmp_path)
