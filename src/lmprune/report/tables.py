"""The tables of a report: plain cells, which the HTML and the Markdown page both write out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from . import paper
from .answers import how, one_line
from .rows import METRICS, Row, Section

MISSING = "–"
_LONGEST = 160  # characters of an answer in a cell


@dataclass(frozen=True)
class Table:
    """rows: cells; groups: the method of each row, for colour and filter ("" = none).

    words: how many columns, from the left, hold words and no numbers. prose: all do, and long ones, in several lines.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    note: str = ""
    words: int = 1
    prose: bool = False


def of_section(found: Section) -> list[Table]:
    """The paper's table for each metric, and its redundancy as numbers."""
    tables = [_by_keep(found, key, METRICS[key][0]) for key in found.metrics]
    for key, name, theirs in (
        ("uniqueness_ratio", "uniqueness, ratio to dense", paper.UNIQUENESS_RATIO),
        ("sensitivity_ratio", "sensitivity, ratio to dense", paper.SENSITIVITY_RATIO),
    ):
        if any(row.value(key) is not None for row in found.rows if not row.dense):
            tables.append(_by_keep(found, key, name, theirs))
    return [*tables, *_answers(found)]


def _by_keep(found: Section, key: str, name: str, theirs: Mapping[str, Mapping[float, float]] | None = None) -> Table:
    """A row a method; for each keep ratio the mean over seeds ± standard deviation, and the paper's beside it."""
    beside = {m: {k: f"{v:.2f}" for k, v in row.items()} for m, row in (theirs or {}).items()}
    if key == "perplexity":
        beside = {m: {k: f"{v[0]:.2f} / {v[1]:.2f}" for k, v in row.items()} for m, row in paper.PERPLEXITY.items()}
    shown = {keep for method, _ in found.names for keep in beside.get(method, {}) if keep in found.keeps}
    theirs_dense = key == "perplexity" and bool(shown)
    dense = found.of("dense")
    header = ["method", *(["dense"] if dense else []), *(["paper"] if dense and theirs_dense else [])]
    apart = len(header) - 1
    for keep in found.keeps:
        header += [f"keep {keep:g}", *(["paper"] if keep in shown else [])]
    rows, groups = [], []
    if dense:
        told = [spread(dense, key), *([f"{paper.DENSE_PERPLEXITY:.2f}"] if theirs_dense else [])]
        rows += [["dense", *told, *[""] * (len(found.keeps) + len(shown))]]
        groups += ["dense"]
    for method, distil in found.names:
        cells = [method + (" + distil" if distil else ""), *[""] * apart]
        for keep in found.keeps:
            cells += [spread(found.of(method, keep, distil), key)]
            cells += [beside.get(method, {}).get(keep, MISSING)] if keep in shown else []
        rows += [cells]
        groups += [method]
    seeds = len({row.seed for row in found.rows if not row.dense})
    note = f"Mean over {seeds} seeds ± standard deviation." if seeds > 1 else "One seed: no spread."
    if shown:
        note += f" Paper: {paper.CAPTION if key == 'perplexity' else paper.FIGURE_1}"
        note += "; without / with distillation." if key == "perplexity" else "."
    return Table(f"{name}: {found.title}", tuple(header), tuple(map(tuple, rows)), tuple(groups), note)


def spread(rows: list[Row], key: str) -> str:
    """Mean ± standard deviation over the runs, MISSING where there is none."""
    values = [value for row in rows if (value := row.value(key)) is not None]
    if not values:
        return MISSING
    digits = 3 if max(map(abs, values)) < 10 else 2
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _answers(found: Section) -> list[Table]:
    """What each method's models say, one seed of each; a column a prompt."""
    said = {(row.method, row.distil, row.keep): (row, row.answers) for row in reversed(found.rows) if row.answers}
    if not said:
        return []
    _, first = next(iter(said.values()))
    prompts = [one_line(item["prompt"]) for item in first["items"]]
    rows, groups = [("dense", "", "", "", *(_cut(item["before"]) for item in first["items"]))], ["dense"]
    for row, answers in sorted(said.values(), key=lambda each: found.rows.index(each[0])):
        loops = f"{answers['repetitive']['after']} of {len(answers['items'])}"
        texts = {one_line(item["prompt"]): _cut(item["after"]) for item in answers["items"]}
        told = (texts.get(prompt, MISSING) for prompt in prompts)
        rows += [(row.name, f"{row.keep:g}", f"{answers['agreement']:.0%}", loops, *told)]
        groups += [row.method]
    header = ("method", "keep", "same choices", "repeat themselves", *prompts)
    note = f"Of one seed; {how(first)}. Same choices: the share of the dense answers' tokens that are its first choice."
    return [Table(f"answers: {found.title}", header, tuple(rows), tuple(groups), note, prose=True)]


def _cut(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()}…"


def of_runs(found: list[Section]) -> Table:
    """Every run, one row."""
    rows, groups = [], []
    keys = [key for key in METRICS if any(key in s.metrics for s in found)]
    for section in found:
        for row in section.rows:
            seconds, memory = row.record["seconds"], row.record.get("peak_memory_mb")
            rows += [
                (
                    row.model, row.task, row.name, f"{row.keep:g}", str(row.seed),
                    *(spread([row], key) for key in keys), spread([row], "uniqueness"), spread([row], "sensitivity"),
                    f"{row.params:,}" if row.params else MISSING, f"{seconds['total']:.0f}",
                    f"{memory:,.0f}" if memory else MISSING,
                )
            ]  # fmt: skip
            groups += [row.method]
    measured = [METRICS[key][0] for key in keys]
    columns = (
        "model",
        "task",
        "method",
        "keep",
        "seed",
        *measured,
        "uniqueness",
        "sensitivity",
        "parameters",
        "s",
        "MB",
    )
    note = "Seconds and peak memory of all commands of the run."
    return Table("All runs", columns, tuple(rows), tuple(groups), note, words=3)
