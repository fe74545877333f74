"""What a metrics.json says of its run, and the pictures that go with it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tsd.data.coco import load_coco
from tsd.errors import InputError
from tsd.files import read_json

PICTURES = 4
"""Pictures with detections kept beside the metrics."""


def run_facts(folder: Path, predictions: Path) -> dict[str, Any]:
    """Suite, experiment, seed, digests, git state, digest of the predictions, and run time, for ``metrics.json``.

    Raises:
        InputError: the folder is not a run's.
    """
    described = read_described(folder)
    environment = read_json(folder / "environment.json")
    runtime = predictions.with_name("runtime.json")
    keys = ("suite", "experiment", "seed", "digest", "test_digest", "data_digest", "recipe")
    return {key: described[key] for key in keys} | {
        "git_commit": environment["git_commit"],
        "git_dirty": environment["git_dirty"],
        "predictions_sha256": hashlib.sha256(predictions.read_bytes()).hexdigest(),
        "history": history(folder / "log.jsonl"),
        **({"runtime": read_json(runtime)} if runtime.exists() else {}),
    }


def history(log: Path) -> list[dict[str, Any]]:
    """AP and AP50 of each evaluation during the training."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [
        {"epoch": line["epoch"], "AP": line["val/AP"], "AP50": line["val/AP50"]}
        for line in lines
        if "val/AP" in line and "val/AP50" in line
    ]


def read_described(folder: Path) -> dict[str, Any]:
    """A run's ``experiment.yaml``.

    Raises:
        InputError: the folder is not a run's.
    """
    path = folder / "experiment.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a run's folder, made by `tsd train`")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def annotated_pictures(annotations: Path, images: Path) -> Iterator[tuple[int, Path, np.ndarray, list[str]]]:
    """(id, file, boxes xyxy, class names) of every picture with a box, crowds left out."""
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


def draw_pictures(folder: Path, output: Path, annotations: Path) -> list[Path]:
    """Draw the detections on the first few annotated pictures into ``output/pictures``."""
    from tsd.report.figures import draw_detections, of_picture, read_detections

    data = read_described(folder)["data"]
    images = Path(data["folder"], "val") if data["format"] == "generated" else Path(data["val"]["images"])
    names = {category["id"]: category["name"] for category in load_coco(annotations, None)["categories"]}
    arrays = read_detections(output / "proposals.npz")
    paths = []
    for image_id, image, truth, _ in list(annotated_pictures(annotations, images))[:PICTURES]:
        path = output / "pictures" / f"{image.stem}.png"
        draw_detections(image, of_picture(arrays, image_id, names), truth, path)
        paths.append(path)
    return paths
