"""Generated scenes: a detection data set with exact boxes and masks, the same bytes on every machine.

Pictures are JPEG by Pillow, whose bundled encoder is pinned by the lock; everything before it is integer arithmetic
(:mod:`tsd.data.scenes`). A picture depends on (seed, split, index) alone, so neither the number of processes nor
their order matters.
"""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from tsd.data.manifest import MANIFEST, build_manifest, dump, read_manifest
from tsd.data.scenes import SHAPES, TEXTURES, Thing, background, class_names, draw_clutter, draw_thing
from tsd.errors import InputError

SPLITS = ("train", "val")
PARTS = {"annotations", *SPLITS, "openimages", "pictures.tar", MANIFEST, ".gitignore", ".snakemake_timestamp"}
"""What a generated data set's folder can hold; nothing else is ever replaced."""

MIN_VISIBLE = 12
"""Pixels below which an object counts as hidden."""


@dataclass(frozen=True)
class SceneSpec:
    """Parameters of a generated data set. Sizes in pixels or, where named so, fractions of the shorter side."""

    seed: int = 0
    size: int | tuple[int, int] = 128
    classes: int = 6
    train: int = 200
    val: int = 50
    objects: tuple[int, int] = (1, 4)
    object_size: tuple[float, float] = (0.15, 0.5)
    aspect: tuple[float, float] = (0.4, 2.5)
    rotation: int = 180
    clutter: int = 6
    occlusion: float = 0.5
    tail: float = 0.6
    formats: tuple[str, ...] = ("coco",)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SceneSpec":
        """A spec from plain data.

        Raises:
            InputError: unknown key, wrong type, or a value out of range; names the key.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in content:
            if key not in fields:
                raise InputError(f"generate.{key}: unknown key; known: {', '.join(fields)}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        spec = cls(**values)
        spec._check()
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every key."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def _check(self) -> None:
        def need(key: str, okay: bool, what: str) -> None:
            if not okay:
                raise InputError(f"generate.{key}: expected {what}, got {getattr(self, key)!r}")

        def whole(value: Any, low: int, high: int = 1 << 31) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        def number(value: Any, low: float, high: float) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

        def span(value: Any, check: Callable[[Any], bool]) -> bool:
            return isinstance(value, tuple) and len(value) == 2 and all(map(check, value)) and value[0] <= value[1]

        most = len(SHAPES) * len(TEXTURES)
        need("seed", whole(self.seed, 0), "an integer of at least 0")
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        need(
            "size",
            len(sides) == 2 and all(whole(side, 32, 4096) for side in sides),
            "pixels from 32 to 4096, or [width, height]",
        )
        need("classes", whole(self.classes, 2, most), f"an integer from 2 to {most}")
        need("train", whole(self.train, 1), "a positive integer")
        need("val", whole(self.val, 1), "a positive integer")
        need("objects", span(self.objects, lambda value: whole(value, 1, 100)), "[lowest, highest] number, 1 to 100")
        need(
            "object_size",
            span(self.object_size, lambda value: number(value, 0.02, 1.0)),
            "[lowest, highest] fraction, 0.02 to 1",
        )
        need(
            "aspect",
            span(self.aspect, lambda value: number(value, 0.1, 10.0)),
            "[lowest, highest] width/height, 0.1 to 10",
        )
        need("rotation", whole(self.rotation, 0, 180), "degrees from 0 to 180")
        need("clutter", whole(self.clutter, 0, 1000), "an integer from 0 to 1000")
        need("occlusion", number(self.occlusion, 0.0, 1.0), "a fraction from 0 to 1")
        need("tail", number(self.tail, 0.0, 3.0), "an exponent from 0 to 3")
        known = ("coco", "openimages")
        need(
            "formats",
            isinstance(self.formats, tuple) and "coco" in self.formats and set(self.formats) <= set(known),
            "coco, and openimages if wanted",
        )


def generate(spec: SceneSpec, out: Path, workers: int = 1, force: bool = False) -> None:
    """Render a data set into ``out``: annotations/, train/, val/, pictures.tar and manifest.json.

    All is made in a folder beside ``out`` that takes its place when it is whole. A folder that already holds the same
    data set is left as it is.

    Args:
        spec: parameters.
        out: folder.
        workers: processes; the bytes do not depend on them.
        force: replace other generated data in ``out``.

    Raises:
        InputError: ``out`` is a file, holds other scenes and ``force`` is off, or holds anything but generated data:
            a file of another name, or no manifest that says with what settings it was generated.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; expected a folder")
    if out.exists() and any(out.iterdir()):
        if foreign := sorted(path.name for path in out.iterdir() if path.name not in PARTS):
            raise InputError(f"{out}: holds {foreign[0]}, which is no generated data; choose an empty folder")
        made_with = _made_with(out)
        if made_with is None:
            if not _only_empty_folders(out):
                raise InputError(
                    f"{out}: its files are not the generator's: no {MANIFEST} says with what settings they were made; "
                    "choose an empty folder, or remove this one yourself"
                )
        elif not _is(made_with, spec):
            if not force:
                raise InputError(f"{out}: holds other scenes; use --force to replace them")
        elif (out / "train").is_dir() and (out / "val").is_dir():
            print(f"{out}: already there", file=sys.stderr)
            return
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    try:
        _write(spec, temporary, workers)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _made_with(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder was generated with, maybe by another version; None: its manifest names none."""
    try:
        told = read_manifest(folder / MANIFEST)["spec"]
    except (InputError, KeyError, TypeError):
        return None
    return told if isinstance(told, dict) else None


def _is(told: dict[str, Any], spec: SceneSpec) -> bool:
    try:
        return SceneSpec.from_dict(told) == spec
    except (InputError, TypeError):
        return False


def _only_empty_folders(folder: Path) -> bool:
    """Snakemake makes the folders of a rule's outputs before it runs the rule, DVC puts a .gitignore there."""
    return all(path.is_dir() or path.name in (".snakemake_timestamp", ".gitignore") for path in folder.rglob("*"))


def _write(spec: SceneSpec, folder: Path, workers: int) -> None:
    (folder / "annotations").mkdir(parents=True)
    contents = {}
    for split in SPLITS:
        (folder / split).mkdir()
        count = getattr(spec, split)
        job = partial(_save_scene, spec, split, folder / split)
        with _pool(workers) as pool:
            scenes = list(
                tqdm(pool.map(job, range(count), chunksize=16), total=count, desc=split, unit="picture", mininterval=2)
            )
        contents[split] = _coco(spec, split, scenes)
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(contents[split], sort_keys=True, separators=(",", ":")) + "\n")
    if "openimages" in spec.formats:
        from tsd.data.openimages_csv import write_openimages

        for split in SPLITS:
            write_openimages(contents[split], split, folder / "openimages", spec.seed)
    archive(folder, folder / "pictures.tar")
    manifest = build_manifest(
        folder,
        {split: (f"annotations/instances_{split}.json", split) for split in SPLITS},
        spec=spec.to_dict(),
        others=sorted(str(path.relative_to(folder)) for path in folder.glob("openimages/*")),
    )
    (folder / MANIFEST).write_text(dump(manifest))


@contextmanager
def _pool(workers: int) -> Iterator["ProcessPoolExecutor | _Serial"]:
    """Processes that end with what they are used for: at once if it fails or is stopped."""
    if workers <= 1:
        yield _Serial()
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, initializer=_obey_only_the_parent)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _obey_only_the_parent() -> None:
    """Start of a worker: Ctrl-C reaches all and is the parent's to handle; its own handlers are for it alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Serial:
    """The part of a process pool that is used, in this process."""

    def map(self, function: Callable[[int], Any], items: Iterable[int], chunksize: int = 1) -> Iterable[Any]:
        return map(function, items)


def archive(folder: Path, target: Path) -> None:
    """Pack the pictures of all splits into a tar whose bytes depend on names and contents only."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for split in SPLITS:
            for path in sorted((folder / split).iterdir()):
                info = tarfile.TarInfo(f"{split}/{path.name}")
                info.size, info.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)


def _save_scene(spec: SceneSpec, split: str, folder: Path, index: int) -> list[dict[str, Any]]:
    canvas, objects = render(spec, split, index)
    Image.fromarray(canvas).save(folder / picture_name(index), quality=95, subsampling=0)
    return objects


def picture_name(index: int) -> str:
    """File name of a picture."""
    return f"{index + 1:012d}.jpg"


def render(spec: SceneSpec, split: str, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One scene: RGB uint8 (height, width, 3), and its objects with label, visible mask's RLE, xywh box and area.

    An object of which more than ``spec.occlusion`` is hidden by later ones, or outside the picture, is painted over
    by leaving it out: the scene is drawn again without it, so that nothing visible lacks an annotation.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, SPLITS.index(split), index])))
    width, height = spec.shape
    ground = background(rng, spec.shape)
    draw_clutter(rng, ground, spec.clutter)
    grain = rng.integers(-6, 7, size=(height, width, 1))
    count = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    names = [name for name, _ in class_names(spec.classes)]
    things = [_thing(rng, spec, ground, index if order == 0 else None) for order in range(count)]
    while True:
        canvas = ground.copy()
        owner = np.full((height, width), -1, dtype=np.int64)
        whole = []
        for order, thing in enumerate(things):
            mask, window = draw_thing(canvas, thing, names[thing.label], grain)
            owner[window][mask] = order
            whole.append(_full_area(thing, names[thing.label]))
        visible = np.bincount(owner[owner >= 0], minlength=len(things))
        hidden = [
            order
            for order in range(len(things))
            if visible[order] < MIN_VISIBLE or (whole[order] - visible[order]) > spec.occlusion * whole[order]
        ]
        if not hidden or len(things) == 1:
            break
        # Leaving one out uncovers others: judge again.
        worst = min(hidden, key=lambda order: (visible[order] / whole[order], order))
        things.pop(worst)
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    return picture, [_annotation(owner == order, thing.label) for order, thing in enumerate(things)]


def _full_area(thing: Thing, name: str) -> int:
    """Pixels of the thing if nothing hid it and the picture went on for ever."""
    reach = math.isqrt(thing.half_width**2 + thing.half_height**2) // 16 + 4
    moved = dataclasses.replace(thing, x=reach * 16 + thing.x % 16, y=reach * 16 + thing.y % 16)
    canvas = np.zeros((2 * reach + 2, 2 * reach + 2, 3), dtype=np.int64)
    mask, _ = draw_thing(canvas, moved, name, canvas[..., :1])
    return int(mask.sum())


def _thing(rng: np.random.Generator, spec: SceneSpec, ground: np.ndarray, index: int | None) -> Thing:
    width, height = spec.shape
    # The first object of the first pictures walks through the classes, so that each occurs in either split.
    label = index if index is not None and index < spec.classes else _draw_label(rng, spec)
    side = min(width, height)
    low, high = (round(bound * side * 8) for bound in spec.object_size)
    half = int(rng.integers(low, high + 1))
    aspect = _log_uniform(rng, spec.aspect)
    half_width = max(32, math.isqrt(half * half * aspect // 1024))
    half_height = max(32, math.isqrt(half * half * 1024 // aspect))
    margin_x, margin_y = min(half_width, width * 8 - 16), min(half_height, height * 8 - 16)
    x = int(rng.integers(margin_x * 3 // 4, width * 16 - margin_x * 3 // 4))
    y = int(rng.integers(margin_y * 3 // 4, height * 16 - margin_y * 3 // 4))
    colours = _colours(rng, ground[min(y // 16, height - 1), min(x // 16, width - 1)])
    angle = int(rng.integers(-spec.rotation, spec.rotation + 1))
    return Thing(label, x, y, half_width, half_height, angle, colours)


def _draw_label(rng: np.random.Generator, spec: SceneSpec) -> int:
    """A class by Zipf's law of exponent ``tail``, with integer weights."""
    weights = [round(1_000_000 / (rank + 1) ** spec.tail) for rank in range(spec.classes)]
    ticket = int(rng.integers(sum(weights)))
    for label, weight in enumerate(weights):
        if ticket < weight:
            return label
        ticket -= weight
    raise AssertionError("the ticket is below the sum of the weights")


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> int:
    """Width/height in 1/1024, as likely wide as high where the bounds are symmetric."""
    low, high = (round(math.log2(bound) * 1024) for bound in bounds)
    return max(1, round(2 ** (int(rng.integers(low, high + 1)) / 1024) * 1024))


def _colours(rng: np.random.Generator, ground: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two colours, each far from the background and from one another."""
    chosen: list[np.ndarray] = []
    while len(chosen) < 2:
        colour = rng.integers(0, 256, size=3)
        others = [ground, *chosen]
        if all(int(np.abs(colour - other).sum()) >= 180 for other in others):
            chosen.append(colour)
    first, second = (tuple(int(value) for value in colour) for colour in chosen)
    return first, second  # type: ignore[return-value]


def _annotation(mask: np.ndarray, label: int) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "label": label,
        "bbox": [int(value) for value in box],
        "area": int(mask.sum()),
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode()},
    }


def _coco(spec: SceneSpec, split: str, scenes: list[list[dict[str, Any]]]) -> dict[str, Any]:
    width, height = spec.shape
    images = [
        {"id": index + 1, "file_name": picture_name(index), "width": width, "height": height}
        for index in range(len(scenes))
    ]
    flat = [(index + 1, thing) for index, things in enumerate(scenes) for thing in things]
    annotations = [
        {
            "id": number + 1,
            "image_id": image,
            "category_id": thing["label"] + 1,
            "bbox": thing["bbox"],
            "area": thing["area"],
            "segmentation": thing["segmentation"],
            "iscrowd": 0,
        }
        for number, (image, thing) in enumerate(flat)
    ]
    categories = [
        {"id": number + 1, "name": name, "supercategory": parent}
        for number, (name, parent) in enumerate(class_names(spec.classes))
    ]
    info = {"description": f"generated scenes, {split}", "seed": spec.seed}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
