"""Several models at a glance: one table and their answers, from the record of `lmprune compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .answers import how, one_line
from .charts import NUM_COLOURS, Chart, Line, LineChart, Point
from .numbers import with_error
from .page import Page
from .tables import MISSING, Table

Model = Mapping[str, Any]


def names(models: Sequence[Model]) -> list[str]:
    """What each is called: the last part of its path, or all of it where two have the same."""
    short = [Path(each["model"]).name or each["model"] for each in models]
    return [name if short.count(name) == 1 else each["model"] for name, each in zip(short, models, strict=True)]


def glance(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows: what is measured, and a cell a model; what nobody has is left out."""
    models: Sequence[Model] = record["models"]
    first = models[0]
    rows = [[name, *(_cell(tell, each) for each in models)] for name, tell in _ROWS]
    for task, metrics in first["tasks"].items():
        rows += [
            [f"{task}, {metric}", *(_scored(each["tasks"][task][metric]) for each in models)] for metric in metrics
        ]
    rows += _zero_shot([each.get("zero_shot") for each in models])  # older records have none
    for phase in ("prefill", "decode"):
        base = first[phase]["median"]
        rows += [
            [f"{phase}, tokens/s", *(f"{e[phase]['median']:,.1f} ({e[phase]['median'] / base:.2f}×)" for e in models)]
        ]
    return [row for row in rows if any(cell != MISSING for cell in row[1:])]


def answers(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows: a prompt, and each model's answer."""
    told = [each["answers"] for each in record["models"][1:] if each["answers"]]
    if not told:
        return []
    return [
        [one_line(item["prompt"]), one_line(item["before"]), *(one_line(found["items"][i]["after"]) for found in told)]
        for i, item in enumerate(told[0]["items"])
    ]


def note(record: Mapping[str, Any]) -> str:
    """What it was measured on."""
    tasks = f" Of each task the first {record['limit']} items." if record["limit"] else ""
    kind = f" in {record['engine_dtype']}" if record.get("engine_dtype") else ""
    return (
        f"Perplexity on the first {record['max_tokens']:,} tokens of {record['data']['name']}, ± one standard error. "
        f"Speed in {record['engine']}{kind}, {record['threads']} threads, medians; in brackets beside the first model."
        f"{tasks}"
    )


def of_record(record: Mapping[str, Any]) -> Page:
    header, said = names(record["models"]), answers(record)
    rows = glance(record)
    tables = [_table("At a glance", ["", *header], rows, note(record))]
    if said:
        found = next(each["answers"] for each in record["models"] if each["answers"])
        tables += [_table("Answers", ["prompt", *header], said, f"{how(found).capitalize()}.", prose=True)]
    return Page(
        title=f"{' · '.join(header)}",
        summary="The first model is what the others are compared with.",
        notes=(),
        claims=(),
        parts=(("Comparison", tuple(tables), tuple(charts(record))),),
        runs=None,
    )


#: what quality is drawn against -> what that is called
_AXES: Mapping[str, tuple[str, Callable[[Model], float | None]]] = {
    "params": ("parameters", lambda model: model["params"]),
    "megabytes": ("MB of weights", lambda model: model["weight_megabytes"]),
    "prefill": ("tokens a second of the prompt", lambda model: model["prefill"]["median"]),
    "decode": ("new tokens a second", lambda model: model["decode"]["median"]),
}


def charts(record: Mapping[str, Any]) -> list[Chart]:
    """Perplexity against what a model costs, of three models or more; and how a search for budgets went."""
    models: Sequence[Model] = record["models"]
    made = _searches(models)
    if len(models) < 3:
        return made
    for axis, (label, cost) in _AXES.items():
        lines = []
        for number, (name, model) in enumerate(zip(names(models), models, strict=True)):
            if (x := cost(model)) is not None:
                tip = f"{name}\nperplexity {model['perplexity']:.2f}\n{x:,.4g} {label}"
                lines.append(Line(name, name, (Point(x, model["perplexity"], tip),), ink=number % NUM_COLOURS))
        title = f"Perplexity against {label}"
        made.append(LineChart(axis, title, "A dot is a model.", label, "perplexity", tuple(lines)))
    return made


def _searches(models: Sequence[Model]) -> list[Chart]:
    """The best choice so far against the time of its search, of the models whose plan tells it."""
    lines = []
    for number, (name, model) in enumerate(zip(names(models), models, strict=True)):
        course = [turn for turn in model.get("search") or () if "seconds" in turn]  # not those that were cut for a try
        points = tuple(
            Point(turn["seconds"] / 60, turn["loss"], f"{name}\n{turn['by']}\n{turn['loss']:.4f} nats a token")
            for turn in course
        )
        if points:
            curve = tuple((turn["seconds"] / 60, turn["best"]) for turn in course)
            lines.append(Line(name, name, points, curve, ink=number % NUM_COLOURS))
    if not lines:
        return []
    caption = "A dot is a choice that was judged on all text of the search, the line the best so far."
    title = "The search for how many units stay where"
    return [LineChart("search", title, caption, "minutes", "KL from dense, nats a token", tuple(lines))]


def _table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], told: str, *, prose: bool = False
) -> Table:
    return Table(title, tuple(header), tuple(map(tuple, rows)), ("",) * len(rows), told, prose=prose)


def _cell(tell: Callable[[Model], str | None], model: Model) -> str:
    found = tell(model)
    return MISSING if found is None else found


def _number(key: str, form: str) -> Callable[[Model], str | None]:
    return lambda model: None if model.get(key) is None else f"{model[key]:{form}}"


def _perplexity(model: Model) -> str:
    return with_error(model["perplexity"], model["perplexity_se"], 2)


def _of_answers(tell: Callable[[Mapping[str, Any]], str]) -> Callable[[Model], str | None]:
    return lambda model: tell(model["answers"]) if model.get("answers") else None


def _zero_shot(found: Sequence[Mapping[str, Any] | None]) -> list[list[str]]:
    """Accuracy of each task and their mean, chance, and how much above it is left."""
    told = [each for each in found if each is not None]
    if not told:
        return []
    rows = [
        [
            f"{task}, accuracy (chance {row['chance']:.2f})",
            *(with_error(each["tasks"][task]["accuracy"], each["tasks"][task]["se"], 3) for each in told),
        ]
        for task, row in told[0]["tasks"].items()
    ]
    means = [with_error(each["mean_accuracy"], each["mean_accuracy_se"], 3) for each in told]
    kept = [each.get("kept_above_chance") for each in told]
    return [
        *rows,
        [f"mean accuracy (chance {told[0]['mean_chance']:.2f})", *means],
        ["kept above chance", *(MISSING if each is None else f"{each:.0%}" for each in kept)],
    ]


def _scored(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.3g} [{low:.3g}, {high:.3g}]"


_ROWS: Sequence[tuple[str, Callable[[Model], str | None]]] = (
    ("parameters", _number("params", ",")),
    ("weights, MB", _number("weight_megabytes", ",.1f")),
    ("cache, bytes a token", _number("cache_bytes_per_token", ",")),
    ("peak memory, MB", _number("peak_memory_mb", ",.0f")),
    ("perplexity", _perplexity),
    ("ratio to the first", _number("perplexity_ratio", ".3f")),
    ("bits per byte", _number("bits_per_byte", ".4f")),
    ("same first choice in the text", _number("top1_agreement", ".1%")),
    ("same choices in answers", _of_answers(lambda found: f"{found['agreement']:.0%}")),
    ("answers that repeat", _of_answers(lambda found: f"{found['repetitive']['after']} of {len(found['items'])}")),
    ("first token, ms", _number("first_token_ms", ",.0f")),
)
