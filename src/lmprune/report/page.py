"""The report as one HTML file that needs no network, and as Markdown beside the figures' own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from ..markdown import in_html, inline
from . import svg
from .charts import Chart, HeatChart, colour
from .claims import Claim
from .tables import Table

#: what every page begins with
BEGINS = '<!doctype html><html lang="en"><head>'


@dataclass(frozen=True)
class Page:
    """title: of the study. notes: what the reader must know of the records. parts: (heading, tables, charts).
    runs: all of them, where there are any."""

    title: str
    summary: str
    notes: tuple[str, ...]
    claims: tuple[Claim, ...]
    parts: tuple[tuple[str, tuple[Table, ...], tuple[Chart, ...]], ...]
    runs: Table | None

    @property
    def charts(self) -> list[Chart]:
        return [chart for _, _, charts in self.parts for chart in charts]


def html(page: Page) -> str:
    groups = svg.legend_groups(page.charts)
    chips = "".join(
        f'<button type="button" class="chip c{colour}" data-group="{in_html(group)}" aria-pressed="true">'
        f"{in_html(group)}</button>"
        for group, _, colour in groups
    )
    body = [f"<h1>{in_html(page.title)}</h1>", f"<p>{in_html(page.summary)}</p>", *map(_note, page.notes)]
    body += [f'<nav class="chips" aria-label="methods shown">{chips}</nav>'] if chips else []
    body += [_claims(page.claims)]
    for heading, tables, charts in page.parts:
        body += [f"<section><h2>{in_html(heading)}</h2>", *map(_table, tables), '<div class="figures">']
        body += [_figure(chart) for chart in charts]
        body += ["</div></section>"]
    body += ["<section><h2>All runs</h2>", _table(page.runs), "</section>"] if page.runs else []
    style, script = svg.css() + _asset("page.css"), _asset("page.js")
    return (
        f'{BEGINS}<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{in_html(page.title)}</title><style>{style}</style></head>"
        f'<body><main>{"".join(body)}</main><div id="tip" role="status" hidden></div>'
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("lmprune.report").joinpath(name).read_text(encoding="utf-8")


def _note(text: str) -> str:
    return f'<p class="note">{in_html(text)}</p>'


def _claims(claims: Sequence[Claim]) -> str:
    if not claims:
        return ""
    rows = "".join(
        f'<tr><td>{in_html(c.section)}</td><td>{in_html(c.claim)}</td><td class="v-{c.verdict.replace(" ", "-")[:3]}">'
        f"{in_html(c.verdict)}</td><td><details><summary>comparisons: {len(c.evidence)}</summary><ul>"
        + "".join(f"<li>{in_html(str(e))}: {e.verdict}</li>" for e in c.evidence)
        + "</ul></details></td></tr>"
        for c in claims
    )
    return (
        "<section><h2>The paper's claims</h2><p>Each comparison is expected to be below 0; a claim holds where all "
        "of them are, and does not where one is above, at 95% for all of a claim together (Holm).</p>"
        '<div class="scroll"><table class="words-2"><thead>'
        f"<tr><th>runs</th><th>claim</th><th>here</th><th>evidence</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{in_html(name)}</th>" for name in table.header)
    rows = "".join(
        (f'<tr class="g g-{svg.slug(group)} c{colour(group)}">' if group else "<tr>")
        + "".join(f"<td>{in_html(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells, group in zip(table.rows, table.groups, strict=True)
    )
    kind = "prose" if table.prose else f"words-{table.words}"
    return (
        f'<h3>{in_html(table.title)}</h3><div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="soft">{in_html(table.note)}</p>'
    )


def _figure(chart: Chart) -> str:
    wide = ' class="wide"' if isinstance(chart, HeatChart) else ""
    return (
        f'<figure id="{in_html(chart.id)}"{wide}><h3>{in_html(chart.title)}</h3>{svg.svg(chart)}'
        f"<figcaption>{in_html(chart.caption)}</figcaption></figure>"
    )


def markdown(page: Page, folder: str) -> str:
    """folder: where the figures' files are, relative to the page."""
    lines = [f"# {inline(page.title)}", "", inline(page.summary), "", *(f"> {inline(note)}\n" for note in page.notes)]
    if page.claims:
        lines += [
            "## The paper's claims",
            "",
            "Each comparison is expected to be below 0; p is Holm's, of a claim's comparisons together.",
            "",
        ]
        for claim in page.claims:
            lines += [f"- **{claim.claim}** ({inline(claim.section)}): **{claim.verdict}**"]
            lines += [f"  - {evidence}: {evidence.verdict}" for evidence in claim.evidence]
        lines += [""]
    for heading, tables, charts in page.parts:
        lines += [f"## {inline(heading)}", ""]
        for table in tables:
            lines += _markdown_table(table)
        for chart in charts:
            lines += [f"### {chart.title}", "", f"![{chart.title}]({folder}/{chart.id}.svg)", "", chart.caption, ""]
    return "\n".join([*lines, *(["## All runs", "", *_markdown_table(page.runs)] if page.runs else [])])


def _markdown_table(table: Table) -> list[str]:
    head, *rows = [" | ".join(map(inline, row)) for row in (table.header, *table.rows)]
    lines = [head, " | ".join(["---"] * len(table.header)), *rows]
    return [f"**{inline(table.title)}**", "", *(f"| {line} |" for line in lines), "", table.note, ""]
