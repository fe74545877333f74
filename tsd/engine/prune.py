"""Runs and published metrics that today's params no longer resolve to, and their removal."""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.params import Suite, get_runs
from tsd.engine.train import is_training
from tsd.errors import InputError
from tsd.evaluation.draws import SUFFIX


@dataclass(frozen=True)
class Stale:
    """What may be removed, and whether anything of the suite would be left of its kind."""

    paths: tuple[Path, ...]
    """Run folders, folders of evaluations in current runs, published metrics and draws."""
    whole: tuple[str, ...]
    """Of ``runs`` and ``published metrics``, those of which nothing is current: all of them would go."""


def find_stale(suite: Suite) -> Stale:
    """What today's params no longer resolve to.

    Raises:
        InputError: the suite's data is away or its pin can't be read, so that nobody can tell which runs are of it.
    """
    digest = data_digest(suite)
    if digest == ABSENT:
        raise InputError(
            f"{suite.split('train')[0]}: no such file; without the data it can't be told which runs are of it, and "
            "nothing is removed"
        )
    runs = get_runs(suite, digest)
    results = Path("results", suite.name)
    folders = sorted(
        path
        for path in (results / "runs").glob("*/*/seed*")
        if re.fullmatch(r"seed\d+", path.name) and not path.parents[1].is_symlink()
    )
    metrics = results / "metrics"
    published = sorted([*metrics.glob("*.json"), *metrics.glob(f"*{SUFFIX}")])
    kinds = {
        "runs": (folders, {run.folder for run in runs}),
        "published metrics": (published, {path for run in runs for path in (run.metrics_file, run.draws_file)}),
    }
    evaluations = [
        folder for run in runs for folder in sorted((run.folder / "eval").glob("*")) if folder != run.eval_folder
    ]
    stale = {kind: [path for path in there if path not in current] for kind, (there, current) in kinds.items()}
    whole = tuple(kind for kind, (there, _) in kinds.items() if there and stale[kind] == there)
    return Stale((*stale["runs"], *evaluations, *stale["published metrics"]), whole)


def prune(suite: Suite, named: Sequence[Path]) -> None:
    """Remove what is stale: all of it, or what is named. A run that is being trained is left, and it is said.

    Args:
        suite: whose runs.
        named: paths as they are listed.

    Raises:
        InputError: a name that is not stale; or nothing is named, and no run or no published metrics would be left:
            the cause may be an edit that was not meant.
    """
    stale = find_stale(suite)
    known = {path.resolve(): path for path in stale.paths}
    for path in named:
        if path.resolve() not in known:
            raise InputError(f"{path}: not among what `tsd prune --suite {suite.name}` lists; nothing is removed")
    if stale.whole and not named:
        raise InputError(
            f"these are all {' and all '.join(stale.whole)} of suite {suite.name}: nothing is removed. If params/ and "
            f"data.dvc are as they should be, name each: `tsd prune --suite {suite.name} --yes PATH …`"
        )
    for path in [known[path.resolve()] for path in named] or stale.paths:
        if is_training(path):
            print(f"{path}: left, a process is training this run", file=sys.stderr)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
