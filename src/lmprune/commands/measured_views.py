"""What people see of what was measured: `views` of evaluations, analyses, benchmarks, studies and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..progress import duration
from ..report.numbers import counted, megabytes, with_error
from .answer_views import answers
from .console import Views, table


def evaluation(record: Mapping[str, Any]) -> Views:
    windows = f"windows of {record['context']}" + (f", stride {record['stride']}" if record["stride"] else "")
    rows = [["perplexity", with_error(record["perplexity"], record["perplexity_se"], 2)]]
    if record["bits_per_byte"] is not None:
        rows += [["bits per byte", f"{record['bits_per_byte']:.4f}"]]
    if record["word_perplexity"] is not None:
        rows += [["perplexity per word", f"{record['word_perplexity']:,.2f}"]]
    if "baseline" in record:
        rows += [
            ["baseline's perplexity", f"{record['baseline_perplexity']:.2f}"],
            ["ratio to it", f"{record['perplexity_ratio']:.3f}"],
            ["difference, nats a token", with_error(record["nll_difference"], record["nll_difference_se"], 4)],
            ["KL from it, nats a token", f"{record['kl']:.4f}"],
            ["same first choice", f"{record['top1_agreement']:.1%}"],
        ]
    return [
        f"{record['model']}" + (f", against {record['baseline']}" if "baseline" in record else ""),
        table(["", ""], rows),
        f"{record['tokens']:,} tokens in {windows}, {record['seconds']:.1f} s",
        *(["one window only: no standard error"] if record["perplexity_se"] is None else []),
        *_read_before(record),
        *answers(record.get("answers")),
    ]


def _read_before(record: Mapping[str, Any]) -> Views:
    return (
        [f"NOT held out: the model was fitted to this text ({record['read_before']})"] if record["read_before"] else []
    )


def task(record: Mapping[str, Any]) -> Views:
    metrics = [name.removesuffix("_ci") for name in record if name.endswith("_ci")]
    rows = [
        [_METRIC_NAMES.get(name, name), f"{record[name]:.{d}f}", "–".join(f"{x:.{d}f}" for x in record[f"{name}_ci"])]
        for name in metrics
        if (d := 4 if name in _METRIC_NAMES else 2)
    ]
    rate = record["sequences_per_second"]
    speed = "" if rate is None else f", {record['decoded']} decoded in this run, {rate:.2f} a second"
    return [
        record["model"],
        *_read_before(record),
        table(["", record["decode"]["name"], "95% interval"], rows),
        f"{record['items']:,} items{speed}",
        f"{record['unfinished']} outputs met the limit of {record['max_new_tokens']} new tokens",
        *([f"predictions and scores are in {record['out']}"] if record["out"] else []),
    ]


_METRIC_NAMES = {
    "exact_match": "exact match",
    "logical_form": "logical form",
    "execution": "execution",
    "first_choices": "first choices right",
}


def analysis(record: Mapping[str, Any]) -> Views:
    units = [line for kind, found in record["units"].items() for line in ("", *_of_units(kind, found))]
    return [
        f"{record['model']}, {record['tokens']:,} tokens of {record['data']['name']}",
        *(_of_neurons(record) if "advice" in record else []),
        *units,
        "",
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory; written to {record['out']}",
    ]


def _of_neurons(record: Mapping[str, Any]) -> Views:
    against = "baseline" in record
    rows = [
        [
            str(layer["layer"]), f"{layer['width']:,}", "" if layer["left"] is None else f"{layer['left']:.0%}",
            f"{layer['uniqueness']:.3f}", f"{layer['baseline_uniqueness']:.3f}" if against else "",
            f"{layer['sensitivity']:.4g}", f"{layer['baseline_sensitivity']:.4g}" if against else "",
            str(layer["redundant"]), str(layer["dead"]), f"{keep:.2f}",
        ]
        for layer, keep in zip(record["layers"], record["advice"]["layers"], strict=True)
    ]  # fmt: skip
    header = ["layer", "neurons", "left", "unique", "baseline", "sensitivity", "baseline", "alike", "dead", "keep"]
    shown = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows)]
    advice = record["advice"]
    method = f"{advice['method']}, scope {advice['scope']}, keep {advice['keep']:g}"
    return [
        table([header[i] for i in shown], [[row[i] for i in shown] for row in rows]),
        "",
        _measure("uniqueness", record),
        _measure("sensitivity", record),
        *_alike(record),
        "",
        f"Advice: {method}{', and train on' if advice['train'] else ''}: {advice['why']}.",
        "It is a first-order estimate: compare with `lmprune eval --baseline` afterwards.",
    ]


def _of_units(kind: str, found: Mapping[str, Any]) -> Views:
    """A line a layer: of many units the extremes."""
    sites = found["sites"]
    if kind == "heads":
        header = ["layer", "heads", "least sensitive", "sensitivity", "most replaceable", "by the others"]
        rows = [
            [str(s["layer"]), str(len(s["sensitivity"])), *_extreme(min, s["sensitivity"], ".4g"),
             *_extreme(max, s["replaceable"], ".0%")]
            for s in sites
        ]  # fmt: skip
    elif kind == "experts":
        header = ["layer", "experts", "rarest", "tokens", "weakest", "gate x norm", "most alike", "cos"]
        rows = [
            [str(s["layer"]), str(len(s["reap"])), *_extreme(min, s["frequency"], ".1%"),
             *_extreme(min, s["reap"], ".3g"), *_extreme(max, s["nearest_cos"], ".2f")]
            for s in sites
        ]  # fmt: skip
    else:
        header = ["layer", "influence", "perplexity without it"]
        (site,) = sites
        columns = (site["layers"], site["influence"], site["perplexity_ratio_without"])
        rows = [[str(layer), f"{x:.4f}", f"x {ratio:.3f}"] for layer, x, ratio in zip(*columns, strict=True)]
    return [f"{kind}:", table(header, rows)]


def _extreme(which: Callable[..., int], values: list[float], how: str) -> tuple[str, str]:
    """(its number, its value) of the least or the greatest."""
    at = which(range(len(values)), key=values.__getitem__)
    return str(at), format(values[at], how)


def _measure(name: str, record: Mapping[str, Any]) -> str:
    ratio = record[f"{name}_ratio"]
    return f"{name} {record[name]:.4g}" + ("" if ratio is None else f", {ratio:.3f} of the baseline's")


def _alike(record: Mapping[str, Any]) -> Views:
    """The three largest clusters of look-alikes."""
    layers = zip(record["layers"], record["clusters"], strict=True)
    largest = sorted(
        ((len(c["neurons"]), layer["layer"], c) for layer, found in layers for c in found), key=lambda x: -x[0]
    )[:3]
    return [
        f"{size} neurons of layer {layer} are alike; they fire on "
        + "  ".join(repr(f"{x['before'][-16:]}[{x['token']}]")[1:-1] for x in cluster["examples"][:3])
        for size, layer, cluster in largest
    ]


def study(record: Mapping[str, Any]) -> Views:
    if "todo" in record:
        return [
            *record["todo"],
            "",
            f"{len(record['todo'])} of {record['runs']} runs to do, {record['finished']} finished; "
            f"about {duration(record['estimated_seconds'])}",
        ]
    failed = [f"failed: {run['id']}: {run['error']}" for run in record["failed"]]
    return [
        *failed,
        f"{record['finished']} of {record['runs']} runs finished, {len(failed)} failed, "
        f"in {duration(record['seconds'])}; records in {record['results']}",
    ]


def report(record: Mapping[str, Any]) -> Views:
    claims = [[claim["claim"], claim["verdict"]] for claim in record["claims"]]
    return [
        *record["notes"],
        *([table(["claim of the paper", "here"], claims, numbers=False)] if claims else []),
        f"{record['records']} runs, {len(record['figures'])} figures: {record['out']}/index.html, report.md",
    ]


def benchmark(record: Mapping[str, Any]) -> Views:
    results = [result | {"name": Path(result["model"]).name or result["model"]} for result in record["results"]]
    sizes = [
        [
            result["name"], megabytes(result["weight_megabytes"]), f"{result['peak_memory_mb']:,.0f}",
            f"{result['first_token_ms']:,.0f}", counted(result["cache_bytes_per_token"]),
        ]
        for result in results
    ]  # fmt: skip
    rates = [
        [
            result["name"],
            phase,
            f"{result[phase]['median']:,.1f}",
            _range(result[phase]["min"], result[phase]["max"], 1),
        ]
        for result in results
        for phase in ("prefill", "decode")
    ]
    speedups = [_speedup(result, phase) for result in results[1:] for phase in ("prefill", "decode")]
    kind = f" {record['dtype']}" if record["dtype"] else ""
    views: Views = [
        f"{record['engine']}{kind}, {record['threads']} threads, batch {record['batch']}: {record['prompt_tokens']} "
        f"prompt tokens, {record['new_tokens']} new ones; medians of {record['repeats']} turns",
        "",
        table(["model", "weights, MB", "peak memory, MB", "first token, ms", "cache, bytes a token"], sizes),
        "",
        table(["model", "", "tokens/s", "least–most"], rates),
    ]
    return views if not speedups else [
        *views, "",
        f"How many times as fast as {results[0]['name']}, turn by turn. Ideal: the ratio of operations (prefill), of "
        "weight and cache bytes (decode).",
        table(["model", "", "measured", "least–most", "ideal", "reached"], speedups),
    ]  # fmt: skip


def latency(record: Mapping[str, Any]) -> Views:
    setting, rows = record["setting"], []
    for kind, timing in record["kinds"].items():
        for count, *seconds in zip(timing["counts"], timing["prefill"], timing["decode"], strict=True):
            dense = (timing["prefill"][0], timing["decode"][0])
            gains = [f"{before / now:.2f}" for before, now in zip(dense, seconds, strict=True)]
            milliseconds = [f"{1e3 * each:,.1f}" for each in seconds]
            rows.append([f"{count:,} {kind}", milliseconds[0], gains[0], milliseconds[1], gains[1]])
    return [
        f"{setting['engine']} {setting['dtype']}, {setting['threads']} threads, batch {setting['batch']}: "
        f"{setting['prompt_tokens']} prompt tokens, {setting['new_tokens']} new ones; {record['machine']['cpu']}",
        "",
        table(["left in each layer", "prefill, ms", "as fast", "decode, ms", "as fast"], rows),
        f"written to {record['out']} in {record['seconds']:.0f} s; `lmprune prune --target-speedup` reads it with "
        "--latency-table",
    ]


def _speedup(result: Mapping[str, Any], phase: str) -> list[str]:
    measured, ideal, share = (result[f"{what}_{phase}"] for what in ("speedup", "ideal", "share"))
    span = _range(result[f"speedup_{phase}_min"], result[f"speedup_{phase}_max"], 2)
    known = ["unknown", ""] if ideal is None else [f"{ideal:.2f}", f"{share:.0%}"]
    return [result["name"], phase, f"{measured:.2f}", span, *known]


def _range(low: float, high: float, digits: int) -> str:
    return f"{low:,.{digits}f}–{high:,.{digits}f}"
