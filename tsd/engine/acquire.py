"""A suite's data, fetched: Open Images by file and picture, COCO and VOC by archive, scenes from a server here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsd.data import fetch
from tsd.data.formats import coco_archives
from tsd.data.formats.coco_place import NEEDED
from tsd.data.formats.voc_archives import make_folder, read_archives
from tsd.data.generate import SceneSpec, generate
from tsd.data.manifest import digest, read_manifest
from tsd.data.openimages import SPLITS, Challenge, read_boxes, read_classes, read_labels
from tsd.data.pictures import PICTURES, Key, verify_pictures
from tsd.data.plan import Options, plan, write_plans
from tsd.data.serve import served
from tsd.data.sources import Source, SourceFile, load_source
from tsd.data.store import Store, build_store
from tsd.engine.identity import suite_source
from tsd.engine.params import Suite, plan_path
from tsd.errors import InputError
from tsd.files import read_json
from tsd.report import figures

ORIGIN = "origin"
"""Folder of what is generated and then served, below the suite's."""

SHARDS = {"train": tuple(f"train_{digit}" for digit in "0123456789abcdef"), "validation": ("validation",)}
"""Archives of the bucket that hold each split."""


@contextmanager
def opened_source(suite: Suite, workers: int = 1) -> Iterator[Source]:
    """An Open Images suite's source: of ``params/sources.yaml``, or generated and served on this machine."""
    if "generate" not in suite.data:
        yield suite_source(suite)
        return
    origin = Path(suite.data["folder"], ORIGIN)
    generate(SceneSpec.from_dict(suite.data["generate"]), origin, workers=workers)
    manifest = read_manifest(origin / "manifest.json")
    files = tuple(
        SourceFile(Path(entry["path"]).name, entry["bytes"], entry["sha256"])
        for name, entry in manifest["files"].items()
        if name.startswith("openimages/")
    )
    counts = {SPLITS[split]: entry["images"]["count"] for split, entry in manifest["splits"].items()}
    pictures = {f"pictures/{SPLITS[split]}": origin / split for split in SPLITS}
    with served({"files": origin / "openimages", **pictures}) as url:
        yield Source("generated", f"{url}/files/", files, f"{url}/pictures/", counts, 10_000)


def annotated(suite: Suite) -> Challenge:
    """Where the suite's files are; they are there.

    Raises:
        InputError: another format, or a file that has not been fetched.
    """
    missing = [path for path in suite.challenge.files if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file; `tsd data fetch --suite {suite.name} --what annotations` gets it"
        )
    return suite.challenge


def fetch_annotations(suite: Suite, workers: int = 1) -> list[Path]:
    """Fetch the challenge's six files; errors as for :func:`tsd.data.fetch.fetch_files`."""
    with opened_source(suite, workers) as source:
        return fetch.fetch_files(source, suite.challenge.annotations)


def fetch_pictures(suite: Suite, *, threads: int = 32, shards: bool = False) -> dict[str, Any]:
    """Fetch the pictures that the suite's runs need; errors as for :func:`tsd.data.fetch.fetch_pictures`."""
    wanted = wanted_pictures(suite)
    folder = suite.challenge.folder
    with opened_source(suite) as source:
        if shards:
            names = [(split, name) for split in SHARDS for name in SHARDS[split]]
            return fetch.fetch_shards(source, folder, names, wanted)
        return fetch.fetch_pictures(source, folder, wanted, threads=threads)


def wanted_pictures(suite: Suite) -> list[Key]:
    """(split, id) of every picture that the suite's runs show or are evaluated on.

    Validation: all of the boxes' and the image-level labels' files. Training: what ``tsd sample`` planned for each
    seed, or with ``pictures: all`` every picture with a box.

    Raises:
        InputError: annotations or plans are not there.
    """
    challenge = annotated(suite)
    mids, _ = read_classes(challenge.classes)
    boxed = read_boxes(challenge.boxes("val"), mids).pictures
    labelled = read_labels(challenge.labels("val"), mids).pictures
    wanted = [(SPLITS["val"], name) for name in sorted({*boxed, *labelled})]
    train = SPLITS["train"]
    if suite.data.get("pictures", "planned") == "all":
        return wanted + [(train, name) for name in sorted(read_boxes(challenge.boxes("train"), mids).pictures)]
    drawn: set[str] = set()
    for seed in suite.seeds:
        path = plan_path(suite, seed)
        if not path.is_file():
            raise InputError(f"{path}: no such file; `tsd sample --suite {suite.name} --seed {seed}` writes it")
        drawn.update(path.read_text(encoding="utf-8").split())
    return wanted + [(train, name) for name in sorted(drawn)]


def plan_suite(suite: Suite, seed: int) -> list[dict[str, Any]]:
    """Write the list of training pictures that the suite's runs of a seed draw, with statistics and a plot beside it.

    Returns:
        A plan for each way of sampling among the suite's experiments, see :func:`tsd.data.plan.plan`.
    """
    challenge = annotated(suite)
    ways: dict[Options, int] = {}
    for settings in suite.settings.values():
        options = Options(**settings["train_data"])
        ways[options] = max(ways.get(options, 0), settings["schedule"]["epochs"])
    files = (challenge.boxes("train"), challenge.classes, challenge.hierarchy)
    plans = [plan(*files, options, seed=seed, epochs=epochs) for options, epochs in ways.items()]
    output = plan_path(suite, seed)
    write_plans(plans, output)
    figures.sampling([made.facts for made in plans], output.with_suffix(".png"))
    return [made.facts for made in plans]


def build_stores(suite: Suite) -> dict[str, dict[str, Any]]:
    """CSV → columnar stores of both splits.

    Raises:
        InputError: a file that can't be used, or one with another number of pictures than the source's.
    """
    challenge = annotated(suite)
    record = challenge.folder / PICTURES
    with_source = None if "generate" in suite.data else suite_source(suite).pictures
    counts = {}
    for split, name in SPLITS.items():
        files = (challenge.boxes(split), challenge.labels(split), challenge.classes, challenge.hierarchy)
        counts[split] = build_store(
            *files, challenge.store(split), pictures=record if record.exists() else None, split=name
        )
        found = counts[split]["pictures_with_boxes"]
        if with_source and found != with_source.get(name, found):
            raise InputError(
                f"{files[0]}: {found} pictures with a box, but params/sources.yaml expects {with_source[name]}"
            )
    return counts


def verify_openimages(suite: Suite, contents: bool = False) -> dict[str, int]:
    """Check the six files, the stores, and that every picture that is needed is there; returns pictures per split.

    Raises:
        InputError: anything is missing or differs; the message lists what.
    """
    challenge = annotated(suite)
    problems: list[str] = []
    expected = _expected_digests(suite)
    digests = {path.name: digest(path) for path in challenge.files}
    for name, value in digests.items():
        if expected and value != expected.get(name):
            problems.append(f"{challenge.annotations / name}: its content is not the source's; fetch it again")
    counts = {}
    for split in SPLITS:
        folder = challenge.store(split)
        store = Store.open(folder)
        counts[split] = len(store.boxed) if split == "train" else len(store)
        sources = read_json(folder / "store.json")["sources"]
        stale = [name for name, value in sources.items() if digests.get(name) != value]
        if stale:
            problems.append(f"{folder}: made from another {stale[0]}; `tsd data openimages --suite {suite.name}`")
    problems += verify_pictures(challenge.folder, wanted_pictures(suite), contents)
    if problems:
        raise InputError("\n".join(problems))
    return counts


def _expected_digests(suite: Suite) -> dict[str, str]:
    if "generate" not in suite.data:
        return {Path(file.path).name: file.sha256 for file in suite_source(suite).files}
    origin = Path(suite.data["folder"], ORIGIN, "manifest.json")
    if not origin.exists():
        return {}
    return {Path(entry["path"]).name: entry["sha256"] for entry in read_manifest(origin)["files"].values()}


def fetch_import(suite: Suite, workers: int = 1) -> dict[str, tuple[int, int]] | None:
    """Make the suite's folder of its source's archives; None if it is there. Else pictures and boxes of each split.

    Args:
        suite: with ``data.import``.
        workers: threads that read and write pictures; what is written does not depend on their number.

    Raises:
        InputError, WorkError: as :func:`tsd.data.formats.voc_archives.make_folder`.
    """
    archives = read_archives(suite.data)
    archives = replace(archives, options=replace(archives.options, workers=workers))
    return make_folder(archives, load_source(archives.source, suite.root))


def fetch_coco(suite: Suite, parts: Sequence[str] = NEEDED) -> dict[str, int] | None:
    """Make the suite's folder of its source's archives; None if it is there. Else files of each part.

    Raises:
        InputError: the suite does not name a source; else as :func:`tsd.data.formats.coco_archives.make_folder`.
        WorkError: as there.
    """
    place = suite.fetched
    if place is None:
        raise InputError(f"params/suites/{suite.name}.yaml: data.source: missing: nothing says where to fetch from")
    return coco_archives.make_folder(place, load_source(place.source, suite.root), parts)
