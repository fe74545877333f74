"""COCO's archives in small, in the layout of the published ones, and a mirror that has them."""

import io
import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from tsd.data.formats.coco_place import PARTS, SPLITS
from tsd.data.manifest import digest
from tsd.data.sources import Source, SourceFile

NEEDED = [PARTS[part].archive for part in ("train2017", "val2017", "annotations")]
NAMES = {"train": (1, 2, 3, 4, 5), "val": (6, 7, 8)}
COLOURS = {"cat": (230, 60, 40), "dog": (50, 200, 70), "bus": (60, 90, 230)}


def drawn(numbers: Sequence[int], size: tuple[int, int] = (96, 72)) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Generated pictures with a box or two each: name → JPEG, and the instances."""
    pictures, images, annotations = {}, [], []
    for number in numbers:
        draw = random.Random(number)
        picture = Image.new("RGB", size, tuple(draw.randrange(90, 160) for _ in range(3)))
        name = f"{number:012d}.jpg"
        for turn in range(draw.randrange(1, 3)):
            category = draw.randrange(len(COLOURS))
            x, y = draw.randrange(size[0] // 2), draw.randrange(size[1] // 2)
            box = [x, y, draw.randrange(20, size[0] // 2), draw.randrange(20, size[1] // 2)]
            ImageDraw.Draw(picture).rectangle(
                [x, y, x + box[2] - 1, y + box[3] - 1], fill=list(COLOURS.values())[category]
            )
            annotations.append(
                {
                    "id": 10 * number + turn,
                    "image_id": number,
                    "category_id": category + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": [[x, y, x + box[2], y, x + box[2], y + box[3], x, y + box[3]]],
                    "iscrowd": 0,
                }
            )
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        content = io.BytesIO()
        picture.save(content, "JPEG")
        pictures[name] = content.getvalue()
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(COLOURS)]
    return pictures, {"images": images, "annotations": annotations, "categories": categories}


def write_archive(path: Path, members: Mapping[str, bytes | str]) -> None:
    """Write a zip with its folders as members of their own, as the published ones have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as content:
        for folder in sorted({name.split("/")[0] for name in members}):
            content.writestr(f"{folder}/", b"")
        for name, data in members.items():
            content.writestr(name, data)


def write_mirror(folder: Path, names: Mapping[str, Sequence[int]] = NAMES) -> None:
    """Write the three archives of training and validation, and with them what nobody wants of them."""
    texts = {}
    for split, numbers in names.items():
        pictures, instances = drawn(numbers)
        place = SPLITS[split]
        write_archive(folder / PARTS[place].archive, {f"{place}/{name}": data for name, data in pictures.items()})
        texts[f"annotations/instances_{place}.json"] = json.dumps(instances)
        texts[f"annotations/captions_{place}.json"] = "{}"
    write_archive(folder / PARTS["annotations"].archive, texts)


def source_of(folder: Path, url: str = "http://127.0.0.1:9/", names: Mapping[str, Sequence[int]] = NAMES) -> Source:
    """What ``params/sources.yaml`` says of a mirror."""
    files = [folder / name for name in NEEDED]
    return Source(
        "small",
        url,
        tuple(SourceFile(name, path.stat().st_size, digest(path)) for name, path in zip(NEEDED, files, strict=True)),
        None,
        {split: len(numbers) for split, numbers in names.items()},
        annotations={split: len(drawn(numbers)[1]["annotations"]) for split, numbers in names.items()},
        categories=len(COLOURS),
    )


def expect(project: Path, source: Source) -> None:
    """Write the source to ``params/sources.yaml`` of a project."""
    path = project / "params/sources.yaml"
    content = yaml.safe_load(path.read_text())
    content[source.name] = {
        "files_url": source.files_url,
        "files": [vars(file) for file in source.files],
        "pictures": source.pictures,
        "annotations": source.annotations,
        "categories": source.categories,
    }
    path.write_text(yaml.safe_dump(content))
