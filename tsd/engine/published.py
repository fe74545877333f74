"""Published metrics of a run: which file it is, and what it says of how the run was made."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.engine.params import Validator, validate
from tsd.errors import InputError
from tsd.files import read_json

PLACE = Path("benchmarks/evidence")
"""Published metrics, a folder for each suite."""

_KEY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)/([a-z][a-z0-9_]*)/seed(0|[1-9][0-9]{0,8})")
_FILE = re.compile(r"([a-z][a-z0-9_]*)-seed([0-9]+)-([0-9a-f]{12})-([0-9a-f]{12})\.json")

_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{12}$", "description": "a digest of 12 hexadecimal digits"}

_SCHEMA = Validator(
    {
        "type": "object",
        "required": ["metrics", "run"],
        "properties": {
            "metrics": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "scale_iou": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": {"type": ["number", "null"]},
                },
            },
            "run": {
                "type": "object",
                "required": [
                    "suite",
                    "experiment",
                    "seed",
                    "digest",
                    "test_digest",
                    "data_digest",
                    "predictions_sha256",
                ],
                "properties": {
                    "suite": {"type": "string"},
                    "experiment": {"type": "string"},
                    "seed": {"type": "integer", "minimum": 0},
                    "digest": _DIGEST,
                    "test_digest": _DIGEST,
                    "data_digest": _DIGEST,
                    "revision": {"type": "integer"},
                    "predictions_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    "git_commit": {"type": ["string", "null"], "pattern": "^[0-9a-f]{40,64}$"},
                    "git_dirty": {"type": ["boolean", "null"]},
                    "environment": {"type": "object"},
                    "runtime": {"type": "object"},
                    "losses": {
                        "type": "array",
                        "items": {
                            "type": "array",
                            "prefixItems": [{"type": "integer", "minimum": 1}, {"type": "number"}],
                            "minItems": 2,
                            "maxItems": 2,
                        },
                    },
                    "history": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["epoch"],
                            "properties": {"epoch": {"type": "integer"}},
                            "additionalProperties": {"type": ["number", "null"]},
                        },
                    },
                },
            },
        },
    }
)
"""What is read of a metrics file; more may be in it."""


@dataclass(frozen=True)
class Key:
    """The name of a run whose settings are told elsewhere: ``SUITE/EXPERIMENT/seedK``."""

    suite: str
    experiment: str
    seed: int

    @classmethod
    def parse(cls, text: str) -> "Key":
        """From text.

        Raises:
            InputError: no such name.
        """
        found = _KEY.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r}: expected SUITE/EXPERIMENT/seedK, such as evidence-cpu/baseline/seed0")
        return cls(found[1], found[2], int(found[3]))

    def __str__(self) -> str:
        return f"{self.suite}/{self.experiment}/seed{self.seed}"


@dataclass(frozen=True)
class Published:
    """A metrics file: where it is, and its content (see :func:`tsd.engine.record.run_facts`)."""

    path: Path
    content: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What it says of its run."""
        facts: dict[str, Any] = self.content["run"]
        return facts

    @property
    def key(self) -> Key:
        return Key(self.facts["suite"], self.facts["experiment"], self.facts["seed"])

    @property
    def losses(self) -> dict[int, float]:
        """Step → its loss; empty if the file tells none."""
        return dict(self.facts.get("losses", []))

    @property
    def pretrained_sha256(self) -> str | None:
        """Of the weights that the training started from, None if it tells none."""
        return self.facts.get("environment", {}).get("pretrained_sha256")


def read_published(key: Key, place: Path = PLACE) -> Published:
    """The published metrics of a run.

    Args:
        key: of the run.
        place: a file; or a folder of them, or one that has such a folder for each suite.

    Raises:
        InputError: there is none, or several (the message says which there are); or it is broken, or of another run.
    """
    published = read_metrics(place if place.is_file() else _find(key, place))
    if published.key != key:
        raise InputError(f"{published.path}: run: is of {published.key}; expected {key}")
    return published


def read_metrics(path: Path) -> Published:
    """A metrics file, by its own name or as it is in a run's folder.

    Raises:
        InputError: it is broken; a figure is out of its range; or its content is of another run than its name says.
    """
    content = read_json(path)
    validate(content, _SCHEMA, str(path))
    for name, value in _figures(content):
        least = 0 if "AP" in name or "AR" in name else -1
        if value is not None and not least <= value <= 1:
            raise InputError(f"{path}: {name}: expected a fraction from {least} to 1, got {value}")
    published = Published(path, content)
    if named := _FILE.fullmatch(path.name):
        keys = ("experiment", "seed", "digest", "test_digest")
        for key, said in zip(keys, named.groups(), strict=True):
            if str(published.facts[key]) != said:
                raise InputError(f"{path}: run.{key}: is {published.facts[key]}, but its name says {said}")
    return published


def _figures(content: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Key and value of every figure that tables and plots show."""
    yield from ((f"metrics.{name}", value) for name, value in content["metrics"].items())
    for area, by_iou in content.get("scale_iou", {}).items():
        yield from ((f"scale_iou.{area}.AP at {iou}", value) for iou, value in by_iou.items())
    for line in content["run"].get("history", []):
        yield from ((f"run.history.{name}", value) for name, value in line.items() if name != "epoch")


def check_suite(suite: str, files: Sequence[Path], data_digest: str | None = None) -> list[Published]:
    """Metrics files that are to be shown together as a suite's.

    Args:
        suite: its name.
        files: metrics files.
        data_digest: of the data that they must be of; None: any, but all of one.

    Raises:
        InputError: one that :func:`read_metrics` refuses; of another suite, on other data than expected or than the
            rest; or of the same run as another.
    """
    found: list[Published] = []
    seen: dict[tuple[Any, ...], Path] = {}
    for path in files:
        published = read_metrics(path)
        facts = published.facts
        if facts["suite"] != suite:
            raise InputError(f"{path}: of suite {facts['suite']}; expected {suite}")
        expected = data_digest or (found[0].facts["data_digest"] if found else facts["data_digest"])
        if facts["data_digest"] != expected:
            whose = "the suite's" if data_digest else f"that of {found[0].path}"
            raise InputError(f"{path}: run.data_digest: is {facts['data_digest']}; expected {expected}, {whose}")
        key = (facts["experiment"], facts["seed"], facts["digest"], facts["test_digest"])
        if key in seen:
            raise InputError(f"{path}: the same run as {seen[key]}: {published.key}; it would count twice")
        seen[key] = path
        found.append(published)
    return found


def _find(key: Key, place: Path) -> Path:
    if not place.exists():
        raise InputError(f"{place}: no such file or folder; expected published metrics")
    files = list(_files(key.suite, place))
    found = [path for known, path in files if known == key]
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise InputError(f"{place}: several files are of {key}: {names}; name one of them with --evidence FILE")
    if not found:
        known = sorted({str(known) for known, _ in files})
        close = difflib.get_close_matches(str(key), known, n=1)
        nearest = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"{place}: no published metrics of {key}{nearest}; there are: {_list(known) or 'none'}")
    return found[0]


def _files(suite: str, place: Path) -> Iterator[tuple[Key, Path]]:
    """Those of a folder, whose suite its name does not tell, or of its suites' folders."""
    own = [(suite, path) for path in place.glob("*.json")]
    for name, path in sorted([*own, *((path.parent.name, path) for path in place.glob("*/*.json"))]):
        if match := _FILE.fullmatch(path.name):
            yield Key(name, match[1], int(match[2])), path


def _list(known: list[str]) -> str:
    """Runs in few words: ``a/b/seed0, 1, 2; a/c/seed0``."""
    seeds: dict[str, list[int]] = {}
    for name in known:
        run, _, seed = name.rpartition("/seed")
        seeds.setdefault(run, []).append(int(seed))
    return "; ".join(f"{run}/seed{', '.join(map(str, sorted(numbers)))}" for run, numbers in seeds.items())
