"""The model card: what a pruned checkpoint is, how it was made, how to load it. Text from records, nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from ..methods import METHODS
from ..plan import PLAN_FILE, PrunePlan

_OURS = {"library_name": "transformers", "tags": ["lmprune", "pruned", "structured-pruning"]}
_HERE = "path/to/this/folder"  # where it lies on the maker's disk is nobody's business


def model_card(plan: PrunePlan, report: Mapping[str, Any]) -> str:
    """The card of a checkpoint, with the front matter that the Hugging Face hub reads.

    report: the record of `lmprune prune` (docs/json.md): params_before, params_after, ffn_params_before,
        ffn_params_after, stock; where something was measured, `evaluation`: the text, and results before and after.
    """
    origin = plan.provenance.get("model") or {}
    source = origin.get("source", "a model")
    name = _public(source)
    sections = [
        _front_matter(origin, _OURS),
        f"# {name}, {plan.keep:.0%} of its feed-forward neurons",
        _what(plan, report, name),
        _widths(plan),
        _how(plan),
        _loading(report),
        _measured(report, source),
        _licence(origin),
    ]
    return "\n\n".join(sections) + "\n"


def tuned_card(plan: PrunePlan, report: Mapping[str, Any]) -> str:
    """The card of a model that was trained as it is. report: the record of `lmprune finetune` (docs/json.md)."""
    origin = plan.provenance.get("model") or {}
    source = origin.get("source", "a model")
    name, training = _public(source), plan.settings["training"]
    pruned = plan.keep < 1
    about = f"This is `{name}`, fine-tuned by lmprune for {training['steps']:,} steps: {report['params']:,} parameters."
    sections = [
        _front_matter(origin, _OURS if pruned else {**_OURS, "tags": ["lmprune"]}),
        f"# {name}, fine-tuned",
        about if pruned else f"{about} Nothing was cut out of it.",
        *([_widths(plan)] if pruned else []),
        _how(plan),
        _loading(report),
        _measured(report, source),
        _licence(origin),
    ]
    return "\n\n".join(sections) + "\n"


def card_of_copy(origin: Mapping[str, Any], target: str, notes: Sequence[str]) -> str:
    """The card of what `lmprune export` made of a model that has none of ours. origin: see `reproduce.origin`."""
    about = f"A copy of `{_public(origin['source'])}` that `lmprune export --to {target}` made: {'; '.join(notes)}."
    return "\n\n".join([_front_matter(origin, {}), about, _licence(origin)]) + "\n"


def exported(card: str, target: str, notes: Sequence[str]) -> str:
    """The card of a checkpoint for the copy that `lmprune export` made of it: first what is so of the copy alone."""
    front = re.match(r"---\n.*?\n---\n+", card, re.DOTALL)
    start = front.end() if front else 0
    about = f"This is a copy that `lmprune export --to {target}` made: {'; '.join(notes)}."
    about += "\n> What follows is the original's card; its sizes and how it is loaded may differ."
    return f"{card[:start]}> {about}\n\n{card[start:]}"


def _front_matter(origin: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the hub reads of a model made from `origin`: its licence is the original's."""
    known = ("base_model", "license", "license_name", "license_link")
    front = {"pipeline_tag": "text-generation", **{key: origin[key] for key in known if key in origin}, **about}
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _licence(origin: Mapping[str, Any]) -> str:
    said = "The original's" + (f", `{origin['license']}`" if "license" in origin else "")
    if name := origin.get("license_name"):
        said += f" ({name})"
    files = ", ".join(f"`{name}`" for name in origin.get("license_files", ()))
    if not (files or "license" in origin):
        said = "The original, as it was read here, names none; ask its makers before you pass this on"
    return f"## Licence\n\n{said}{f'; its text: {files}' if files else ''}."


def _public(source: str) -> str:
    """A model's name without the folders of the maker's disk."""
    return Path(source).name if source.startswith((".", "/", "~")) else source


def width_summary(widths: Sequence[int]) -> str:
    """Runs of equal widths in words.

    >>> width_summary([64, 64, 64]), width_summary([64, 32, 32])
    ('64 in each of 3 layers', '64, 32 ×2')
    """
    if len(set(widths)) == 1:
        return f"{widths[0]} in each of {len(widths)} layers"
    runs = [(width, len(list(run))) for width, run in groupby(widths)]
    return ", ".join(f"{width} ×{number}" if number > 1 else f"{width}" for width, number in runs)


def _what(plan: PrunePlan, report: Mapping[str, Any], name: str) -> str:
    before, after = report["params_before"], report["params_after"]
    revision = (plan.provenance.get("model") or {}).get("revision")
    origin = f"`{name}`" + (f" (revision `{revision}`)" if revision else "")
    text = (
        f"This is {origin} with whole neurons cut out of its feed-forward layers by "
        f"lmprune, {_trained(plan)}.\n\n"
        "| | before | after | |\n| --- | ---: | ---: | ---: |\n"
        f"| parameters | {before:,} | {after:,} | {after / before:.1%} |\n"
        f"| of them feed-forward | {report['ffn_params_before']:,} | {report['ffn_params_after']:,} "
        f"| {report['ffn_params_after'] / report['ffn_params_before']:.1%} |"
    )
    if before := (plan.provenance.get("model") or {}).get("record"):
        text += f"\n\nWhat it was made from is itself lmprune's: {_chosen(before)}{_and_trained(before)}."
    if quantised := (plan.provenance.get("model") or {}).get("dequantised_from"):
        text += f"\n\nThe weights it started from were dequantised from {quantised}: the original's were more precise."
    return text


def _trained(plan: PrunePlan) -> str:
    """What was done beside the cut, in a clause."""
    training = plan.settings.get("training")
    if training is None:
        return "without any training afterwards"
    when = "on the way down" if plan.settings.get("schedule") == "cubic" else "afterwards"
    return f"and fine-tuned {when} for {training['steps']:,} steps"


def _widths(plan: PrunePlan) -> str:
    return (
        f"Neurons before: {width_summary(plan.widths_before)}; "
        f"now: {width_summary(plan.widths)}. `{PLAN_FILE}` lists which ones stayed."
    )


def _how(plan: PrunePlan) -> str:
    settings, before = plan.settings, plan.provenance.get("plan")
    lines = ["## How it was made", ""]
    if before is not None:
        lines += [f"Its neurons were chosen before: {_chosen(before)}{_and_trained(before)}."]
    elif "method" in settings:
        lines += [f"{_method(settings)}."]
    if text := _calibrated(plan.record()):
        lines += [f"{'Refitted' if before else 'Calibrated'} on {text}."]
    if (training := settings.get("training")) and (text := plan.provenance.get("training")):
        distilled = f", distilled from `{_public(training['teacher'])}`" if "teacher" in training else ""
        lora = f", LoRA of rank {training['lora_rank']}" if "lora_rank" in training else ""
        lines += [
            f"Trained for {training['steps']:,} steps on `{text['source']}`, split {text['split']}{distilled}{lora} "
            f"(SHA-256 of the text: `{text['sha256'][:16]}…`); `training_log.jsonl` has the loss of each step."
        ]
    if (dtype := plan.provenance.get("dtype")) and dtype["computed"] != dtype["saved"]:
        lines += [f"Computed in {dtype['computed']}, saved in {dtype['saved']}."]
    if versions := plan.provenance.get("versions"):
        lines += ["Made with " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."]
    if command := plan.provenance.get("command"):
        lines += ["To make it again:", "", "```sh", shlex.join(command), "```"]
    if run := plan.provenance.get("run"):
        lines += ["It is a step of this run (`lmprune run`):", "", "```yaml", run.strip(), "```"]
    return "\n".join(lines)


def _method(settings: Mapping[str, Any]) -> str:
    method = METHODS.get(settings.get("method", ""))
    about = f" ({method.summary}; {method.source})" if method else ""
    return f"Method `{settings.get('method', 'unknown')}`{about}, scope {settings.get('scope', 'unknown')}"


def _calibrated(record: Mapping[str, Any]) -> str | None:
    """The text that neurons were scored, or layers refitted on. record: a plan's."""
    settings, text = record["settings"], record["provenance"].get("calibration")
    return text and (
        f"{settings.get('calibration_tokens', 0):,} tokens of `{text['source']}`, split {text['split']}, in sequences "
        f"of {settings.get('seq_len')} (SHA-256 of the text: `{text['sha256'][:16]}…`)"
    )


def _chosen(record: Mapping[str, Any]) -> str:
    """How another plan chose its neurons, in a clause; it may itself have taken them over."""
    while (before := record["provenance"].get("plan")) is not None:
        record = before
    text, model = _calibrated(record), (record["provenance"].get("model") or {}).get("source")
    if "method" not in record["settings"]:
        return "all that the model has"
    of = f" among those of `{_public(model)}`" if model else ""
    return f"{_method(record['settings'])}{of}{f', on {text}' if text else ''}"


def _and_trained(record: Mapping[str, Any]) -> str:
    """Whether what another plan is of was trained, in a clause."""
    training, text = record["settings"].get("training"), record["provenance"].get("training")
    return f", trained for {training['steps']:,} steps on `{text['source']}`" if training and text else ""


def _loading(report: Mapping[str, Any]) -> str:
    if report["stock"]:
        trust, note = "", "An ordinary transformers checkpoint: nothing of lmprune is needed."
    else:
        trust = ", trust_remote_code=True"
        note = (
            "transformers' own class can't build these layers yet, so the folder carries a small file of code "
            "(`shim.py`), which `trust_remote_code=True` lets transformers run. "
            "`lmprune.load` opens it without running that file."
        )
    return (
        f"## How to load it\n\n{note}\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{_HERE}"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{_HERE}")\n```\n\n'
        f'or `model = lmprune.load("{_HERE}")`.'
    )


def _measured(report: Mapping[str, Any], source: str) -> str:
    evaluation = report.get("evaluation")
    if not evaluation:
        compare = f"lmprune eval {_HERE} --data SRC --baseline {shlex.quote(source)}"
        return (
            "## How good it is\n\nNothing was measured when this checkpoint was made. "
            f"Compare it with the model it came from on your own text: `{compare}`."
        )
    text, before, after = (evaluation[key] for key in ("evaluation", "before", "after"))
    return (
        "## How good it is\n\n"
        f"Perplexity on the first {text['tokens']:,} tokens of {text['name']}, in windows of "
        f"{text['context']}: {_with_error(before)} before, {_with_error(after)} after "
        f"(± one standard error). Nothing else was measured."
    )


def _with_error(result: Mapping[str, Any]) -> str:
    error = result["perplexity_se"]
    return f"{result['perplexity']:.2f}" + ("" if error is None else f" ± {error:.2f}")
