"""VOC's AP at IoU 0.5: by hand, and against a straight implementation of its rules with exact fractions."""

import json
import random
from fractions import Fraction

import pytest

from tsd.cli import main
from tsd.engine.adapters.voc import add_voc, evaluate_voc, mean_of
from tsd.evaluation.coco import evaluate_coco


def truth(*objects, classes=1, pictures=3):
    """Objects: picture, class, box xywh, difficult."""
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in range(1, pictures + 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for n, (image, label, box, crowd) in enumerate(objects, start=1)
        ],
        "categories": [{"id": n, "name": f"class{n}"} for n in range(1, classes + 1)],
    }


def detections(*found):
    """Detections: picture, class, box xywh, score."""
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, one, strict=True)) for one in found]


TEN = [0, 0, 10, 10]
OBJECTS = truth((1, 1, TEN, 0), (1, 1, [20, 0, 10, 10], 1), (2, 1, TEN, 0), classes=2)
FOUND = detections(
    (1, 1, TEN, 0.9),  # right: 1 of 2 found, precision 1
    (1, 1, [20, 0, 10, 10], 0.8),  # on a difficult object: counts neither way
    (1, 1, [0, 0, 10, 9], 0.7),  # a second time: wrong, precision 1/2
    (2, 1, [0, 0, 10, 5], 0.6),  # an IoU of just 0.5 is enough: 2 of 2 found, precision 2/3
    (3, 1, TEN, 0.5),  # wrong
)


def test_by_hand():
    found = evaluate_voc(OBJECTS, FOUND)
    # Points 0 to 0.5 of recall have the precision 1, points 0.6 to 1 have 2/3.
    assert found[1]["VOC07_AP50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-6)
    assert found[1]["VOC_AP50"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-6)
    assert found[2] == {"VOC07_AP50": None, "VOC_AP50": None}  # no object
    assert mean_of(found) == found[1]
    assert mean_of({2: found[2]}) == {"VOC07_AP50": None, "VOC_AP50": None}


def test_difficult_objects_alone_are_no_objects():
    found = evaluate_voc(truth((1, 1, TEN, 1)), detections((1, 1, TEN, 0.9), (2, 1, TEN, 0.8)))
    assert found == {1: {"VOC07_AP50": None, "VOC_AP50": None}}


@pytest.mark.parametrize("number", range(11))
def test_a_recall_of_so_many_tenths_reaches_its_point(number):
    objects = truth(*((n, 1, TEN, 0) for n in range(1, 11)), pictures=10)
    found = evaluate_voc(objects, detections(*((n, 1, TEN, 0.9 - n / 100) for n in range(1, number + 1))))
    points = number + 1 if number else 0
    assert found[1]["VOC07_AP50"] == pytest.approx(points / 11, abs=1e-6)
    assert found[1]["VOC_AP50"] == pytest.approx(number / 10, abs=1e-6)


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return Fraction(common, a[2] * a[3] + b[2] * b[3] - common)


def straight(content, found, label):
    """VOC's rules as they are written, for one class: (AP over 11 points, AP over all points)."""
    objects = [entry for entry in content["annotations"] if entry["category_id"] == label]
    number = sum(not entry["iscrowd"] for entry in objects)
    own = [entry for entry in found if entry["category_id"] == label]
    taken, right, wrong, curve = set(), 0, 0, []
    for entry in sorted(own, key=lambda entry: -entry["score"]):
        near = [other for other in objects if other["image_id"] == entry["image_id"]]
        best = max(near, key=lambda other: overlap(entry["bbox"], other["bbox"]), default=None)
        if best is None or overlap(entry["bbox"], best["bbox"]) < Fraction(1, 2):
            wrong += 1
        elif best["iscrowd"]:
            continue
        elif best["id"] in taken:
            wrong += 1
        else:
            taken.add(best["id"])
            right += 1
        curve.append((Fraction(right, number), Fraction(right, right + wrong)))

    def precision(recall):
        return max((value for reached, value in curve if reached >= recall), default=Fraction(0))

    eleven = sum(precision(Fraction(point, 10)) for point in range(11)) / 11
    every = sum(precision(Fraction(step, number)) for step in range(1, right + 1)) / number
    return float(eleven), float(every)


@pytest.mark.parametrize("seed", range(6))
def test_as_a_straight_implementation(seed):
    draw = random.Random(seed)

    def box():
        return [draw.randrange(0, 20), draw.randrange(0, 20), draw.randrange(4, 16), draw.randrange(4, 16)]

    def near(other):
        return [draw.randrange(max(value - 2, 1), value + 3) for value in other]

    objects = [(draw.randrange(1, 9), draw.randrange(1, 4), box(), int(draw.random() < 0.2)) for _ in range(60)]
    objects += [(1, label, box(), 0) for label in (1, 2, 3)]
    content = truth(*objects, classes=3, pictures=9)  # one picture has no object
    scores = draw.sample(range(10_000), 200)
    found = detections(
        *(
            (one[0], one[1], near(one[2]), score / 10_000)
            for one, score in zip(draw.choices(objects, k=140), scores[:140], strict=True)
        ),
        *((draw.randrange(1, 10), draw.randrange(1, 4), box(), score / 10_000) for score in scores[140:]),
    )
    values = evaluate_voc(content, found)
    for label in (1, 2, 3):
        expected = straight(content, found, label)
        assert 0.05 < expected[0] < 0.95
        assert tuple(values[label].values()) == pytest.approx(expected, abs=1e-6)


def test_equal_scores_have_one_order_whatever_their_order_in_the_file():
    found = detections(*((1, 1, TEN if n % 2 else [50, 50, n, 9], 0.5) for n in range(1, 40)))
    first = evaluate_voc(OBJECTS, found)
    assert first == evaluate_voc(OBJECTS, found[::-1])


def test_the_command_writes_them_beside_cocos(tmp_path, capsys):
    truth_file, found_file, output = (tmp_path / f"{name}.json" for name in ("truth", "found", "metrics"))
    truth_file.write_text(json.dumps(OBJECTS))
    found_file.write_text(json.dumps(FOUND))
    files = ["--annotations", str(truth_file), "--predictions", str(found_file), "--output", str(output)]
    assert main(["evaluate", "coco", *files, "--voc"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "VOC07_AP50 84.8  VOC_AP50 83.3"
    figures = json.loads(output.read_text())
    plain = evaluate_coco(OBJECTS, FOUND)
    assert figures == add_voc(plain, truth_file, found_file)
    assert figures["metrics"] == plain["metrics"] | {
        "VOC07_AP50": pytest.approx(28 / 33, abs=1e-6),
        "VOC_AP50": pytest.approx(5 / 6, abs=1e-6),
    }
    assert figures["per_class"][0]["VOC_AP50"] == figures["metrics"]["VOC_AP50"]
    assert figures["per_class"][1]["VOC_AP50"] is None


def test_masks_have_no_figures_of_voc(capsys):
    files = ("--annotations", "a.json", "--predictions", "b.json", "--output", "c.json")
    assert main(["evaluate", "coco", *files, "--voc", "--iou-type", "segm"]) == 2
    assert "--voc: VOC's figures are of boxes; leave out --iou-type segm" in capsys.readouterr().err
