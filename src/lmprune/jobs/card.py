"""The model card of what a command made: `checkpoints.card`, and what the command's record says beyond it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints import card
from ..markdown import code, inline
from ..methods import METHODS
from ..plan import PrunePlan
from ..report.answers import block, how, summary


def model_card(plan: PrunePlan, report: Mapping[str, Any]) -> str:
    """The card of a checkpoint, with the front matter that the Hugging Face hub reads.

    report: the record of `lmprune prune` (docs/json.md): params_before, params_after, ffn_params_before,
        ffn_params_after, stock; where something was measured, `evaluation`: the text, and results before and
        after; `answers`.
    """
    origin = plan.provenance.get("model") or {}
    source = origin.get("source", "a model")
    sections = [
        card.front_matter(origin, card.OURS),
        card.title(plan, source),
        _what(plan, report, card.public(source)),
        card.units(plan),
        card.how_made(plan, _methods()),
        card.how_to_load(stock=report["stock"]),
        _measured(report, source),
        *_answers(report),
        card.licence(origin),
    ]
    return "\n\n".join(sections) + "\n"


def tuned_card(plan: PrunePlan, report: Mapping[str, Any]) -> str:
    """The card of a model that was trained as it is. report: the record of `lmprune finetune` (docs/json.md)."""
    origin = plan.provenance.get("model") or {}
    source = origin.get("source", "a model")
    name, training = card.public(source), plan.settings["training"]
    pruned = plan.keep < 1
    about = (
        f"This is {code(name)}, fine-tuned by lmprune for {training['steps']:,} steps: {report['params']:,} parameters."
    )
    sections = [
        card.front_matter(origin, card.OURS if pruned else {**card.OURS, "tags": ["lmprune"]}),
        f"# {inline(name)}, fine-tuned",
        about if pruned else f"{about} Nothing was cut out of it.",
        *([card.units(plan)] if pruned else []),
        card.how_made(plan, _methods()),
        card.how_to_load(stock=report["stock"]),
        _measured(report, source),
        card.licence(origin),
    ]
    return "\n\n".join(sections) + "\n"


def card_of_copy(origin: Mapping[str, Any], target: str, notes: Sequence[str]) -> str:
    """The card of what `lmprune export` made of a model that has none of ours. origin: see `reproduce.origin`."""
    about = (
        f"A copy of {code(card.public(origin['source']))} that `lmprune export --to {target}` made: {'; '.join(notes)}."
    )
    return "\n\n".join([card.front_matter(origin, {}), about, card.licence(origin)]) + "\n"


def exported(original: str, target: str, notes: Sequence[str]) -> str:
    """A checkpoint's card for the copy that `lmprune export` made of it: first what is so of the copy alone."""
    front = re.match(r"---\n.*?\n---\n+", original, re.DOTALL)
    start = front.end() if front else 0
    about = f"This is a copy that `lmprune export --to {target}` made: {'; '.join(notes)}."
    about += "\n> What follows is the original's card; its sizes and how it is loaded may differ."
    return f"{original[:start]}> {about}\n\n{original[start:]}"


def _methods() -> dict[str, str]:
    return {name: f"{method.summary}; {method.source}" for name, method in METHODS.items()}


def _what(plan: PrunePlan, report: Mapping[str, Any], name: str) -> str:
    before, after = report["params_before"], report["params_after"]
    revision = (plan.provenance.get("model") or {}).get("revision")
    origin = code(name) + (f" (revision {code(revision)})" if revision else "")
    text = (
        f"This is {origin} with {card.what_went(plan)} by lmprune, {_trained(plan)}.\n\n"
        "| | before | after | |\n| --- | ---: | ---: | ---: |\n"
        f"| parameters | {before:,} | {after:,} | {after / before:.1%} |\n"
        f"| of them feed-forward | {report['ffn_params_before']:,} | {report['ffn_params_after']:,} "
        f"| {report['ffn_params_after'] / report['ffn_params_before']:.1%} |"
    )
    if before := (plan.provenance.get("model") or {}).get("record"):
        made = card.chosen(before, _methods()) + card.and_trained(before)
        text += f"\n\nWhat it was made from is itself lmprune's: {made}."
    if quantised := (plan.provenance.get("model") or {}).get("dequantised_from"):
        text += f"\n\nThe weights it started from were dequantised from {inline(quantised)}: "
        text += "the original's were more precise."
    return text


def _trained(plan: PrunePlan) -> str:
    """What was done beside the cut, in a clause."""
    training = plan.settings.get("training")
    if training is None:
        return "without any training afterwards"
    when = "on the way down" if plan.settings.get("schedule") == "cubic" else "afterwards"
    return f"and fine-tuned {when} for {training['steps']:,} steps"


def _measured(report: Mapping[str, Any], source: str) -> str:
    evaluation = report.get("evaluation")
    if found := report.get("quality"):
        return f"## How good it is\n\nIt has {card.held(found)}. Nothing else was measured."
    if not evaluation:
        return card.not_measured(source)
    text, before, after = (evaluation[key] for key in ("evaluation", "before", "after"))
    return (
        "## How good it is\n\n"
        f"Perplexity on the first {text['tokens']:,} tokens of {inline(text['name'])}, in windows of "
        f"{text['context']}: {_with_error(before)} before, {_with_error(after)} after "
        f"(± one standard error). Nothing else was measured."
    )


def _answers(report: Mapping[str, Any]) -> list[str]:
    found = report.get("answers")
    if not found:
        return []
    told = [f"Before pruning and after it; {how(found)}.", block(found), " ".join(summary(found))]
    return ["\n\n".join(["## What it answers", *told])]


def _with_error(result: Mapping[str, Any]) -> str:
    error = result["perplexity_se"]
    return f"{result['perplexity']:.2f}" + ("" if error is None else f" ± {error:.2f}")
