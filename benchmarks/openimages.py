"""Class-aware sampling and the metric at the size of the Open Images Challenge 2019, against mmdet's.

    python benchmarks/openimages.py sampler
    python benchmarks/openimages.py metric [--detections 100] [--pictures 34917] [--mmdet-pictures 2000]
    tsd data generate --format openimages --scale challenge2019 --out FOLDER
    python benchmarks/openimages.py store --folder FOLDER

Generated figures of the true size: 500 classes whose sizes fall as those of the challenge do, 5.76 million (picture,
class) pairs over 1,674,979 pictures; 34,917 validation pictures with 100 detections each. The released sampler is its
drawing (a permutation of a class's pictures for every draw) for a few bins, times the number of bins. mmdet's metric
runs on the first ``--mmdet-pictures`` pictures and both are compared on those. ``store`` turns the files of the true
size into a columnar store, opens it, reads through it in eight processes at once, and resumes class-aware loading.
"""

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.class_aware import ClassAwareSequence, ClassIndex
from tsd.data.openimages import Challenge
from tsd.data.store import Store, build_store
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


def store(folder: Path) -> None:
    """CSV → store; opening it, alone and in eight processes."""
    challenge = Challenge(folder, CLASSES)
    files = (challenge.boxes("train"), challenge.labels("train"), challenge.classes, challenge.hierarchy)
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        print(build_store(*files, challenge.store("train")), flush=True)
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 1024
    print(f"{'store from CSV':58} {seconds:8.3f} s, peak {peak:.0f} MiB")
    own = challenge.store("train")
    before = _memory()["Rss"]
    _, opened = timed("opening it", lambda: Store.open(own))
    print(f"{len(opened):,} pictures, {len(opened.label):,} boxes; resident + {_memory()['Rss'] - before:.0f} MiB")
    timed("reading every box", lambda: float(opened.box.sum()) + int(opened.label.sum(dtype=np.int64)))
    files_size = sum(path.stat().st_size for path in own.iterdir()) / 2**20
    print(
        f"files {files_size:.0f} MiB; resident + {_memory()['Rss'] - before:.0f} MiB after reading, shared with others"
    )
    timed("class index from it", lambda: opened.class_index(opened.boxed))
    _resume(own)
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    gate: Any = multiprocessing.get_context("spawn").Barrier(8)
    workers = [multiprocessing.get_context("spawn").Process(target=_reader, args=(own, queue, gate)) for _ in range(8)]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    private = [memory["Private_Clean"] + memory["Private_Dirty"] for memory in found]
    print(f"eight processes that read every box: {min(private):.0f} to {max(private):.0f} MiB each of their own for it")


def _resume(folder: Path, step: int = 300_000, batch_size: int = 32) -> None:
    """The first batch of a training that goes on in the middle of an epoch."""
    from tsd.engine.adapters import ClassAwareEpochSampler, ResumableBatchSampler, SeededDataset

    inner = {"type": "StoredOpenImages", "ann_file": str(folder), "data_prefix": {"img": ""}, "pipeline": []}
    dataset = SeededDataset(inner | {"metainfo": {"classes": []}}, seed=0)
    _, sampler = timed("class-aware sampler for it", lambda: ClassAwareEpochSampler(dataset, 0))
    batches = ResumableBatchSampler(sampler, batch_size)
    epoch, done = divmod(step, len(batches))
    sampler.set_epoch(epoch)
    batches.skip(done)
    _, batch = timed(f"first batch of {batch_size} after step {step:,}", lambda: next(iter(batches)))
    timed("annotations of its pictures", lambda: [dataset.inner.get_data_info(picture) for _, picture in batch])


def _reader(folder: Path, queue: Any, gate: Any) -> None:
    before = _memory()
    opened = Store.open(folder)
    for first in range(0, len(opened.label), 1 << 20):
        opened.box[first : first + (1 << 20)].sum()
    gate.wait()
    after = _memory()
    gate.wait()
    queue.put({name: after[name] - before[name] for name in after})


def _memory() -> dict[str, float]:
    """MiB of this process: Rss, and what no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {name: values[name] for name in ("Rss", "Private_Clean", "Private_Dirty")}


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sampler", "metric", "store"])
    parser.add_argument("--folder", type=Path, help="of the generated files, for store")
    parser.add_argument("--pictures", type=int, default=34_917)
    parser.add_argument("--detections", type=int, default=100, help="per picture")
    parser.add_argument("--mmdet-pictures", type=int, default=2_000)
    args = parser.parse_args()
    if args.what == "sampler":
        sampler()
    elif args.what == "store":
        store(args.folder)
    else:
        metric(args.pictures, args.detections, args.mmdet_pictures)


if __name__ == "__main__":
    main()
