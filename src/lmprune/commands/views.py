"""What people see of a command's record: tables and sentences, nothing that the record does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from ..jobs.card import width_summary
from .console import table

Views = list[RenderableType | str]

_PART_NAMES = {
    "embeddings": "embeddings",
    "attention": "attention",
    "ffn": "feed-forward",
    "norms_and_other": "norms, other",
    "output_head": "output head",
}


def inspection(record: Mapping[str, Any]) -> Views:
    gated = "gated" if record["gated"] else "not gated"
    params = record["params"]
    parts = [
        [_PART_NAMES[name], f"{count:,}", f"{count / params:.2%}"]
        for name, count in record["parts"].items()
        if count or name != "output_head"
    ]
    savings = [
        [
            f"{row['keep']:.2f}", _span(row["widths"]), f"{row['params']:,}", f"{row['params_saved']:,}",
            _megabytes(row["megabytes"]), _megabytes(row["megabytes_saved"]),
        ]
        for row in record["keep"]
    ]  # fmt: skip
    return [
        f"{record['model']}: {record['family']}, {record['layers']} layers, hidden size {record['hidden_size']}, "
        f"{params:,} parameters, {_megabytes(record['megabytes'])} MB in {record['dtype']}",
        f"FFN: {gated}; neurons: {width_summary(record['widths'])}",
        *_made(record["plan"]),
        "",
        table(["part", "parameters", "share"], parts),
        "the output head is tied to the embedding" if record["tied_embedding"] else "",
        "",
        f"What pruning would leave and save (widths rounded to multiples of {record['multiple_of']}):",
        table(["keep", "widths", "parameters", "saved", "MB", "saved MB"], savings),
    ]


def _made(plan: Mapping[str, Any] | None) -> Views:
    """How a checkpoint of lmprune's was made."""
    if plan is None:
        return []
    text, training = plan["calibration"].get("source"), plan.get("training")
    pruned = (
        f"pruned from {plan['chosen_from'] or 'another model'} by {plan.get('method', 'an unknown method')}, "
        f"scope {plan.get('scope', 'unknown')}: "
        f"{plan['kept']:.1%} of the neurons kept, of {width_summary(plan['widths_before'])}"
        + (f"; calibrated on {plan.get('calibration_tokens', 0):,} tokens of {text}" if text else "")
    )
    return [
        *([pruned] if plan["kept"] < 1 or "method" in plan else []),
        *([f"trained for {training['steps']:,} steps on {plan['training_text'].get('source')}"] if training else []),
    ]


def pruning(record: Mapping[str, Any]) -> Views:
    rows = [
        _before_after("parameters", record["params_before"], record["params_after"]),
        _before_after("feed-forward", record["ffn_params_before"], record["ffn_params_after"]),
    ]
    how = "opens in stock transformers" if record["stock"] else "opens with trust_remote_code=True or lmprune.load"
    return [
        table(["", "before", "after", "left"], rows),
        f"widths: {width_summary(record['widths'])}",
        *_off(record),
        *([_trained(record["training"])] if "training" in record else []),
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory",
        f"written to {record['out']}: {how}",
        *_pushed(record),
    ]


def _off(record: Mapping[str, Any]) -> Views:
    """Where it did not come out as asked."""
    if record["keep"] is None or abs(record["kept"] - record["keep"]) <= 0.01:
        return []
    soft = record["method"] == "soft" and "training" in record
    why = "soft gets nearer with more --steps or a larger --score-lr" if soft else "see --multiple-of"
    return [f"{record['kept']:.1%} of the neurons are left, {record['keep']:.1%} were asked for: {why}"]


def finetuning(record: Mapping[str, Any]) -> Views:
    return [
        _trained(record["training"]),
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory",
        f"written to {record['out']}",
        *_pushed(record),
    ]


def _trained(training: Mapping[str, Any]) -> str:
    told = f"trained for {training['steps']:,} steps: loss {training['first_loss']:.3f} → {training['last_loss']:.3f}"
    if training["perplexity"] is None:
        return told
    return f"{told}, perplexity {training['first_perplexity']:,.2f} → {training['perplexity']:,.2f} on validation"


def teaching(record: Mapping[str, Any]) -> Views:
    return [
        f"{record['tokens']:,} tokens of {record['data']['name']}, the {record['top_k']} likeliest of each "
        f"at temperature {record['temperature']:g}",
        f"written to {record['out']}, {record['bytes'] / 1e6:,.1f} MB, in {record['seconds']:.1f} s",
    ]


def exporting(record: Mapping[str, Any]) -> Views:
    return [
        f"written to {record['out']}: {record['to']}, {record['dtype']}, {_megabytes(record['megabytes'])} MB",
        *record["notes"],
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory",
        *_pushed(record),
    ]


def benchmark(record: Mapping[str, Any]) -> Views:
    results = [result | {"name": Path(result["model"]).name} for result in record["results"]]
    sizes = [
        [
            result["name"], _megabytes(result["weight_megabytes"]), f"{result['peak_memory_mb']:,.0f}",
            f"{result['first_token_ms']:,.0f}",
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
    views: Views = [
        f"{record['engine']}, {record['threads']} threads, batch {record['batch']}: {record['prompt_tokens']} prompt "
        f"tokens, {record['new_tokens']} new ones; medians of {record['repeats']} turns",
        "",
        table(["model", "weights, MB", "peak memory, MB", "first token, ms"], sizes),
        "",
        table(["model", "", "tokens/s", "least–most"], rates),
    ]
    return views if not speedups else [
        *views, "",
        f"How many times as fast as {results[0]['name']}, turn by turn. Ideal: the ratio of operations (prefill), of "
        "weight bytes (decode).",
        table(["model", "", "measured", "least–most", "ideal", "reached"], speedups),
    ]  # fmt: skip


def _speedup(result: Mapping[str, Any], phase: str) -> list[str]:
    measured, ideal, share = (result[f"{what}_{phase}"] for what in ("speedup", "ideal", "share"))
    span = _range(result[f"speedup_{phase}_min"], result[f"speedup_{phase}_max"], 2)
    known = ["unknown", ""] if ideal is None else [f"{ideal:.2f}", f"{share:.0%}"]
    return [result["name"], phase, f"{measured:.2f}", span, *known]


def _range(low: float, high: float, digits: int) -> str:
    return f"{low:,.{digits}f}–{high:,.{digits}f}"


def _pushed(record: Mapping[str, Any]) -> Views:
    return [f"pushed to {record['pushed']}"] if record["pushed"] else []


def _before_after(name: str, before: int, after: int) -> list[str]:
    return [name, f"{before:,}", f"{after:,}", f"{after / before:.1%}"]


def evaluation(record: Mapping[str, Any]) -> Views:
    windows = f"windows of {record['context']}" + (f", stride {record['stride']}" if record["stride"] else "")
    rows = [["perplexity", _with_error(record["perplexity"], record["perplexity_se"], 2)]]
    if record["bits_per_byte"] is not None:
        rows += [["bits per byte", f"{record['bits_per_byte']:.4f}"]]
    if record["word_perplexity"] is not None:
        rows += [["perplexity per word", f"{record['word_perplexity']:,.2f}"]]
    if "baseline" in record:
        rows += [
            ["baseline's perplexity", f"{record['baseline_perplexity']:.2f}"],
            ["ratio to it", f"{record['perplexity_ratio']:.3f}"],
            ["difference, nats a token", _with_error(record["nll_difference"], record["nll_difference_se"], 4)],
            ["KL from it, nats a token", f"{record['kl']:.4f}"],
            ["same first choice", f"{record['top1_agreement']:.1%}"],
        ]
    return [
        f"{record['model']}" + (f", against {record['baseline']}" if "baseline" in record else ""),
        table(["", ""], rows),
        f"{record['tokens']:,} tokens in {windows}, {record['seconds']:.1f} s",
        *(["one window only: no standard error"] if record["perplexity_se"] is None else []),
        *_read_before(record),
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


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:,.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")


def analysis(record: Mapping[str, Any]) -> Views:
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
        f"{record['model']}, {record['tokens']:,} tokens of {record['data']['name']}",
        table([header[i] for i in shown], [[row[i] for i in shown] for row in rows]),
        "",
        _measure("uniqueness", record),
        _measure("sensitivity", record),
        *_alike(record["clusters"]),
        "",
        f"Advice: {method}{', and train on' if advice['train'] else ''}: {advice['why']}.",
        "It is a first-order estimate: compare with `lmprune eval --baseline` afterwards.",
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory; written to {record['out']}",
    ]


def _measure(name: str, record: Mapping[str, Any]) -> str:
    ratio = record[f"{name}_ratio"]
    return f"{name} {record[name]:.4g}" + ("" if ratio is None else f", {ratio:.3f} of the baseline's")


def _alike(clusters: list[list[dict[str, Any]]]) -> Views:
    """The three largest clusters of look-alikes."""
    largest = sorted(
        ((len(c["neurons"]), layer, c) for layer, found in enumerate(clusters) for c in found), key=lambda x: -x[0]
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
            f"about {_duration(record['estimated_seconds'])}",
        ]
    failed = [f"failed: {run['id']}: {run['error']}" for run in record["failed"]]
    return [
        *failed,
        f"{record['finished']} of {record['runs']} runs finished, {len(failed)} failed, "
        f"in {_duration(record['seconds'])}; records in {record['results']}",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def report(record: Mapping[str, Any]) -> Views:
    claims = [[claim["claim"], claim["verdict"]] for claim in record["claims"]]
    return [
        *record["notes"],
        *([table(["claim of the paper", "here"], claims, numbers=False)] if claims else []),
        f"{record['records']} runs, {len(record['figures'])} figures: {record['out']}/index.html, report.md",
    ]


def methods(record: Mapping[str, Any]) -> Views:
    keys = ("name", "scope", "refit", "penalty", "summary", "source")
    rows = [[method[key] for key in keys] for method in record["methods"]]
    return [table(["method", "scope", "refit", "penalty", "score", "source"], rows, numbers=False)]


def demo(record: Mapping[str, Any]) -> Views:
    before, after = record["before"], record["after"]
    text = record["evaluation"]
    rows = [
        ["parameters", f"{before['params']:,}", f"{after['params']:,}"],
        [f"MB in {record['dtype']}", _megabytes(before["megabytes"]), _megabytes(after["megabytes"])],
        ["perplexity", *(_with_error(x["perplexity"], x["perplexity_se"], 2) for x in (before, after))],
        ["tokens/s, prefill", *(f"{x['prefill_tokens_per_second']:,.1f}" for x in (before, after))],
        ["tokens/s, decode", *(f"{x['decode_tokens_per_second']:,.1f}" for x in (before, after))],
    ]
    return [
        "",
        table([record["model"], "before", f"keep {record['keep']:g}"], rows),
        "",
        f"Perplexity ± standard error on {text['tokens']:,} tokens of {text['name']}, SHA-256 {text['sha256'][:12]}…;",
        f"calibrated on {record['calibration']['tokens']:,} tokens of {record['calibration']['name']}, "
        f"SHA-256 {record['calibration']['sha256'][:12]}….",
        *_dequantised(record),
        "",
        f"The prompt: {record['prompt']}",
        "",
        f"Before: …{before['continuation']}",
        "",
        f"After: …{after['continuation']}",
        "",
        f"{record['seconds']:.0f} s. The pruned model is in {record['out']}",
    ]


def _dequantised(record: Mapping[str, Any]) -> list[str]:
    if (kind := record["dequantised_from"]) is None:
        return []
    return [
        f"The weights were dequantised from {kind}, so all of this is about a 4-bit copy of the model written out in",
        "float32: its numbers compare with each other, not with the original's.",
    ]


def _megabytes(value: float) -> str:
    return f"{value:,.{max(0, 2 - (value >= 10) - (value >= 100))}f}"


def _span(widths: list[int]) -> str:
    low, high = min(widths), max(widths)
    return f"{low}" if low == high else f"{low}–{high}"
