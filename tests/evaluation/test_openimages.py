"""The Open Images metric: the reference's published vector, cases by hand, and the reference's loops on random data."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tsd
from tsd.data.openimages import read_hierarchy
from tsd.errors import InputError
from tsd.evaluation.openimages import Detections, Truth, average_precision, evaluate, evaluate_files, expand

CAT, DOG, ELEPHANT = 0, 1, 2


def truth(*rows):
    """(picture, label, box, group)."""
    picture, label, box, group = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Truth(
        np.array(picture, dtype=int),
        np.array(label, dtype=int),
        np.array(box, float).reshape(-1, 4),
        np.array(group, bool),
    )


def found(*rows):
    """(picture, label, box, score)."""
    picture, label, box, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Detections(
        np.array(picture, dtype=int),
        np.array(label, dtype=int),
        np.array(box, float).reshape(-1, 4),
        np.array(score, float),
    )


def verified(*rows):
    """(picture, label)."""
    array = np.array(rows, dtype=int).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def ap(truth, detections, labels=(), classes=1, weight=1.0):
    return evaluate(truth, detections, verified(*labels), classes, group_of_weight=weight)["ap"].tolist()


UNIT, FAR = (0, 0, 10, 10), (100, 100, 110, 110)


def test_the_references_vector():
    """``OpenImagesChallengeEvaluatorTest.test_returns_correct_detection_metric_values`` (weight 0.5)."""
    boxes = truth(
        (1, CAT, (0, 0, 1, 1), False),
        (1, ELEPHANT, (0, 0, 2, 2), False),
        (1, CAT, (0, 0, 3, 3), True),
        (2, CAT, (10, 10, 11, 11), False),
        (2, CAT, (500, 500, 510, 510), False),
        (2, ELEPHANT, (10, 10, 12, 12), True),
        (3, DOG, (0, 0, 1, 1), False),
    )
    detections = found(
        (1, DOG, (10, 10, 11, 11), 0.7),
        (1, DOG, (100, 100, 120, 120), 0.8),
        (2, CAT, (10, 10, 11, 11), 0.7),
        (2, CAT, (100, 100, 120, 120), 0.8),
        (2, DOG, (100, 100, 220, 220), 0.5),
        (2, ELEPHANT, (10, 10, 11, 11), 0.9),
        (3, DOG, (0, 0, 1, 1), 0.5),
    )
    got = ap(boxes, detections, [(1, CAT), (1, DOG), (1, ELEPHANT)], classes=3, weight=0.5)
    assert got == pytest.approx([0.142857142857, 1 / 3, 1 / 3], abs=1e-9)
    assert float(np.nanmean(got)) == pytest.approx(0.269841269, abs=1e-9)


def test_a_whole_group_counts_once_with_its_best_detection():
    boxes = truth((1, 0, (0, 0, 100, 100), True), (1, 0, FAR, False))
    detections = found((1, 0, UNIT, 0.9), (1, 0, (50, 50, 60, 60), 0.8), (1, 0, FAR, 0.7))
    assert ap(boxes, detections) == [1.0]  # one hit for the group, one for the box, nothing false
    assert ap(boxes, detections, weight=0.0) == [1.0]  # one object, absorbed ones are ignored


def test_a_group_that_is_missed_is_an_object_missed():
    assert ap(truth((1, 0, UNIT, False), (1, 0, FAR, True)), found((1, 0, UNIT, 0.9))) == [0.5]
    assert ap(truth((1, 0, UNIT, False), (1, 0, FAR, True)), found((1, 0, UNIT, 0.9)), weight=0.0) == [1.0]


def test_a_detection_that_lost_its_box_can_still_be_absorbed():
    boxes = truth((1, 0, UNIT, False), (1, 0, (0, 0, 50, 50), True))
    detections = found((1, 0, UNIT, 0.9), (1, 0, (0, 0, 10, 9), 0.8))
    assert ap(boxes, detections) == [1.0]


def test_there_is_no_second_choice():
    """The second detection overlaps both boxes, the first one most; that one is taken, so it is false."""
    boxes = truth((1, 0, (0, 0, 10, 10), False), (1, 0, (0, 2, 10, 12), False))
    detections = found((1, 0, (0, 0, 10, 10), 0.9), (1, 0, (0, 0.5, 10, 10.5), 0.8), (1, 0, (0, 2, 10, 12), 0.7))
    # hit, false, hit: precision 1 up to recall 0.5, then 2/3
    assert ap(boxes, detections) == pytest.approx([0.5 + 0.5 * 2 / 3])


def test_iou_of_exactly_a_half_is_a_hit():
    assert ap(truth((1, 0, (0, 0, 10, 10), False)), found((1, 0, (0, 0, 10, 5), 0.9))) == [1.0]
    assert ap(truth((1, 0, (0, 0, 10, 10), False)), found((1, 0, (0, 0, 10, 4.99), 0.9))) == [0.0]


def test_half_inside_a_group_is_inside():
    group = truth((1, 0, (0, 0, 100, 100), True))
    assert ap(group, found((1, 0, (95, 0, 105, 10), 0.9))) == [1.0]
    assert ap(group, found((1, 0, (95.1, 0, 105.1, 10), 0.9))) == [0.0]


def test_a_group_whose_best_score_is_zero_counts_for_nothing():
    assert ap(truth((1, 0, (0, 0, 100, 100), True)), found((1, 0, UNIT, 0.0))) == [0.0]


def test_a_class_without_objects_is_undefined_and_one_without_detections_zero():
    got = ap(truth((1, 0, UNIT, False)), found(), classes=2)
    assert got[0] == 0.0
    assert math.isnan(got[1])


def test_an_unverified_class_is_ignored_and_a_verified_one_is_false():
    boxes = truth((1, 0, UNIT, False))
    detections = found((1, 0, UNIT, 0.8), (2, 0, UNIT, 0.9))
    assert ap(boxes, detections) == [1.0]
    assert ap(boxes, detections, [(2, 0)]) == [0.5]


def test_a_class_with_a_box_counts_although_nobody_verified_it():
    assert ap(truth((1, 0, UNIT, False)), found((1, 0, UNIT, 0.8), (1, 0, FAR, 0.9))) == [0.5]


def test_boxes_without_extent_are_left_out():
    boxes = truth((1, 0, UNIT, False))
    assert ap(boxes, found((1, 0, (3, 3, 3, 9), 0.9), (1, 0, (9, 9, 3, 3), 0.9), (1, 0, UNIT, 0.1))) == [1.0]


def test_equal_scores_count_in_the_order_of_pictures_and_then_of_rows():
    boxes = truth((1, 0, UNIT, False), (2, 0, UNIT, False))
    rows = [(2, 0, FAR, 0.5), (1, 0, UNIT, 0.5), (1, 0, FAR, 0.5), (2, 0, UNIT, 0.5)]
    # picture 1: hit, false; picture 2: false, hit
    assert ap(boxes, found(*rows)) == pytest.approx([0.5 * 1 + 0.5 * 2 / 4])


def test_average_precision_is_the_area_below_the_envelope():
    # hits at ranks 1, 3 and 4 of four objects: precision 1, 2/3, 3/4 → envelope 1, 3/4, 3/4
    got = average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0.0, 1.0, 1.0]), 4)
    assert got == pytest.approx((1 + 0.75 + 0.75) / 4)


def slow(boxes, detections, known, classes, weight):
    """The reference's loops over classes and pictures, in plain Python."""

    def sides(a, b):
        return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)

    def area(a):
        return (a[2] - a[0]) * (a[3] - a[1])

    result = []
    rows = list(zip(boxes.picture, boxes.label, boxes.box, boxes.group, strict=True))
    allowed = {(int(p), int(c)) for p, c, _, _ in rows} | {(int(p), int(c)) for p, c in zip(*known, strict=True)}
    for label in range(classes):
        objects = sum(weight if g else 1 for _, c, _, g in rows if c == label)
        entries = []
        for picture in sorted({int(p) for p in detections.picture}):
            if (picture, label) not in allowed:
                continue
            own = [
                (float(s), tuple(b))
                for p, c, b, s in zip(
                    detections.picture, detections.label, detections.box, detections.score, strict=True
                )
                if p == picture and c == label and b[2] > b[0] and b[3] > b[1]
            ]
            own.sort(key=lambda entry: -entry[0])
            singles = [tuple(b) for p, c, b, g in rows if p == picture and c == label and not g]
            groups = [tuple(b) for p, c, b, g in rows if p == picture and c == label and g]
            taken, best_of_group = set(), {}
            for score, box in own:
                ious = [sides(box, gt) / (area(box) + area(gt) - sides(box, gt)) for gt in singles]
                if ious and max(ious) >= 0.5 and ious.index(max(ious)) not in taken:
                    taken.add(ious.index(max(ious)))
                    entries.append((score, 1.0))
                    continue
                inside = [sides(box, gt) / area(box) for gt in groups]
                if inside and max(inside) >= 0.5:
                    group = inside.index(max(inside))
                    best_of_group[group] = max(best_of_group.get(group, 0), score)
                else:
                    entries.append((score, 0.0))
            if weight > 0:
                entries += [(score, weight) for score in best_of_group.values() if score > 0]
        if objects == 0:
            result.append(float("nan"))
            continue
        entries.sort(key=lambda entry: -entry[0])
        true = false = 0.0
        curve = []
        for _, hit in entries:
            true, false = true + hit, false + (hit <= 0)
            curve.append((true / objects, true / (true + false)))
        total, last = 0.0, 0.0
        for place, (recall, _) in enumerate(curve):
            total += (recall - last) * max(precision for _, precision in curve[place:])
            last = recall
        result.append(total)
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_it_is_the_references_loops(seed, weight):
    rng = np.random.default_rng(seed)
    classes, pictures = 3, 4

    def rows(count):
        corner = rng.integers(0, 12, (count, 2))
        box = np.concatenate((corner, corner + rng.integers(1, 10, (count, 2))), axis=1).astype(float)
        return rng.integers(0, pictures, count), rng.integers(0, classes, count), box

    boxes = Truth(*rows(int(rng.integers(0, 25))), np.zeros(0))
    boxes = Truth(boxes.picture, boxes.label, boxes.box, rng.random(len(boxes.label)) < 0.3)
    picture, label, box = rows(int(rng.integers(0, 60)))
    detections = Detections(picture, label, box, rng.permutation(len(label)) / 100.0)  # no two scores are equal
    known = (rng.integers(0, pictures, 4), rng.integers(0, classes, 4))
    got = evaluate(boxes, detections, known, classes, group_of_weight=weight)["ap"]
    np.testing.assert_allclose(got, slow(boxes, detections, known, classes, weight), atol=1e-12)


# --- files ---

TREE = {"LabelName": "/root", "Subcategory": [{"LabelName": "/a", "Subcategory": [
    {"LabelName": "/b"},
    {"LabelName": "/c", "Subcategory": [{"LabelName": "/d"}, {"LabelName": "/e"}]},
    {"LabelName": "/f", "Subcategory": [{"LabelName": "/d"}]},
]}]}  # fmt: skip
"""The reference's own test of its expansion: a > (b, c > (d, e), f > (d))."""

A, B, C, D, E, F = range(6)


@pytest.fixture
def files(tmp_path):
    """The challenge's files for two pictures, and predictions."""
    (tmp_path / "classes.csv").write_text("".join(f"/{name},{name.upper()}\n" for name in "abcdef"))
    (tmp_path / "hierarchy.json").write_text(json.dumps(TREE))
    (tmp_path / "boxes.csv").write_text(
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\np1,/d,0.1,0.5,0.2,0.6,0\np2,/b,0,1,0,1,0\n"
    )
    (tmp_path / "labels.csv").write_text(
        "ImageID,Source,LabelName,Confidence\np1,verification,/d,1\np2,verification,/c,0\np3,verification,/b,0\n"
    )
    (tmp_path / "found.csv").write_text(
        "ImageID,LabelName,Score,XMin,XMax,YMin,YMax\np1,/d,0.9,0.1,0.5,0.2,0.6\np2,/e,0.8,0,1,0,1\np3,/b,0.7,0,1,0,1\n"
        "p2,/b,0.6,0,1,0,1\n"
    )
    return tmp_path


def run(folder, **options):
    names = ("boxes.csv", "labels.csv", "classes.csv", "hierarchy.json", "found.csv")
    return evaluate_files(*(folder / name for name in names), **options)


def test_expansion_is_the_references(files):
    tree = read_hierarchy(files / "classes.csv", files / "hierarchy.json")
    assert tree.ancestors[D] == (A, C, F)
    assert tree.ancestors[A] == ()
    assert tree.descendants[C] == (D, E)
    rows, labels = expand(np.array([D, B]), tree.ancestors)
    assert rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert labels.tolist() == [D, A, C, F, B, A]
    assert expand(np.array([C]), tree.descendants)[1].tolist() == [C, D, E]


def test_parents_have_their_childrens_boxes_and_an_absent_parent_makes_a_child_false(files):
    result = run(files)
    by_class = {entry["mid"]: entry for entry in result["classes"]}
    assert by_class["/d"]["AP50"] == 1.0
    assert by_class["/c"]["objects"] == 1.0  # of d
    assert by_class["/c"]["AP50"] == 0.0  # predictions are not expanded
    assert by_class["/e"]["detections"] == 1  # c is verified absent in p2, so e is false there
    assert by_class["/e"]["AP50"] is None
    assert by_class["/b"]["AP50"] == 0.5  # p3 has no box, but b was verified absent there


def test_the_picture_sets_are_both_reported(files):
    result = run(files)
    assert result["counts"]["pictures"] == 3
    assert result["counts"]["pictures_with_boxes"] == 2
    # d 1, b 0.5 or 1, and a, c, f 0
    assert result["metrics"] == pytest.approx({"AP50_val": 1.5 / 5, "AP50_val_boxed": 2 / 5})


def test_expanded_predictions_find_the_parents_too(files):
    by_class = {entry["mid"]: entry["AP50"] for entry in run(files, expand_predictions=True)["classes"]}
    assert by_class["/c"] == by_class["/f"] == 1.0


def test_the_released_protocol_forgets_the_image_level_labels(files):
    official, released = run(files), run(files, protocol="released")
    assert released["metrics"]["AP50_val"] == pytest.approx(2 / 5)
    assert released["metrics"]["AP50_val"] > official["metrics"]["AP50_val"]
    assert released["protocol"]["name"] == "released"


def test_columns_may_come_in_any_order_and_minus_one_is_no_group(files):
    (files / "boxes.csv").write_text(
        "IsGroupOf,YMin,YMax,ImageID,XMin,XMax,LabelName,More\n-1,0.2,0.6,p1,0.1,0.5,/d,x\n0,0,1,p2,0,1,/b,x\n"
    )
    assert run(files)["metrics"] == pytest.approx({"AP50_val": 1.5 / 5, "AP50_val_boxed": 2 / 5})


def test_predictions_for_unknown_pictures_are_counted_and_left_out(files):
    with (files / "found.csv").open("a") as file:
        file.write("elsewhere,/b,0.99,0,1,0,1\n")
    result = run(files)
    assert result["counts"]["detections_of_unknown_pictures"] == 1
    assert result["metrics"]["AP50_val"] == pytest.approx(1.5 / 5)


def test_no_predictions_at_all(files):
    (files / "found.csv").write_text("ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n")
    assert run(files)["metrics"] == {"AP50_val": 0.0, "AP50_val_boxed": 0.0}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("found.csv", ("p1,/d,0.9", "p1,/zebra,0.9"), r"found.csv: line 2: /zebra is not among the 6 classes"),
        ("found.csv", ("p1,/d,0.9", "p1,/d,nan"), r"found.csv: line 2: Score: no value"),
        ("found.csv", ("p1,/d,0.9", "p1,/d,inf"), r"found.csv: line 2: Score inf: expected a finite number"),
        ("found.csv", ("p1,/d,0.9,0.1,0.5", "p1,/d,0.9,0.6,0.5"), r"line 2: XMin 0.6: is above XMax"),
        ("found.csv", ("p1,/d,0.9,0.1,0.5", "p1,/d,0.9,0.1,1.5"), r"line 2: XMax 1.5: expected a fraction"),
        ("found.csv", ("p1,/d,0.9", "p1,/d,good"), r"found.csv: .*good"),
        ("found.csv", ("Score", "Confidence"), r"found.csv: no column Score; there are ImageID,"),
        ("found.csv", ("p1,/d,0.9,0.1,0.5,0.2,0.6", "p1,/d,0.9"), r"found.csv: .*Expected 7 columns, got 3"),
        ("found.csv", ("p1,/d,0.9", "p1,/d,"), r"found.csv: line 2: Score: no value"),
        ("found.csv", ("p1,", ","), r"found.csv: line 2: ImageID: no value"),
        ("found.csv", ("Score", "XMin"), r"found.csv: column XMin is there 2 times"),
        ("labels.csv", ("Source", "ImageID"), r"labels.csv: column ImageID is there 2 times"),
        ("boxes.csv", ("0.6,0\n", "0.6,3\n"), r"boxes.csv: line 2: IsGroupOf 3: expected 0, 1 or -1"),
        ("labels.csv", ("/d,1", "/d,0.5"), r"labels.csv: line 2: Confidence 0.5: expected 0 or 1"),
        ("classes.csv", ("/f,F", "/a,F"), r"classes.csv: line 6: /a is there twice, first in line 1"),
        ("classes.csv", ("/f,F", "f"), r"classes.csv: line 6: expected a MID and a name"),
        ("classes.csv", ("/f,F", "/f,F\n/g,G"), r"hierarchy.json: 1 classes of .*, first /g"),
        ("hierarchy.json", ('"/e"', '"/a"'), r"hierarchy.json: /a is below itself: /a > /c > /a"),
        (
            "hierarchy.json",
            ('{"LabelName": "/e"}', "7"),
            r"hierarchy.json: below /c: expected an object with a LabelName",
        ),
        ("hierarchy.json", ("{", "", 1), r"hierarchy.json: broken JSON"),
    ],
)
def test_bad_files_are_named_with_line_and_value(files, name, change, message):
    path = files / name
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        run(files)


def test_a_byte_order_mark_is_no_part_of_the_first_column(files):
    path = files / "boxes.csv"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert run(files)["metrics"]["AP50_val"] == pytest.approx(0.3)


@pytest.mark.parametrize("weight", [float("nan"), -1.0, 2.0])
def test_a_weight_of_groups_out_of_range_is_refused(files, weight):
    with pytest.raises(InputError, match="group-of-weight: expected a number from 0 to 1"):
        run(files, group_of_weight=weight)


def test_an_empty_file_and_a_bottomless_hierarchy_are_named(files):
    (files / "hierarchy.json").write_text(
        '{"LabelName":"/a","Subcategory":[' * 5000 + '{"LabelName":"/b"}' + "]}" * 5000
    )
    with pytest.raises(InputError, match=r"hierarchy.json: nested too deeply"):
        run(files)
    (files / "hierarchy.json").write_text(json.dumps(TREE))
    (files / "boxes.csv").write_text("")
    with pytest.raises(InputError, match=r"boxes.csv: no column ImageID; there are none: the file is empty"):
        run(files)


def test_missing_files_and_unknown_protocols(files):
    with pytest.raises(InputError, match="protocol: expected one of official, released, got 'mine'"):
        run(files, protocol="mine")
    (files / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"labels.csv"):
        run(files)


def test_the_command_writes_metrics(files):
    options = {"boxes": "boxes.csv", "image-labels": "labels.csv", "classes": "classes.csv"}
    options |= {"hierarchy": "hierarchy.json", "predictions": "found.csv", "output": "metrics.json"}
    arguments = [value for name, path in options.items() for value in (f"--{name}", path)]
    done = tsd("evaluate", "openimages", *arguments, cwd=files)
    assert done.returncode == 0, done.stderr
    assert "AP50_val              0.3000   3 pictures" in done.stdout
    assert json.loads((files / "metrics.json").read_text())["metrics"]["AP50_val"] == pytest.approx(0.3)
