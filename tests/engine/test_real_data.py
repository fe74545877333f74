"""Real COCO pictures: 80 to train on, 80 to evaluate on, all 80 classes, crowds."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.conftest import tsd
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite

pytestmark = pytest.mark.realdata
NETWORK = {
    "backbone": {"depth": 18, "base_channels": 16, "norm": "bn", "frozen_stages": -1, "pretrained": None},
    "neck": {"channels": 32},
    "rpn": {"anchor_scales": [4], "samples": 64, "train_proposals": 100},
    "roi": {"samples": 32},
    "head": {"fc_channels": 64, "delta_channels": 32},
    "test": {"proposals": 100},
}


def write_suite(name, train, val, schedule, size, network=NETWORK, flip=0.5):
    suite = {
        "description": "80 real pictures",
        "data": {
            "format": "coco",
            "train": {"annotations": str(train[0]), "images": str(train[1])},
            "val": {"annotations": str(val[0]), "images": str(val[1])},
        },
        "recipe": "released",
        "experiments": ["baseline", "baseline_class_aware", "tsd_pc"],
        "seeds": [0],
        "override": network | {"input": {"size": size, "flip": flip}, "schedule": schedule},
        "monitor": {"val_epochs": 1000, "log_steps": 1},
        "resources": {"gpu": 0, "threads": 1, "mem_mb": 4000, "runtime": 60, "workers": 0},
    }
    with open(f"params/suites/{name}.yaml", "w") as file:
        yaml.safe_dump(suite, file)


def splits(folder):
    return [(folder / f"annotations/instances_{split}2017.json", folder / f"{split}2017") for split in ("train", "val")]


def run_all(name, experiment, timeout=600):
    for verb in ("train", "predict"):
        options = ["--no-mlflow"] if verb == "train" else []
        done = tsd(verb, "--suite", name, "--experiment", experiment, *options, timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
    suite = load_suite(name)
    run = get_run(suite, experiment, 0, data_digest(suite))
    annotations = suite.split("val")[0]
    predictions = run.eval_folder / "predictions.json"
    output = run.eval_folder / "metrics.json"
    done = tsd("evaluate", "coco", "--annotations", annotations, "--predictions", predictions, "--output", output)
    assert done.returncode == 0, done.stderr
    return annotations, predictions, json.loads(output.read_text())


def test_the_data_is_whole(project, real_data):
    write_suite("real", *splits(real_data), {"epochs": 1, "milestones": []}, [160, 128])
    done = tsd("data", "verify", "--suite", "real", "--pictures")
    assert done.returncode == 0, done.stderr
    assert "80 training and 80 validation pictures" in done.stdout


@pytest.mark.parametrize("experiment", ["baseline", "baseline_class_aware", "tsd_pc"])
def test_it_trains_on_real_pictures_and_scores_as_pycocotools_does(project, real_data, experiment):
    schedule = {"epochs": 1, "milestones": [], "batch_size": 8, "optimizer": "adamw", "lr": 0.001, "warmup_epochs": 0}
    write_suite("real", *splits(real_data), schedule, [160, 128])
    annotations, predictions, figures = run_all("real", experiment)
    assert figures["images"] == 80
    assert len(figures["per_class"]) == 80
    assert figures["detections"] > 0
    code = (
        "import sys, json, io, contextlib\n"
        "from pycocotools.coco import COCO\nfrom pycocotools.cocoeval import COCOeval\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        " t = COCO(sys.argv[1]); e = COCOeval(t, t.loadRes(sys.argv[2]), 'bbox')\n"
        " e.evaluate(); e.accumulate(); e.summarize()\nprint(json.dumps(list(map(float, e.stats))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(annotations), str(predictions)], capture_output=True, text=True, check=True
    )
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    for name, value in zip(order, json.loads(done.stdout), strict=True):
        assert (figures["metrics"][name] or 0) == pytest.approx(max(value, 0), abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["baseline", "tsd_pc"])
def test_it_can_fit_sixteen_real_photographs(project, real_data, tmp_path, experiment):
    """AP50 above 0.8 on the pictures that it was trained on, those whose smallest object is largest.

    TSD_FIT_EPOCHS changes how long.
    """
    content = json.loads(splits(real_data)[0][0].read_text())
    smallest = {}
    for annotation in content["annotations"]:
        side = min(annotation["bbox"][2:])
        smallest[annotation["image_id"]] = min(side, smallest.get(annotation["image_id"], side))
    kept = sorted(smallest, key=lambda picture: (-smallest[picture], picture))[:16]
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    path = tmp_path / "sixteen.json"
    path.write_text(json.dumps(content))
    split = (path, real_data / "train2017")
    epochs = int(os.environ.get("TSD_FIT_EPOCHS", "240"))
    schedule = {"epochs": epochs, "milestones": [epochs * 5 // 6], "batch_size": 4, "optimizer": "adamw"}
    schedule |= {"lr": 0.001, "warmup_epochs": 0, "weight_decay": 0.01}
    network = NETWORK | {
        "backbone": NETWORK["backbone"] | {"base_channels": 32},
        "neck": {"channels": 64},
        "roi": {"samples": 64},
        "head": {"fc_channels": 128, "delta_channels": 64},
    }
    write_suite("fit", split, split, schedule, [256, 192], network, flip=0.0)
    _, _, figures = run_all("fit", experiment, timeout=4 * 3600)
    print(experiment, figures["metrics"])
    assert figures["metrics"]["AP50"] > 0.8, figures["metrics"]
