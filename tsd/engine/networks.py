"""How large a suite's networks are and how much they compute, as ``tsd inspect`` counted it. Light: read from files.

``params/networks.csv`` has those of the suites that come with the project, ``results/<suite>/models.json`` any others.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tsd.engine.params import Settings, Suite
from tsd.errors import InputError
from tsd.files import read_json, write_text

RECORD = Path("params/networks.csv")
"""Networks counted already, by what determines them."""

SIZE = (800, 1344)
"""(height, width) of the picture that is counted for: COCO's largest, padded."""

PROPOSALS = 1000
"""RoIs that are counted for."""

COLUMNS = ("network", "suite", "experiment", "params_m", "gmacs_picture", "gmacs_rois")


@dataclass(frozen=True)
class Network:
    """A detector in numbers.

    Attributes:
        params_m: million parameters.
        gmacs_picture: 10⁹ multiply-adds of backbone, neck and RPN for a picture of :data:`SIZE`.
        gmacs_rois: those of all box heads for :data:`PROPOSALS` RoIs.
    """

    params_m: float
    gmacs_picture: float
    gmacs_rois: float

    def gmacs(self, settings: Settings) -> float:
        """10⁹ multiply-adds for one picture in training: of the size and with the RoIs that the settings say."""
        sizes = settings["input"].get("train_sizes", [settings["input"]["size"]])
        long, short = (sum(size[side] for size in sizes) / len(sizes) for side in (0, 1))
        area = long * short / (SIZE[0] * SIZE[1])
        return self.gmacs_picture * area + self.gmacs_rois * settings["roi"]["samples"] / PROPOSALS


def models_path(suite: Suite) -> Path:
    """Where the pipeline keeps what ``tsd inspect`` counted of the suite."""
    return Path("results", suite.name, "models.json")


def networks_of(suite: Suite) -> dict[str, Network]:
    """The suite's experiments whose networks have been counted as they are today.

    Raises:
        InputError: one of the two files holds what ``tsd inspect`` does not write; names the line or the key.
    """
    recorded = {network: numbers for network, (numbers, _) in _numbers(suite.root / RECORD).items()}
    own = _own(models_path(suite))
    known = {
        experiment: own.get((experiment, digest)) or recorded.get(digest)
        for experiment, digest in suite.network_digests().items()
    }
    return {experiment: network for experiment, network in known.items() if network is not None}


def network_of(facts: Mapping[str, Any]) -> Network:
    """What :func:`tsd.engine.inspect.inspect_model` counted for :data:`SIZE` and :data:`PROPOSALS`."""
    rois = facts["macs"]["roi_head"] / 1e9
    return Network(facts["params_m"], facts["gmacs"] - rois, rois)


def record(suite: Suite, facts: Mapping[str, Mapping[str, Any]], path: Path = RECORD) -> None:
    """Put the suite's networks into the record in place of those that it had there.

    Raises:
        InputError: the record is broken; names the line.
    """
    _numbers(path)
    rows = [row for row in _rows(path) if row[1] != suite.name]
    digests = suite.network_digests()
    for experiment, entry in facts.items():
        numbers = [f"{number:.3f}" for number in astuple(network_of(entry))]
        rows.append([digests[experiment], suite.name, experiment, *numbers])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *sorted(rows, key=lambda row: row[1])])
    write_text(path, text.getvalue())


def _own(path: Path) -> dict[tuple[str, str], Network]:
    """(experiment, network) → its numbers; nothing of counts for another picture."""
    if not path.exists():
        return {}
    counted = read_json(path)
    try:
        if (counted.get("size"), counted.get("proposals")) != (list(SIZE), PROPOSALS):
            return {}
        found = {(name, entry.get("network", "")): network_of(entry) for name, entry in counted["models"].items()}
        wrong = [name for (name, _), network in found.items() if not all(map(_is_amount, astuple(network)))]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what tsd inspect writes ({error!r}); remove it") from None
    if wrong:
        raise InputError(f"{path}: models.{wrong[0]}: expected numbers above 0; remove the file")
    return found


def _numbers(path: Path) -> dict[str, tuple[Network, int]]:
    """Network → its numbers, and the line that they are in."""
    found: dict[str, tuple[Network, int]] = {}
    for line, row in enumerate(_rows(path), start=2):
        try:
            numbers = [float(cell) for cell in row[3:]]
        except ValueError:
            numbers = []
        if len(row) != len(COLUMNS) or not re.fullmatch("[0-9a-f]{12}", row[0]) or not all(map(_is_amount, numbers)):
            raise InputError(f"{path}, line {line}: expected {','.join(COLUMNS)}, of which three are numbers above 0")
        network = Network(*numbers)
        other, before = found.setdefault(row[0], (network, line))
        if other != network:
            raise InputError(
                f"{path}, lines {before} and {line}: {row[0]} has different numbers; count its suites anew"
            )
    return found


def _is_amount(number: float) -> bool:
    return 0 < number < 1e9


def _rows(path: Path) -> list[list[str]]:
    """The record's rows but its first; none if there is no record."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}; take the repository's: git checkout HEAD {path}") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise InputError(f"{path}, line 1: expected {','.join(COLUMNS)}")
    return rows[1:]
