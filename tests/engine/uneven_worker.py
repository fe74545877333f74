"""One process of an evaluation that is spread over several: ``uneven_worker.py RANK WORLD OUT``, in a project."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS

from tsd.engine.config import load_config
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite


def detections(annotations: dict, picture: dict) -> dict:
    """What a detector might find in a picture, always the same: its objects, moved, and a few that are not there."""
    rng = np.random.default_rng(picture["id"])
    own = [entry for entry in annotations["annotations"] if entry["image_id"] == picture["id"]]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)] + [[0, 0, 9, 9]] * 2
    labels = [entry["category_id"] - 1 for entry in own] + [0, 1]
    moved = np.array(boxes, dtype=float) + rng.normal(0, 2, (len(boxes), 4))
    found = {
        "bboxes": torch.tensor(moved),
        "scores": torch.tensor(rng.random(len(boxes))),
        "labels": torch.tensor(labels),
    }
    return {"img_id": picture["id"], "pred_instances": found}


def main() -> None:
    rank, world, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/store{world}", rank=rank, world_size=world)
    from tsd.engine.adapters.evaluation import CocoFigures

    suite = load_suite("tiny")
    config = load_config(get_run(suite, "baseline", 0, data_digest(suite)))
    annotations = json.loads(suite.split("val")[0].read_text())
    pictures = annotations["images"]
    sampler = DATA_SAMPLERS.build(config.val_dataloader.sampler, default_args={"dataset": pictures, "seed": 0})
    metric = CocoFigures(str(suite.split("val")[0]))
    for index in sampler:
        metric.process(None, [detections(annotations, pictures[index])])
    figures = metric.evaluate(size=len(pictures))
    result = {"figures": figures, "pictures": len(list(sampler))}
    (out / f"{rank}of{world}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
