"""Tables in LaTeX: their numbers are the CSV's, and Debian's pdflatex compiles every one."""

import csv
import io
import re
import subprocess

import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.debian import need
from tests.report.test_tables import RUN
from tsd.report import tables

DEFINITIONS = tables.load_tables(ROOT / "params")
PREAMBLE = """\\documentclass{article}
\\usepackage{booktabs,amssymb}
\\usepackage[paperwidth=60cm,paperheight=90cm,margin=1cm]{geometry}
\\begin{document}
"""


def filled(name):
    """A table of the project with two seeds of invented figures in every other row, and awkward words."""
    definition = DEFINITIONS[name]
    rows = [row["experiment"] for row in definition["rows"] if "experiment" in row]
    areas = [row.get("prefix", "") for row in definition["rows"]]
    metrics = {f"{area}{column['metric']}" for area in areas for column in definition["columns"]}
    records = [
        RUN | {"experiment": row, "seed": seed, "run": f"s/{row}/d/seed{seed}", "device": "a GPU", "metric": metric}
        for row in rows[::2]
        for seed in (0, 1)
        for metric in sorted(metrics)
    ]
    for place, record in enumerate(records):
        record["value"] = 0.05 + (place * 0.0137) % 0.9
    results = pd.DataFrame(records, columns=tables.RESULT_COLUMNS)
    note = "50 % of a_suite & more: ~{x}^2 #1 $ … P̂c ± 3 − 2 × 4 \\\\ é"
    return tables.build_table(name, definition, results, tables.load_reported(ROOT / "params"), note)


def numbers(cell):
    """What a LaTeX cell says, as plain text."""
    return cell.replace("$\\pm$", "±").strip()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_numbers_are_the_csvs(name):
    table = filled(name)
    body = tables.to_latex(table).split("\\midrule\n")[1].split("\\bottomrule")[0].strip().splitlines()
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(table))))
    assert len(body) == len(table.rows)
    assert any(line["mean"] for line in lines)
    for place, text in enumerate(body):
        cells = [numbers(cell) for cell in re.split(r"(?<!\\\\)&", text.removesuffix("\\\\"))][1 + len(table.marks) :]
        own = lines[place * len(table.columns) : (place + 1) * len(table.columns)]
        if not table.has_paper:
            cells = [text for cell in cells for text in (cell, "", "")]
        assert len(cells) == 3 * len(own)
        for line, (measured, paper, delta) in zip(own, zip(*[iter(cells)] * 3, strict=True), strict=True):
            if line["mean"]:
                assert measured == f"{float(line['mean']):.1f} ± {float(line['std']):.1f}"
            else:
                assert measured in ("not run", "")
            assert paper == (f"{float(line['paper']):.1f}" if line["paper"] else "")
            assert delta == (f"{round(float(line['difference']), 1) + 0:+.1f}" if line["difference"] else "")


@pytest.mark.slow
def test_pdflatex_compiles_every_table(tmp_path):
    pdflatex = need("pdflatex", "texlive-latex-recommended", "texlive-fonts-recommended")
    pages = "\n\\clearpage\n".join(tables.to_latex(filled(name)) for name in DEFINITIONS)
    (tmp_path / "tables.tex").write_text(f"{PREAMBLE}{pages}\n\\end{{document}}\n")
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    pages = int(re.search(rb"\((\d+) pages?", done.stdout)[1])
    assert pages >= len(DEFINITIONS)
    assert b"Missing character" not in (tmp_path / "tables.log").read_bytes()
