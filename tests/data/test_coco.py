"""COCO files: what real data holds is taken, every mistake is named."""

import copy
import json
import logging
import math
import os
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from tsd.data import coco, masks
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

PATH = "a file's path in UTF-8, of at most 255 bytes a name"
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
        ("images.0.file_name", "\ud800", f"images.0 (id 7): file_name: expected {PATH}, got '\\ud800'"),
        ("images.0.file_name", "a\0b", f"images.0 (id 7): file_name: expected {PATH}, got 'a\\x00b'"),
        ("images.0.file_name", "a" * 256, f"images.0 (id 7): file_name: expected {PATH}, got 'a" + "a" * 98),
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


def with_one_more(**changes) -> dict:
    """GOOD and annotation 3, a copy of annotation 1 with changes."""
    content = copy.deepcopy(GOOD)
    content["annotations"].append(GOOD["annotations"][0] | {"id": 3} | changes)
    return content


PASSED_OVER = [
    ({"bbox": [5, 5, 0, 4]}, "with a box of zero width or height"),
    ({"bbox": [5, 5, 4, 0.0]}, "with a box of zero width or height"),
    ({"bbox": [-1, 5, 1, 10]}, "with a box wholly outside its picture"),
    ({"bbox": [5, 30, 5, 1]}, "with a box wholly outside its picture"),
    ({"bbox": [5, 5, 0.9, 10]}, "with a box narrower or lower than a pixel"),
    ({"area": 0}, "with area 0"),
    ({"ignore": 1}, "marked ignore: 1"),
]
"""Changes that make mmdet's training pass over an annotation without a word, and why it does."""


@pytest.mark.parametrize(("changes", "why"), PASSED_OVER)
def test_what_training_passes_over_is_left_out_or_refused(folder, caplog, changes, why):
    content = with_one_more(**changes)
    with caplog.at_level(logging.WARNING):
        loaded = load_coco(write(folder, content), None)
    assert [annotation["id"] for annotation in loaded["annotations"]] == [1, 2]
    assert f"1 annotations left out, first annotation 3 {why}" in caplog.text
    (problem,) = problems(folder, content, on_degenerate="error")
    assert problem.startswith("annotation 3 (picture 7, bbox [")
    assert f") {why}: training leaves it out; mend or remove it, or say `degenerate: drop`" in problem


def test_mmdet_trains_on_what_is_kept_and_on_nothing_else(folder):
    from mmdet.datasets import CocoDataset

    content = copy.deepcopy(GOOD)
    content["annotations"] += [
        GOOD["annotations"][0] | {"id": 3 + place} | changes for place, (changes, _) in enumerate(PASSED_OVER)
    ]
    kept = load_coco(write(folder, content), None)["annotations"]
    dataset = CocoDataset(
        str(folder / "instances.json"), metainfo={"classes": ["cat", "dog"]}, data_prefix={"img": ""}, test_mode=True
    )
    trained = [instance for index in range(2) for instance in dataset.get_data_info(index)["instances"]]
    assert [annotation["id"] for annotation in kept] == [1, 2]
    assert [instance["ignore_flag"] for instance in trained] == [0, 1]


@pytest.mark.parametrize("policy", ["drop", "error"])
@pytest.mark.parametrize(("changes", "why"), [*PASSED_OVER, ({"iscrowd": 1}, "marked iscrowd: 1")])
def test_a_file_of_which_all_is_passed_over_is_refused(folder, policy, changes, why):
    content = copy.deepcopy(GOOD)
    content["annotations"] = [GOOD["annotations"][0] | {"id": number} | changes for number in (4, 5)]
    (problem,) = problems(folder, content, on_degenerate=policy)
    assert problem == f"annotations: none of 2 can be trained on: 2 {why} (first annotation 4)"


def test_boxes_in_fractions_of_the_picture_are_recognised(folder):
    content = changed("annotations.0.bbox", [0.25, 0.5, 0.5, 0.5])
    del content["annotations"][1]
    (problem,) = problems(folder, content)
    assert problem.endswith("; bbox is in pixels, and these read like fractions of the picture")


@pytest.mark.parametrize("name", ["images", "annotations"])
def test_an_empty_file_is_refused(folder, name):
    content = GOOD | {"annotations": [], name: []}
    assert problems(folder, content) == [f"{name}: empty; expected one at least"]


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


POLYGON = [5, 5, 15, 5, 15, 20]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([], "expected polygons of at least three points or a run-length code, got []"),
        ("RLE", "expected polygons of at least three points or a run-length code, got 'RLE'"),
        (None, "expected polygons of at least three points or a run-length code, got None"),
        ({"size": [1, 1]}, "expected polygons of at least three points or a run-length code, got {'size': [1, 1]}"),
        ([[1, 2, 3, 4]], "expected polygons of at least three points, x and y of each, got [1, 2, 3, 4]"),
        ([POLYGON, [*POLYGON, 1]], "expected polygons of at least three points, x and y of each, got [5, 5, 15"),
        ([None], "expected polygons of at least three points, x and y of each, got None"),
        ([[*POLYGON[:5], None]], "expected polygons of finite numbers, got [5, 5, 15, 5, 15, None]"),
        ([[*POLYGON[:5], "7"]], "expected polygons of finite numbers, got [5, 5, 15, 5, 15, '7']"),
        ([[*POLYGON[:5], [7]]], "expected polygons of finite numbers, got [5, 5, 15, 5, 15, [7]]"),
        ([[*POLYGON[:5], 10**30]], "expected polygons of finite numbers, got [5, 5, 15"),
        ([[*POLYGON[:5], math.nan]], "expected polygons of finite numbers, got [5, 5, 15, 5, 15, nan]"),
        ([[*POLYGON[:5], math.inf]], "expected polygons of finite numbers, got [5, 5, 15, 5, 15, inf]"),
        (
            [[*POLYGON[:5], 1e9]],
            "a polygon reaches from (5, 5) to (15, 1e+09), far outside its picture of 40x30 pixels",
        ),
        ([[0, 0, 40, 30] * 1000], "its edges are 79960 pixels long; expected 5084 at most, for its picture of 40x30"),
        ([[41, 5, 45, 5, 45, 9]], "it lies outside its picture of 40x30 pixels: from (41, 5) to (45, 9)"),
        (
            {"size": [40, 30], "counts": [600, 600]},
            "size: expected [30, 40], the picture's [height, width], got [40, 30]",
        ),
        ({"size": [30, 40], "counts": [600, 601]}, "counts: expected 1200 pixels in all, 40 x 30, got 1201"),
        (
            {"size": [30, 40], "counts": [1200]},
            "counts: expected a pixel at least that belongs to the object, got none",
        ),
        ({"size": [30, 40], "counts": [math.inf]}, "counts: expected the lengths of runs, as a list of integers"),
        ({"size": [30, 40], "counts": [-1, 1201]}, "counts: expected the lengths of runs, as a list of integers"),
        ({"size": [30, 40], "counts": None}, "counts: expected the lengths of runs, as a list of integers"),
        ({"size": [30, 40], "counts": "`"}, "counts: expected the lengths of runs, as a list of integers"),
        ({"size": [30, 40], "counts": "runs of ä"}, "counts: expected the lengths of runs, as a list of integers"),
        ({"size": [30, 40], "counts": "oooooooooooo1"}, "counts: expected the lengths of runs, as a list of integers"),
        ({"size": [30, 40], "counts": "ooooo1"}, "counts: expected 1200 pixels in all, 40 x 30, got 67108863"),
    ],
)
def test_a_missing_or_broken_mask_is_named_where_masks_are_needed(folder, mask, expected):
    content = changed("annotations.0.segmentation", mask)
    content["annotations"][1]["segmentation"] = {"size": [20, 20], "counts": [0, 400]}
    load_coco(write(folder, content), None)
    (problem,) = problems(folder, content, masks=True)
    assert problem.startswith(f"annotation 1: segmentation, which a detector with masks needs: {expected}")


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_run_length_codes_of_pycocotools_are_read_as_it_reads_them(share):
    mask = np.random.default_rng(3).random((37, 61)) < share
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    code["counts"] = code["counts"].decode()
    pixels = mask.T.ravel()
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(pixels)) + 1, [pixels.size]))
    runs = [0] * bool(pixels[0]) + np.diff(bounds).tolist()
    assert masks._runs(code["counts"]) == runs
    assert masks.annotated_mask_problem(code, (61, 37)) is None
    assert masks.annotated_mask_problem({"size": [37, 61], "counts": runs}, (61, 37)) is None


def test_a_picture_too_thin_to_resize_is_named(folder):
    content = changed("images.1.width", 3000)
    content["images"][1]["height"] = 1
    content["annotations"][1]["bbox"] = [0, 0, 20, 1]
    load_coco(write(folder, content), None, sizes=[(3000, 800)])
    (problem,) = problems(folder, content, sizes=[(3000, 800), (1333, 800)])
    assert problem == (
        "picture 8, b.png: 3000x1 pixels are too thin: resized to fit 1333x800 no pixel is left of a side; "
        "remove or cut the picture"
    )


@pytest.mark.parametrize("width", [2665, 2666, 2667, 3000])
def test_too_thin_is_what_mmcv_cannot_resize(folder, width):
    content = GOOD | {"images": [GOOD["images"][0] | {"width": width, "height": 1}]}
    content["annotations"] = [GOOD["annotations"][0] | {"bbox": [0, 0, 9, 1]}]
    path = write(folder, content)
    try:
        mmcv.imrescale(np.zeros((1, width, 3), np.uint8), (1333, 800))
    except cv2.error:
        assert "too thin" in problems(folder, content, sizes=[(1333, 800)])[0]
    else:
        load_coco(path, None, sizes=[(1333, 800)])


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


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 3)])
def test_a_picture_of_sixteen_bits_is_found_when_pictures_are_decoded(folder, shape):
    cv2.imwrite(str(folder / "b.png"), np.full(shape, 4095, np.uint16))
    (problem,) = problems(folder, GOOD, images=True, check_pictures=True)
    assert problem.endswith("b.png has 16 bits a channel; expected 8: save it anew, scaled to 0 to 255")


def test_a_picture_that_training_cannot_decode_is_found_when_pictures_are_decoded(folder):
    """Pillow reads TIFFs of 32 bits, OpenCV does not."""
    Image.new("F", (20, 20)).save(folder / "b.png", "TIFF")
    (problem,) = problems(folder, GOOD, images=True, check_pictures=True)
    assert problem.endswith("b.png is corrupt: it can't be decoded")


@pytest.mark.parametrize("orientation", [3, 6])
def test_annotations_are_of_the_stored_pixels_whatever_exif_says(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((40, 30), 60).save(folder / "a.jpg", exif=exif)
    assert load_coco(folder / "instances.json", folder, check_pictures=True) == GOOD
    turned = copy.deepcopy(GOOD)
    turned["images"][0] |= {"width": 30, "height": 40}
    (problem,) = problems(folder, turned, images=True, check_pictures=True)
    said = "; it must be of the stored pixels, not turned by EXIF's orientation" if orientation == 6 else ""
    assert problem.endswith(f"a.jpg is 40x30 pixels, but its annotation says 30x40{said}")


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
    truth = GOOD | {"categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]}
    truth["annotations"] = [GOOD["annotations"][0] | {"category_id": 7}]
    path.write_text(json.dumps(truth))
    assert coco.read_categories(path) == ((7, "b"), (3, "a"))
    monkeypatch.setattr(coco, "read_json", lambda _: pytest.fail("read again"))
    assert coco.read_categories(path) == ((7, "b"), (3, "a"))
    monkeypatch.undo()
    path.write_text(json.dumps(truth | {"categories": truth["categories"][:1]}))
    os.utime(path, ns=(1, 1))
    assert coco.read_categories(path) == ((7, "b"),)
