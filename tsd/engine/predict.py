"""Predict with a run's checkpoint: standard COCO results, and what Figure 5 shows of the derived proposals."""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tsd.engine.params import Run
from tsd.files import atomic_path, write_json, write_text

PROPOSAL_FIELDS = {"proposals": "proposal", "reg_proposals": "reg_proposal", "cls_points": "cls_points"}
"""Field of the detector's result → array of ``proposals.npz``."""

WARM_UP = 5
"""Pictures that do not count for the run time."""


def predict(run: Run, checkpoint_path: Path, output: Path, limit: int | None = None) -> int:
    """Detect on the suite's val pictures; returns the number of detections.

    Writes ``output`` (COCO results JSON, sorted by picture and falling score) and beside it ``proposals.npz``:
    image_id (N,), bbox (N, 4) xyxy, score (N,), category_id (N,), all in original pixels and, for a TSD head,
    proposal (N, 4), reg_proposal (N, 4) and cls_points (N, k, k, 2). Detections merged over sizes or mirrored pictures
    have no such proposals. ``runtime.json`` says how long network and post-processing take for one picture.

    Args:
        run: whose detector and data.
        checkpoint_path: its weights.
        output: predictions file.
        limit: only the first pictures, for a trial.

    Raises:
        InputError: checkpoint or pictures can't be used.
    """
    import torch
    from mmdet.models import DetTTAModel
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    from tqdm import tqdm

    from tsd.engine import checkpoint
    from tsd.engine.adapters import CocoFigures
    from tsd.engine.adapters.evaluation import to_coco, to_continuous
    from tsd.engine.config import load_config

    if run.suite.resources["gpu"] == 0:
        torch.set_num_threads(run.suite.resources["threads"])
    config = load_config(run)
    merged = config.get("tta_model")
    if run.settings["head"]["type"] == "tsd" and not merged:  # merged detections have no proposal of their own
        config.model.test_cfg.rcnn.keep_proposals = True
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    checkpoint.load_model(model, checkpoint_path)
    if merged:
        model = DetTTAModel(tta_cfg=merged.tta_cfg, module=model)
    on_gpu = torch.cuda.is_available() and run.suite.resources["gpu"] > 0
    model.to("cuda" if on_gpu else "cpu").eval()
    loader = Runner.build_dataloader(config.test_dataloader)
    legacy = run.settings.get("coordinates", "continuous") == "legacy"
    category_ids = CocoFigures(str(run.suite.split("val")[0])).category_ids
    detections: list[dict[str, Any]] = []
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
                detections += to_coco(sample.img_id, found, category_ids)
                _collect(details, sample.img_id, found, category_ids)
    order = sorted(range(len(detections)), key=lambda i: (detections[i]["image_id"], -detections[i]["score"], i))
    write_text(output, json.dumps([detections[i] for i in order]) + "\n")
    arrays = {name: np.concatenate(parts)[order] for name, parts in details.items()}
    with atomic_path(output.with_name("proposals.npz")) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if on_gpu else f"a CPU with {threads} thread{'s' if threads > 1 else ''}"
    write_json(output.with_name("runtime.json"), _runtime(times) | {"device": device})
    return len(detections)


def _runtime(times: list[float]) -> dict[str, Any]:
    """Median milliseconds, the first pictures left out where there are others: they warm up."""
    counted = times[WARM_UP:] or times
    return {"median_ms": 1e3 * statistics.median(counted) if counted else None, "pictures": len(counted)}


def _collect(details: dict[str, list[np.ndarray]], image_id: int, found: Any, category_ids: list[int]) -> None:
    labels = found.labels.cpu().numpy()
    arrays = {
        "image_id": np.full(len(labels), image_id, dtype=np.int64),
        "bbox": found.bboxes.cpu().numpy(),
        "score": found.scores.cpu().numpy(),
        "category_id": np.asarray(category_ids, dtype=np.int64)[labels],
    }
    for field, name in PROPOSAL_FIELDS.items():
        if field in found:
            arrays[name] = found.get(field).cpu().numpy()
    for name, array in arrays.items():
        details.setdefault(name, []).append(array)
