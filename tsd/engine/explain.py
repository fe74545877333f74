"""From a cell of a table back to the data: what each figure comes from, and what an edit would make anew."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsd.engine.identity import PIN, data_digest, manifest_path, pinned
from tsd.engine.params import Run, Settings, Suite, existing_metrics, get_runs, lineage, load_suite
from tsd.engine.run_files import read_environment
from tsd.errors import InputError, ParamsError
from tsd.files import parse_yaml
from tsd.report import tables
from tsd.status import read_status
from tsd.tracking.process import NoAnswerError, Process, RefusedError
from tsd.tracking.store import may_be_there, tracking_uri, without_password

PARAMS = Path("params")

PATIENCE = 15.0
"""Seconds for MLflow to say which run it has."""


def explain(suite: Suite) -> str:
    """A line per run of the suite: digest, folder, and what is there of it."""
    digest = data_digest(suite)
    lines = [f"data digest {digest}, recipe {suite.recipe}"]
    for run in get_runs(suite, digest):
        lines.append(f"{run.experiment:12s} seed{run.seed}  {_state(run):34s} {run.folder}")
    return "\n".join(lines)


def _state(run: Run) -> str:
    if run.metrics_file.exists():
        return "evaluated"
    if run.checkpoint.exists():
        return "trained, to be evaluated"
    if (content := read_status(run.folder)) is not None:
        return f"{content['status'].lower()}, resumes" + (f": {content['error']}" if content["error"] else "")
    return "to be trained"


def explain_rows(suite: Suite, table: str, row: str | None = None) -> str:
    """The chain from each cell of a table's rows to the data.

    Args:
        suite: whose runs.
        table: as in ``tables.yaml`` (``table3``) or in the paper (``Table 3``).
        row: its id, label or experiment; None: every row.

    Raises:
        InputError: no such table or row; says which there are.
    """
    name, definition = _find_table(table)
    rows = _find_rows(name, definition, row)
    reported = tables.load_reported(PARAMS)
    digest = data_digest(suite)
    runs = get_runs(suite, digest)
    files = existing_metrics(runs)
    built = tables.build_table(name, definition | {"rows": rows}, tables.collect_results(files), reported, "")
    lines = [f"{definition['title']} ({definition['source']}, {name} in {PARAMS}/tables.yaml), suite {suite.name}"]
    for described, shown in zip(rows, built.rows, strict=True):
        lines += ["", f"row {described['id']}: {shown.label}"]
        for column, cell in zip(definition["columns"], shown.cells, strict=True):
            place = f"({PARAMS}/reported.csv, {described.get('reported')})"
            paper = f"; the paper: {cell.reported} {place}" if cell.reported else ""
            lines.append(f"  {column['label']}: {cell.measured or 'quoted'}{paper}")
        lines += _of_experiment(suite, described.get("experiment"), runs)
    return "\n".join([*lines, "", *_of_data(suite, digest)])


def _find_table(name: str) -> tuple[str, dict[str, Any]]:
    known = tables.load_tables(PARAMS)
    key = re.sub(r"\s+", "", name).lower()
    if key not in known:
        raise InputError(f"no table {name!r} in {PARAMS}/tables.yaml; there are: {', '.join(known)}")
    return key, known[key]


def _find_rows(table: str, definition: Mapping[str, Any], row: str | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = definition["rows"]
    if row is None:
        return rows
    found = [entry for key in ("id", "label", "experiment") for entry in rows if entry.get(key) == row]
    if not found:
        raise InputError(f"{table}: no row {row!r}; there are: {', '.join(entry['id'] for entry in rows)}")
    return [entry for entry in rows if entry in found]


def _of_experiment(suite: Suite, experiment: str | None, runs: Sequence[Run]) -> Iterator[str]:
    if experiment is None:
        yield "  another paper's method: no run"
        return
    chain = " ← ".join([*lineage(experiment), "defaults"])
    yield f"  experiment {experiment}: {PARAMS}/experiments.yaml, {chain}; recipe {suite.recipe}; suite's override"
    own = [run for run in runs if run.experiment == experiment]
    if not own:
        yield f"  not among the experiments of {PARAMS}/suites/{suite.name}.yaml"
    for run in own:
        yield f"  run {run.key}: {_state(run)}"
        yield from (f"    {name:12s} {text}" for name, text in _chain(run))


def _chain(run: Run) -> Iterator[tuple[str, str]]:
    """(what, where and from what) of each thing between a cell and the data, as far as it is here."""
    facts = tables.read_run(run.metrics_file) if run.metrics_file.exists() else {}
    if not facts and (run.folder / "environment.json").exists():
        facts = read_environment(run.folder)
    yield "metrics", _place(run.metrics_file)
    predictions = _place(run.predictions)
    if "predictions_sha256" in facts and run.predictions.exists():
        same = hashlib.sha256(run.predictions.read_bytes()).hexdigest() == facts["predictions_sha256"]
        predictions += ", the file that the metrics are of" if same else ", CHANGED since the metrics were taken"
    yield "predictions", predictions
    yield "evaluation", f"test digest {run.test_digest}: settings test"
    yield "checkpoint", _place(run.checkpoint)
    yield "training", f"digest {run.digest}: all other settings, recipe, data ({run.folder / 'experiment.yaml'})"
    if facts:
        dirty = " with uncommitted changes" if facts["git_dirty"] else ""
        yield "code", f"git commit {facts['git_commit']}{dirty}"
    yield "MLflow", _mlflow(run)


def _place(path: Path) -> str:
    return str(path) if path.exists() else f"{path} (not here)"


def _mlflow(run: Run) -> str:
    uri, number = tracking_uri(run.suite.root), None
    if may_be_there(uri):
        with Process() as process:
            try:
                number = process.call("find_run", uri=uri, seconds=PATIENCE, suite=run.suite.name, key=run.key)
            except (NoAnswerError, RefusedError) as error:
                return f"{without_password(uri)} can't be asked ({error})"
    return f"run {number} of experiment tsd-{run.suite.name}" if number else "no run; `tsd mlflow sync` makes it"


def _of_data(suite: Suite, digest: str) -> Iterator[str]:
    yield f"data digest {digest}: data of {PARAMS}/suites/{suite.name}.yaml"
    manifest = manifest_path(suite)
    if manifest is not None:
        pin = pinned(suite)
        where = f"pinned in {PIN} with MD5 {pin}" if pin else f"not pinned in {PIN}"
        yield f"  {_place(manifest)}, {where}"
    elif suite.data["format"] == "coco":
        for split in ("train", "val"):
            annotations, pictures = suite.split(split)
            yield f"  {split}: {_place(annotations)}, {_place(pictures)}"


def what_if(suite: Suite, changes: Sequence[str], experiments: Sequence[str]) -> str:
    """What would be trained and evaluated anew if settings of experiments were changed in ``experiments.yaml``.

    Args:
        suite: whose runs.
        changes: each KEY=VALUE, a dotted key and a YAML value: ``head.margin_cls=0.3``.
        experiments: those whose entries are edited; what extends them follows.

    Raises:
        ParamsError: a change that is none, or that the settings do not allow.
    """
    edit: Settings = {}
    for change in changes:
        key, given, value = change.partition("=")
        if not given or not re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", key):
            raise ParamsError(f"--set {change}: expected KEY=VALUE, such as head.margin_cls=0.3")
        place = edit
        *above, last = key.split(".")
        for name in above:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ParamsError(f"--set {change}: {name} has got a value already")
        place[last] = parse_yaml(value, f"--set {change}")
    digest = data_digest(suite)
    edited = load_suite(suite.name, suite.root, edits=dict.fromkeys(experiments, edit))
    lines = []
    runs = get_runs(suite, digest)
    for before, after in zip(runs, get_runs(edited, digest), strict=True):
        if before.digest != after.digest:
            lines.append(f"  {before.key}: trained anew, as digest {after.digest}")
        elif before.test_digest != after.test_digest:
            lines.append(f"  {before.key}: predicted and evaluated anew, as test digest {after.test_digest}")
    said = f"With {', '.join(changes)} in {', '.join(experiments)} of {PARAMS}/experiments.yaml"
    if not lines:
        said += f" (params/suites/{suite.name}.yaml comes after it)"
    return "\n".join([f"{said}: {len(lines)} of {len(runs)} runs are made anew", *lines, *_affected(edited, lines)])


def _affected(suite: Suite, lines: Sequence[str]) -> Iterator[str]:
    names = {line.split("/")[1] for line in lines}
    found = [
        name
        for name, definition in tables.chosen_tables(PARAMS, suite.tables).items()
        if names & tables.experiments_of(definition)
    ]
    if found:
        yield f"and with them the tables {', '.join(found)}"
