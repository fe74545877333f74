"""Generated scenes: the same bytes everywhere, exact annotations, no half-written folder."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

import tsd.data.generate as generator
from tsd.data.generate import SceneSpec, generate, picture_name, render
from tsd.data.manifest import read_manifest, verify
from tsd.data.scenes import SHAPES, TEXTURES, class_names, shape_mask, texture_mask
from tsd.errors import InputError

SMALL = {"seed": 5, "size": 48, "classes": 4, "train": 6, "val": 4, "object_size": [0.3, 0.6]}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def masks(objects):
    return [rle.decode(thing["segmentation"]).astype(bool) for thing in objects]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "small"
    generate(SceneSpec.from_dict({**SMALL, "formats": ["coco", "openimages"]}), folder)
    return folder


def test_two_processes_write_the_same_bytes_as_one(small, tmp_path):
    generate(SceneSpec.from_dict({**SMALL, "formats": ["coco", "openimages"]}), tmp_path / "again", workers=2)
    assert contents(tmp_path / "again") == contents(small)


def test_the_bytes_are_those_of_every_other_machine(small):
    # Pinned when first made. Another value means other scenes: everything trained on them must be trained again.
    found = contents(small)
    pictures = b"".join(render(SceneSpec.from_dict(SMALL), "train", index)[0].tobytes() for index in range(6))
    assert hashlib.sha256(pictures).hexdigest()[:16] == "7e9ade57934a34a0"
    assert found["annotations/instances_train.json"][:16] == "654303a48fc8e16c"
    assert found["annotations/instances_val.json"][:16] == "368c081988864f8b"
    assert found["pictures.tar"][:16] == "7247d35a0989e0a8"  # differs alone if the JPEG encoder is another


def test_a_picture_depends_on_seed_split_and_index_only():
    spec = SceneSpec.from_dict(SMALL)
    longer = SceneSpec.from_dict({**SMALL, "train": 900, "val": 50})
    assert np.array_equal(render(spec, "train", 3)[0], render(longer, "train", 3)[0])
    assert not np.array_equal(render(spec, "train", 3)[0], render(spec, "val", 3)[0])
    other = SceneSpec.from_dict({**SMALL, "seed": 6})
    assert not np.array_equal(render(spec, "train", 3)[0], render(other, "train", 3)[0])


def test_boxes_and_areas_are_those_of_the_visible_masks():
    spec = SceneSpec.from_dict({"seed": 1, "size": [96, 64], "objects": [3, 6]})
    for index in range(12):
        picture, objects = render(spec, "train", index)
        assert picture.shape == (64, 96, 3)
        owners = np.zeros((64, 96), int)
        for thing, mask in zip(objects, masks(objects), strict=True):
            rows, columns = np.nonzero(mask)
            x, y, width, height = thing["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert thing["area"] == mask.sum() > 0
            owners += mask
        assert owners.max() <= 1, "a pixel shows one object at most"


def test_annotations_tell_classes_with_their_parents(small):
    for split, count in (("train", 6), ("val", 4)):
        content = json.loads((small / f"annotations/instances_{split}.json").read_text())
        assert [(c["id"], c["name"], c["supercategory"]) for c in content["categories"]] == [
            (1, "plain disc", "disc"),
            (2, "plain box", "box"),
            (3, "striped disc", "disc"),
            (4, "striped box", "box"),
        ]
        assert [image["file_name"] for image in content["images"]] == [picture_name(i) for i in range(count)]
        assert {annotation["iscrowd"] for annotation in content["annotations"]} == {0}
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for image in content["images"]:
            with Image.open(small / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])


def test_the_written_picture_is_the_rendered_one_but_for_jpeg(small):
    with Image.open(small / "train" / picture_name(0)) as picture:
        written = np.asarray(picture).astype(int)
    rendered = render(SceneSpec.from_dict(SMALL), "train", 0)[0].astype(int)
    assert np.abs(written - rendered).mean() < 4


@pytest.mark.parametrize("count", [2, 6, 12, 13, 30, 80])
def test_class_names_are_unique_and_made_of_texture_and_shape(count):
    names = class_names(count)
    assert len({name for name, _ in names}) == count
    for name, parent in names:
        texture, shape = name.split(" ")
        assert texture in TEXTURES
        assert shape in SHAPES
        assert shape == parent
    assert 1 < len({parent for _, parent in names}) <= count


def test_no_shape_is_another_one_turned_or_stretched():
    # Hu's invariants of each shape after its second moments are made equal in all directions.
    side = np.arange(-4000, 4001, 80)
    u, v = np.meshgrid(side, side)
    moments = []
    for shape in range(len(SHAPES)):
        points = np.stack([u, v])[:, shape_mask(shape, u, v)].astype(float)
        points -= points.mean(1, keepdims=True)
        values, vectors = np.linalg.eigh(np.cov(points))
        white = (vectors / np.sqrt(values)).T @ points
        radius, angle = np.hypot(*white), np.arctan2(white[1], white[0])
        harmonics = [abs((radius**order * np.exp(1j * order * angle)).mean()) for order in (3, 4, 6)]
        moments.append([*harmonics, (radius**4).mean(), (radius**6).mean() / 4])
    distance = np.abs(np.array(moments)[:, None] - np.array(moments)[None]).max(-1)
    np.fill_diagonal(distance, np.inf)
    closest = np.unravel_index(distance.argmin(), distance.shape)
    assert distance.min() > 0.1, f"{SHAPES[closest[0]]} looks like {SHAPES[closest[1]]}"


@pytest.mark.parametrize("texture", range(1, len(TEXTURES)))
def test_a_texture_shows_both_colours(texture):
    u, v = np.meshgrid(np.arange(-4000, 4001, 80), np.arange(-4000, 4001, 80))
    assert 0.2 < texture_mask(texture, u, v).mean() < 0.8


def test_frequent_classes_come_first_and_the_tail_is_long():
    spec = SceneSpec.from_dict({"size": 48, "classes": 4, "tail": 1.5, "objects": [4, 6], "object_size": [0.2, 0.4]})
    counts = np.zeros(4, int)
    for index in range(4, 104):  # the first pictures walk through the classes
        for thing in render(spec, "train", index)[1]:
            counts[thing["label"]] += 1
    shares = counts / counts.sum()
    expected = np.arange(1, 5) ** -1.5
    assert shares == pytest.approx(expected / expected.sum(), abs=0.07)


def test_small_splits_show_every_class():
    spec = SceneSpec.from_dict({"size": 64, "train": 40, "val": 20, "tail": 1.0})
    for split, count in (("train", 40), ("val", 20)):
        labels = {thing["label"] for index in range(count) for thing in render(spec, split, index)[1]}
        assert labels == set(range(6))


def filling(mask):
    """How much of the smallest turned rectangle around it a mask fills."""
    outline = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    (_, (width, height), _) = cv2.minAreaRect(np.concatenate(outline))
    return mask.sum() / ((width + 1) * (height + 1))


WHOLE = {"disc": 0.785, "box": 1.0, "triangle": 0.5}
"""Share of its rectangle that a whole shape fills."""


def broken(limit):
    spec = SceneSpec.from_dict(
        {"size": 128, "objects": [4, 7], "object_size": [0.3, 0.4], "aspect": [0.8, 1.25], "occlusion": limit}
    )
    names = class_names(spec.classes)
    wrong = total = 0
    for index in range(25):
        objects = render(spec, "train", index)[1]
        for thing, mask in zip(objects, masks(objects), strict=True):
            if len(objects) > 1:
                wrong += abs(filling(mask) - WHOLE[names[thing["label"]][1]]) > 0.09
                total += 1
    return wrong / total


def test_objects_hidden_beyond_the_limit_are_left_out():
    assert broken(0.0) == 0  # every object is whole
    assert broken(0.9) > 0.2


def test_objects_stand_out_from_what_lies_around_them():
    spec = SceneSpec.from_dict({"size": 128, "objects": [1, 1], "classes": 2})
    for index in range(2, 22):
        picture, objects = render(spec, "train", index)
        mask = masks(objects)[0]
        around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~mask
        # a striped object has two colours, of which the nearer one may resemble its surroundings
        contrast = np.abs(picture[mask].astype(int).mean(0) - picture[around].astype(int).mean(0)).sum()
        assert contrast > 40


def test_a_spec_survives_json():
    spec = SceneSpec.from_dict({"size": [80, 64], "formats": ["coco", "openimages"], "tail": 1})
    assert SceneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sed", 1),
        ("seed", -1),
        ("seed", True),
        ("size", 16),
        ("size", [64]),
        ("size", "128"),
        ("classes", 1),
        ("classes", 1000),
        ("train", 0),
        ("val", 2.5),
        ("objects", [0, 2]),
        ("objects", [3, 2]),
        ("objects", 3),
        ("object_size", [0.0, 0.5]),
        ("object_size", [0.5, 0.2]),
        ("aspect", [0, 1]),
        ("rotation", 181),
        ("clutter", -1),
        ("occlusion", 1.5),
        ("tail", "long"),
        ("formats", ["openimages"]),
        ("formats", "coco"),
        ("formats", ["coco", "voc"]),
    ],
)
def test_a_wrong_parameter_is_named(key, value):
    with pytest.raises(InputError, match=rf"generate\.{key}: "):
        SceneSpec.from_dict({key: value})


def test_the_manifest_describes_what_was_written(small):
    manifest = read_manifest(small / "manifest.json")
    assert SceneSpec.from_dict(manifest["spec"]) == SceneSpec.from_dict({**SMALL, "formats": ["coco", "openimages"]})
    assert {name: split["images"]["count"] for name, split in manifest["splits"].items()} == {"train": 6, "val": 4}
    assert verify(small / "manifest.json", None) == []


def test_the_same_scenes_are_left_as_they_are(tmp_path, capsys):
    spec, out = SceneSpec.from_dict(SMALL), tmp_path / "out"
    generate(spec, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    generate(spec, out)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert "already there" in capsys.readouterr().err


def test_other_scenes_are_replaced_only_by_force(tmp_path):
    out = tmp_path / "out"
    generate(SceneSpec.from_dict(SMALL), out)
    before = contents(out)
    other = SceneSpec.from_dict({**SMALL, "seed": 6})
    with pytest.raises(InputError, match="--force"):
        generate(other, out)
    assert contents(out) == before
    generate(other, out, force=True)
    assert contents(out).keys() == before.keys()
    assert contents(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_not_even_force_replaces_what_is_no_generated_data(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        generate(SceneSpec.from_dict(SMALL), tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="is a file"):
        generate(SceneSpec.from_dict(SMALL), tmp_path / "thesis.txt", force=True)


@pytest.mark.parametrize("manifest", [None, "{}", '{"files": {}}', "no JSON"])
def test_not_even_force_replaces_pictures_that_no_manifest_says_were_generated(tmp_path, manifest):
    """A folder of one's own in COCO's layout, also with a manifest of `tsd data manifest`."""
    for name in ("annotations/instances_train.json", "train/mine.jpg", "val/mine.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"no manifest\.json says with what settings they were made"):
        generate(SceneSpec.from_dict(SMALL), tmp_path, force=True)
    assert contents(tmp_path) == before


def test_empty_folders_made_beforehand_are_no_obstacle(tmp_path):
    (tmp_path / "out" / "annotations").mkdir(parents=True)
    generate(SceneSpec.from_dict(SMALL), tmp_path / "out")
    assert verify(tmp_path / "out" / "manifest.json", None) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("no space left on device")

    out = tmp_path / "out"
    generate(SceneSpec.from_dict(SMALL), out)
    before = contents(out)
    monkeypatch.setattr(generator, "archive", fail)
    for target in (out, tmp_path / "new"):
        with pytest.raises(error):
            generate(SceneSpec.from_dict({**SMALL, "seed": 9}), target, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(out) == before


def test_what_was_there_comes_back_if_the_new_data_cannot_take_its_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    generate(SceneSpec.from_dict(SMALL), out)
    before, rename = contents(out), Path.rename

    def stopped(path, target):
        if path.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate(SceneSpec.from_dict({**SMALL, "seed": 9}), out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(out) == before


def test_sigterm_ends_the_workers_too_and_leaves_nothing(tmp_path):
    words = ("data", "generate", "--out", tmp_path / "out", "--workers", "2", "--set", "train=100000", "size=64")
    with subprocess.Popen([sys.executable, "-m", "tsd.cli", *words], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob(".*.tmp/train/*.jpg")):
            time.sleep(0.05)
        workers = _children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert process.stderr.read().splitlines()[-1].endswith("stopped by signal SIGTERM")
    assert len(workers) == 2
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert list(tmp_path.iterdir()) == []


def _children(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
