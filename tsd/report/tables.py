"""Tables: what was measured, beside the paper's figure, with the difference.

Everything here is a function of its arguments: metrics in, text out.
"""

import csv
import html
import io
import math
import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tsd.engine.params import experiment_names, hint, read_params
from tsd.errors import InputError, ParamsError
from tsd.evaluation.coco import AREAS, IOUS, VOC_NAMES
from tsd.evaluation.coco import NAMES as COCO_METRICS
from tsd.evaluation.draws import LOST, SUFFIX, draws_beside
from tsd.evaluation.openimages import METRICS as OPENIMAGES_METRICS
from tsd.files import read_csv, read_json, write_text
from tsd.report.page import grid

NOT_RUN = "not run"
NO_OBJECTS = "no objects"
RUN_COLUMNS = ["experiment", "seed", "git_commit", "git_dirty", "digest", "run", "data_digest", "predictions_sha256"]
RESULT_COLUMNS = [*RUN_COLUMNS, "device", "metric", "value"]
OF_MODELS = ("params_m", "gmacs")
"""Metrics that need no training."""

PERCENT = 100.0
"""Metrics files hold fractions, tables percent."""


@dataclass(frozen=True)
class Cell:
    """One figure: mean and sample standard deviation over ``n`` runs, and the paper's.

    In percent if it is a score (``is_score``), which an untrained model has not; else in the column's ``unit``. A
    ``quoted`` one is another paper's method, which this project does not run. One with runs and without a mean had no
    objects to be measured on (of that size).
    """

    metric: str
    mean: float | None
    std: float | None
    n: int
    paper: float | None
    is_score: bool = True
    quoted: bool = False
    runs: tuple[str, ...] = ()
    """What was measured on, each as suite/experiment/digest/seedN: MLflow's tag ``tsd.key``."""
    interval: tuple[float, float] | None = None
    """95 % interval of the mean, over pictures and trainings."""

    @property
    def difference(self) -> float | None:
        """Measured minus the paper's, in points."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    @property
    def measured(self) -> str:
        """As printed: ``not run``, ``no objects``, ``41.0``, ``41.0 ± 0.2`` or ``41.0 [40.2, 41.8]``; nothing for a
        quoted one."""
        if self.mean is None:
            return "" if self.quoted else NO_OBJECTS if self.runs else NOT_RUN
        if self.interval:
            return f"{self.mean:.1f} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")

    @property
    def reported(self) -> str:
        """The paper's figure as printed."""
        return "" if self.paper is None else f"{self.paper:.1f}"

    @property
    def delta(self) -> str:
        """The difference as printed, with its sign."""
        return "" if self.difference is None else f"{round(self.difference, 1) + 0.0:+.1f}"


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    id: str
    label: str
    marks: tuple[bool, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table ready to print."""

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    marks: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    has_paper: bool = True
    """Whether a row has a figure of the paper: its columns are shown."""


def load_tables(params: Path) -> dict[str, dict[str, Any]]:
    """Definitions of all tables.

    Raises:
        ParamsError: broken file, unknown or missing key, or a metric, an experiment, a mark or a row of the paper that
            there is not; names table, row or column, and key.
    """
    definitions: dict[str, dict[str, Any]] = read_params("tables", params.parent)["tables"]
    experiments, printed = experiment_names(params.parent), _printed_rows(params)
    metrics = [*known_metrics(), *load_external(params)["metric"]]
    for name, definition in definitions.items():
        where = f"{params / 'tables.yaml'}: tables.{name}"
        problem = next(_unknown(definition, metrics, experiments, printed), None)
        if problem:
            raise ParamsError(f"{where}.{problem}")
    return definitions


def load_figures(params: Path) -> dict[str, dict[str, Any]]:
    """Definitions of all figures.

    Raises:
        ParamsError: as for :func:`load_tables`.
    """
    definitions: dict[str, dict[str, Any]] = read_params("tables", params.parent)["figures"]
    experiments, printed = experiment_names(params.parent), _printed_rows(params)
    for name, definition in definitions.items():
        where = f"{params / 'tables.yaml'}: figures.{name}"
        for key, experiment in _shown_in_figure(definition):
            if experiment not in experiments:
                raise ParamsError(f"{where}.{key}: {_no_experiment(experiment, experiments)}")
        for index, curve in enumerate(definition.get("curves", [])):
            if curve["reported"] not in printed:
                raise ParamsError(f"{where}.curves.{index}.reported: {_no_row(curve['reported'], printed)}")
    return definitions


def known_metrics() -> list[str]:
    """Metrics that evaluations write, that are counted of a network, and that the servers of leaderboards give."""
    of_servers = [f"testdev_{name}" for name in COCO_METRICS]
    by_scale = [f"{area}_{iou:.2f}" for area in AREAS for iou in IOUS]
    of_challenge = [name + end for name in OPENIMAGES_METRICS for end in ("", "_released")]
    masks = [f"mask_{name}" for name in COCO_METRICS]
    found = [*COCO_METRICS, *masks, *by_scale, *VOC_NAMES, *of_challenge, "agreement", *LOST, "runtime_ms"]
    return [*found, *OF_MODELS, *of_servers, "AP50_lb"]


def _unknown(
    definition: dict[str, Any], metrics: Sequence[str], experiments: Sequence[str], printed: Sequence[str]
) -> Iterator[str]:
    """Key and sentence of each name in a table that nothing has."""
    prefixes = {row.get("prefix", "") for row in definition["rows"] if not row.get("quoted")} or {""}
    for index, column in enumerate(definition["columns"]):
        metric = column["metric"]
        if not any(prefix + metric in metrics for prefix in prefixes):
            yield f"columns.{index} ({column['label']}): metric: no evaluation writes {metric!r}{hint(metric, metrics)}"
    for index, row in enumerate(definition["rows"]):
        where = f"rows.{index} ({row['id']})"
        if "experiment" in row and row["experiment"] not in experiments:
            yield f"{where}: experiment: {_no_experiment(row['experiment'], experiments)}"
        if "reported" in row and row["reported"] not in printed:
            yield f"{where}: reported: {_no_row(row['reported'], printed)}"
        for mark in row.get("marks", []):
            if mark not in definition.get("marks", []):
                known = definition.get("marks", [])
                yield f"{where}: marks: {mark!r} is not among the table's marks{hint(mark, known)}"
        asked = [row.get("prefix", "") + column["metric"] for column in definition["columns"]]
        if row.get("prefix") and not any(metric in metrics for metric in asked):
            yield f"{where}: prefix: no evaluation writes {asked[0]!r}{hint(asked[0], metrics)}"


def _no_experiment(name: str, known: Sequence[str]) -> str:
    return f"no experiment {name!r} in params/experiments.yaml{hint(name, known)}"


def _no_row(name: str, known: Sequence[str]) -> str:
    return f"no row {name!r} in params/reported.csv{hint(name, known)}"


def _printed_rows(params: Path) -> list[str]:
    """The rows of ``reported.csv``, as table/row."""
    frame = load_reported(params)
    return list(dict.fromkeys(f"{table}/{row}" for table, row in zip(frame["table"], frame["row"], strict=True)))


def _shown_in_figure(definition: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, experiment) of all that a figure shows."""
    if "baseline" in definition:
        yield "baseline", definition["baseline"]
    yield from ((f"tsd.{index}", name) for index, name in enumerate(definition.get("tsd", [])))
    for index, curve in enumerate(definition.get("curves", [])):
        yield from ((f"curves.{index}.experiments.{margin}", name) for margin, name in curve["experiments"].items())


def chosen_tables(params: Path, names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The tables that a suite makes, in its order; all if ``names`` is None.

    Raises:
        ParamsError: an unknown table, or as :func:`load_tables`.
    """
    known = load_tables(params)
    for name in names or ():
        if name not in known:
            raise ParamsError(
                f"{params / 'tables.yaml'}: no table {name!r}, which the suite asks for; there are: {', '.join(known)}"
            )
    return known if names is None else {name: known[name] for name in names}


def experiments_of(definition: dict[str, Any]) -> set[str]:
    """Experiments that a table, or a figure of curves, shows."""
    curves = {name for curve in definition.get("curves", []) for name in curve["experiments"].values()}
    return curves | {row["experiment"] for row in definition.get("rows", []) if "experiment" in row}


def table_rows(params: Path, experiment: str) -> list[str]:
    """Rows that show an experiment, as ``table/row``."""
    return [
        f"{name}/{row['id']}"
        for name, definition in load_tables(params).items()
        for row in definition["rows"]
        if row.get("experiment") == experiment
    ]


REPORTED_COLUMNS = ["table", "row", "metric", "value"]


def load_reported(params: Path) -> pd.DataFrame:
    """The paper's figures, ``reported.csv``: columns :data:`REPORTED_COLUMNS`.

    Raises:
        ParamsError: other columns, no line, a value that is no number, or two of one figure; names the line.
    """
    path = params / "reported.csv"
    rows = read_csv(path, REPORTED_COLUMNS)
    if not rows:
        raise ParamsError(f"{path}: no line but the first; expected the paper's figures")
    _refuse_repeated(path, rows, REPORTED_COLUMNS[:3])
    values = [_number(path, line, row["value"], -math.inf, math.inf) for line, row in rows.items()]
    return pd.DataFrame(list(rows.values()), columns=REPORTED_COLUMNS).assign(value=values)


EXTERNAL_COLUMNS = ["experiment", "digest", "predictions_sha256", "metric", "value", "server", "date"]


def load_external(params: Path) -> pd.DataFrame:
    """Scores that a server gave, ``external.csv``, by line: columns :data:`EXTERNAL_COLUMNS`; values are fractions.

    Raises:
        ParamsError: other columns, a value that is no fraction, or two of one figure; names the line.
    """
    path = params / "external.csv"
    if not path.exists():
        return pd.DataFrame(columns=EXTERNAL_COLUMNS)
    rows = read_csv(path, EXTERNAL_COLUMNS)
    _refuse_repeated(path, rows, ["experiment", "digest", "predictions_sha256", "metric"])
    for line, row in rows.items():
        if not re.fullmatch("[0-9a-f]{64}", row["predictions_sha256"]):
            raise ParamsError(
                f"{path}: line {line}: predictions_sha256: expected 64 hexadecimal digits, as the run's metrics file "
                f"has them, got {row['predictions_sha256']}"
            )
    values = [_number(path, line, row["value"], 0, 1) for line, row in rows.items()]
    frame = pd.DataFrame(list(rows.values()), columns=EXTERNAL_COLUMNS, index=list(rows))
    return frame.assign(value=pd.Series(values, index=list(rows), dtype=float))


def _number(path: Path, line: int, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        wanted = "finite number" if math.isinf(most) else f"fraction from {least:g} to {most:g}"
        raise ParamsError(f"{path}: line {line}: value: expected a {wanted}, got {text}")
    return value


def _refuse_repeated(path: Path, rows: Mapping[int, Mapping[str, str]], columns: Sequence[str]) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for line, row in rows.items():
        first = seen.setdefault(tuple(row[name] for name in columns), line)
        if first != line:
            raise ParamsError(f"{path}: line {line}: the same {', '.join(columns)} as line {first}; remove one of them")


def external_results(
    external: pd.DataFrame, files: Sequence[Path], measured: Collection[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Servers' scores of the runs at hand, in the columns of :func:`collect_results`, and a note for those of others.

    A score belongs to the run with its experiment, digest and predictions on the suite's val pictures: these tell seed
    and test settings too. That of a run whose params have changed since, or of other predictions, is left out.

    Args:
        external: of :func:`load_external`.
        files: metrics files of the runs.
        measured: names of the figures that runs are measured by.

    Raises:
        ParamsError: a score under the name of a figure that runs are measured by: it would be averaged with theirs.
    """
    runs = [read_run(path) for path in files]
    records, notes = [], []
    for line, row in zip(external.index, external.to_dict("records"), strict=True):
        if row["metric"] in measured:
            raise ParamsError(
                f"params/external.csv: line {line}: metric: {row['metric']} is measured here, and would be averaged "
                f"with the server's; expected a name of its own, such as testdev_{row['metric']}"
            )
        own = [run for run in runs if run["experiment"] == row["experiment"]]
        same = [run for run in own if run["digest"] == row["digest"]]
        known = [run for run in same if run["predictions_sha256"] == row["predictions_sha256"]]
        if known:
            records.append(_of_run(known[0]) | {"metric": row["metric"], "value": row["value"]})
            notes.append(f"{row['metric']} of {row['experiment']}: {row['server']}, {row['date']}.")
        elif own:
            key, other = ("predictions_sha256", "a run here") if same else ("digest", "today's params")
            notes.append(
                f"{row['metric']} of {row['experiment']} by {row['server']} is left out: {key} {row[key][:12]} is not"
                f" that of {other}."
            )
    return pd.DataFrame(records, columns=RESULT_COLUMNS), notes


def _of_run(run: dict[str, Any]) -> dict[str, Any]:
    """Columns :data:`RUN_COLUMNS` of what a metrics file says of its run."""
    key = f"{run['suite']}/{run['experiment']}/{run['digest']}/seed{run['seed']}"
    return {name: run[name] for name in RUN_COLUMNS if name != "run"} | {"run": key}


def read_run(path: Path) -> dict[str, Any]:
    """What a metrics file says of its run.

    Raises:
        InputError: it is no run's metrics.
    """
    content = read_json(path)
    run = content.get("run") if isinstance(content, dict) else None
    if not isinstance(run, dict):
        raise InputError(f"{path}: not the metrics of a run: run: expected an object")
    for name in ("suite", "test_digest", *(name for name in RUN_COLUMNS if name != "run")):
        if name not in run:
            raise InputError(f"{path}: not the metrics of a run: missing key {name!r}")
    return run


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a run's metrics file: ``run``, ``metrics``, and of COCO ``scale_iou``.

    Raises:
        InputError: it is no run's metrics; names the key.
    """
    run = read_run(path)
    content: dict[str, Any] = read_json(path)
    runtime, by_area = run.get("runtime") or {}, content.get("scale_iou", {})
    figures = {f"metrics.{name}": value for name, value in _mapping(path, content, "metrics").items()}
    for area in _mapping(path, {"scale_iou": by_area}, "scale_iou"):
        by_iou = _mapping(path, by_area, area)
        figures |= {f"scale_iou.{area}.{iou}": value for iou, value in by_iou.items()}
    if runtime:
        figures["run.runtime.median_ms"] = _mapping(path, run, "runtime").get("median_ms", "nothing")
        if not isinstance(runtime.get("device"), str):
            raise InputError(f"{path}: run.runtime.device: expected a text, got {runtime.get('device')!r}")
    for key, value in figures.items():
        if not (value is None or (type(value) in (int, float) and math.isfinite(value))):
            raise InputError(f"{path}: {key}: expected a finite number or null, got {value!r}")
    return content


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    if not isinstance(found, dict):
        raise InputError(f"{path}: not the metrics of a run: {key}: expected an object, got {found!r:.40}")
    return found


def collect_results(files: Sequence[Path]) -> pd.DataFrame:
    """All figures of some metrics.json files: columns :data:`RESULT_COLUMNS`.

    Raises:
        InputError: a file is no run's metrics, or of the same run as another; names file and key.
    """
    records = []
    seen: dict[tuple[Any, ...], Path] = {}
    for path in files:
        content = read_metrics(path)
        run = content["run"]
        facts, runtime = _of_run(run), run.get("runtime")
        key = (facts["run"], run.get("test_digest"))
        if key in seen:
            raise InputError(f"{path}: the same run as {seen[key]}: {facts['run']}; it would count twice")
        seen[key] = path
        values = dict(content["metrics"])
        for area, by_iou in content.get("scale_iou", {}).items():
            values |= {f"{area}_{iou}": value for iou, value in by_iou.items()}
        if path.with_suffix(SUFFIX).exists():
            values |= _of_draws(path)
        if runtime:
            facts["device"], values["runtime_ms"] = runtime["device"], runtime["median_ms"]
        records += [{**facts, "metric": name, "value": value} for name, value in values.items()]
    return pd.DataFrame(records, columns=RESULT_COLUMNS)


def _of_draws(path: Path) -> dict[str, float | None]:
    """Figures that are kept with a run's draws alone."""
    draws = draws_beside(path)
    found = {name: float(draws[name].iloc[0]) for name in ("agreement", *LOST)}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def read_models(path: Path) -> dict[str, dict[str, Any]]:
    """Experiment → what a file of ``tsd inspect`` says of its network.

    Raises:
        InputError: the file holds something else; names the key.
    """
    content = read_json(path)
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise InputError(f"{path}: models: expected what `tsd inspect` writes; make it anew")
    for name, facts in models.items():
        for key in OF_MODELS:
            value = facts.get(key) if isinstance(facts, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{path}: models.{name}.{key}: expected a number above 0, got {value!r:.40}")
    return models


def model_results(models: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Figures of models that need no training (``params_m``, ``gmacs``), in the columns of :func:`collect_results`.

    Args:
        models: experiment → what :func:`tsd.engine.inspect.inspect_suite` says of it.
    """
    return pd.DataFrame(
        [
            {"experiment": experiment, "metric": metric, "value": facts[metric]}
            for experiment, facts in models.items()
            for metric in OF_MODELS
        ],
        columns=RESULT_COLUMNS,
    )


def needs_models(definitions: dict[str, dict[str, Any]]) -> bool:
    """Whether a table shows what :func:`model_results` gives."""
    return any(column["metric"] in OF_MODELS for definition in definitions.values() for column in definition["columns"])


def build_table(
    name: str,
    definition: dict[str, Any],
    results: pd.DataFrame,
    reported: pd.DataFrame,
    note: str,
    external_notes: Sequence[str] = (),
    intervals: Mapping[tuple[str, str], tuple[float, float]] | None = None,
) -> Table:
    """Fill a table.

    Args:
        name: its key in tables.yaml.
        definition: from :func:`load_tables`.
        results: from :func:`collect_results`.
        reported: from :func:`load_reported`.
        note: what was measured on, so that a difference to the paper is not misread.
        external_notes: of :func:`external_results`; those of metrics that the table shows are kept.
        intervals: of (experiment, metric), fractions, for columns with ``interval: true``.
    """
    rows = []
    marks = tuple(definition.get("marks", []))
    for row in definition["rows"]:
        own = results[results["experiment"] == row.get("experiment")]
        cells = tuple(_cell(column, row, own, reported, intervals or {}) for column in definition["columns"])
        shown = tuple(mark in row.get("marks", []) for mark in marks)
        label = f"{row['label']} (quoted)" if row.get("quoted") else row["label"]
        rows.append(Row(row["id"], label, shown, cells))
    columns = tuple(column["label"] for column in definition["columns"])
    shown_results = results[results["experiment"].isin(experiments_of(definition))]
    footnotes = (*_footnotes(shown_results, rows), *_devices(shown_results, definition["columns"]))
    shown_metrics = {cell.metric for row in rows for cell in row.cells}
    servers = [text for text in external_notes if text.split()[0] in shown_metrics]
    notes = (note, *definition.get("notes", []), *footnotes, *servers)
    has_paper = any("reported" in row for row in definition["rows"])
    return Table(name, definition["title"], definition["source"], columns, marks, tuple(rows), notes, has_paper)


def interval_metrics(definitions: Mapping[str, dict[str, Any]]) -> list[str]:
    """Metrics that a table shows with their interval."""
    columns = [column for definition in definitions.values() for column in definition["columns"]]
    return sorted({column["metric"] for column in columns if column.get("interval")})


def _cell(
    column: dict[str, Any],
    row: dict[str, Any],
    results: pd.DataFrame,
    reported: pd.DataFrame,
    intervals: Mapping[tuple[str, str], tuple[float, float]],
) -> Cell:
    """A row's ``prefix`` stands before the column's metric: an area, or another split; the paper's may do without."""
    metric, is_score = row.get("prefix", "") + column["metric"], "unit" not in column
    measured = results[results["metric"] == metric]
    values = measured["value"].dropna().astype(float) * (PERCENT if is_score else 1)
    paper = None
    if "reported" in row:
        table, source = row["reported"].split("/")
        own = reported[(reported["table"] == table) & (reported["row"] == source)].set_index("metric")["value"]
        paper = next((float(own[name]) for name in (metric, column["metric"]) if name in own.index), None)
    mean = statistics.fmean(values) if len(values) else None
    std = statistics.stdev(values) if len(values) > 1 else None
    runs = tuple(measured["run"].dropna())
    found = intervals.get((row.get("experiment", ""), metric)) if column.get("interval") else None
    interval = (PERCENT * found[0], PERCENT * found[1]) if found and mean is not None else None
    return Cell(metric, mean, std, len(values), paper, is_score, bool(row.get("quoted", False)), runs, interval)


def commit_notes(results: pd.DataFrame) -> list[str]:
    """What a reader must know of the commits that runs were made at: columns ``git_commit`` and ``git_dirty``."""
    notes = []
    commits = sorted({str(commit)[:10] for commit in results["git_commit"].dropna()})
    if len(commits) > 1:
        notes.append(f"Rows were made at different commits: {', '.join(commits)}.")
    if results["git_dirty"].eq(True).any():
        notes.append("Some rows were made with uncommitted changes.")
    return notes


def _footnotes(results: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    notes = commit_notes(results)
    cells = [cell for row in rows for cell in row.cells]
    if any(cell.interval for cell in cells):
        notes.append(
            "In brackets: 95 % interval, of a bootstrap over validation pictures and over trainings; it lies a little "
            "high, as AP does over fewer different pictures. Verdicts rest on differences, which this leaves alone."
        )
        return notes
    seeds = sorted({cell.n for cell in cells if cell.is_score and cell.n})
    if seeds and seeds[-1] > 1:
        notes.append(f"Mean ± sample standard deviation over {' or '.join(map(str, seeds))} seeds.")
    elif seeds:
        notes.append("One seed each.")
    return notes


def _devices(results: pd.DataFrame, columns: Sequence[dict[str, str]]) -> list[str]:
    if not any(column["metric"] == "runtime_ms" for column in columns):
        return []
    devices = sorted(results.loc[results["metric"] == "runtime_ms", "device"].dropna().unique())
    if not devices:
        return []
    return [f"Runtime: network and post-processing of one picture on {' and '.join(devices)}; the paper's, Tesla V100."]


def _grid(table: Table, yes: str) -> tuple[list[str], list[list[str]]]:
    head = ["Method", *table.marks]
    for column in table.columns:
        head += [column, "paper", "Δ"] if table.has_paper else [column]
    body = []
    for row in table.rows:
        line = [row.label, *(yes if mark else "" for mark in row.marks)]
        for cell in row.cells:
            line += [cell.measured, cell.reported, cell.delta] if table.has_paper else [cell.measured]
        body.append(line)
    return head, body


def to_text(table: Table) -> str:
    """A table for the terminal."""
    head, body = _grid(table, "x")
    widths = [max(len(line[place]) for line in [head, *body]) for place in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([f"{table.title} ({table.source})", rule, lines[0], rule, *lines[1:], rule, *table.notes])


def to_markdown(table: Table) -> str:
    """A table for a README."""
    head, body = _grid(table, "✓")
    lines = [f"**{table.title}** ({table.source})", "", pipes(head), pipes(["---"] * len(head))]
    lines += [pipes(line) for line in body]
    return "\n".join([*lines, "", *(f"{note}  " for note in table.notes)]) + "\n"


def pipes(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_latex(table: Table) -> str:
    """A table for a paper; needs booktabs and amssymb."""
    head, body = _grid(table, "\\checkmark")
    columns = "l" + "c" * len(table.marks) + ("rrr" if table.has_paper else "r") * len(table.columns)
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(map(_escape, head)) + " \\\\",
        "\\midrule",
        *(" & ".join(cell if cell == "\\checkmark" else _escape(cell) for cell in line) + " \\\\" for line in body),
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{_escape(table.title)} ({_escape(table.source)}). {_escape(' '.join(table.notes))}}}",
        f"\\label{{tab:{table.name}}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "&": "\\&",
    "%": "\\%",
    "_": "\\_",
    "#": "\\#",
    "$": "\\$",
    "{": "\\{",
    "}": "\\}",
    "±": "$\\pm$",
    "Δ": "$\\Delta$",
    "†": "$\\dagger$",
    "−": "$-$",
    "×": "$\\times$",
    "…": "\\ldots{}",
    "–": "--",
    "—": "---",
    "\u2190": "$\\leftarrow$",
    "\u2192": "$\\rightarrow$",
}
_LATEX |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}


def _escape(text: str) -> str:
    """Text for LaTeX; a letter with a hat of its own (P̂) becomes mathematics."""
    parts = re.split("(.\u0302)", text)
    return "".join(
        f"$\\hat{{\\mathrm{{{part[0]}}}}}$"
        if part.endswith("\u0302")
        else "".join(_LATEX.get(letter, letter) for letter in part)
        for part in parts
    )


def to_csv(table: Table) -> str:
    """A table for programs: one line per row and metric, full precision, and the runs that it comes from.

    Where the table shows intervals, with their ends.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    shows_intervals = any(cell.interval for row in table.rows for cell in row.cells)
    ends = ["low", "high"] if shows_intervals else []
    writer.writerow(["row", "metric", "mean", "std", "n", "paper", "difference", *ends, "runs"])
    for row in table.rows:
        for cell in row.cells:
            numbers = (cell.mean, cell.std, cell.n, cell.paper, cell.difference)
            low_high = (cell.interval or (None, None)) if shows_intervals else ()
            plain = ("" if value is None else value for value in (*numbers, *low_high))
            writer.writerow([row.id, cell.metric, *plain, " ".join(cell.runs)])
    return buffer.getvalue()


def to_html(tables: Sequence[Table], results: pd.DataFrame) -> str:
    """All tables, for a page; a measured cell leads to its runs, which stand below.

    Args:
        tables: in order.
        results: from :func:`collect_results`.
    """
    parts = []
    for table in tables:
        head, _ = _grid(table, "✓")
        parts.append(f"<h2>{html.escape(table.title)} ({html.escape(table.source)})</h2>")
        parts.append(grid(map(html.escape, head), (_html_cells(row, table.has_paper) for row in table.rows)))
        parts += [f"<p>{html.escape(note)}</p>" for note in table.notes]
    runs = results[RUN_COLUMNS].dropna(subset=["run"]).drop_duplicates("run")
    parts.append("<h2 id='runs'>Runs</h2><p>A run's name is the value of the tag tsd.key in MLflow.</p>")
    lines = []
    for run in runs.to_dict("records"):
        commit = f"{run['git_commit']}{', with uncommitted changes' if run['git_dirty'] else ''}"
        key = html.escape(run["run"], quote=True)
        others = (html.escape(str(cell)) for cell in (commit, run["data_digest"], run["predictions_sha256"]))
        lines.append([f"<span id='{key}'>{key}</span>", *others])
    return "\n".join([*parts, grid(("run", "git commit", "data digest", "SHA-256 of the predictions"), lines)])


def _html_cells(row: Row, has_paper: bool) -> Iterator[str]:
    yield html.escape(row.label)
    yield from ("✓" if mark else "" for mark in row.marks)
    for cell in row.cells:
        text = html.escape(cell.measured)
        title = html.escape("\n".join(cell.runs), quote=True)
        yield f"<a href='#{html.escape(cell.runs[0], quote=True)}' title='{title}'>{text}</a>" if cell.runs else text
        if has_paper:
            yield from map(html.escape, (cell.reported, cell.delta))


def write_table(table: Table, folder: Path) -> None:
    """Write ``<name>.csv``, ``.md`` and ``.tex``."""
    for suffix, render in ((".csv", to_csv), (".md", to_markdown), (".tex", to_latex)):
        write_text(folder / f"{table.name}{suffix}", render(table))
