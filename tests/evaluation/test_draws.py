"""Figures of draws, and the kinds of errors against tidecv on data sets that really hold a picture several times."""

import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from tidecv import TIDE

from tests.conftest import tsd
from tests.evaluation.test_bootstrap import repeated, scenes
from tsd.errors import InputError
from tsd.evaluation import bootstrap
from tsd.evaluation.bootstrap import draw_weights, match_and_hits
from tsd.evaluation.coco import evaluate_coco
from tsd.evaluation.draws import (
    COLUMNS,
    LOST,
    SUFFIX,
    UNIT,
    agreement,
    draw_figures,
    draws_beside,
    figure_of,
    read_draws,
    write_draws,
)
from tsd.evaluation.kinds import KINDS, _detections, _objects, lost_to_kinds, match_kinds

NAMES = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))


def tides(truth, found):
    """AP50 lost to each kind by tidecv itself."""
    tide = TIDE()
    tide.evaluate(_objects(truth), _detections(truth, found), mode=TIDE.BOX)
    errors = tide.get_main_errors()["detections"]
    return {kind: errors[name] / 100 for kind, name in NAMES.items()}


def tidecvs_recalls():
    """Its hundredths differ from COCO's in the last bit, which may move the precision at a recall by a detection."""
    return mock.patch.object(bootstrap, "RECALLS", np.arange(101) / 100)


def lost(truth, found, weights=None):
    with tidecvs_recalls():
        return lost_to_kinds(match_kinds(truth, found), weights)


def has_all_classes(truth):
    found = {entry["category_id"] for entry in truth["annotations"] if not entry["iscrowd"]}
    return found == {category["id"] for category in truth["categories"]}


@pytest.mark.parametrize("seed", range(5))
def test_unweighted_the_kinds_are_tidecvs(seed):
    truth, found = scenes(seed, pictures=40)
    assert has_all_classes(truth)
    assert lost(truth, found) == pytest.approx(tides(truth, found), abs=1e-9)
    assert sum(value > 0 for value in tides(truth, found).values()) >= 4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_weight_is_so_many_copies_of_the_picture_for_tidecv_too(seed, weights):
    truth, found = scenes(seed)
    many, boxes = repeated(truth, found, weights)
    if has_all_classes(many):  # tidecv counts a class without objects as AP 0
        own = lost(truth, found, np.array(weights))
        assert own == pytest.approx(tides(many, boxes), abs=1e-9)


def test_pictures_are_in_the_order_of_their_ids_for_all_figures():
    truth, found = scenes(3)
    turned = truth | {"images": truth["images"][::-1]}
    assert draw_figures(turned, found, truth, 5).equals(draw_figures(truth, found, truth, 5))


def test_agreement_is_scipys_over_matched_detections():
    truth, found = scenes(5, pictures=40)
    _, hits = match_and_hits(truth, found)
    boxes = {entry["id"]: entry for entry in truth["annotations"]}
    best = []
    for entry in found:  # the best object of the class, by hand
        own = [
            box["bbox"]
            for box in boxes.values()
            if (box["image_id"], box["category_id"], box["iscrowd"]) == (entry["image_id"], entry["category_id"], 0)
        ]
        overlaps = [overlap(entry["bbox"], box) for box in own]
        if overlaps:
            best.append((round(entry["score"], 9), round(max(overlaps), 9)))
    pairs = set(zip(hits.score.round(9).tolist(), hits.iou.round(9).tolist(), strict=True))
    assert len(pairs) > 20
    assert len(pairs & set(best)) > 0.9 * len(pairs)  # where objects overlap, the best may be another detection's
    assert hits.iou.min() >= 0.5
    assert agreement(hits) == pytest.approx(scipy.stats.spearmanr(hits.score, hits.iou).statistic)
    weights = np.random.default_rng(0).integers(0, 3, 40)
    chosen = np.concatenate([np.full(weights[hits.picture[place]], place) for place in range(len(hits.picture))])
    expected = scipy.stats.spearmanr(hits.score[chosen], hits.iou[chosen]).statistic
    assert agreement(hits, weights) == pytest.approx(expected)


def overlap(one, other):
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[0] + one[2], other[0] + other[2]), min(one[1] + one[3], other[1] + other[3])
    inner = max(0, right - left) * max(0, bottom - top)
    return inner / (one[2] * one[3] + other[2] * other[3] - inner)


def test_detections_whose_scores_follow_their_iou_agree():
    truth, found = scenes(5, pictures=40)
    _, hits = match_and_hits(truth, found)
    fits = {round(score, 9): iou for score, iou in zip(hits.score.tolist(), hits.iou.tolist(), strict=True)}
    honest = [entry | {"score": fits.get(round(entry["score"], 9), 0.01)} for entry in found]
    assert agreement(match_and_hits(truth, honest)[1]) == pytest.approx(1)


def test_without_matches_there_is_no_agreement():
    truth, _ = scenes(1)
    assert np.isnan(agreement(match_and_hits(truth, [])[1]))


def test_each_line_is_what_the_evaluators_say_of_that_draw():
    truth, found = scenes(3, pictures=40)
    figures = draw_figures(truth, found, truth, 3)
    with tidecvs_recalls():
        figures = figures.assign(**draw_figures(truth, found, truth, 3)[list(LOST)])
    for line, weights in zip(figures.to_dict("records"), draw_weights(40, 3), strict=True):
        many, boxes = repeated(truth, found, weights)
        assert has_all_classes(many)
        metrics = evaluate_coco(many, boxes, backend="pycocotools")["metrics"]
        assert [line["AP50"], line["AP75"]] == pytest.approx([metrics["AP50"], metrics["AP75"]], abs=1e-9)
        expected = tides(many, boxes)
        assert [line[f"lost_{kind}"] for kind in KINDS] == pytest.approx([expected[kind] for kind in KINDS], abs=1e-9)


def test_a_file_holds_the_figures_to_a_thousandth_of_a_point(tmp_path):
    truth, found = scenes(3)
    figures = draw_figures(truth, found, None, 200)
    path = tmp_path / "run.draws.csv"
    write_draws(figures, path)
    read = read_draws(path)
    assert list(read.columns) == list(COLUMNS)
    assert len(read) == 201
    assert read["AP50_tail"].isna().all()
    assert (read - figures).abs().max(axis=None) <= UNIT / 2 + 1e-12
    assert path.stat().st_size < 200 * len(figures) * 2


def test_figures_by_name(tmp_path):
    truth, found = scenes(3)
    figures = draw_figures(truth, found, truth, 5)
    assert figure_of("AP", figures) == pytest.approx(figures.iloc[:, :10].mean(axis=1).to_numpy())
    assert figure_of("AP_tail", figures) == pytest.approx(figures.iloc[:, 10:20].mean(axis=1).to_numpy())
    assert figure_of("AP80 - AP50", figures) == pytest.approx((figures["AP80"] - figures["AP50"]).to_numpy())
    assert figure_of(LOST[1], figures) == pytest.approx(figures["lost_loc"].to_numpy())


@pytest.mark.parametrize(
    "name", ["AP_head", "AP51_tail", "_tail", "AP51", "AP100", "ap", "AP50 - AP60 - AP70", "lost", "__import__('os')"]
)
def test_an_unknown_figure_is_refused(name):
    truth, found = scenes(3)
    with pytest.raises(ValueError, match="expected AP, AP50"):
        figure_of(name, draw_figures(truth, found, None, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("AP50,", "AP5O,", 1), "expected the columns AP50,"),
        (lambda text: text.replace("\n", "\nx", 1), r"line 2: AP50: expected a whole number, got 'x"),
        (lambda text: text.replace("\n", "\n1.5", 1), r"line 2: AP50: expected a whole number, got '1\.5"),
        (lambda text: text.splitlines()[0] + "\n", "got 0 lines"),
        (lambda text: "", "is empty; make it anew"),
    ],
)
def test_a_broken_file_is_named(tmp_path, change, message):
    truth, found = scenes(3)
    path = tmp_path / "run.draws.csv"
    write_draws(draw_figures(truth, found, None, 3), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as error:
        read_draws(path)
    assert str(path) in str(error.value)


def test_draws_beside_metrics_are_of_the_same_predictions(tmp_path):
    truth, found = scenes(3)
    metrics = tmp_path / "run.json"
    metrics.write_text(json.dumps(evaluate_coco(truth, found, backend="pycocotools")))
    write_draws(draw_figures(truth, found, None, 3), tmp_path / "run.draws.csv")
    assert len(draws_beside(metrics)) == 4
    write_draws(draw_figures(truth, found[: len(found) // 2], None, 3), tmp_path / "run.draws.csv")
    with pytest.raises(InputError, match="of different predictions or annotations"):
        draws_beside(metrics)


def test_the_command(tmp_path):
    truth, found = scenes(3)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    (tmp_path / "other.json").write_text(json.dumps(truth | {"categories": truth["categories"][:2], "annotations": []}))
    files = ("--annotations", tmp_path / "truth.json", "--predictions", tmp_path / "found.json")
    output = tmp_path / "run.draws.csv"
    done = tsd("evaluate", "draws", *files, "--trained", tmp_path / "truth.json", "--draws", "7", "--output", output)
    assert done.returncode == 0, done.stderr
    assert len(read_draws(output)) == 8
    output.unlink()
    done = tsd("evaluate", "draws", *files, "--trained", tmp_path / "other.json", "--output", output)
    assert done.returncode == 2
    assert "other categories" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize("name", ["AP", "AP50", "AP75"])
def test_a_figure_that_was_edited_contradicts_the_draws_beside_it(tmp_path, name):
    draws = pd.DataFrame(np.full((3, len(COLUMNS)), 0.25), columns=COLUMNS)
    path = tmp_path / "metrics.json"
    write_draws(draws, path.with_suffix(SUFFIX))
    metrics = {"AP": 0.25, "AP50": 0.25, "AP75": 0.25}
    path.write_text(json.dumps({"metrics": metrics}))
    assert len(draws_beside(path)) == 3
    path.with_suffix(SUFFIX).write_bytes(b"\xef\xbb\xbf" + path.with_suffix(SUFFIX).read_bytes())
    assert len(draws_beside(path)) == 3
    path.write_text(json.dumps({"metrics": metrics | {name: 0.5}}))
    with pytest.raises(InputError, match=f"{name} 0.25000 on all pictures, .* says 0.50000: one of them was edited"):
        draws_beside(path)
    path.with_suffix(SUFFIX).write_text("")
    with pytest.raises(InputError, match=r"draws\.csv: is empty; make it anew"):
        draws_beside(path)
