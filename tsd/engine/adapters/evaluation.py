"""COCO figures as an mmengine metric, for the evaluation during training and by mmdet's own tools."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from pycocotools.mask import encode
from torch import Tensor

from tsd.data.coco import read_categories
from tsd.evaluation.coco import evaluate_coco

Detection = dict[str, Any]


def to_coco(image_id: int, instances: Any, category_ids: Sequence[int]) -> list[Detection]:
    """Detections of one picture as standard COCO results: xywh boxes in original pixels, the file's category ids.

    Instances with ``masks`` (n, height, width) get a ``segmentation``, the mask's run-length code.
    """
    boxes = instances["bboxes"].detach().cpu().double().numpy()
    scores = instances["scores"].detach().cpu().double().numpy()
    labels = instances["labels"].detach().cpu().numpy()
    detections: list[Detection] = [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [round(float(value), 4) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(float(score), 6),
        }
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True)
    ]
    if "masks" in instances:
        for detection, mask in zip(detections, instances["masks"].cpu().numpy(), strict=True):
            code = encode(np.asfortranarray(mask, dtype=np.uint8))
            detection["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode()}
    return detections


def to_continuous(boxes: Tensor) -> Tensor:
    """xyxy boxes whose far corner belongs to them (mmdet 1.x) → boxes of the same extent in today's coordinates."""
    return torch.cat((boxes[:, :2], boxes[:, 2:] + 1), dim=1)


@METRICS.register_module()
class CocoFigures(BaseMetric):
    """The 12 COCO figures over a whole annotation file; ``inclusive``: the detector's boxes are mmdet 1.x's."""

    default_prefix = None

    def __init__(self, annotations: str, inclusive: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inclusive = inclusive
        self.annotations = Path(annotations)
        self.category_ids = [number for number, _ in read_categories(self.annotations)]

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            found = dict(sample["pred_instances"])
            if self.inclusive:
                found["bboxes"] = to_continuous(found["bboxes"])
            self.results.append(to_coco(sample["img_id"], found, self.category_ids))

    def compute_metrics(self, results: list[list[Detection]]) -> dict[str, float]:
        detections = [detection for picture in results for detection in picture]
        figures = evaluate_coco(self.annotations, detections)["metrics"]
        MMLogger.get_current_instance().info(figures)
        return {name: float("nan") if value is None else value for name, value in figures.items()}
