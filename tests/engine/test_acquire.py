"""A suite's data, fetched from a mirror on this machine."""

import io
import json
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import copy_project, tsd
from tsd.data.manifest import digest
from tsd.data.serve import served


def archive(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as content:
        for name, data in members.items():
            content.writestr(name, data)


def picture(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


MASK = {"segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}


def instances(numbers):
    return json.dumps(
        {
            "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": 24, "height": 16} for n in numbers],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0, **MASK}
                for n in numbers
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
    )


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """COCO in small: archives of the official names, and a project whose sources.yaml expects them."""
    folder = tmp_path / "mirror"
    splits = {"train2017": (1, 2, 3), "val2017": (4, 5)}
    for name, numbers in splits.items():
        archive(folder / f"zips/{name}.zip", {f"{name}/{n:012d}.jpg": picture(n) for n in numbers})
    files = {f"annotations/instances_{name}.json": instances(numbers) for name, numbers in splits.items()}
    archive(folder / "annotations/annotations_trainval2017.zip", files)
    project = copy_project(tmp_path / "project", monkeypatch)
    names = ("zips/train2017.zip", "zips/val2017.zip", "annotations/annotations_trainval2017.zip")
    entry = {
        "files_url": "http://127.0.0.1:9/",
        "files": [
            {"path": name, "bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in names
        ],
        "pictures": {"train": 3, "val": 2},
    }
    (project / "params/sources.yaml").write_text(yaml.safe_dump({"coco": entry}))
    with served({"coco": folder}) as url:
        monkeypatch.setenv("TSD_MIRROR", url)
        yield folder, project


def test_coco_is_fetched_unpacked_and_verified(mirror):
    done = tsd("data", "fetch", "--suite", "coco")
    assert done.returncode == 0, done.stderr
    assert "train2017: 3 files\nval2017: 2 files\nannotations: 2 files\n" in done.stdout
    done = tsd("data", "verify", "--suite", "coco", "--pictures")
    assert done.returncode == 0, done.stderr
    assert "3 training and 2 validation pictures" in done.stdout
    (mirror[1] / "data/coco/train2017/000000000001.jpg").unlink()
    done = tsd("data", "verify", "--suite", "coco")
    assert done.returncode == 2
    assert "train2017/000000000001.jpg: missing" in done.stderr
    done = tsd("data", "fetch", "--suite", "coco")
    assert (done.returncode, done.stdout) == (0, "data/coco: is there, used as it is\n")


def test_another_archive_than_the_published_one_is_refused(mirror):
    path = mirror[0] / "zips/val2017.zip"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    done = tsd("data", "fetch", "--suite", "coco", "--parts", "val2017")
    assert done.returncode == 1
    assert "val2017.zip: SHA-256 is" in done.stderr
    assert not (mirror[1] / "data/coco/val2017").exists()


def test_another_number_of_pictures_is_an_error(mirror):
    path = mirror[1] / "params/sources.yaml"
    content = yaml.safe_load(path.read_text())
    content["coco"]["pictures"]["val"] = 5000
    path.write_text(yaml.safe_dump(content))
    done = tsd("data", "fetch", "--suite", "coco", "--parts", "val2017")
    assert done.returncode == 2
    assert "val2017.zip: 2 pictures, expected 5000" in done.stderr


def test_a_suite_without_a_source_says_so(mirror):
    done = tsd("data", "fetch", "--suite", "demo")
    assert done.returncode == 2
    assert "params/suites/demo.yaml: data.source: missing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "openimages", "--suite", "demo"), "data.format: expected openimages, got generated"),
        (("sample", "--suite", "demo"), "data.format: expected openimages, got generated"),
        (("sample", "--suite", "openimages"), "no such file; `tsd data fetch --suite openimages --what annotations`"),
        (("data", "verify", "--suite", "openimages"), "no such file; `tsd data fetch --suite openimages"),
        (("data", "fetch", "--suite", "openimages", "--what", "pictures"), "no such file; `tsd data fetch"),
        (("data", "fetch", "--suite", "openimages", "--parts", "val2017"), "only the archives of COCO"),
        (("data", "generate", "--scale", "challenge2019", "--out", "x"), "go together"),
    ],
)
def test_what_is_missing_or_does_not_go_together_is_said(mirror, arguments, message):
    from tsd.cli import main

    text = (mirror[1] / "params/sources.yaml").read_text()
    (mirror[1] / "params/sources.yaml").write_text(
        text + "openimages: {files_url: http://127.0.0.1:9/, files: [], pictures_url: http://127.0.0.1:9/}\n"
    )
    import contextlib

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(list(arguments)) == 2
    assert message in said.getvalue()
