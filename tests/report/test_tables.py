"""Tables by hand-worked numbers."""

import csv
import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml

from tsd.errors import InputError, ParamsError
from tsd.report import tables

DEFINITION = {
    "title": "Some & title",
    "source": "Table 3",
    "columns": [{"label": "AP", "metric": "AP"}, {"label": "AP.5", "metric": "AP50"}],
    "marks": ["TSD", "M_cls"],
    "rows": [
        {"id": "a", "label": "first_row", "experiment": "one", "marks": ["TSD"], "reported": "table3/one"},
        {"id": "b", "label": "second", "experiment": "two", "reported": "table3/two"},
    ],
}
REPORTED = pd.DataFrame(
    [("table3", "one", "AP", 41.0), ("table3", "one", "AP50", 61.7), ("table3", "two", "AP", 39.7)],
    columns=["table", "row", "metric", "value"],
)


RUN = {
    "suite": "s",
    "experiment": "one",
    "seed": 0,
    "git_commit": "c",
    "git_dirty": False,
    "digest": "d",
    "test_digest": "t",
    "data_digest": "e",
    "predictions_sha256": "f",
}
"""What a metrics file says of its run."""


def results(*runs):
    """(experiment, seed, AP, AP50, commit) → long form."""
    records = [
        RUN | {"experiment": e, "seed": s, "git_commit": c, "run": f"s/{e}/d/seed{s}", "metric": m, "value": v}
        for e, s, ap, ap50, c in runs
        for m, v in (("AP", ap), ("AP50", ap50))
    ]
    return pd.DataFrame(records, columns=tables.RESULT_COLUMNS)


def build(*runs):
    return tables.build_table("t", DEFINITION, results(*runs), REPORTED, "a note")


def test_a_cell_is_mean_and_sample_deviation_over_seeds_beside_the_papers_figure():
    table = build(("one", 0, 0.40, 0.60, "c"), ("one", 1, 0.42, 0.64, "c"))
    cell = table.rows[0].cells[0]
    assert cell.mean == pytest.approx(41.0)
    assert cell.std == pytest.approx(math.sqrt(2))  # of 40 and 42
    assert cell.n == 2
    assert (cell.measured, cell.reported, cell.delta) == ("41.0 ± 1.4", "41.0", "+0.0")
    assert table.rows[0].cells[1].delta == "+0.3"  # 62.0 against 61.7


def test_a_column_with_a_unit_is_no_score_and_needs_no_run():
    definition = DEFINITION | {"columns": [{"label": "#param", "metric": "params_m", "unit": "M"}]}
    counted = tables.model_results({"one": {"params_m": 58.94, "gmacs": 2.0}})
    reported = pd.DataFrame([("table3", "one", "params_m", 58.9)], columns=["table", "row", "metric", "value"])
    table = tables.build_table("t", definition, counted, reported, "a note")
    cell = table.rows[0].cells[0]
    assert (cell.measured, cell.reported, cell.delta) == ("58.9", "58.9", "+0.0")
    assert table.rows[1].cells[0].measured == "not run"
    assert table.notes == ("a note",)  # no word of seeds


def test_a_suite_chooses_among_the_tables(root):
    assert list(tables.chosen_tables(root / "params", ["table3", "table1"])) == ["table3", "table1"]
    assert list(tables.chosen_tables(root / "params", None)) == list(tables.load_tables(root / "params"))
    with pytest.raises(ParamsError, match=r"no table 'table33', which the suite asks for; there are: ablation"):
        tables.chosen_tables(root / "params", ["table33"])


def test_a_difference_that_rounds_to_nothing_has_no_minus():
    assert build(("one", 0, 0.40999, 0.6, "c")).rows[0].cells[0].delta == "+0.0"


def test_one_seed_has_no_spread():
    assert build(("one", 0, 0.4, 0.6, "c")).rows[0].cells[0].measured == "40.0"


def test_what_was_not_run_says_so_and_has_no_difference():
    cell = build(("one", 0, 0.4, 0.6, "c")).rows[1].cells[0]
    assert (cell.measured, cell.reported, cell.delta) == ("not run", "39.7", "")


def test_a_figure_that_the_paper_does_not_give_is_empty():
    cell = build(("two", 0, 0.4, 0.6, "c")).rows[1].cells[1]
    assert (cell.measured, cell.reported, cell.delta) == ("60.0", "", "")


def test_a_figure_without_objects_to_measure_it_on_is_neither_zero_nor_not_run():
    cell = build(("one", 0, None, 0.6, "c")).rows[0].cells[0]
    assert (cell.measured, cell.reported, cell.delta) == ("no objects", "41.0", "")


def test_different_commits_are_footnoted():
    notes = build(("one", 0, 0.4, 0.6, "c1"), ("two", 0, 0.4, 0.6, "c2")).notes
    assert "Rows were made at different commits: c1, c2." in notes
    assert notes[0] == "a note"
    assert not any("commits" in note for note in build(("one", 0, 0.4, 0.6, "c1")).notes)


def test_uneven_numbers_of_seeds_are_told():
    notes = build(("one", 0, 0.4, 0.6, "c"), ("one", 1, 0.4, 0.6, "c"), ("two", 0, 0.4, 0.6, "c")).notes
    assert "Mean ± sample standard deviation over 1 or 2 seeds." in notes


def test_markdown():
    text = tables.to_markdown(build(("one", 0, 0.4, 0.6, "c")))
    assert "| first_row | ✓ |  | 40.0 | 41.0 | -1.0 | 60.0 | 61.7 | -1.7 |" in text
    assert "| second |  |  | not run | 39.7 |  | not run |  |  |" in text


def test_latex_is_escaped_and_balanced():
    text = tables.to_latex(build(("one", 0, 0.40, 0.60, "c"), ("one", 1, 0.42, 0.64, "c")))
    assert "Some \\& title" in text
    assert "first\\_row & \\checkmark &  & 41.0 $\\pm$ 1.4 & 41.0 & +0.0" in text
    assert text.count("\\begin{") == text.count("\\end{") == 2
    columns = text.split("\\begin{tabular}{")[1].split("}")[0]
    assert all(line.count("&") - line.count("\\&") == len(columns) - 1 for line in text.splitlines() if "first" in line)


def test_csv_keeps_full_precision(tmp_path):
    tables.write_table(build(("one", 0, 0.401234, 0.6, "c")), tmp_path)
    frame = pd.read_csv(tmp_path / "t.csv")
    assert frame["mean"][0] == pytest.approx(40.1234)
    assert frame["n"].tolist() == [1, 1, 0, 0]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]


def test_each_cell_leads_to_its_runs():
    frame = results(("one", 0, 0.40, 0.60, "c"), ("one", 1, 0.42, 0.64, "c"))
    table = tables.build_table("t", DEFINITION, frame, REPORTED, "a note")
    runs = ("s/one/d/seed0", "s/one/d/seed1")
    assert [cell.runs for row in table.rows for cell in row.cells] == [runs, runs, (), ()]
    written = pd.read_csv(io.StringIO(tables.to_csv(table)))
    assert written["runs"].fillna("").tolist() == [" ".join(runs)] * 2 + [""] * 2
    page = ElementTree.fromstring(f"<body>{tables.to_html([table], frame)}</body>")
    links = [link.get("href") for link in page.iter("a")]
    assert links == ["#s/one/d/seed0"] * 2
    lines = {mark[0].get("id"): list(line.itertext()) for line in page.iter("tr") for mark in line if len(mark)}
    assert {run: lines[run] for run in runs} == {run: [run, "c", "e", "f"] for run in runs}


def test_results_are_read_from_metrics_files(tmp_path):
    path = tmp_path / "metrics.json"
    run = RUN | {"seed": 3, "git_dirty": True}
    path.write_text(json.dumps({"run": run, "metrics": {"AP": 0.5}, "scale_iou": {"small": {"0.50": 0.25}}}))
    frame = tables.collect_results([path])
    assert dict(zip(frame["metric"], frame["value"], strict=True)) == {"AP": 0.5, "small_0.50": 0.25}
    assert set(frame["run"]) == {"s/one/d/seed3"}
    with pytest.raises(InputError, match=r"the same run as .*metrics.json: s/one/d/seed3; it would count twice"):
        tables.collect_results([path, path])
    for broken in ("50", True, float("nan")):
        path.write_text(json.dumps({"run": run, "metrics": {"AP": broken}}))
        with pytest.raises(InputError, match=r"metrics.json: metrics.AP: expected a finite number or null"):
            tables.collect_results([path])
    path.write_text(json.dumps({"run": run, "metrics": None}))
    with pytest.raises(InputError, match=r"metrics.json: not the metrics of a run: metrics: expected an object"):
        tables.collect_results([path])
    path.write_text("{}")
    with pytest.raises(InputError, match=r"metrics.json: not the metrics of a run: run: expected an object"):
        tables.collect_results([path])


def test_every_row_of_the_projects_tables_has_its_figures_of_the_paper(root):
    reported = tables.load_reported(root / "params")
    known = {f"{table}/{row}" for table, row in zip(reported["table"], reported["row"], strict=True)}
    for name, definition in tables.load_tables(root / "params").items():
        of_paper = [row for row in definition["rows"] if "reported" in row]
        assert len(of_paper) in (0, len(definition["rows"])), name
        for row in of_paper:
            assert row["reported"] in known, (name, row["id"])


def test_the_papers_figures_agree_where_two_tables_repeat_them(root):
    frame = tables.load_reported(root / "params").set_index(["table", "row", "metric"])["value"]
    for metric in ("AP", "AP50", "AP75"):
        full = {frame["table3", "tsd_pc", metric], frame["table5", "resnet50_tsd", metric]}
        assert full == {frame["table4", "pc_pointwise_proposalwise", metric]}
        assert frame["table2", "tsd", metric] == frame["table1", "tsd", metric]
        assert frame["table2", "tsd_joint", metric] == frame["table3", "tsd_joint", metric]
        assert frame["table1", "resnet50", metric] == frame["table5", "resnet50", metric]
    assert not frame.index.duplicated().any()
    assert set(frame.index.get_level_values("table")) == {f"table{number}" for number in range(1, 10)}


def test_every_row_of_the_paper_is_in_a_table(root):
    reported = tables.load_reported(root / "params")
    known = {f"{table}/{row}" for table, row in zip(reported["table"], reported["row"], strict=True)}
    shown = {
        row.get("reported") for definition in tables.load_tables(root / "params").values() for row in definition["rows"]
    }
    assert known <= shown


def test_a_quoted_row_needs_no_run_and_is_marked_as_quoted():
    row = {"id": "c", "label": "Other", "quoted": True, "reported": "table3/two"}
    table = tables.build_table("t", DEFINITION | {"rows": [row], "notes": ["More."]}, results(), REPORTED, "a note")
    assert table.rows[0].label == "Other (quoted)"
    assert (table.rows[0].cells[0].measured, table.rows[0].cells[0].reported) == ("", "39.7")
    assert table.notes == ("a note", "More.")
    assert tables.experiments_of({"rows": [row]}) == set()


def test_a_prefix_chooses_the_area_or_split_and_the_papers_figure_may_do_without():
    rows = [
        {"id": "s", "label": "small", "experiment": "one", "prefix": "small_", "reported": "table9/one"},
        {"id": "t", "label": "test-dev", "experiment": "one", "prefix": "testdev_", "reported": "table3/one"},
    ]
    frame = results(("one", 0, 0.4, 0.6, "c"))
    frame = pd.concat([frame, frame.iloc[:1].assign(metric="small_AP", value=0.25)])
    reported = pd.concat([REPORTED, pd.DataFrame([("table9", "one", "small_AP", 20.0)], columns=REPORTED.columns)])
    table = tables.build_table("t", DEFINITION | {"rows": rows}, frame, reported, "a note")
    first, second = (row.cells[0] for row in table.rows)
    assert (first.measured, first.reported, first.delta) == ("25.0", "20.0", "+5.0")
    assert (second.measured, second.reported) == ("not run", "41.0")


def edited(project: Path, change) -> Path:
    path = project / "params/tables.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return project / "params"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["tables"]["voc"].pop("rows"), "tables.voc.rows: missing key"),
        (lambda c: c["tables"]["voc"].update(note=[]), "tables.voc.note: unknown key (did you mean 'notes'?)"),
        (lambda c: c["tables"]["voc"]["rows"][0].update(mark=["TSD"]), "tables.voc.rows.0.mark: unknown key"),
        (lambda c: c["tables"]["voc"]["rows"][0].pop("experiment"), "tables.voc.rows.0.experiment: missing key"),
        (lambda c: c["tables"]["table8"]["rows"][0].pop("reported"), "tables.table8.rows.0.reported: missing key"),
        (
            lambda c: c["tables"]["voc"]["rows"][3].update(experiment="tsd_jont"),
            "tables.voc.rows.3 (tsd_joint): experiment: no experiment 'tsd_jont' in params/experiments.yaml "
            "(did you mean 'tsd_joint'?)",
        ),
        (
            lambda c: c["tables"]["voc"]["columns"][1].update(metric="AP500"),
            "tables.voc.columns.1 (AP.5): metric: no evaluation writes 'AP500' (did you mean 'AP50'?)",
        ),
        (
            lambda c: c["tables"]["voc"]["columns"][1].update(metric=0.5),
            "tables.voc.columns.1.metric: expected what an",
        ),
        (
            lambda c: c["tables"]["table9"]["rows"][1].update(prefix="smal_"),
            "tables.table9.rows.1 (small_tsd): prefix: no evaluation writes 'smal_0.50' (did you mean 'small_0.50'?)",
        ),
        (
            lambda c: c["tables"]["table2"]["rows"][0].update(reported="table2/tds"),
            "tables.table2.rows.0 (tsd): reported: no row 'table2/tds' in params/reported.csv (did you mean",
        ),
        (
            lambda c: c["tables"]["voc"]["rows"][3].update(marks=["M_cl"]),
            "tables.voc.rows.3 (tsd_joint): marks: 'M_cl' is not among the table's marks (did you mean 'M_cls'?)",
        ),
        (
            lambda c: c["figures"]["figure5"].update(scene=1),
            "figures.figure5.scene: unknown key (did you mean 'scenes'",
        ),
        (lambda c: c["figures"].pop("figure6"), "figures.figure6: missing key"),
        (lambda c: c["figures"]["figure1"].update(grid=0), "figures.figure1.grid: expected a positive integer, got 0"),
        (
            lambda c: c["figures"]["figure5"].update(baseline="basline"),
            "figures.figure5.baseline: no experiment 'basline'",
        ),
        (
            lambda c: c["figures"]["figure4"]["curves"][0]["experiments"].update({0.1: "tsd_pc_cls_m1"}),
            "figures.figure4.curves.0.experiments.0.1: no experiment 'tsd_pc_cls_m1'",
        ),
        (
            lambda c: c["figures"]["figure4"]["curves"][0].update(reported="table3/x"),
            "figures.figure4.curves.0.reported: no row 'table3/x' in params/reported.csv",
        ),
        (lambda c: c.update(table={}), "table: unknown key (did you mean 'tables'?)"),
    ],
)
def test_a_slip_in_a_table_or_figure_is_named(project, change, message):
    params = edited(project, change)
    with pytest.raises(ParamsError) as error:
        tables.load_tables(params) | tables.load_figures(params)
    assert f"params/tables.yaml: {message}" in str(error.value)


def test_a_metric_that_a_server_gave_can_be_shown(project):
    line = f"baseline,abc,{'0f' * 32},AP50_private,0.5,Kaggle,2026-11-01\n"
    (project / "params/external.csv").write_text(",".join(tables.EXTERNAL_COLUMNS) + "\n" + line)
    params = edited(project, lambda c: c["tables"]["voc"]["columns"][1].update(metric="AP50_private"))
    assert tables.load_tables(params)["voc"]["columns"][1]["metric"] == "AP50_private"


def test_every_metric_of_an_evaluation_is_known(root):
    known = set(tables.known_metrics())
    for path in (root / "benchmarks/evidence").glob("*/*.json"):
        assert set(tables.collect_results([path])["metric"]) <= known, path.name
    assert set(tables.load_reported(root / "params")["metric"]) <= known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reported.csv: is empty; expected columns table,row,metric,value"),
        ("table,row,metric,value\n", "reported.csv: no line but the first; expected the paper's figures"),
        (
            "table,row,value\nt,a,1\n",
            "reported.csv: line 1: expected columns table,row,metric,value, got table,row,value",
        ),
        ("table,row,metric,value\nt,a,AP,inf\n", "reported.csv: line 2: value: expected a finite number, got inf"),
        ("table,row,metric,value\nt,a,AP,1\nt,b,AP,x\n", "line 3: value: expected a finite number, got x"),
        ("table,row,metric,value\nt,a,AP,\n", "line 2: value: no value"),
        ("table,row,metric,value\nt,a,AP\n", "line 2: expected 4 values, table,row,metric,value, got 3"),
        ("table,row,metric,value\nt,a,AP,1\n\nt,a,AP,2\n", "line 4: the same table, row, metric as line 2; remove one"),
        ('table,row,metric,value\nt,"a,AP,1\n', "reported.csv: line 2: not CSV: unexpected end of data"),
        (b"\xff", "reported.csv: not UTF-8 text"),
        (None, "reported.csv: no such file"),
    ],
)
def test_a_slip_in_the_papers_figures_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "reported.csv"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ParamsError) as error:
        tables.load_reported(tmp_path)
    assert message in str(error.value)


def test_the_run_time_is_shown_with_the_machine_it_was_measured_on(tmp_path):
    definition = DEFINITION | {"columns": [{"label": "runtime ms", "metric": "runtime_ms", "unit": "ms"}]}
    run = RUN
    timed = run | {"runtime": {"median_ms": 174.94, "pictures": 3, "device": "a GPU"}}
    for name, facts in (("timed", timed), ("untimed", run | {"experiment": "two"})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"run": facts, "metrics": {"AP": 0.4}}))
    collected = tables.collect_results([tmp_path / "timed.json", tmp_path / "untimed.json"])
    reported = pd.DataFrame([("table3", "one", "runtime_ms", 170.0)], columns=["table", "row", "metric", "value"])
    table = tables.build_table("t", definition, collected, reported, "a note")
    cells = [row.cells[0] for row in table.rows]
    assert [(cell.measured, cell.reported, cell.delta) for cell in cells] == [
        ("174.9", "170.0", "+4.9"),
        ("not run", "", ""),
    ]
    assert "on a GPU; the paper's, Tesla V100" in table.notes[1]
    assert not tables.needs_models({"t": definition})


def external(tmp_path, *rows):
    header = "experiment,digest,predictions_sha256,metric,value,server,date"
    (tmp_path / "external.csv").write_text("\n".join([header, *rows, ""]))
    return tables.load_external(tmp_path)


SHA = "0f" * 32


def run_file(tmp_path, experiment="tsd_pc", digest="abc", sha256=SHA):
    run = RUN | {"experiment": experiment, "digest": digest, "predictions_sha256": sha256}
    path = tmp_path / f"{experiment}.json"
    path.write_text(json.dumps({"run": run, "metrics": {}}))
    return path


def test_a_servers_score_belongs_to_the_run_with_its_digest_and_predictions(tmp_path):
    files = [run_file(tmp_path)]
    rows = (f"tsd_pc,abc,{SHA},AP50_lb,0.51,Kaggle,2026-11-01", f"tsd,abc,{SHA},AP50_lb,0.5,Kaggle,2026")
    found, notes = tables.external_results(external(tmp_path, *rows), files, {"AP"})
    assert found[["experiment", "metric", "value"]].to_numpy().tolist() == [["tsd_pc", "AP50_lb", 0.51]]
    assert notes == ["AP50_lb of tsd_pc: Kaggle, 2026-11-01."]


@pytest.mark.parametrize(
    ("digest", "sha256", "message"),
    [
        ("old", SHA, "digest old is not that of today's params"),
        ("abc", "1e" * 32, "predictions_sha256 1e1e1e1e1e1e is not that of a run here"),
    ],
)
def test_a_score_of_other_params_or_predictions_is_left_out_and_said(tmp_path, digest, sha256, message):
    frame = external(tmp_path, f"tsd_pc,{digest},{sha256},AP50_lb,0.51,Kaggle,2026-11-01")
    found, notes = tables.external_results(frame, [run_file(tmp_path)], {"AP"})
    assert len(found) == 0
    assert message in notes[0]


def test_a_servers_score_is_not_averaged_with_what_is_measured_here(tmp_path):
    frame = external(tmp_path, f"tsd_pc,abc,{SHA},AP,0.51,Kaggle,2026-11-01")
    with pytest.raises(ParamsError, match=r"external\.csv: line 2: metric: AP is measured here.*testdev_AP"):
        tables.external_results(frame, [run_file(tmp_path)], {"AP"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"tsd_pc,abc,{SHA},AP50_lb,51,Kaggle,2026", "line 2: value: expected a fraction from 0 to 1, got 51"),
        (f"tsd_pc,abc,{SHA},AP50_lb,much,Kaggle,2026", "line 2: value: expected a fraction from 0 to 1, got much"),
        (f"tsd_pc,abc,{SHA},AP50_lb,nan,Kaggle,2026", "line 2: value: expected a fraction from 0 to 1, got nan"),
        ("tsd_pc,abc,,AP50_lb,0.5,Kaggle,2026", "line 2: predictions_sha256: no value"),
        ("tsd_pc,abc,0f,AP50_lb,0.5,Kaggle,2026", "line 2: predictions_sha256: expected 64 hexadecimal digits"),
        (f"tsd_pc,abc,{SHA},AP50_lb,0.5,Kaggle", "line 2: expected 7 values"),
    ],
)
def test_a_bad_line_of_servers_scores_is_named(tmp_path, row, message):
    with pytest.raises(ParamsError, match=message):
        external(tmp_path, row)
    (tmp_path / "external.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ParamsError, match="expected columns experiment,digest"):
        tables.load_external(tmp_path)
    (tmp_path / "external.csv").write_text("")
    with pytest.raises(ParamsError, match="is empty; expected columns experiment,digest"):
        tables.load_external(tmp_path)


def test_a_score_given_twice_is_no_second_seed(tmp_path):
    row = f"tsd_pc,abc,{SHA},AP50_lb,0.51,Kaggle,2026"
    with pytest.raises(
        ParamsError, match=r"external\.csv: line 3: the same experiment, digest, predictions_sha256, metric as line 2"
    ):
        external(tmp_path, row, row)
    assert len(external(tmp_path, row, row.replace(SHA, "1e" * 32))) == 2  # another seed's


def test_a_table_that_the_paper_does_not_have_shows_intervals_and_no_paper():
    columns = [{"label": "AP", "metric": "AP", "interval": True}, {"label": "AP.75", "metric": "AP75"}]
    rows = [{"id": "a", "label": "One", "experiment": "one"}, {"id": "b", "label": "None", "experiment": "nobody"}]
    definition = {"title": "T", "source": "S", "columns": columns, "rows": rows}
    assert tables.interval_metrics({"t": definition}) == ["AP"]
    measured = pd.DataFrame(
        [
            RUN | {"experiment": "one", "seed": seed, "run": f"s/one/d/seed{seed}", "metric": metric, "value": value}
            for seed, value in enumerate((0.2, 0.3))
            for metric in ("AP", "AP75")
        ],
        columns=tables.RESULT_COLUMNS,
    )
    table = tables.build_table("t", definition, measured, REPORTED, "note", (), {("one", "AP"): (0.181, 0.323)})
    text = tables.to_markdown(table)
    assert "| Method | AP | AP.75 |" in text
    assert "| One | 25.0 [18.1, 32.3] | 25.0 ± 7.1 |" in text
    assert "| None | not run | not run |" in text
    assert "95 % interval" in text
    line = next(csv.DictReader(io.StringIO(tables.to_csv(table))))
    assert (float(line["low"]), float(line["high"])) == pytest.approx((18.1, 32.3))
    assert "paper" not in tables.to_html([table], measured).split("<h2 id='runs'>")[0]
