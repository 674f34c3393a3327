"""What people see of a command's record: tables and sentences, nothing that the record does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoints.card import counted as counted_units
from ..checkpoints.card import held, width_summary
from ..progress import duration
from ..report.numbers import counted, megabytes, span, with_error
from .answer_views import answers
from .console import Views, table

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
            f"{row['keep']:.2f}", span(row["widths"]), f"{row['params']:,}", f"{row['params_saved']:,}",
            megabytes(row["megabytes"]), megabytes(row["megabytes_saved"]),
        ]
        for row in record["keep"]
    ]  # fmt: skip
    return [
        f"{record['model']}: {record['family']}, {record['layers']} layers, hidden size {record['hidden_size']}, "
        f"{params:,} parameters, {megabytes(record['megabytes'])} MB in {record['dtype']}",
        f"FFN: {gated}; neurons: {width_summary(record['widths'])}" if record["widths"] else "a mixture of experts",
        *_made(record["plan"]),
        "",
        table(["part", "parameters", "share"], parts),
        "the output head is tied to the embedding" if record["tied_embedding"] else "",
        *_units(record),
        *([] if not savings else [
            "",
            f"What pruning would leave and save (widths rounded to multiples of {record['multiple_of']}):",
            table(["keep", "widths", "parameters", "saved", "MB", "saved MB"], savings),
        ]),
    ]  # fmt: skip


def forecast(record: Mapping[str, Any]) -> Views:
    def told(value: float | None, show: Callable[[float], str]) -> str:
        return "not known" if value is None else show(value)

    rows = [
        [
            {"whole": "as a whole", "streamed": "by blocks (--stream)"}[name],
            *(told(way[part], megabytes) for part in ("memory_mb", "temporary_mb", "disk_mb", "result_mb")),
            told(way["seconds"], lambda seconds: f"about {duration(seconds)}"),
        ]
        for name, way in record["ways"].items()
    ]
    before, after = record["params_before"], record["params_after"]
    return [
        f"{record['model']} by {record['method']}: {before:,} → {after:,} parameters ({after / before:.1%}), "
        f"{megabytes(record['megabytes_after'])} MB",
        "",
        table(["the model", "memory MB", "temporary MB", "disk MB", "result MB", "time here"], rows),
        f"free now: {megabytes(record['available_mb'])} MB of memory, {megabytes(record['free_disk_mb'])} MB for the "
        f"result, {megabytes(record['free_temporary_mb'])} MB for what is temporary",
        "it would be read block by block" if record["would_stream"] else "it would be loaded as a whole",
    ]


def _units(record: Mapping[str, Any]) -> Views:
    """What can be removed, kind by kind; why a kind can't is told below, but for what the model simply lacks."""
    there = [unit for unit in record["units"] if unit["why_not"] is None]
    rows = [
        [
            unit["kind"], f"{unit['count']:,}", f"{unit['params']:,}", f"{unit['share']:.1%}",
            f"{unit['params'] // unit['count']:,}", counted(unit["cache_bytes_per_token"]),
        ]
        for unit in there
    ]  # fmt: skip
    header = ["--units", "there are", "parameters", "share", "of one", "cache bytes a token"]
    reasons = [f"no {unit['kind']}: {unit['why_not']}" for unit in record["units"] if unit["why_not"] is not None]
    return ["", f"What can be removed (cache in {record['dtype']}):", table(header, rows), *reasons]


def _made(plan: Mapping[str, Any] | None) -> Views:
    """How a checkpoint of lmprune's was made."""
    if plan is None:
        return []
    text, training = plan["calibration"].get("source"), plan.get("training")
    pruned = (
        f"pruned from {plan['chosen_from'] or 'another model'} by {plan.get('method', 'an unknown method')}, "
        f"scope {plan.get('scope', 'unknown')}: "
        + " and ".join(f"{share:.1%} of the {kind} kept" for kind, share in plan["shares"].items())
        + (f", of {width_summary(plan['widths_before'])}" if plan["widths_before"] else "")
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
        *(f"{kind}: {counted_units(kind, counts['after'])}" for kind, counts in record["units"].items()),
        *_off(record),
        *([held(record["quality"])] if record["quality"] else []),
        *([_trained(record["training"])] if "training" in record else []),
        *answers(record["answers"]),
        "",
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory",
        f"written to {record['out']}: {how}",
        *_pushed(record),
    ]


def _off(record: Mapping[str, Any]) -> Views:
    """Where it did not come out as asked."""
    asked, units = record["keep"], record["units"]
    if asked is None or (isinstance(asked, float) and len(units) > 1):  # a share of the parameters of several kinds
        return []
    soft = record["method"] == "soft" and "training" in record
    why = "soft gets nearer with more --steps or a larger --score-lr" if soft else "see --multiple-of"
    ratios = asked if isinstance(asked, Mapping) else dict.fromkeys(units, asked)
    return [
        f"{counts['kept']:.1%} of the {kind} are left, {ratios[kind]:.1%} were asked for: {why}"
        for kind, counts in units.items()
        if abs(counts["kept"] - ratios[kind]) > 0.01
    ]


def finetuning(record: Mapping[str, Any]) -> Views:
    return [
        _trained(record["training"]),
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory",
        f"written to {record['out']}",
        *_pushed(record),
    ]


def recovering(record: Mapping[str, Any]) -> Views:
    training = record["training"]
    return [
        f"trained for {training['steps_done']:,} of {training['steps']:,} steps, ended by {training['ended_by']}",
        f"KL from the teacher on held-out text {training['first_kl']:.4f} → {training['kl']:.4f} nats a token, after "
        f"step {training['best_step']:,}, whose weights these are",
        *finetuning(record)[1:],
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
        f"written to {record['out']}: {record['to']}, {record['dtype']}, {megabytes(record['megabytes'])} MB",
        *record["notes"],
        f"{record['seconds']:.1f} s, at most {record['peak_memory_mb']:,.0f} MB of memory",
        *_pushed(record),
    ]


def serving(record: Mapping[str, Any]) -> Views:
    asked = '{"messages": [{"role": "user", "content": "Hello"}]}'
    path = "chat/completions" if record["chat_template"] else "completions"
    if not record["chat_template"]:
        asked = '{"prompt": "Hello"}'
    return [
        f"{record['name']} answers at {record['address']}/v1 (OpenAI's protocol; the field `model` says who answered)",
        f"a chat page for the browser: {record['address']}",
        f"  curl {record['address']}/v1/{path} -H 'Content-Type: application/json' -d '{asked}'",
        f"{record['threads']} threads, {record['context']:,} tokens a conversation; Ctrl-C ends it",
    ]


def _pushed(record: Mapping[str, Any]) -> Views:
    return [f"pushed to {record['pushed']}"] if record["pushed"] else []


def _before_after(name: str, before: int, after: int) -> list[str]:
    return [name, f"{before:,}", f"{after:,}", f"{after / before:.1%}"]


def methods(record: Mapping[str, Any]) -> Views:
    keys = ("name", "units", "scope", "summary", "source")
    rows = [[method[key] for key in keys] for method in record["methods"]]
    return [table(["method", "units", "scope", "score", "source"], rows, numbers=False)]


def demo(record: Mapping[str, Any]) -> Views:
    before, after = record["before"], record["after"]
    text = record["evaluation"]
    rows = [
        ["parameters", f"{before['params']:,}", f"{after['params']:,}"],
        [f"MB in {record['dtype']}", megabytes(before["megabytes"]), megabytes(after["megabytes"])],
        ["perplexity", *(with_error(x["perplexity"], x["perplexity_se"], 2) for x in (before, after))],
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
        *answers(record["answers"]),
        "",
        f"{record['seconds']:.0f} s. The pruned model is in {record['out']}",
    ]


def _dequantised(record: Mapping[str, Any]) -> list[str]:
    if (kind := record["dequantised_from"]) is None:
        return []
    return [
        f"The weights were dequantised from {kind}, so all of this is about a 4-bit copy of the model written out in",
        f"{record['dtype']}: its numbers compare with each other, not with the original's.",
    ]
