"""The paper's claims as data, a verdict on each, and the page that shows them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tsd.engine.params import hint, read_params
from tsd.errors import ParamsError
from tsd.evaluation.draws import split_figure
from tsd.report.tables import NO_OBJECTS, pipes


@dataclass(frozen=True)
class Claim:
    """``more`` is said to be better than ``less`` in ``figure``.

    Attributes:
        id: key in ``params/claims.yaml``.
        text: a sentence.
        source: where the paper says it.
        more: experiment.
        less: experiment.
        figure: as :func:`tsd.evaluation.draws.figure_of` takes it. Of AP50 lost to a kind of error, ``more`` is the
            experiment that is said to lose more.
        reported: rows of ``reported.csv``, as table/row, of both experiments; empty: the paper prints no figure.
        otherwise: what it means where our runs contradict the claim or do not resolve it.
    """

    id: str
    text: str
    source: str
    more: str
    less: str
    figure: str
    reported: tuple[str, ...] = ()
    otherwise: str = ""


@dataclass(frozen=True)
class Judgement:
    """What the runs say of a claim: fractions; None where nothing ran."""

    claim: Claim
    paper: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()

    @property
    def resolves(self) -> float | None:
        """Half the interval's width: a difference that is smaller is not resolved."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def verdict(self) -> str:
        """``supported`` or ``contradicted`` if the whole interval is on one side of zero."""
        if self.low is None or self.high is None:
            return "not run"
        if math.isnan(self.low) or math.isnan(self.high):
            return NO_OBJECTS
        if self.low > 0:
            return "supported"
        return "contradicted" if self.high < 0 else "not resolved"


def load_claims(params: Path, experiments: Sequence[str] | None = None) -> list[Claim]:
    """The claims of ``claims.yaml``.

    Args:
        params: folder.
        experiments: names that a claim may use; None: any.

    Raises:
        ParamsError: broken file, unknown or missing key, unknown figure or experiment; names the claim.
    """
    path = params / "claims.yaml"
    claims = []
    for name, entry in read_params("claims", params.parent)["claims"].items():
        where = f"{path}: claims.{name}"
        try:
            split_figure(entry["figure"])
        except ValueError as error:
            raise ParamsError(f"{where}.figure: {error}") from None
        for key in ("more", "less"):
            if experiments is not None and entry[key] not in experiments:
                raise ParamsError(
                    f"{where}.{key}: no experiment {entry[key]!r} in {params / 'experiments.yaml'}"
                    f"{hint(entry[key], experiments)}"
                )
        if entry["more"] == entry["less"]:
            raise ParamsError(f"{where}: more and less are both {entry['more']!r}; expected two experiments")
        claims.append(Claim(name, **(entry | {"reported": tuple(entry.get("reported", ()))})))
    return claims


def paper_difference(claim: Claim, reported: pd.DataFrame) -> float | None:
    """The paper's own difference, a fraction; None where it prints none.

    Raises:
        ParamsError: a row that ``reported.csv`` does not have.
    """
    if not claim.reported:
        return None
    values = []
    for row in claim.reported:
        table, _, name = row.partition("/")
        chosen = (reported["table"] == table) & (reported["row"] == name) & (reported["metric"] == claim.figure)
        if chosen.sum() != 1:
            raise ParamsError(
                f"params/claims.yaml: claims.{claim.id}.reported: no {claim.figure} of {row} in reported.csv"
            )
        values.append(float(reported.loc[chosen, "value"].iloc[0]))
    return round((values[0] - values[1]) / 100, 6)


def format_claims(judgements: Sequence[Judgement], title: str, notes: Sequence[str]) -> str:
    """The page, in Markdown; figures in percent points."""
    return "\n".join([f"# {title}", "", *claims_table(judgements), "", *(f"{note}  " for note in notes), ""])


def claims_table(judgements: Sequence[Judgement]) -> list[str]:
    """Lines of the table of verdicts, in Markdown."""
    head = ["claim", "source", "figure", "paper's Δ", "our Δ, 95 % interval", "seeds", "verdict"]
    lines = [pipes(head), pipes(["---"] * len(head))]
    for judged in judgements:
        claim = judged.claim
        ours = "not run"
        if judged.verdict == NO_OBJECTS:
            ours = NO_OBJECTS
        elif judged.value is not None and judged.low is not None and judged.high is not None:
            ours = f"{100 * judged.value:+.1f} [{100 * judged.low:+.1f}, {100 * judged.high:+.1f}]"
        paper = "" if judged.paper is None else f"{100 * judged.paper:+.1f}"
        sides = f"{claim.text} (`{claim.more}` − `{claim.less}`)"
        cells = [sides, claim.source, claim.figure, paper, ours, str(len(judged.seeds) or ""), judged.verdict]
        lines.append(pipes(cells))
    return lines


def to_csv(judgements: Sequence[Judgement]) -> str:
    """A line per claim; fractions in full precision."""
    lines = [
        {
            "claim": judged.claim.id,
            "text": judged.claim.text,
            "source": judged.claim.source,
            "more": judged.claim.more,
            "less": judged.claim.less,
            "figure": judged.claim.figure,
            "paper": judged.paper,
            "difference": judged.value,
            "low": judged.low,
            "high": judged.high,
            "seeds": " ".join(map(str, judged.seeds)),
            "verdict": judged.verdict,
        }
        for judged in judgements
    ]
    return pd.DataFrame(lines).to_csv(index=False)
