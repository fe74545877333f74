"""COCO files: what real data holds is taken, every mistake is named."""

import copy
import json
import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from tsd.data import coco
from tsd.data.coco import load_coco
from tsd.errors import InputError

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 8, "file_name": "b.png", "width": 20, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 5, 10.5, 20], "area": 210, "iscrowd": 0},
        {"id": 2, "image_id": 8, "category_id": 4, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog", "supercategory": "animal"}],
}

TOO_LARGE = "expected an integer below 2**53, since evaluators confuse larger ones"


@pytest.fixture
def folder(tmp_path) -> Path:
    for image in GOOD["images"]:
        Image.effect_noise((image["width"], image["height"]), 60).save(tmp_path / image["file_name"])
    write(tmp_path, GOOD)
    return tmp_path


def write(folder: Path, content) -> Path:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def problems(folder: Path, content, images=False, **options) -> list[str]:
    path = write(folder, content)
    with pytest.raises(InputError) as caught:
        load_coco(path, folder if images else None, **options)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_a_good_file_is_returned_as_it_is(folder):
    assert load_coco(folder / "instances.json", folder, check_pictures=True) == GOOD


def changed(where: str, value) -> dict:
    """GOOD with one value replaced; ``where`` is a path such as ``images.0.id``, and ``...`` removes the key."""
    content = copy.deepcopy(GOOD)
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    place = content
    for part in path:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        ("images", ..., "images: expected a list, got NoneType"),
        ("annotations", {}, "annotations: expected a list, got dict"),
        ("categories", [], "categories: empty"),
        ("images.1", "b.png", "images.1: expected an object, got 'b.png'"),
        ("images.0.file_name", ..., "images.0 (id 7): missing key 'file_name'"),
        ("images.0.id", ..., "images.0: missing key 'id'"),
        ("images.1.id", 7, "images.1: id 7 is used twice"),
        ("images.1.id", [8], "images.1 (id [8]): id: expected an integer, got [8]"),
        ("images.1.id", 2**53, f"images.1 (id {2**53}): id: {TOO_LARGE}"),
        ("annotations.1.id", 2**60, f"annotations.1 (id {2**60}): id: {TOO_LARGE}"),
        ("images.1.width", "20", "images.1 (id 8): width: expected a positive integer, got '20'"),
        ("images.1.height", 0, "images.1 (id 8): height: expected a positive integer, got 0"),
        ("annotations.1.id", 1, "annotations.1: id 1 is used twice"),
        ("annotations.0.area", ..., "annotations.0 (id 1): missing key 'area'"),
        ("annotations.0.area", None, "annotations.0 (id 1): area: expected a number of at least 0, got None"),
        ("annotations.0.iscrowd", "0", "annotations.0 (id 1): iscrowd: expected 0 or 1, got '0'"),
        ("annotations.0.iscrowd", None, "annotations.0 (id 1): iscrowd: expected 0 or 1, got None"),
        ("annotations.0.iscrowd", 2, "annotations.0 (id 1): iscrowd: expected 0 or 1, got 2"),
        ("annotations.0.image_id", 9, "annotation 1: image_id 9 is not listed in images"),
        ("annotations.0.category_id", 9, "annotation 1: category_id 9 is not listed in categories"),
        ("categories.1.id", 3, "categories.1: id 3 is used twice"),
        ("categories.1.name", "cat", "categories: name 'cat' is used twice"),
    ],
)
def test_a_mistake_is_named_with_its_place(folder, where, value, expected):
    assert expected in problems(folder, changed(where, value))


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, None], [1, 2, 3, float("nan")], None, [True] * 4])
def test_a_box_is_four_finite_numbers(folder, box):
    (problem,) = problems(folder, changed("annotations.0.bbox", box))
    assert problem.startswith("annotations.0 (id 1): bbox: expected four finite numbers")


@pytest.mark.parametrize(
    "box", [[-1.5, 5, 10, 10], [5, -1.5, 10, 10], [35, 5, 6.5, 10], [5, 25, 5, 6.5], [5, 5, -2, 4]]
)
def test_a_box_outside_its_picture_or_of_negative_size_is_refused(folder, box):
    (problem,) = problems(folder, changed("annotations.0.bbox", box))
    assert problem.startswith("annotation 1 (picture 7, a.jpg): bbox ")


def test_a_box_may_overhang_by_a_pixel(folder):
    content = changed("annotations.0.bbox", [-1, -1, 42, 32])
    assert load_coco(write(folder, content), None) == content


@pytest.mark.parametrize("box", [[5, 5, 0, 4], [5, 5, 4, 0.0]])
def test_a_box_of_zero_size_is_left_out_or_refused(folder, caplog, box):
    content = changed("annotations.0.bbox", box)
    with caplog.at_level(logging.WARNING):
        loaded = load_coco(write(folder, content), None)
    assert [annotation["id"] for annotation in loaded["annotations"]] == [2]
    assert "1 annotations left out" in caplog.text
    (problem,) = problems(folder, content, on_degenerate="error")
    assert "must be above 0" in problem


def test_broken_json_is_located(folder):
    (problem,) = problems(folder, '{"images": [],\n "annotations": [}')
    assert "line 2 column 18" in problem
    (problem,) = problems(folder, "[]")
    assert "expected a JSON object" in problem
    with pytest.raises(InputError, match="no such file"):
        load_coco(folder / "absent.json", None)


def test_problems_are_listed_up_to_twenty(folder):
    content = copy.deepcopy(GOOD)
    content["annotations"] = [{**GOOD["annotations"][0], "id": number, "image_id": 99} for number in range(25)]
    listed = problems(folder, content)
    assert len(listed) == 21
    assert listed[-1] == "and 5 more problems"


@pytest.mark.parametrize("mask", [[], [[1, 2, 3, 4]], {"size": [1, 1]}, "RLE", None])
def test_a_missing_or_broken_mask_is_named_where_masks_are_needed(folder, mask):
    content = changed("annotations.0.segmentation", mask)
    write(folder, content)
    load_coco(folder / "instances.json", None)
    found = problems(folder, content, masks=True)
    assert f"annotation {content['annotations'][0]['id']}: segmentation: expected polygons" in found[0]


def test_a_missing_picture_is_named(folder):
    (folder / "b.png").unlink()
    (problem,) = problems(folder, GOOD, images=True)
    assert problem == f"picture 8: {folder}/b.png is missing"
    with pytest.raises(InputError, match=r"picture folder .*nowhere does not exist"):
        load_coco(folder / "instances.json", folder / "nowhere")


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_a_truncated_or_corrupt_picture_is_found_when_pictures_are_decoded(folder, name):
    whole = (folder / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no picture", b""):
        (folder / name).write_bytes(damaged)
        load_coco(folder / "instances.json", folder)
        (problem,) = problems(folder, GOOD, images=True, check_pictures=True)
        assert f"{name} is corrupt" in problem


def test_a_picture_of_another_size_is_found_when_pictures_are_decoded(folder):
    Image.new("RGB", (30, 40)).save(folder / "a.jpg")
    (problem,) = problems(folder, GOOD, images=True, check_pictures=True)
    assert problem.endswith("a.jpg is 30x40 pixels, but its annotation says 40x30")


def test_a_changed_file_is_read_again(folder):
    path = folder / "instances.json"
    load_coco(path, None)
    write(folder, changed("images.0.width", 50))
    os.utime(path, (1, 1))  # two writes can fall into one tick of the clock
    assert load_coco(path, None)["images"][0]["width"] == 50


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco_passes_with_every_picture_decoded(real_data, split):
    content = load_coco(real_data / f"annotations/instances_{split}.json", real_data / split, check_pictures=True)
    assert len(content["images"]) == 80
    assert len(content["annotations"]) == {"train2017": 705, "val2017": 815}[split]


def test_categories_are_read_once_and_nothing_else_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "instances.json"
    truth = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]}
    path.write_text(json.dumps(truth))
    assert coco.read_categories(path) == ((7, "b"), (3, "a"))
    monkeypatch.setattr(coco, "read_json", lambda _: pytest.fail("read again"))
    assert coco.read_categories(path) == ((7, "b"), (3, "a"))
    monkeypatch.undo()
    path.write_text(json.dumps(truth | {"categories": truth["categories"][:1]}))
    os.utime(path, ns=(1, 1))
    assert coco.read_categories(path) == ((7, "b"),)
