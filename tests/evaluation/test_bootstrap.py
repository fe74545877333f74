"""The bootstrap against pycocotools on data sets that really hold a picture several times, and against scipy."""

import copy

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.evaluation.bootstrap import (
    Difference,
    average_precision,
    match,
    mean_over_classes,
    paired_difference,
    rarer_half,
    resample,
)
from tsd.evaluation.coco import evaluate_coco


def scenes(seed, pictures=12, classes=3, crowd=0.1):
    """Instances, and the detections of a detector that is often a little off, on random pictures."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for picture in range(1, pictures + 1):
        for _ in range(rng.integers(0, 4)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
            label = int(rng.integers(1, classes + 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture,
                    "category_id": label,
                    "bbox": [float(value) for value in box],
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < crowd),
                }
            )
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + rng.normal(0, 3, 4)
                moved[2:] = np.abs(moved[2:]) + 1
                guess = label if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                entry = {"image_id": picture, "category_id": guess, "bbox": [float(v) for v in moved]}
                found.append(entry | {"score": float(rng.random())})
    truth = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 100}
            for number in range(1, pictures + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
    }
    return truth, found


def repeated(truth, found, weights):
    """The data set with each picture as many times as its weight says."""
    many, boxes = copy.deepcopy(truth) | {"images": [], "annotations": []}, []
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            number = len(many["images"]) + 1
            many["images"].append(image | {"id": number})
            for entry in truth["annotations"]:
                if entry["image_id"] == image["id"]:
                    new = {"id": len(many["annotations"]) + 1, "image_id": number}
                    many["annotations"].append(entry | new)
            boxes += [entry | {"image_id": number} for entry in found if entry["image_id"] == image["id"]]
    return many, boxes


def mean_ap(precision):
    return mean_over_classes(precision).mean(axis=-1)


def by_iou(truth, found):
    """AP at 0.5 and 0.75 and over all thresholds by pycocotools."""
    metrics = evaluate_coco(truth, found, backend="pycocotools")["metrics"]
    return [metrics[name] for name in ("AP", "AP50", "AP75")]


def ours(truth, found, weights=None):
    precision = mean_over_classes(average_precision(match(truth, found), weights))
    return [precision.mean(), precision[0], precision[5]]


@pytest.mark.parametrize("seed", range(5))
def test_unweighted_it_is_pycocotools(seed):
    truth, found = scenes(seed)
    assert ours(truth, found) == pytest.approx(by_iou(truth, found), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_weight_is_so_many_copies_of_the_picture(seed, weights):
    truth, found = scenes(seed)
    many, boxes = repeated(truth, found, weights)
    counted = [entry for entry in many["annotations"] if not entry["iscrowd"]]
    if counted:
        assert ours(truth, found, np.array(weights)) == pytest.approx(by_iou(many, boxes), abs=1e-9)
    else:
        precision = average_precision(match(truth, found), np.array(weights))
        assert np.isnan(precision).all()
        assert np.isnan(mean_over_classes(precision)).all()


def test_without_detections_it_is_zero():
    truth, _ = scenes(1)
    assert ours(truth, []) == [0, 0, 0]


def test_the_interval_is_that_of_a_slow_bootstrap():
    """The same draws, each evaluated by pycocotools on a data set that holds the drawn pictures."""
    truth, good = scenes(3)
    worse = [entry | {"bbox": [entry["bbox"][0] + 4, *entry["bbox"][1:]]} for entry in good]
    more, less = (mean_ap(resample(match(truth, found), 40, seed=5)) for found in (good, worse))
    quick = paired_difference([more], [less])
    rng = np.random.default_rng(5)
    slow = []
    for _ in range(40):
        weights = np.bincount(rng.integers(12, size=12), minlength=12)
        slow.append(by_iou(*repeated(truth, good, weights))[0] - by_iou(*repeated(truth, worse, weights))[0])
    low, high = np.percentile(slow, [2.5, 97.5])
    assert (quick.low, quick.high) == pytest.approx((low, high), abs=1e-9)
    assert quick.value == pytest.approx(by_iou(truth, good)[0] - by_iou(truth, worse)[0], abs=1e-9)


def test_over_trainings_alone_it_is_scipys():
    """One picture, so that only trainings vary: the percentile interval of the mean of paired differences."""
    truth, found = scenes(7, pictures=1, classes=1, crowd=0)
    assert truth["annotations"]
    rng = np.random.default_rng(0)

    def moved(shift):
        noise = shift + rng.normal(0, 2)
        return [entry | {"bbox": [entry["bbox"][0] + noise, *entry["bbox"][1:]]} for entry in found]

    arms = [[mean_ap(resample(match(truth, moved(shift)), 4000)) for _ in range(6)] for shift in (1.0, 5.0)]
    gains = np.array([a[0] - b[0] for a, b in zip(*arms, strict=True)])
    ours_ = paired_difference(*arms)
    widened = gains.mean() + (gains - gains.mean()) * np.sqrt(6 / 5)
    theirs = scipy.stats.bootstrap(
        (widened,), np.mean, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert np.std(gains) > 0
    assert ours_.value == pytest.approx(np.mean(gains))
    assert (ours_.low, ours_.high) == pytest.approx(tuple(theirs), abs=0.1 * (theirs.high - theirs.low))


def test_a_detector_does_not_differ_from_itself_and_bad_input_is_refused():
    truth, found = scenes(2)
    one = mean_ap(resample(match(truth, found), 20))
    assert paired_difference([one], [one]) == Difference(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="the same trainings of both, got 2 and 1"):
        paired_difference([one, one], [one])
    with pytest.raises(ValueError, match="the same draws"):
        paired_difference([one], [one[:11]])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Trainings that differ by chance alone: with ten pairs, the true difference is inside about 19 times in 20."""
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        figures = [np.repeat(rng.normal(0.3, 0.02), 401) for _ in range(20)]
        found = paired_difference(figures[:10], figures[10:], seed=int(rng.integers(1000)))
        inside += found.low <= 0 <= found.high
    assert 270 <= inside <= 297


@pytest.mark.parametrize("seed", range(3))
def test_by_class_it_is_pycocotools_of_that_class_alone(seed):
    truth, found = scenes(seed, classes=4)
    precision = average_precision(match(truth, found))
    assert precision.shape == (4, 10)
    for place, category in enumerate(truth["categories"]):
        own = truth | {
            "annotations": [entry for entry in truth["annotations"] if entry["category_id"] == category["id"]],
            "categories": [category],
        }
        boxes = [entry for entry in found if entry["category_id"] == category["id"]]
        if any(not entry["iscrowd"] for entry in own["annotations"]):
            assert [precision[place].mean(), precision[place, 0], precision[place, 5]] == pytest.approx(
                by_iou(own, boxes), abs=1e-12
            )
        else:
            assert np.isnan(precision[place]).all()


def test_a_mean_over_classes_leaves_out_those_without_objects():
    precision = np.array([[[0.2], [np.nan], [0.6]], [[np.nan], [np.nan], [0.5]]])
    assert mean_over_classes(precision)[:, 0] == pytest.approx([0.4, 0.5])
    assert mean_over_classes(precision, np.array([1, 2]))[:, 0] == pytest.approx([0.6, 0.5])
    assert np.isnan(mean_over_classes(precision, np.array([1]))).all()


def test_the_rarer_half_is_by_pictures_without_crowds():
    def boxes(label, pictures, crowd=0):
        return [{"category_id": label, "image_id": picture, "iscrowd": crowd} for picture in pictures]

    truth = {
        "categories": [{"id": 30}, {"id": 10}, {"id": 20}, {"id": 40}, {"id": 50}],
        # 10: one picture, five times; 20: two; 30: three; 40: two, and crowds in more; 50: three.
        "annotations": [
            *boxes(10, [1, 1, 1, 1, 1]),
            *boxes(20, [1, 2]),
            *boxes(30, [1, 2, 3]),
            *boxes(40, [4, 5]),
            *boxes(40, [6, 7, 8], crowd=1),
            *boxes(50, [7, 8, 9]),
        ],
    }
    assert rarer_half(truth).tolist() == [0, 3]  # 10, and of 20 and 40 the one with the higher id


@pytest.mark.parametrize("first", [0, -50, 2**40])
def test_numbers_of_annotations_do_not_matter(first):
    truth, found = scenes(1)
    moved = truth | {"annotations": [entry | {"id": first + place} for place, entry in enumerate(truth["annotations"])]}
    assert ours(moved, found) == ours(truth, found)
    for backend in ("faster", "pycocotools"):
        assert evaluate_coco(moved, found, backend=backend) == evaluate_coco(truth, found, backend=backend)


def test_without_objects_there_is_no_difference():
    truth, found = scenes(1)
    nothing = mean_ap(resample(match(truth | {"annotations": []}, found), 10))
    difference = paired_difference([nothing], [nothing])
    assert np.isnan([difference.value, difference.low, difference.high]).all()
