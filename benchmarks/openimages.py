"""Class-aware sampling and the metric at the size of the Open Images Challenge 2019, against mmdet's.

    python benchmarks/openimages.py sampler
    python benchmarks/openimages.py metric [--detections 100] [--pictures 34917] [--mmdet-pictures 2000]

Generated figures of the true size: 500 classes whose sizes fall as those of the challenge do, 5.76 million (picture,
class) pairs over 1,674,979 pictures; 34,917 validation pictures with 100 detections each. The released sampler is its
drawing (a permutation of a class's pictures for every draw) for a few bins, times the number of bins. mmdet's metric
runs on the first ``--mmdet-pictures`` pictures and both are compared on those.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tsd.data.class_aware import ClassAwareSequence, ClassIndex
from tsd.evaluation.openimages import Detections, Truth, evaluate

PICTURES, CLASSES, PAIRS = 1_674_979, 500, 5_760_000


def timed(what: str, function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result, printed."""
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    print(f"{what:58} {seconds:8.3f} s", flush=True)
    return seconds, result


def sampler() -> None:
    """Index, an epoch of draws, a jump into the middle."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, CLASSES + 1)
    sizes = np.clip(share / share.sum() * PAIRS, 14, 800_000).astype(np.int64)
    sizes[-100:] = np.geomspace(sizes[-100], 14, 100)  # the rarest class of the challenge has 14 pictures
    labels = np.repeat(np.arange(CLASSES), 2 * sizes)  # about two boxes of a class in a picture that has one
    pictures = np.concatenate([np.repeat(rng.integers(0, PICTURES, size), 2) for size in sizes])
    print(f"{len(labels):,} boxes of {CLASSES} classes, the smallest with {sizes.min()} pictures")
    _, index = timed("index from boxes", lambda: ClassIndex.from_pairs(labels, pictures, CLASSES))
    sequence = ClassAwareSequence(index, 0)
    ours, _ = timed("an epoch of draws", lambda: sequence.draw(0, PICTURES))
    timed(
        "an epoch of draws, with replacement",
        lambda: ClassAwareSequence(index, 0, with_replacement=True).draw(0, PICTURES),
    )
    timed("64 draws at step 300,000", lambda: ClassAwareSequence(index, 0).draw(300_000 * 64, 64))

    from mmdet.datasets.samplers import ClassAwareSampler

    theirs = object.__new__(ClassAwareSampler)
    lists = {label: index.pictures[index.starts[label] : index.starts[label + 1]].tolist() for label in range(CLASSES)}
    theirs.__dict__ |= {
        "rank": 0,
        "world_size": 1,
        "epoch": 0,
        "seed": 0,
        "num_sample_class": 1,
        "dataset": None,
        "num_classes": CLASSES,
    }
    theirs.__dict__ |= {"cat_dict": lists, "num_samples": PICTURES, "total_size": PICTURES}
    theirs.num_cat_imgs = [len(lists[label]) for label in range(CLASSES)]
    theirs.valid_cat_inds = list(range(CLASSES))
    mmdets, _ = timed("mmdet's ClassAwareSampler, an epoch (lists given)", lambda: list(theirs))

    def released_bins(number: int) -> None:
        for _ in range(number):
            for label in np.random.permutation(CLASSES):
                own = lists[int(label)]
                own[int(np.random.permutation(len(own))[0])]

    seconds, _ = timed("the released sampler, 5 bins", lambda: released_bins(5))
    released = seconds / 5 * PICTURES / CLASSES
    print(f"ours / mmdet's: {ours / mmdets:.3f}   ours / the released one's ({released:.0f} s): {ours / released:.5f}")


def generate(pictures: int, detections: int) -> tuple[Truth, Detections, tuple[np.ndarray, np.ndarray]]:
    """Boxes and detections, about half of which lie on a box of their class."""
    rng = np.random.default_rng(1)
    share = 1 / np.arange(1, CLASSES + 1)
    count = pictures * 7

    def boxes(number: int) -> np.ndarray:
        corner = rng.random((number, 2)) * 0.7
        return np.concatenate((corner, corner + rng.random((number, 2)) * 0.28 + 0.02), axis=1)

    label = rng.choice(CLASSES, count, p=share / share.sum())
    truth = Truth(rng.integers(0, pictures, count), label, boxes(count), rng.random(count) < 0.05)
    total = pictures * detections
    near = rng.integers(0, count, total // 2)
    near_boxes = truth.box[near] * (1 + rng.normal(0, 0.03, (len(near), 4)))
    near_boxes = np.sort(near_boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    other = total - len(near)
    found = Detections(
        np.concatenate((truth.picture[near], rng.integers(0, pictures, other))),
        np.concatenate((truth.label[near], rng.choice(CLASSES, other, p=share / share.sum()))),
        np.concatenate((near_boxes, boxes(other))),
        rng.random(total),
    )
    return truth, found, (rng.integers(0, pictures, count), rng.choice(CLASSES, count))


def metric(pictures: int, detections: int, few: int) -> None:
    """Ours on everything; both on a part."""
    truth, found, verified = generate(pictures, detections)
    print(f"{pictures:,} pictures, {len(truth.label):,} boxes, {len(found.label):,} detections, {CLASSES} classes")
    timed("ours, all pictures", lambda: evaluate(truth, found, verified, CLASSES))
    print(f"peak memory so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, the input included")
    own, gt, seen = found.picture < few, truth.picture < few, verified[0] < few
    part = Detections(found.picture[own], found.label[own], found.box[own], found.score[own])
    some = Truth(truth.picture[gt], truth.label[gt], truth.box[gt], truth.group[gt])
    known = (verified[0][seen], verified[1][seen])
    ours, result = timed(f"ours, {few:,} pictures", lambda: evaluate(some, part, known, CLASSES))
    theirs, value = timed(f"mmdet's, {few:,} pictures", lambda: mmdets_metric(some, part, known, few))
    print(f"mean AP: ours {np.nanmean(result['ap']):.4f}, mmdet's {value:.4f}   ours / mmdet's: {ours / theirs:.4f}")


def mmdets_metric(truth: Truth, found: Detections, known: tuple[np.ndarray, np.ndarray], pictures: int) -> float:
    """``OpenImagesMetric``'s evaluation of the same, without hierarchy; lists by picture come first, as it wants."""
    from mmdet.evaluation.functional import eval_map

    def split(picture: np.ndarray, *columns: np.ndarray) -> list[list[np.ndarray]]:
        order = np.argsort(picture, kind="stable")
        cuts = np.searchsorted(picture[order], np.arange(1, pictures))
        return [np.split(column[order], cuts) for column in columns]

    boxes, labels, groups = split(truth.picture, truth.box, truth.label, truth.group)
    (known_labels,) = split(known[0], known[1])
    found_boxes, found_labels, scores = split(found.picture, found.box, found.label, found.score)
    detections, annotations = [], []
    for place in range(pictures):
        allowed = np.union1d(labels[place], known_labels[place])
        kept = np.isin(found_labels[place], allowed)
        table = np.column_stack((found_boxes[place], scores[place]))[kept].astype(np.float32)
        own = found_labels[place][kept]
        detections.append([table[own == label] for label in range(CLASSES)])
        annotations.append(
            {"bboxes": boxes[place].astype(np.float32), "labels": labels[place], "gt_is_group_ofs": groups[place]}
        )
    value, _ = eval_map(
        detections, annotations, iou_thr=0.5, ioa_thr=0.5, dataset="oid_challenge", use_group_of=True, logger="silent"
    )
    return float(value)


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sampler", "metric"])
    parser.add_argument("--pictures", type=int, default=34_917)
    parser.add_argument("--detections", type=int, default=100, help="per picture")
    parser.add_argument("--mmdet-pictures", type=int, default=2_000)
    args = parser.parse_args()
    if args.what == "sampler":
        sampler()
    else:
        metric(args.pictures, args.detections, args.mmdet_pictures)


if __name__ == "__main__":
    main()
