"""From the metrics of a suite's runs to its tables and figures, and what is known of the runs themselves."""

import csv
import io
import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from tsd.engine.identity import data_digest
from tsd.engine.judge import intervals, judge
from tsd.engine.params import Run, Suite, existing_metrics, get_runs, load_suite
from tsd.engine.published import check_suite
from tsd.engine.run_files import read_environment, read_log, read_proposals
from tsd.errors import InputError
from tsd.files import read_json, write_json, write_text
from tsd.report import results_page, tables
from tsd.report.claims import to_csv
from tsd.report.page import Picture, page, report

PARAMS = Path("params")

SCENES = 5000
"""Validation pictures among which those of Figures 1 and 5 are looked for."""

ENVIRONMENT = (
    "device",
    "processes",
    "hostname",
    "platform",
    "python",
    "torch",
    "mmcv",
    "mmdet",
    "git_commit",
    "git_dirty",
)
"""Of a run's environment.json, what its report shows."""


def run_folder(run: dict[str, Any]) -> Path:
    """Folder of the run that a metrics file speaks of; it may not be here."""
    return Path("results", run["suite"], "runs", run["experiment"], run["digest"], f"seed{run['seed']}")


def _files(suite: Suite, metrics: Sequence[Path] | None) -> list[Path]:
    """Those files, or the published metrics that today's params resolve to and that are there: all the suite's.

    Raises:
        InputError: see :func:`tsd.engine.published.check_suite`.
    """
    digest = data_digest(suite) if metrics is None else None
    files = existing_metrics(get_runs(suite, digest)) if digest else list(metrics or ())
    check_suite(suite.name, files, digest)
    return files


def make_tables(
    suite: Suite, metrics: Sequence[Path] | None, out: Path, models: Path | None = None, summary: Path | None = None
) -> str:
    """Write the suite's tables, ``metrics.json`` and ``training.csv``; returns the first table as text.

    Args:
        suite: whose tables.
        metrics: metrics files; None: those that today's params resolve to and that exist.
        out: folder of the tables.
        models: from ``tsd inspect``, for the columns that need no training.
        summary: folder of ``metrics.json`` and ``training.csv``; None: ``out``.
    """
    files = _files(suite, metrics)
    summary = summary or out
    results, made = build_tables(suite, files, models)
    for table in made:
        tables.write_table(table, out)
    write_text(out / "tables.html", page("Tables", tables.to_html(made, results)))
    means = (
        results.groupby(["experiment", "metric"])["value"].mean().dropna() if len(results) else pd.Series(dtype=float)
    )
    content: dict[str, dict[str, float]] = {}
    for (experiment, metric), value in means.items():
        content.setdefault(experiment, {})[metric] = round(float(value), 6)
    write_json(summary / "metrics.json", content)
    write_text(summary / "training.csv", _training_csv(files))
    return tables.to_text(made[0])


def build_tables(
    suite: Suite, files: Sequence[Path], models: Path | None = None
) -> tuple[pd.DataFrame, list[tables.Table]]:
    """All figures of metrics files, and the suite's tables of them.

    Args:
        suite: whose tables.
        files: metrics files.
        models: from ``tsd inspect``, for the columns that need no training.
    """
    results = tables.collect_results(files)
    reported = tables.load_reported(PARAMS)
    counted = tables.model_results(tables.read_models(models) if models else {})
    given, server_notes = tables.external_results(tables.load_external(PARAMS), files, set(results["metric"]))
    parts = [part for part in (results, counted, given) if len(part)]
    shown = pd.concat(parts, ignore_index=True) if parts else results
    definitions = tables.chosen_tables(PARAMS, suite.tables)
    found = intervals(files, tables.interval_metrics(definitions))
    made = [
        tables.build_table(
            name,
            definition,
            shown,
            reported,
            _measured_on(suite, definition),
            server_notes,
            found,
        )
        for name, definition in definitions.items()
    ]
    return results, made


def _measured_on(suite: Suite, definition: dict[str, Any]) -> str:
    text = f"Measured on suite {suite.name} ({suite.description})"
    if not any("reported" in row for row in definition["rows"]):
        return f"{text}."
    return f"{text}; the paper's figures are for {definition.get('paper_on', 'COCO minival')}."


def make_results_page(evidence: Path, output: Path) -> str:
    """Write the page of results from published metrics; returns its text.

    Args:
        evidence: folder with a folder of published metrics for each suite of ``params/results.yaml``.
        output: the Markdown page.

    Raises:
        InputError: broken files, see :func:`tsd.engine.judge.make_claims`.
    """
    if not evidence.is_dir():
        raise InputError(f"{evidence}: no such folder; expected published metrics, a folder for each suite")
    sections = [_section(entry, evidence / entry["suite"]) for entry in results_page.load_sections(PARAMS)]
    text = results_page.results_page(sections, f"tsd results --output {output}")
    write_text(output, text)
    return text


def _section(entry: dict[str, str], folder: Path) -> results_page.Section:
    suite = load_suite(entry["suite"])
    files = sorted(folder.glob("*.json"))
    check_suite(suite.name, files)
    _, made = build_tables(suite, files)
    judgements, notes = judge(suite, files)
    shown = [table for table in made if results_page.says_something(table)]
    return results_page.Section(
        suite.name,
        entry["title"],
        entry["text"],
        (len(files), len(suite.experiments) * len(suite.seeds)),
        tuple(shown),
        tuple(judgements),
        tuple(notes),
        entry.get("recorded", ""),
    )


def _training_csv(files: Sequence[Path]) -> str:
    """A line per run and evaluation during training: run, epoch, AP, AP50 or AP50_val; for ``dvc plots``."""
    lines = [
        {"run": f"{run['experiment']} seed{run['seed']}", **line}
        for path in files
        for run in [tables.read_run(path)]
        for line in run.get("history", [])
    ]
    columns = ["run", "epoch", "AP", "AP50"]
    if any("AP50_val" in line for line in lines):
        columns = ["run", "epoch", "AP50_val"]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False)


def make_run_list(suite: Suite, metrics: Sequence[Path] | None, out: Path) -> None:
    """Write a line per run: experiment, seed, digest, git commit and the COCO figures."""
    files = _files(suite, metrics)
    lines = []
    for path in files:
        content = tables.read_metrics(path)
        facts = {key: content["run"][key] for key in ("experiment", "seed", "digest", "git_commit", "git_dirty")}
        lines.append(facts | content["metrics"])
    columns = ["experiment", "seed", "digest", "git_commit", "git_dirty"]
    frame = pd.DataFrame(lines) if lines else pd.DataFrame(columns=columns)
    write_text(out, frame.round(4).to_csv(index=False))


def make_report(suite: Suite, output: Path) -> None:
    """Write the suite's claims, tables, figures, runs and environments as one HTML file.

    Args:
        suite: whose results; its tables, figures and claims have been made.
        output: the file.

    Raises:
        InputError: tables or figures have not been made, or are damaged; or the verdicts are not those of the metrics;
            names the file.
    """
    folder = Path("results", suite.name)
    drawn = _read_drawn(folder / "figures" / "figures.json")
    pictures = {name: folder / "figures" / "pictures" / f"{name}.png" for name in drawn}
    found = [
        Picture(name, text, pictures[name].read_bytes()) for name, text in drawn.items() if pictures[name].exists()
    ]
    missing = {name: text for name, text in drawn.items() if not pictures[name].exists()}
    claims = _claims_of(suite, folder / "claims.csv")
    table_page = folder / "tables" / "tables.html"
    if not table_page.exists():
        raise InputError(f"{table_page}: no such file; `snakemake --config suite={suite.name} -- report` makes all")
    body = re.search("<body>(.*)</body>", table_page.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if body is None:
        raise InputError(f"{table_page}: no whole page of tables; make it anew by `tsd tables`")
    write_text(
        output,
        report(
            f"{suite.name}: Revisiting the Sibling Head in Object Detector",
            suite.description,
            claims,
            body[1],
            found,
            missing,
            _environments(suite),
        ),
    )


def _claims_of(suite: Suite, path: Path) -> list[dict[str, str]]:
    """Lines of ``claims.csv``; none if there is none.

    Raises:
        InputError: judging anew gives other lines.
    """
    if not path.exists():
        return []
    judgements, _ = judge(suite, _files(suite, None))
    text = to_csv(judgements)
    if path.read_text(encoding="utf-8", errors="replace") != text:
        raise InputError(
            f"{path}: not what the suite's metrics and draws give now; `snakemake --config suite={suite.name} -- "
            "report` makes it anew, `tsd claims` alone does too"
        )
    return list(csv.DictReader(io.StringIO(text)))


def _read_drawn(path: Path) -> dict[str, str]:
    """Figure → its title, or why it is not drawn."""
    drawn = read_json(path)
    if not isinstance(drawn, dict) or not all(isinstance(text, str) for text in drawn.values()):
        raise InputError(f"{path}: expected a text for each figure; make it anew by `tsd figures`")
    return drawn


def _environments(suite: Suite) -> list[dict[str, Any]]:
    """What the suite's runs were made with: a line per machine and set of versions, with the number of its runs."""
    kinds: dict[str, int] = {}
    for run in get_runs(suite, data_digest(suite)):
        if (run.folder / "environment.json").exists():
            facts = {key: value for key, value in read_environment(run.folder).items() if key in ENVIRONMENT}
            text = json.dumps(facts, sort_keys=True)
            kinds[text] = kinds.get(text, 0) + 1
    return [{"runs": number, **json.loads(text)} for text, number in kinds.items()]


def make_figures(suite: Suite, metrics: Sequence[Path] | None, out: Path) -> None:
    """Draw every figure that the runs allow into ``out/pictures``; ``figures.json`` says which, and why others not."""
    from tsd.report import figures

    files = _files(suite, metrics)
    known = {path: tables.read_run(path) for path in files}
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    definitions = tables.load_figures(PARAMS)
    done: dict[str, str] = {}
    titles = {name: suite.settings[name].get("title", name) for name in suite.experiments}
    present = {
        name: title for name, title in titles.items() if any(run["experiment"] == name for run in known.values())
    }
    if present:
        if suite.is_openimages:
            done["figure6"] = "not drawn: the challenge's metric knows one IoU threshold"
        else:
            figures.figure6(tables.collect_results(files), present, pictures / "figure6.png")
            done["figure6"] = definitions["figure6"]["title"]
        logs = {f"{run['experiment']} seed{run['seed']}": read_log(run_folder(run)) for run in known.values()}
        figures.training_curves(logs, pictures / "training_curves.png")
        done["training_curves"] = "loss and AP50 during training"
    else:
        done["figure6"] = "not run"
    done["figure1"] = _figure1(suite, files, definitions["figure1"], pictures)
    done["figure4"] = _figure4(files, definitions["figure4"], pictures)
    done["figure5"] = _figure5(suite, files, known, definitions["figure5"], pictures)
    write_json(out / "figures.json", done)


def _figure1(suite: Suite, files: Sequence[Path], definition: dict[str, Any], pictures: Path) -> str:
    from tsd.engine.record import annotated_pictures
    from tsd.engine.sensitivity import choose, measure
    from tsd.report.sensitivity import agreement, figure1

    if suite.is_openimages:
        return "not drawn: for classes of COCO"
    wanted = [definition["baseline"], *definition["tsd"]]
    trained: dict[str, Run] = {}
    for run in get_runs(suite, data_digest(suite)):
        if run.experiment in wanted and run.metrics_file in files and run.checkpoint.exists():
            trained.setdefault(run.experiment, run)
    if definition["baseline"] not in trained:
        return "not run, or its checkpoint is not here"
    shown = [definition["baseline"], *[name for name in definition["tsd"] if name in trained][:1]]
    instances = choose(islice(annotated_pictures(suite.data), SCENES), definition["instances"])
    found = {name: measure(trained[name], trained[name].checkpoint, instances, definition["grid"]) for name in shown}
    figure1(found, pictures / "figure1.png")
    said = {name: [agreement(one) for one in several] for name, several in found.items()}
    text = "; ".join(
        f"{name} {', '.join('flat' if value is None else f'{value:.2f}' for value in values)}"
        for name, values in said.items()
    )
    return f"{definition['title']}; correlation of the two maps: {text}"


def _figure4(files: Sequence[Path], definition: dict[str, Any], pictures: Path) -> str:
    from tsd.report import figures

    results = tables.collect_results(files)
    curves = {curve["label"]: curve["experiments"] for curve in definition["curves"]}
    wanted = {name for experiments in curves.values() for name in experiments.values()}
    if not results["experiment"].isin(wanted).any():
        return tables.NOT_RUN
    reported = tables.load_reported(PARAMS).set_index(["table", "row", "metric"])["value"]
    paper = {
        curve["label"]: (definition["reported_margin"], float(reported[(*curve["reported"].split("/"), "AP")]))
        for curve in definition["curves"]
    }
    figures.figure4(results, curves, paper, pictures / "figure4.png")
    return str(definition["title"])


def _figure5(
    suite: Suite, files: Sequence[Path], known: dict[Path, dict[str, Any]], definition: dict, pictures: Path
) -> str:
    from tsd.engine.record import annotated_pictures, class_titles
    from tsd.report import figures

    # Predictions stay where they were made: a fresh clone has the metrics of a run without them.
    first = {
        run["experiment"]: path
        for run in reversed([known[path] for path in files])
        if (path := run_folder(run) / "eval" / run["test_digest"] / "proposals.npz").exists()
    }
    chosen = next((name for name in definition["tsd"] if name in first), None)
    if chosen is None or definition["baseline"] not in first:
        return "not run, or its predictions are not here"
    names = class_titles(suite.data)
    baseline, tsd = (read_proposals(first[name]) for name in (definition["baseline"], chosen))
    scenes = [
        figures.Scene(
            image, truth, labels, figures.of_picture(baseline, key, names), figures.of_picture(tsd, key, names)
        )
        for key, image, truth, labels in islice(annotated_pictures(suite.data), SCENES)
    ]
    picked = figures.select_scenes(scenes, definition["scenes"])
    figures.figure5(picked, pictures / "figure5.png", (definition["baseline"], chosen))
    return str(definition["title"])
