"""Data of one's own: what a training could not use is named before it begins, for the detectors that it has."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import tsd
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.engine.verify import verify_suite
from tsd.errors import InputError

IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
ANNOTATION = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}


@pytest.fixture
def own(project):
    """Makes suite ``own`` of a picture per split; takes what is otherwise in train's image and annotation."""

    def make(image=None, annotation=None, experiment="baseline", override=None):
        override = override or {}
        for split in ("train", "val"):
            (project / "own" / split).mkdir(parents=True, exist_ok=True)
            picture = IMAGE | (image or {} if split == "train" else {})
            pixels = np.full((picture["height"], picture["width"], 3), 90, np.uint8)
            Image.fromarray(pixels).save(project / "own" / split / "a.png")
            content = {
                "images": [picture],
                "annotations": [ANNOTATION | (annotation or {} if split == "train" else {})],
                "categories": [{"id": 3, "name": "cat"}],
            }
            (project / "own" / f"{split}.json").write_text(json.dumps(content))
        splits = {name: {"annotations": f"own/{name}.json", "images": f"own/{name}"} for name in ("train", "val")}
        suite = yaml.safe_load((project / "params/suites/tiny.yaml").read_text())
        suite |= {"data": {"format": "coco", **splits}, "experiments": [experiment]}
        suite["override"] = suite["override"] | override
        (project / "params/suites/own.yaml").write_text(yaml.safe_dump(suite))
        return load_suite("own")

    return make


def test_nothing_to_train_on_is_refused_by_verify_and_by_the_training(own):
    suite = own(annotation={"area": 0})
    sentence = "own/train.json: annotations: none of 1 can be trained on: 1 with area 0 (first annotation 1)\n"
    for words in (("data", "verify", "--suite", "own"), ("train", "--suite", "own", "--experiment", "baseline")):
        done = tsd(*words)
        assert done.returncode == 2
        assert done.stderr.endswith(sentence)
    run = get_run(suite, "baseline", 0, data_digest(suite))
    assert not (run.folder / "checkpoints").exists()


def test_masks_are_checked_for_detectors_that_have_masks(own):
    mask = {"override": {"detector": "mask_rcnn"}, "annotation": {"segmentation": [[5, 5, 15, 5, 15, float("nan")]]}}
    verify_suite(own(annotation=mask["annotation"]))
    with pytest.raises(InputError, match=r"own/train.json: annotation 1: segmentation, .* polygons of finite numbers"):
        verify_suite(own(**mask))


def test_pictures_are_too_thin_for_the_sizes_that_the_suite_resizes_to(own):
    thin = {"image": {"width": 1400, "height": 1}, "annotation": {"bbox": [5, 0, 10, 1], "area": 10}}
    verify_suite(own(**thin, override={"input": {"size": [1400, 700]}}))
    for settings in (
        {"input": {"size": [600, 500]}},
        {"input": {"size": [1400, 700], "train_sizes": [[1400, 700], [600, 500]]}},
        {"input": {"size": [1400, 700]}, "test": {"sizes": [[1400, 700], [600, 500]]}},
    ):
        with pytest.raises(InputError, match=r"picture 7, a.png: 1400x1 pixels are too thin: resized to fit 600x500"):
            verify_suite(own(**thin, override=settings))


def test_classes_of_both_splits_are_compared_before_the_training(own):
    own()
    path = Path("own/val.json")
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 3, "name": "Cat"}]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"own/val.json: categories differ from those of own/train.json.*in the same"):
        verify_suite(load_suite("own"))
