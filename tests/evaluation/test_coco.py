"""COCO figures: the fast evaluator against pycocotools, and hand-worked cases."""

import copy
import json

import numpy as np
import pytest

from tsd.errors import InputError
from tsd.evaluation.coco import NAMES, evaluate_boxes_and_masks, evaluate_coco, format_summary


def scene(boxes, categories=(1,), crowd=()):
    """One picture of 100x100 pixels with the given xywh boxes of class 1."""
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [
            {
                "id": number + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(number in crowd),
                "segmentation": [],
            }
            for number, box in enumerate(boxes)
        ],
        "categories": [{"id": category, "name": f"class{category}"} for category in categories],
    }


def found(*boxes, score=0.9):
    return [{"image_id": 1, "category_id": 1, "score": score, "bbox": box} for box in boxes]


def test_a_perfect_detection_scores_one_and_an_absent_class_is_left_out():
    figures = evaluate_coco(scene([[10, 10, 50, 50]], categories=(1, 2)), found([10, 10, 50, 50]))
    assert figures["metrics"]["AP"] == pytest.approx(1.0)
    assert figures["metrics"]["APm"] == pytest.approx(1.0)
    assert figures["metrics"]["APs"] is None  # no small object
    assert [entry["AP"] for entry in figures["per_class"]] == [pytest.approx(1.0), None]
    assert [entry["instances"] for entry in figures["per_class"]] == [1, 0]


def test_ap_by_iou_falls_where_the_box_is_too_far_off():
    # 40 of 50 columns overlap, both 50 wide: IoU = 40 / 60 = 0.667
    figures = evaluate_coco(scene([[10, 10, 50, 50]]), found([20, 10, 50, 50]))
    assert figures["scale_iou"]["all"] == {"0.50": 1.0, "0.60": 1.0, "0.70": 0.0, "0.80": 0.0, "0.90": 0.0}
    assert figures["metrics"]["AP"] == pytest.approx(0.4)  # 0.50, 0.55, 0.60, 0.65 of ten thresholds


def test_a_detection_inside_a_crowd_is_no_false_positive():
    truth = scene([[0, 0, 40, 40], [50, 50, 40, 40]], crowd=(1,))
    figures = evaluate_coco(truth, found([0, 0, 40, 40], [55, 55, 10, 10], score=0.9))
    assert figures["metrics"]["AP"] == pytest.approx(1.0)
    assert figures["instances"] == 1


def test_no_detections_score_zero():
    figures = evaluate_coco(scene([[10, 10, 50, 50]]), [])
    assert figures["metrics"]["AP"] == 0
    assert figures["detections"] == 0


def random_case(seed):
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in (1, 2, 5)]}
    results = []
    for image in range(1, 13):
        truth["images"].append({"id": image, "file_name": f"{image}.jpg", "width": 400, "height": 400})
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = (float(v) for v in rng.uniform([0, 0, 5, 5], [250, 250, 150, 150]))
            category = int(rng.choice([1, 2, 5]))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": {"size": [400, 400], "counts": "0"},
                }
            )
            for _ in range(3):
                box = (np.array([x, y, w, h]) * rng.uniform(0.85, 1.15, 4)).tolist()
                score = round(float(rng.random()), 1)  # many ties
                results.append({"image_id": image, "category_id": category, "score": score, "bbox": box})
    return truth, results


def assert_same(first, second):
    for name in NAMES:
        assert first["metrics"][name] == pytest.approx(second["metrics"][name], abs=1e-6), name
    for one, two in zip(first["per_class"], second["per_class"], strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    for area, values in first["scale_iou"].items():
        assert values == pytest.approx(second["scale_iou"][area], abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_both_evaluators_agree_with_crowds_and_tied_scores(seed):
    truth, results = random_case(seed)
    assert_same(evaluate_coco(truth, results), evaluate_coco(truth, results, backend="pycocotools"))


def test_the_order_of_the_results_does_not_matter():
    truth, results = random_case(7)
    assert_same(evaluate_coco(truth, results), evaluate_coco(truth, results[::-1]))


@pytest.mark.realdata
def test_both_evaluators_agree_on_real_annotations(real_data):
    truth = json.loads((real_data / "annotations" / "instances_val2017.json").read_text())
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        shift = rng.normal(0, 0.08, 4)
        box = [x + shift[0] * w, y + shift[1] * h, w * (1 + shift[2]), h * (1 + shift[3])]
        entry = {"image_id": annotation["image_id"], "category_id": annotation["category_id"]}
        results.append(entry | {"bbox": [float(v) for v in box], "score": round(float(rng.random()), 2)})
    first = evaluate_coco(truth, results)
    assert_same(first, evaluate_coco(truth, results, backend="pycocotools"))
    assert 0.3 < first["metrics"]["AP50"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "entry 0: image_id 9 is not in the annotations"),
        ({"category_id": 9}, "entry 0: category_id 9 is not in the annotations"),
        ({"score": float("nan")}, "entry 0: score nan: expected a finite number"),
        ({"bbox": [1, 2, 3]}, r"entry 0: bbox \[1, 2, 3\]: expected four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "must not be negative"),
    ],
)
def test_wrong_predictions_are_named(change, message):
    results = copy.deepcopy(found([10, 10, 20, 20]))
    results[0] |= change
    with pytest.raises(InputError, match=message):
        evaluate_coco(scene([[10, 10, 50, 50]]), results)


def test_a_broken_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text('[{"image_id": 1,\n "score": }]')
    with pytest.raises(InputError, match=r"predictions.json: not valid JSON: line 2 column"):
        evaluate_coco(scene([[10, 10, 50, 50]]), path)
    path.write_text("{}")
    with pytest.raises(InputError, match="expected a list of COCO results, got dict"):
        evaluate_coco(scene([[10, 10, 50, 50]]), path)
    with pytest.raises(InputError, match="entry 0: missing key 'score'"):
        evaluate_coco(scene([[10, 10, 50, 50]]), [{"image_id": 1, "category_id": 1}])


def test_the_summary_prints_percent_and_a_dash_where_undefined():
    figures = evaluate_coco(scene([[10, 10, 50, 50]]), found([10, 10, 50, 50]))
    text = format_summary(figures["metrics"])
    assert "AP 100.0" in text
    assert "APs -" in text


def test_masks_are_scored_by_their_own_overlap(tmp_path):
    from pycocotools.mask import encode

    def code(rows):
        mask = np.zeros((100, 100), dtype=np.uint8, order="F")
        mask[rows, 10:60] = 1
        content = encode(mask)
        return {"size": list(content["size"]), "counts": content["counts"].decode()}

    truth = scene([[10, 10, 50, 50]])
    truth["annotations"][0]["segmentation"] = code(slice(10, 60))
    detections = found([10, 10, 50, 50])  # a perfect box, with a mask that covers 35 of the 50 rows: IoU 0.7
    detections[0]["segmentation"] = code(slice(10, 45))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(detections))
    metrics = evaluate_boxes_and_masks(tmp_path / "truth.json", tmp_path / "found.json")["metrics"]
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["mask_AP50"] == pytest.approx(1.0)
    assert metrics["mask_AP75"] == pytest.approx(0.0)
    assert metrics["mask_AP"] == pytest.approx(0.5)  # right at 0.50, 0.55, 0.60, 0.65 and 0.70
    detections[0].pop("segmentation")
    (tmp_path / "found.json").write_text(json.dumps(detections))
    with pytest.raises(InputError, match=r"found.json: entry 0: missing key 'segmentation'"):
        evaluate_boxes_and_masks(tmp_path / "truth.json", tmp_path / "found.json")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, "expected a run-length code with size and counts, got None"),
        ([[1, 1, 9, 1, 9, 9]], "expected a run-length code with size and counts, got"),
        (
            {"size": [100, 100], "counts": [10**4]},
            r"counts: expected COCO's text of the lengths of runs, got \[10000\]",
        ),
        ({"size": [100, 100], "counts": "`"}, "counts: expected COCO's text of the lengths of runs, got '`'"),
        ({"size": [10**6, 10**6], "counts": "0"}, r"size: expected \[100, 100\], the picture's"),
    ],
)
def test_a_broken_mask_is_named_before_it_is_drawn(tmp_path, mask, expected):
    truth = scene([[10, 10, 50, 50]])
    truth["annotations"][0]["segmentation"] = [[10, 10, 60, 10, 60, 60, 10, 60]]
    detections = found([10, 10, 50, 50])
    detections[0]["segmentation"] = mask
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(detections))
    with pytest.raises(InputError, match=f"found.json: entry 0: segmentation: {expected}"):
        evaluate_coco(tmp_path / "truth.json", tmp_path / "found.json", "segm")
    truth["annotations"][0]["segmentation"] = [[10, 10, 60, 10, 60, 1e12]]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match=r"truth.json: annotation 1: segmentation, .* far outside its picture"):
        evaluate_coco(tmp_path / "truth.json", tmp_path / "found.json", "segm")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_id": [1]}, r"image_id \[1\]: expected an integer"),
        ({"image_id": "1"}, "image_id '1': expected an integer"),
        ({"category_id": {}}, "category_id {}: expected an integer"),
        ({"score": True}, "score True: expected a finite number"),
        ({"bbox": [1, 1, True, 2]}, "expected four finite numbers"),
    ],
)
def test_values_of_another_type_are_named(wrong, message):
    with pytest.raises(InputError, match=f"entry 0: .*{message}"):
        evaluate_coco(scene([[1, 1, 5, 5]]), [found([1, 1, 5, 5])[0] | wrong])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a JSON object with images, annotations and categories"),
        ({"images": [], "categories": []}, "annotations: expected a list"),
        (scene([[1, 1, 5, 5]]) | {"categories": [{"id": 9, "name": "x"}]}, "category_id 1 is not listed"),
    ],
)
def test_broken_annotations_are_named(tmp_path, content, message):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"truth.json: .*{message}"):
        evaluate_coco(path, found([1, 1, 5, 5]))
    with pytest.raises(InputError, match="is a folder; expected a JSON file"):
        evaluate_coco(tmp_path, [])
