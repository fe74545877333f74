"""One HTML file that needs no other: claims, tables, figures, runs and environments of a suite."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:75em;padding:0 1em}"
    "table{border-collapse:collapse;margin-bottom:.4em;display:block;overflow-x:auto}"
    "td,th{padding:.25em .7em;border-bottom:1px solid #ccc;text-align:right}a{color:inherit}:target{background:#ffd}"
    "td:first-child,th:first-child{text-align:left}p{color:#555;margin:.2em}img{max-width:100%}figure{margin:1em 0}"
    "#claims td,#claims th,#environment td,#environment th{text-align:left}"
    ".supported{color:#15703a}.contradicted{color:#b3261e}"
    "figcaption{color:#555}nav a{margin-right:1em}"
)


@dataclass(frozen=True)
class Picture:
    """A figure: its name, what it shows, and the PNG."""

    name: str
    caption: str
    png: bytes


def page(title: str, body: str) -> str:
    """A whole HTML page."""
    head = f"<!doctype html><html><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
    return f"{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"


def grid(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table of ready HTML."""
    rows = [_line("th", head), *(_line("td", line) for line in lines)]
    return "<table>" + "\n".join(rows) + "</table>"


def _line(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def report(
    title: str,
    description: str,
    claims: Sequence[Mapping[str, Any]],
    tables: str,
    pictures: Sequence[Picture],
    missing: Mapping[str, str],
    environments: Sequence[Mapping[str, Any]],
) -> str:
    """The report of a suite.

    Args:
        title: of the page.
        description: of the suite.
        claims: lines of ``claims.csv``; none where the suite has none.
        tables: HTML of the tables and runs.
        pictures: figures, in order.
        missing: figure that was not drawn → why.
        environments: facts of the machines that the runs were made on, each with ``runs``, their number.
    """
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(description)}</p>"]
    sections = [("claims", "Claims")] if claims else []
    sections += [("tables", "Tables"), ("runs", "Runs"), ("figures", "Figures"), ("environment", "Environment")]
    parts.append("<nav>" + "".join(f"<a href='#{key}'>{name}</a>" for key, name in sections) + "</nav>")
    if claims:
        lines = (_claim(claim) for claim in claims)
        head = ("claim", "source", "figure", "paper's Δ", "our Δ, 95 % interval", "seeds", "verdict")
        note = (
            "Interval: paired bootstrap over pictures and trainings; of one training each, over pictures alone. "
            "Supported, contradicted: all of it is on that side of zero."
        )
        parts.append(f"<section id='claims'><h2>Claims of the paper</h2>{grid(head, lines)}<p>{note}</p></section>")
    parts.append(f"<section id='tables'>{tables}</section>")
    parts.append("<section id='figures'><h2>Figures</h2>")
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        name, caption = html.escape(picture.name), html.escape(picture.caption)
        parts.append(f"<figure><img alt='{name}' src='data:image/png;base64,{data}'>")
        parts.append(f"<figcaption>{name}: {caption}</figcaption></figure>")
    parts += [f"<p>{html.escape(name)}: {html.escape(why)}</p>" for name, why in missing.items()]
    parts.append("</section><section id='environment'><h2>Environment</h2>")
    keys = list(dict.fromkeys(key for facts in environments for key in facts))
    lines_ = ([html.escape(str(facts.get(key, ""))) for key in keys] for facts in environments)
    parts.append(grid(map(html.escape, keys), lines_) if environments else "<p>No run's folder is here.</p>")
    return page(title, "\n".join([*parts, "</section>"]))


def _claim(claim: Mapping[str, Any]) -> list[str]:
    def points(value: str) -> str:
        return f"{100 * float(value):+.1f}"

    ours = claim["verdict"]  # not run, or no objects
    if claim["difference"]:
        ours = f"{points(claim['difference'])} [{points(claim['low'])}, {points(claim['high'])}]"
    words = f"{claim['text']} ({claim['more']} − {claim['less']})"
    paper = points(claim["paper"]) if claim["paper"] else ""
    seeds = str(len(claim["seeds"].split()) or "")
    kind = html.escape(claim["verdict"])
    cells = [html.escape(cell) for cell in (words, claim["source"], claim["figure"], paper, ours, seeds)]
    return [*cells, f"<span class='{kind}'>{kind}</span>"]
