"""Generated scenes in the Open Images Challenge's form."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tsd.data.openimages_csv import ROOT, clusters, merge_groups, number_classes, verified_absent, write_openimages

CATEGORIES = [
    {"id": 1, "name": "plain disc", "supercategory": "disc"},
    {"id": 2, "name": "plain box", "supercategory": "box"},
    {"id": 3, "name": "striped disc", "supercategory": "disc"},
]


def scene(*objects, picture=1):
    images = [{"id": picture, "file_name": f"{picture:04d}.jpg", "width": 200, "height": 100}]
    annotations = [
        {"id": number, "image_id": picture, "category_id": category, "bbox": box}
        for number, (category, box) in enumerate(objects, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_boxes_are_fractions_with_xmax_before_ymin(tmp_path):
    write_openimages(scene((2, [50, 25, 100, 50])), "val", tmp_path, seed=0)
    path = tmp_path / "challenge-2019-validation-detection-bbox.csv"
    assert path.read_text() == (
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n0001,/m/tsd002,0.250000,0.750000,0.250000,0.750000,0\n"
    )


def test_parents_are_classes_under_a_root_that_is_none(tmp_path):
    write_openimages(scene(), "train", tmp_path, seed=0)
    described = (tmp_path / "challenge-2019-classes-description-5.csv").read_text().splitlines()
    assert described == [
        "/m/tsd001,plain disc",
        "/m/tsd002,plain box",
        "/m/tsd003,striped disc",
        "/m/tsd004,disc",
        "/m/tsd005,box",
    ]
    tree = json.loads((tmp_path / "challenge-2019-label5-hierarchy.json").read_text())
    assert tree["LabelName"] == ROOT
    assert {node["LabelName"]: [leaf["LabelName"] for leaf in node["Subcategory"]] for node in tree["Subcategory"]} == {
        "/m/tsd004": ["/m/tsd001", "/m/tsd003"],
        "/m/tsd005": ["/m/tsd002"],
    }


def test_what_is_seen_is_verified_and_never_verified_as_absent(tmp_path):
    write_openimages(scene((1, [0, 0, 10, 10]), (1, [50, 50, 10, 10])), "train", tmp_path, seed=0)
    labels = rows(tmp_path / "challenge-2019-train-detection-human-imagelabels.csv")
    assert list(labels[0]) == ["ImageID", "Source", "LabelName", "Confidence"]
    assert [row["LabelName"] for row in labels if row["Confidence"] == "1"] == ["/m/tsd001"]
    absent = {row["LabelName"] for row in labels if row["Confidence"] == "0"}
    assert len(absent) == 2
    assert absent <= {"/m/tsd002", "/m/tsd003", "/m/tsd005"}  # not the disc's parent, /m/tsd004


def test_a_parent_of_a_seen_class_is_not_absent():
    classes = number_classes(CATEGORIES)
    everything = {mid for seed in range(60) for mid in verified_absent(classes, {"/m/tsd003"}, rng(seed))}
    assert everything == {"/m/tsd001", "/m/tsd002", "/m/tsd005"}
    assert verified_absent(classes, {"/m/tsd001", "/m/tsd002", "/m/tsd003"}, rng(0)) == []


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_boxes_cluster_through_one_another():
    left, middle, right, apart = (0, 0, 10, 10), (8, 0, 20, 10), (18, 0, 30, 10), (30, 0, 40, 10)
    found = clusters([left, right, apart, middle])
    assert sorted(sorted(members) for members in found) == [[left, middle, right], [apart]]


def test_five_overlapping_objects_are_a_group():
    boxes = [(4 * step, step, 4 * step + 6, step + 5) for step in range(5)]
    for seed in range(8):
        assert merge_groups(boxes, rng(seed)) == [((0, 0, 22, 9), True)]


def test_two_overlapping_objects_are_a_group_by_chance_and_single_ones_never():
    pair, single = [(0, 0, 6, 6), (5, 5, 9, 9)], [(20, 20, 30, 30)]
    seen = {tuple(merge_groups(pair + single, rng(seed))) for seed in range(30)}
    alone = ((20, 20, 30, 30), False)
    assert seen == {(((0, 0, 9, 9), True), alone), (((0, 0, 6, 6), False), ((5, 5, 9, 9), False), alone)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_pictures_rows_do_not_depend_on_the_other_pictures(tmp_path, split):
    objects = [(category, [10 * step, 5, 15, 20]) for step in range(6) for category in (1, 2)]
    both, one = scene(*objects), scene(*objects, picture=2)
    both = {key: both[key] + one[key] for key in ("images", "annotations")} | {"categories": CATEGORIES}
    write_openimages(both, split, tmp_path / "both", seed=4)
    write_openimages(one, split, tmp_path / "one", seed=4)
    for path in (tmp_path / "one").glob("*detection*"):
        second = [row for row in rows(tmp_path / "both" / path.name) if row["ImageID"] == "0002"]
        assert second == rows(path) != []
