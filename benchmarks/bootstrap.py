"""A bootstrap draw of COCO's AP over pictures: ours against pycocotools' own accumulation of the drawn pictures.

python benchmarks/bootstrap.py [--pictures 5000] [--classes 80] [--detections 100] [--draws 5]
"""

import argparse
import contextlib
import io
import statistics
import time

import numpy as np

from tsd.evaluation.bootstrap import average_precision, match, mean_over_classes


def scenes(pictures, classes, detections):
    """Objects, and a detector that finds each of them roughly among many false ones."""
    rng = np.random.default_rng(0)
    annotations, found = [], []
    for picture in range(1, pictures + 1):
        boxes = np.column_stack((rng.uniform(0, 400, (7, 2)), rng.uniform(20, 200, (7, 2))))
        labels = rng.integers(1, classes + 1, 7)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": picture, "category_id": label, "bbox": box}
            annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
        guesses = rng.integers(7, size=detections)
        moved = boxes[guesses] + rng.normal(0, 15, (detections, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], 1)
        right = rng.random(detections) < 0.3
        named = np.where(right, labels[guesses], rng.integers(1, classes + 1, detections))
        found += [
            {"image_id": picture, "category_id": int(label), "bbox": box, "score": float(score)}
            for label, box, score in zip(named, moved.tolist(), rng.random(detections), strict=True)
        ]
    truth = {
        "images": [{"id": number, "width": 640, "height": 640} for number in range(1, pictures + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
    }
    return truth, found


def evaluated(truth, found):
    """pycocotools' evaluation, matched and not yet accumulated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    index = COCO()
    index.dataset = truth
    index.createIndex()
    evaluation = COCOeval(index, index.loadRes(found), "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    return evaluation


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100, help="per picture")
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    truth, found = scenes(args.pictures, args.classes, args.detections)
    start = time.perf_counter()
    matches = match(truth, found)
    print(f"matching, once: {time.perf_counter() - start:.1f} s")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluated(truth, found)
    every = evaluation.evalImgs
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(args.draws):
        drawn = rng.integers(args.pictures, size=args.pictures)
        start = time.perf_counter()
        weights = np.bincount(drawn, minlength=args.pictures)
        figure = mean_over_classes(average_precision(matches, weights)).mean()
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        evaluation.evalImgs = [
            every[label * args.pictures + picture] for label in range(args.classes) for picture in drawn
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        precision = evaluation.eval["precision"]
        theirs.append(time.perf_counter() - start)
        expected = precision[precision > -1].mean()
        if abs(figure - expected) > 1e-4:  # ties of equal pictures are broken in another order
            raise SystemExit(f"AP differs: {figure} and {expected}")
    quick, slow = statistics.median(ours), statistics.median(theirs)
    print(f"one draw: ours {quick:.3f} s, pycocotools {slow:.2f} s: {quick / slow:.4f} of it; AP {figure:.4f}")


if __name__ == "__main__":
    main()
