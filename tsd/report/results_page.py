"""The page of results: published runs beside the paper's figures, with intervals and verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.errors import ParamsError
from tsd.files import read_yaml
from tsd.report.claims import Judgement, claims_table
from tsd.report.tables import NOT_RUN, Table, to_markdown

JUDGED = ("supported", "contradicted", "not resolved")

TITLE = "What our runs say of the paper"


@dataclass(frozen=True)
class Section:
    """What one suite's published runs say.

    Attributes:
        suite: its name.
        title: of the section.
        text: what was trained on what.
        runs: number of its runs that are published, and that it has.
        tables: of the paper, with a row that was run.
        judgements: of all claims.
        notes: on the verdicts.
        recorded: page of verdicts made before; empty: none.
    """

    suite: str
    title: str
    text: str
    runs: tuple[int, int]
    tables: tuple[Table, ...]
    judgements: tuple[Judgement, ...]
    notes: tuple[str, ...]
    recorded: str = ""


def load_sections(params: Path) -> list[dict[str, str]]:
    """The sections of ``results.yaml``: suite, title, text and, where there is one, recorded.

    Raises:
        ParamsError: broken file, unknown or missing key; names it.
    """
    path = params / "results.yaml"
    content: Any = read_yaml(path)
    sections = content.get("sections") if isinstance(content, dict) else None
    if not isinstance(sections, list) or not sections:
        raise ParamsError(f"{path}: sections: expected a list")
    for index, section in enumerate(sections):
        where = f"{path}: sections.{index}"
        keys = {"suite", "title", "text"}
        if not isinstance(section, dict) or not keys <= set(section) <= keys | {"recorded"}:
            raise ParamsError(f"{where}: expected the keys suite, title, text and, where there is one, recorded")
        for key, value in section.items():
            if not isinstance(value, str):
                raise ParamsError(f"{where}.{key}: expected a text, got {value!r}")
    return sections


def says_something(table: Table) -> bool:
    """Whether two rows at least were run; of a table that the paper does not have, whether it has an interval."""
    if not table.has_paper:
        return any(cell.interval for row in table.rows for cell in row.cells)
    return sum(any(cell.n for cell in row.cells) for row in table.rows) > 1


def results_page(sections: Sequence[Section], command: str) -> str:
    """The page, in Markdown.

    Args:
        sections: in order.
        command: that makes it.
    """
    lines = [f"# {TITLE}", "", f"Made by `{command}`; not to be edited."]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text, "", _count(section)]
        for table in section.tables:
            lines += ["", to_markdown(table).rstrip("\n")]
        lines += ["", *_verdicts(section)]
    return "\n".join(lines) + "\n"


def _count(section: Section) -> str:
    done, planned = section.runs
    missing = f"; {planned - done} are {NOT_RUN}" if planned > done else ""
    return f"Suite `{section.suite}`: {done} of {planned} runs{missing}."


def _verdicts(section: Section) -> list[str]:
    judged = [item for item in section.judgements if item.verdict in JUDGED]
    recorded = []
    if section.recorded:
        recorded = [
            f"Verdicts made when the predictions were at hand: [all claims]({section.recorded.removeprefix('docs/')})."
        ]
    if not judged:
        return recorded or ["No claim is judged yet: that takes both its experiments, with one seed at least."]
    lines = ["### The paper's claims", "", *claims_table(judged), "", *(f"{note}  " for note in section.notes)]
    lines += ["", "### What the design can resolve", "", *_resolutions(judged)]
    lines += _explanations(judged)
    return [*lines, "", *recorded] if recorded else lines


def _resolutions(judged: Sequence[Judgement]) -> list[str]:
    """The smallest differences that the runs could have told from zero."""
    by_figure: dict[str, list[float]] = {}
    for item in judged:
        if item.resolves is not None and item.claim.figure in ("AP", "AP50", "AP75"):
            by_figure.setdefault(item.claim.figure, []).append(100 * item.resolves)
    if not by_figure:
        return ["No claim about AP is judged."]
    found = "; ".join(f"{name}: {_range(values)} points" for name, values in by_figure.items())
    return [
        f"A difference is resolved where it is larger than half its interval's width. {found}. The paper's own "
        "differences are 0.3 to 4.9 points, but for those of the disentangled backbones."
    ]


def _range(values: Sequence[float]) -> str:
    ends = sorted({f"{min(values):.1f}", f"{max(values):.1f}"}, key=float)
    return " to ".join(ends)


def _explanations(judged: Sequence[Judgement]) -> list[str]:
    """What it means that claims are contradicted or not resolved; claims with the same words together."""
    by_text: dict[str, list[Judgement]] = {}
    for item in judged:
        if item.verdict != "supported":
            by_text.setdefault(item.claim.otherwise, []).append(item)
    if not by_text:
        return []
    lines = ["", "### What is not supported, and what that means", ""]
    for text, items in by_text.items():
        names = "; ".join(f"{item.claim.text} ({item.verdict})" for item in items)
        lines.append(f"- **{names}.** {text}")
    return lines
