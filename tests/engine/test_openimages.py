"""Open Images as mmdet sees it."""

import pickle

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import ROOT, copy_project
from tests.data.test_store import BOXES, CLASSES, LABELS, TREE
from tsd.data.store import build_store
from tsd.engine.adapters.openimages import OpenImagesFigures, StoredOpenImages, to_fractions
from tsd.engine.identity import data_digest
from tsd.engine.model import build_model
from tsd.engine.params import get_run, load_suite
from tsd.errors import ParamsError
from tsd.evaluation.openimages import evaluate_files


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "challenge/annotations"
    folder.mkdir(parents=True)
    names = {
        "challenge-2019-validation-detection-bbox.csv": BOXES,
        "challenge-2019-validation-detection-human-imagelabels.csv": LABELS,
        "challenge-2019-classes-description-4.csv": CLASSES,
        "challenge-2019-label4-hierarchy.json": TREE,
    }
    for name, text in names.items():
        (folder / name).write_text(text)
    return [folder / name for name in names]


@pytest.fixture
def store(files, tmp_path):
    build_store(*files, tmp_path / "store")
    return tmp_path / "store"


def dataset(store, **options):
    return StoredOpenImages(str(store), {"img": "pictures"}, [], {"classes": ["a"] * 4}, **options)


def labels(data, index):
    return [(entry["bbox_label"], entry["ignore_flag"]) for entry in data.get_data_info(index)["instances"]]


def test_boxes_around_groups_follow_the_option(store):
    positive, ignore, drop = (dataset(store, group_of=name) for name in ("positive", "ignore", "drop"))
    assert [len(data) for data in (positive, ignore, drop)] == [3, 1, 1]  # a and c have groups only
    assert labels(positive, 0) == [(1, 0)]
    assert labels(positive, 1) == labels(ignore, 0) == labels(drop, 0) == [(2, 0), (1, 0)]
    assert positive.get_data_info(2)["img_path"] == "pictures/c.jpg"


def test_a_group_beside_single_boxes_is_ignored_or_left_out(files, tmp_path):
    files[0].write_text(BOXES + "b,/m/car,0,0.2,0,0.2,1\n")
    build_store(*files, tmp_path / "store")
    assert labels(dataset(tmp_path / "store", group_of="ignore"), 0) == [(2, 0), (1, 0), (3, 1)]
    assert labels(dataset(tmp_path / "store", group_of="drop"), 0) == [(2, 0), (1, 0)]
    assert labels(dataset(tmp_path / "store", group_of="positive"), 1) == [(2, 0), (1, 0), (3, 0)]


def test_ancestors_get_a_box_of_their_own(store):
    assert labels(dataset(store, hierarchy="ancestors"), 1) == [(2, 0), (0, 0), (1, 0), (0, 0)]


def test_testing_shows_all_pictures_without_boxes(store):
    data = dataset(store, test_mode=True)
    assert [data.get_data_info(index)["img_id"] for index in range(len(data))] == ["a", "b", "c", "z"]
    assert "instances" not in data.get_data_info(0)


def test_another_process_maps_the_files_itself(store):
    data = dataset(store, group_of="drop")
    text = pickle.dumps(data)
    assert len(text) < 2000
    assert labels(pickle.loads(text), 0) == labels(data, 0)


def detections(seed):
    """Random detections of each picture of 40 × 20 pixels."""
    rng = np.random.default_rng(seed)
    found = []
    for name in ("a", "b", "c", "z"):
        corner = rng.random((8, 2)) * [20, 10]
        boxes = torch.tensor(np.concatenate((corner, corner + rng.random((8, 2)) * [20, 10] + 0.5), axis=1))
        instances = {
            "bboxes": boxes,
            "scores": torch.tensor(rng.random(8)),
            "labels": torch.tensor(rng.integers(0, 4, 8)),
        }
        found.append({"img_id": name, "ori_shape": (20, 40), "pred_instances": instances})
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_during_training_are_those_of_the_predictions_file(files, tmp_path, seed):
    metric = OpenImagesFigures(str(files[0].parents[1]), 4)
    metric.process(None, detections(seed))
    mids = [line.split(",")[0] for line in CLASSES.splitlines()]
    rows = ["ImageID,LabelName,Score,XMin,XMax,YMin,YMax"]
    for sample in detections(seed):
        found = to_fractions(sample["pred_instances"], sample["ori_shape"])
        for label, score, (x0, y0, x1, y1) in zip(found["label"], found["score"], found["box"], strict=True):
            rows.append(f"{sample['img_id']},{mids[label]},{score:.6f},{x0:.6f},{x1:.6f},{y0:.6f},{y1:.6f}")
    (tmp_path / "predictions.csv").write_text("\n".join([*rows, ""]))
    expected = evaluate_files(*files, tmp_path / "predictions.csv", expand_predictions=True)["metrics"]
    assert metric.compute_metrics(metric.results) == expected
    assert expected["AP50_val"] is not None


def test_no_detections_at_all_are_an_ap_of_zero(files):
    metric = OpenImagesFigures(str(files[0].parents[1]), 4)
    empty = {"bboxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    metric.process(None, [{"img_id": "a", "ori_shape": (20, 40), "pred_instances": empty}])
    assert metric.compute_metrics(metric.results)["AP50_val"] == 0


def suite_with(monkeypatch, tmp_path, change, name="openimages-demo"):
    folder = copy_project(tmp_path / "project", monkeypatch)
    path = folder / f"params/suites/{name}.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return load_suite(name)


def test_anchors_in_ignored_groups_are_neither_positive_nor_negative(monkeypatch, tmp_path):
    from mmdet.registry import TASK_UTILS
    from mmengine.structures import InstanceData

    suite = suite_with(
        monkeypatch, tmp_path, lambda content: content["override"].update(train_data={"group_of": "ignore"})
    )
    model = build_model(suite.settings["baseline"], 9, "released", 0)
    for part in (model["train_cfg"]["rpn"], model["train_cfg"]["rcnn"]):
        assigner = TASK_UTILS.build(part["assigner"])
        boxes = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50], [80, 80, 90, 90]])
        truth = InstanceData(bboxes=boxes[:1], labels=torch.tensor([3]))
        group = InstanceData(bboxes=torch.tensor([[30.0, 30, 70, 70]]), labels=torch.tensor([3]))
        found = assigner.assign(InstanceData(priors=boxes), truth, group)
        assert found.gt_inds.tolist() == [1, -1, 0]


def test_what_determines_training_is_in_the_digest(monkeypatch, tmp_path):
    suite = suite_with(monkeypatch, tmp_path, lambda content: None)
    run = get_run(suite, "baseline", 0, data_digest(suite))
    assert run.settings["train_data"] == {"group_of": "positive", "hierarchy": "none", "sampling": "class_aware"}
    assert run.training["train_data"]["sampling"] == "class_aware"
    assert suite.num_classes == suite.challenge.classes_count == 9


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny", {"override": {"train_data": {"group_of": "drop"}}}, "train_data.group_of: only a suite of data"),
        ("openimages-demo", {"experiments": ["mask_r50"]}, "detector: Open Images' boxes have no masks"),
        ("openimages-demo", {"experiments": ["released_r50"]}, "coordinates: expected continuous"),
        (
            "openimages-demo",
            {"override": {"train_data": {"group_of": "some"}}},
            "expected one of positive, ignore, drop",
        ),
        (
            "openimages-demo",
            {"data": {"format": "openimages", "folder": "x", "generate": {"formats": ["coco"]}}},
            r"data.generate.formats: expected \[coco, openimages\]",
        ),
        ("openimages-demo", {"data": {"format": "openimages"}}, "data.folder: missing key"),
        ("openimages-demo", {"data": {"format": "openimages", "folder": "x", "train": {}}}, "data.train: unknown key"),
    ],
)
def test_contradictions_are_named(monkeypatch, tmp_path, name, change, message):
    with pytest.raises(ParamsError, match=message):
        suite_with(monkeypatch, tmp_path, lambda content: content.update(change), name)


def test_the_real_suite_resolves_to_table_6(monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = load_suite("openimages")
    assert suite.num_classes == 500
    assert len(suite.settings) == 8
    anchors = suite.settings["tsd_pc_senet154_dcn_anchors"]["rpn"]
    assert (anchors["anchor_scales"], anchors["anchor_ratios"]) == ([8, 11, 14], [0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
    assert len(data_digest(suite)) == 12
