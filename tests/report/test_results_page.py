"""The page of results: that of docs/ is made of the published metrics, and what it says of verdicts."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tsd
from tsd.errors import ParamsError
from tsd.report.claims import Claim, Judgement
from tsd.report.results_page import Section, load_sections, results_page

HELPS = Claim("a", "A helps", "Table 3", "one", "two", "AP", otherwise="It means little. It does not mean much.")
GROWS = Claim("b", "B grows", "Table 3", "one", "two", "AP75", otherwise="It means little. It does not mean much.")
OTHER = Claim("c", "C wins", "Table 1", "one", "two", "agreement", otherwise="Another reason.")


def section(*judgements, recorded=""):
    return Section("demo", "On scenes", "A text.", (5, 6), (), judgements, ("A note.",), recorded)


def test_the_page_in_docs_is_that_of_the_published_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = tsd("results", "--output", tmp_path / "results.md")
    assert done.returncode == 0, done.stderr
    own = (tmp_path / "results.md").read_text().replace(str(tmp_path / "results.md"), "docs/results.md")
    assert own == Path("docs/results.md").read_text(), "made anew by: tsd results --output docs/results.md"


def test_what_is_not_supported_is_explained_once_per_reason():
    page = results_page(
        [
            section(
                Judgement(HELPS, 0.004, 0.001, -0.01, 0.02, (0, 1)),
                Judgement(GROWS, None, -0.03, -0.04, -0.02, (0, 1)),
                Judgement(OTHER, None, 0.1, 0.05, 0.15, (0,)),
                Judgement(HELPS, 0.004),
            )
        ],
        "tsd results",
    )
    assert "Suite `demo`: 5 of 6 runs; 1 are not run." in page
    assert page.count("It means little.") == 1
    assert "- **A helps (not resolved); B grows (contradicted).** It means little. It does not mean much." in page
    assert "Another reason" not in page
    assert page.count("| A helps") == 1  # the one that was not run is left out
    assert "AP: 1.5 points; AP75: 1.0 points." in page


def test_without_runs_the_page_says_so():
    assert "No claim is judged yet" in results_page([section(Judgement(HELPS, 0.004))], "tsd results")
    page = results_page([section(Judgement(HELPS, 0.004), recorded="docs/results/demo/claims.md")], "tsd results")
    assert "(results/demo/claims.md)" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"results\.yaml: sections: expected a list"),
        ({"sections": [{"suite": "a", "title": "b"}]}, r"sections\.0: expected the keys"),
        ({"sections": [{"suite": "a", "title": "b", "text": 1}]}, r"sections\.0\.text: expected a text, got 1"),
        ({"sections": [{"suite": "a", "title": "b", "text": "c", "x": "d"}]}, r"sections\.0: expected the keys"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / "results.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=message):
        load_sections(tmp_path)


def test_every_section_names_a_suite_and_pages_that_are_there():
    for entry in load_sections(ROOT / "params"):
        assert (ROOT / "params/suites" / f"{entry['suite']}.yaml").exists()
        assert "recorded" not in entry or (ROOT / entry["recorded"]).exists()


def test_a_folder_of_evidence_that_is_not_there_overwrites_no_page(project):
    before = Path("docs/results.md").read_text() if Path("docs/results.md").exists() else None
    done = tsd("results", "--evidence", "nothere", "--output", "docs/results.md")
    assert done.returncode == 2
    assert "nothere: no such folder" in done.stderr
    assert (Path("docs/results.md").read_text() if Path("docs/results.md").exists() else None) == before
