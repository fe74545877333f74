"""What a metrics.json says of its run, and the pictures that go with it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.coco import load_coco, read_categories
from tsd.data.openimages import SPLITS, Challenge
from tsd.data.store import Store
from tsd.engine.run_files import read_environment, read_experiment, read_log, read_proposals, read_runtime

PLACE = ("git_commit", "git_dirty", "hostname", "slurm_job_id", "cuda_visible_devices")
"""Of a run's environment, what is said elsewhere or is nobody's business."""

PICTURES = 4
"""Pictures with detections kept beside the metrics."""


def run_facts(folder: Path, predictions: Path) -> dict[str, Any]:
    """Suite, experiment, seed, digests, revision, git state, digest of the predictions, machine, losses, learning curve
    and run time, for ``metrics.json``: with them the run can be repeated and compared.

    Raises:
        InputError: the folder is not a run's, or a file of it is damaged; names file and key or line.
    """
    described = read_experiment(folder)
    environment = read_environment(folder)
    log = read_log(folder)
    runtime = predictions.with_name("runtime.json")
    keys = ("suite", "experiment", "seed", "digest", "test_digest", "data_digest", "recipe", "revision")
    return {key: described[key] for key in keys} | {
        "git_commit": environment["git_commit"],
        "git_dirty": environment["git_dirty"],
        "predictions_sha256": hashlib.sha256(predictions.read_bytes()).hexdigest(),
        "environment": {key: value for key, value in environment.items() if key not in PLACE},
        "losses": losses(log),
        "history": history(log),
        **({"runtime": read_runtime(runtime)} if runtime.exists() else {}),
    }


def history(log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """AP and AP50, or of Open Images AP50_val, of each evaluation that a log tells."""
    found = []
    for line in log:
        figures = {name: line[f"val/{name}"] for name in ("AP", "AP50", "AP50_val") if f"val/{name}" in line}
        if figures:
            found.append({"epoch": line["epoch"], **figures})
    return found


def losses(log: Iterable[Mapping[str, Any]]) -> list[list[float]]:
    """[step, its loss] of each step that a log tells, in full precision."""
    return [[line["step"], line["loss"]] for line in log if "loss" in line]


Annotated = tuple[int | str, Path, np.ndarray, list[str]]


def annotated_pictures(data: dict[str, Any]) -> Iterator[Annotated]:
    """(id, file, boxes xyxy, class names) of every validation picture with a box, crowds and groups left out.

    Args:
        data: ``data`` of a suite.
    """
    yield from _of_openimages(data) if data["format"] == "openimages" else _of_coco(data)


def class_titles(data: dict[str, Any]) -> dict[int, str]:
    """Category id of ``proposals.npz`` → name."""
    if data["format"] == "openimages":
        return dict(enumerate(_store(data).hierarchy.names))
    return dict(read_categories(_coco_split(data)[0]))


def validation_annotations(data: dict[str, Any]) -> Path:
    """The file of the validation pictures' boxes, of ``data`` of a suite."""
    if data["format"] == "openimages":
        return Challenge(Path(data["folder"]), 0).boxes("val")
    return _coco_split(data)[0]


def _coco_split(data: dict[str, Any]) -> tuple[Path, Path]:
    if data["format"] == "generated":
        return Path(data["folder"], "annotations", "instances_val.json"), Path(data["folder"], "val")
    return Path(data["val"]["annotations"]), Path(data["val"]["images"])


def _of_coco(data: dict[str, Any]) -> Iterator[Annotated]:
    annotations, images = _coco_split(data)
    content = load_coco(annotations, None)
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_picture: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd", 0):
            by_picture.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        if own := by_picture.get(image["id"]):
            boxes = np.array([annotation["bbox"] for annotation in own], dtype=float)
            boxes[:, 2:] += boxes[:, :2]
            yield image["id"], images / image["file_name"], boxes, [names[a["category_id"]] for a in own]


def _store(data: dict[str, Any]) -> Store:
    return Store.open(Path(data["folder"], "store", SPLITS["val"]))


def _of_openimages(data: dict[str, Any]) -> Iterator[Annotated]:
    store = _store(data)
    for picture in store.boxed:
        rows = np.arange(*store.boxes_of(int(picture)).indices(len(store.box)))
        rows = rows[store.group[rows] == 0]
        if len(rows):
            name = store.ids[int(picture)].as_py()
            boxes = store.box[rows] * np.tile(store.size[picture], 2)
            path = Path(data["folder"], SPLITS["val"], f"{name}.jpg")
            yield name, path, boxes, [store.hierarchy.names[label] for label in store.label[rows]]


def draw_pictures(folder: Path, output: Path) -> list[Path]:
    """Draw the detections on the first few annotated pictures into ``output/pictures``."""
    from tsd.report.figures import draw_detections, of_picture

    data = read_experiment(folder)["data"]
    names = class_titles(data)
    arrays = read_proposals(output / "proposals.npz")
    paths = []
    for image_id, image, truth, _ in islice(annotated_pictures(data), PICTURES):
        path = output / "pictures" / f"{image.stem}.png"
        draw_detections(image, of_picture(arrays, image_id, names), truth, path)
        paths.append(path)
    return paths
