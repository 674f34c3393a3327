"""What `lmprune report` does; its record is in docs/json.md."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..checkpoints.writing import check_folder, written_aside
from ..errors import UserError
from ..foreign import reading
from ..report import claims, figures, page, raster, rows, svg, tables
from ..report.charts import csv_of
from ..report.page import Page
from ..study import records
from ..study.children import end_with
from ..study.records import RESULTS_FILE, Results

FIGURES = "figures"


def report(folder: Path, out: Path | None) -> dict[str, Any]:
    """`lmprune report`. Raises: UserError where there are no records, or `out` can't be written."""
    start = time.perf_counter()
    results = records.read(folder / RESULTS_FILE)
    if not results.done:
        broken = f"; {results.broken} lines are no records" if results.broken else ""
        raise UserError(f"no run in {folder / RESULTS_FILE} ended well{broken}: there is nothing to report")
    destination = check_folder(out or folder / "report", "a report", _no_report, force=True)
    made, texts = drawn(results, folder / RESULTS_FILE)
    with written_aside(destination) as aside:
        (aside / FIGURES).mkdir()
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        pictures = [aside / FIGURES / f"{chart.id}.png" for chart in made.charts]
        # matplotlib takes a tenth of a second each
        with ProcessPoolExecutor(initializer=end_with, initargs=(os.getpid(),)) as processes:
            list(processes.map(raster.write_png, made.charts, pictures))
    return {
        "records": len(results.latest),
        "failed": len(results.failed),
        "broken": results.broken,
        "notes": list(made.notes),
        "figures": [chart.id for chart in made.charts],
        "claims": [
            {"section": c.section, "claim": c.claim, "verdict": c.verdict, "evidence": list(map(str, c.evidence))}
            for c in made.claims
        ],
        "out": str(destination.path),
        "seconds": time.perf_counter() - start,
    }


def _no_report(folder: Path) -> str | None:
    """Why a folder is no report, or more than one."""
    names = {entry.name for entry in folder.iterdir()}
    if strange := names - {"index.html", "report.md", FIGURES}:
        return f"it holds {min(strange)}"
    strange = {file.name for file in (folder / FIGURES).glob("*") if file.suffix not in (".svg", ".png", ".csv")}
    return f"it holds {min(strange)}" if strange else None


def drawn(results: Results, file: Path) -> tuple[Page, dict[str, str]]:
    """The page, and what its files hold but for pictures, by their names. file: of the records. Raises: UserError."""
    with reading(f"can't make a report of {file}"):
        made = build(results)
        figures = {f"{FIGURES}/{chart.id}.svg": svg.standalone(chart) for chart in made.charts}
        figures |= {f"{FIGURES}/{chart.id}.csv": csv_of(chart) for chart in made.charts}
        return made, {**figures, "report.md": page.markdown(made, FIGURES), "index.html": page.html(made)}


def build(results: Results) -> Page:
    """The page of these records, all of it plain values."""
    runs = results.latest
    sections = rows.sections(runs)
    parts = tuple(
        (found.title, tuple(tables.of_section(found)), tuple(figures.of_section(found, f"s{i}_")))
        for i, found in enumerate(sections, start=1)
    )
    studies = sorted({record["study"] for record in runs})
    hours = sum(record["seconds"]["total"] for record in runs) / 3600
    made_by = ", ".join(sorted({record["versions"]["lmprune"] for record in runs}))
    summary = f"{len(runs)} runs by lmprune {made_by}; {hours:.1f} hours of commands in all."
    return Page(
        title=f"Study: {', '.join(studies)}",
        summary=summary,
        notes=tuple(results.notes()),
        claims=tuple(claim for found in sections for claim in claims.of_section(found)),
        parts=parts,
        runs=tables.of_runs(sections),
    )
