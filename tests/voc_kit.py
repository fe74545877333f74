"""Pascal VOC's archives in small, in the layout of the published ones, and a mirror that has them."""

import io
import os
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

from tsd.data.manifest import digest

TRAINVAL, TEST = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"
ROOT = "VOCdevkit/VOC2007"
COLOURS = {"aeroplane": (230, 60, 40), "cat": (50, 200, 70), "tvmonitor": (60, 90, 230)}
OBJECT = """<object><name>{name}</name><truncated>0</truncated><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""

Files = dict[str, tuple[bytes, bytes]]
"""Stem → picture and XML file."""


def drawn(numbers: Sequence[int], size: tuple[int, int] = (120, 90)) -> Files:
    """Generated pictures of a rectangle or two, each class of its own colour."""
    files = {}
    for number in numbers:
        draw = random.Random(number)
        picture = Image.new("RGB", size, tuple(draw.randrange(90, 160) for _ in range(3)))
        parts = []
        for _ in range(draw.randrange(1, 3)):
            name = draw.choice(list(COLOURS))
            x, y = draw.randrange(1, size[0] // 2), draw.randrange(1, size[1] // 2)
            box = (x, y, x + draw.randrange(20, size[0] // 2), y + draw.randrange(20, size[1] // 2))
            ImageDraw.Draw(picture).rectangle([value - 1 for value in box], fill=COLOURS[name])
            parts.append(OBJECT.format(name=name, box=box, difficult=int(draw.random() < 0.1)))
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG")
        head = (
            f"<folder>VOC2007</folder><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        )
        xml = f"<annotation>{head}<segmented>0</segmented>{''.join(parts)}</annotation>"
        files[f"{number:06d}"] = (jpeg.getvalue(), xml.encode())
    return files


def published(place: Path) -> Files:
    """Pictures of VOC as published, from a folder with ``Annotations`` and ``JPEGImages``."""
    return {
        path.stem: ((place / "JPEGImages" / f"{path.stem}.jpg").read_bytes(), path.read_bytes())
        for path in sorted((place / "Annotations").glob("*.xml"))
    }


def photographs() -> Files | None:
    """Those of TSD_VOC_SAMPLE; None where it is not set."""
    place = os.environ.get("TSD_VOC_SAMPLE")
    return published(Path(place)) if place else None


def write_archive(path: Path, files: Files, name: str, more: Mapping[str, bytes | tuple[bytes, str]] = {}) -> None:
    """Write a tar as VOC's: pictures, XML, the list ``name`` of all of them, and what detection does not need.

    Args:
        path: the archive.
        files: the pictures.
        name: of the list, ``trainval`` or ``test``.
        more: further members: content, or a type of tar member and what it leads to.
    """
    stems = "".join(f"{stem}\n" for stem in files).encode()
    members: dict[str, bytes | tuple[bytes, str]] = {
        f"{ROOT}/Annotations/{stem}.xml": xml for stem, (_, xml) in files.items()
    }
    members |= {f"{ROOT}/ImageSets/{kind}/{name}.txt": stems for kind in ("Layout", "Main", "Segmentation")}
    members |= {f"{ROOT}/ImageSets/Main/cat_{name}.txt": b"".join(f"{stem} -1\n".encode() for stem in files)}
    members |= {f"{ROOT}/JPEGImages/{stem}.jpg": jpeg for stem, (jpeg, _) in files.items()}
    members |= {f"{ROOT}/SegmentationClass/{next(iter(files))}.png": b"not needed"}
    folders = {str(above) for member in members for above in Path(member).parents if str(above) != "."}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, dict.fromkeys(sorted(folders), (tarfile.DIRTYPE, "")) | members | dict(more))


def write_tar(path: Path, members: Mapping[str, bytes | tuple[bytes, str]], mode: str = "w") -> Path:
    """Write a tar: name → content, or a type and what it points to."""
    with tarfile.open(path, mode) as content:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                content.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                info.mode = 0o755 if info.isdir() else info.mode
                content.addfile(info)
    return path


def expect(project: Path, mirror: Path) -> None:
    """Let ``params/sources.yaml`` of a project expect the archives of ``mirror/voc2007``; its address is none."""
    path = project / "params/sources.yaml"
    content = yaml.safe_load(path.read_text())
    archives = sorted((mirror / "voc2007").glob("*.tar"))
    content["voc2007"] = {
        "files_url": "http://127.0.0.1:9/",
        "files": [{"path": one.name, "bytes": one.stat().st_size, "sha256": digest(one)} for one in archives],
    }
    path.write_text(yaml.safe_dump(content))
