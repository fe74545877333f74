"""Predict with a run's checkpoint: standard COCO results, and what Figure 5 shows of the derived proposals."""

import csv
import io
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsd.engine.device import set_up
from tsd.engine.params import Run
from tsd.errors import InputError
from tsd.files import atomic_path, read_json, write_json, write_text

PROPOSAL_FIELDS = {"proposals": "proposal", "reg_proposals": "reg_proposal", "cls_points": "cls_points"}
"""Field of the detector's result → array of ``proposals.npz``."""

WARM_UP = 5
"""Pictures that do not count for the run time."""


def predict(
    run: Run,
    checkpoint_path: Path,
    output: Path,
    limit: int | None = None,
    pictures: tuple[Path, Path] | None = None,
) -> int:
    """Detect on the suite's val pictures; returns the number of detections.

    Writes ``output`` (COCO results JSON, or for Open Images the CSV that its metric reads; sorted by picture and
    falling score) and beside it ``proposals.npz``: image_id (N,), an ImageID in Open Images, bbox (N, 4) xyxy, score
    (N,), category_id (N,), all in original pixels and, for a TSD head, proposal (N, 4), reg_proposal (N, 4) and
    cls_points (N, k, k, 2). Detections merged over sizes or mirrored pictures
    have no such proposals. ``runtime.json`` says how long network and post-processing take for one picture.

    Args:
        run: whose detector and data.
        checkpoint_path: its weights.
        output: predictions file.
        limit: only the first pictures, for a trial.
        pictures: (COCO JSON, folder) of other pictures than the suite's, such as test-dev's; it needs no annotations,
            but the suite's categories.

    Raises:
        InputError: checkpoint or pictures can't be used, or their categories are not the suite's.
    """
    import torch
    from mmdet.models import DetTTAModel
    from mmengine.runner import Runner
    from tqdm import tqdm

    from tsd.engine.adapters.evaluation import to_coco, to_continuous
    from tsd.engine.adapters.openimages import to_fractions
    from tsd.engine.config import load_config

    challenge = run.suite.is_openimages
    config = load_config(run)
    if pictures:
        if challenge or _category_ids(pictures[0]) != _category_ids(run.suite.split("val")[0]):
            raise InputError(f"{pictures[0]}: expected COCO JSON with the categories of suite {run.suite.name}")
        config.test_dataloader.dataset.update(ann_file=str(pictures[0]), data_prefix={"img": str(pictures[1])})
    merged = config.get("tta_model")
    if run.settings["head"]["type"] == "tsd" and not merged:  # merged detections have no proposal of their own
        config.model.test_cfg.rcnn.keep_proposals = True
    model = load_detector(run, config, checkpoint_path)
    on_gpu = next(model.parameters()).is_cuda
    if merged:
        model = DetTTAModel(tta_cfg=merged.tta_cfg, module=model).eval()
    loader = Runner.build_dataloader(config.test_dataloader)
    legacy = run.settings.get("coordinates", "continuous") == "legacy"
    classes = config.train_dataloader.dataset.dataset.metainfo.classes
    category_ids = range(len(classes)) if challenge else _category_ids(run.suite.split("val")[0])
    detections: list[dict[str, Any]] = []
    lines: list[tuple[Any, ...]] = []
    details: dict[str, list[np.ndarray]] = {}
    times: list[float] = []
    interval = 0.5 if sys.stderr.isatty() else 20.0
    with torch.inference_mode():
        for index, batch in enumerate(tqdm(loader, desc=run.experiment, unit="picture", mininterval=interval)):
            if limit is not None and index >= limit:
                break
            started = time.perf_counter()
            samples = model.test_step(batch)
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
            for sample in samples:
                found = sample.pred_instances
                if legacy:
                    found.bboxes = to_continuous(found.bboxes)
                if challenge:
                    lines += _lines(sample.img_id, to_fractions(found, sample.ori_shape), classes)
                else:
                    detections += to_coco(sample.img_id, found, category_ids)
                _collect(details, sample.img_id, found, category_ids)
    if challenge:
        order = sorted(range(len(lines)), key=lambda i: (lines[i][0], -lines[i][2], i))
        write_text(output, _csv(lines[i] for i in order))
    else:
        order = sorted(range(len(detections)), key=lambda i: (detections[i]["image_id"], -detections[i]["score"], i))
        write_text(output, json.dumps([detections[i] for i in order]) + "\n")
    arrays = {name: np.concatenate(parts)[order] for name, parts in details.items()}
    with atomic_path(output.with_name("proposals.npz")) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if on_gpu else f"a CPU with {threads} thread{'s' if threads > 1 else ''}"
    write_json(output.with_name("runtime.json"), _runtime(times) | {"device": device})
    return len(order)


def load_detector(run: Run, config: Any, checkpoint_path: Path) -> Any:
    """The detector of a config with its weights, ready to predict, on a GPU if the run asks for one.

    Raises:
        InputError: an unusable checkpoint, the run's own that is another run's, one of other classes, or no GPU where
            one is asked for.
    """
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from tsd.engine import checkpoint

    set_up(run)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    own = checkpoint_path.resolve() == run.checkpoint.resolve()
    meta = checkpoint.load_model(model, checkpoint_path, run.identity if own else None)
    checkpoint.check_classes(meta, config.train_dataloader.dataset.dataset.metainfo.classes, checkpoint_path)
    return model.to("cuda" if run.on_gpu else "cpu").eval()


def _category_ids(annotations: Path) -> list[int]:
    content = read_json(annotations)
    if not isinstance(content, dict) or not isinstance(content.get("categories"), list):
        raise InputError(f"{annotations}: not COCO JSON: expected a list `categories`")
    return [category["id"] for category in content["categories"]]


def _lines(name: str, found: dict[str, np.ndarray], mids: Sequence[str]) -> list[tuple[Any, ...]]:
    """Rows of one picture: ImageID, LabelName, Score, XMin, XMax, YMin, YMax."""
    return [
        (name, mids[label], float(score), x0, x1, y0, y1)
        for label, score, (x0, y0, x1, y1) in zip(found["label"], found["score"], found["box"].tolist(), strict=True)
    ]


def _csv(lines: Iterable[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax"))
    writer.writerows((name, mid, *(f"{value:.6f}" for value in numbers)) for name, mid, *numbers in lines)
    return text.getvalue()


def _runtime(times: list[float]) -> dict[str, Any]:
    """Median milliseconds, the first pictures left out where there are others: they warm up."""
    counted = times[WARM_UP:] or times
    return {"median_ms": 1e3 * statistics.median(counted) if counted else None, "pictures": len(counted)}


def _collect(
    details: dict[str, list[np.ndarray]], image_id: int | str, found: Any, category_ids: Sequence[int]
) -> None:
    labels = found.labels.cpu().numpy()
    arrays = {
        "image_id": np.full(len(labels), image_id),
        "bbox": found.bboxes.cpu().numpy(),
        "score": found.scores.cpu().numpy(),
        "category_id": np.asarray(category_ids, dtype=np.int64)[labels],
    }
    for field, name in PROPOSAL_FIELDS.items():
        if field in found:
            arrays[name] = found.get(field).cpu().numpy()
    for name, array in arrays.items():
        details.setdefault(name, []).append(array)
