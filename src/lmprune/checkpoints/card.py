"""The model card, as far as a plan and the model say it: what it is, how it was made, how to load it.

Text, nothing else. What a command knows beyond that, `jobs.card` adds.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from ..markdown import code, fenced, inline
from ..plan import PLAN_FILE, PrunePlan
from ..sites.address import LAYER_KINDS, Kind
from .shrinking import is_stock
from .sources import called

OURS = {"library_name": "transformers", "tags": ["lmprune", "pruned", "structured-pruning"]}
_HERE = "path/to/this/folder"  # where it lies on the maker's disk is nobody's business
#: a kind of unit -> what it is called, and what a model without some of them is one with
_KINDS: Mapping[Kind, tuple[str, str]] = {
    "neurons": ("feed-forward neurons", "whole neurons cut out of its feed-forward layers"),
    "heads": ("attention heads", "whole heads cut out of its attention layers"),
    "experts": ("experts", "whole experts cut out of its mixtures"),
    "expert_neurons": ("experts' neurons", "whole neurons cut out of its experts"),
    "layers": ("layers", "whole layers taken out"),
    "attentions": ("attention layers", "the attention of whole layers taken out"),
    "ffns": ("feed-forward layers", "the feed-forward part of whole layers taken out"),
}


def card_of(model: Any, plan: PrunePlan) -> str:
    """The card of a model that the plan was carried out on, with the front matter that the Hugging Face hub reads."""
    origin = plan.provenance.get("model") or {}
    source = origin.get("source") or model.name_or_path or "a model"
    params = sum(parameter.numel() for parameter in model.parameters())
    about = f"This is {code(public(source))} with units cut out by lmprune: {params:,} parameters are left."
    sections = [
        front_matter(origin, OURS),
        title(plan, source),
        f"{about} Whether it was trained afterwards is not recorded here.",
        units(plan),
        how_made(plan),
        how_to_load(stock=is_stock(model)),
        not_measured(source),
        licence(origin) if origin else "## Licence\n\nThe original's, which was not read here: look there.",
    ]
    return "\n\n".join(sections) + "\n"


def title(plan: PrunePlan, source: str) -> str:
    shares = [f"{share:.0%} of its {_KINDS[kind][0]}" for kind, share in plan.shares().items()]
    return f"# {inline(public(source))}, {' and '.join(shares)}"


def what_went(plan: PrunePlan) -> str:
    """In a clause: with …"""
    return " and ".join(_KINDS[kind][1] for kind in plan.kinds)


def front_matter(origin: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the hub reads of a model made from `origin`: its licence is the original's."""
    known = ("base_model", "license", "license_name", "license_link")
    front = {"pipeline_tag": "text-generation", **{key: origin[key] for key in known if key in origin}, **about}
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def licence(origin: Mapping[str, Any]) -> str:
    said = "The original's" + (f", {code(origin['license'])}" if "license" in origin else "")
    if name := origin.get("license_name"):
        said += f" ({inline(name)})"
    files = ", ".join(code(name) for name in origin.get("license_files", ()))
    if not (files or "license" in origin):
        said = "The original, as it was read here, names none; ask its makers before you pass this on"
    return f"## Licence\n\n{said}{f'; its text: {files}' if files else ''}."


def public(source: str) -> str:
    """A model's name without the folders of the maker's disk."""
    return called(source) if source.startswith((".", "/", "~")) else source


def width_summary(widths: Sequence[int]) -> str:
    """Runs of equal widths in words.

    >>> width_summary([64, 64, 64]), width_summary([64, 32, 32])
    ('64 in each of 3 layers', '64, 32 ×2')
    """
    if len(set(widths)) == 1:
        return f"{widths[0]} in each of {len(widths)} layers"
    runs = [(width, len(list(run))) for width, run in groupby(widths)]
    return ", ".join(f"{width} ×{number}" if number > 1 else f"{width}" for width, number in runs)


def counted(kind: Kind, counts: Sequence[int]) -> str:
    """How many units of a kind there are, site by site; of layers there is one site."""
    return str(sum(counts)) if kind in LAYER_KINDS else width_summary(counts)


def units(plan: PrunePlan) -> str:
    """How many there were, and are."""
    lines = [
        f"{kind.capitalize()} before: {counted(kind, before)}; now: {counted(kind, now)}."
        for kind in plan.kinds
        for before, now in [plan.counts(kind)]
    ]
    return f"{' '.join(lines)} `{PLAN_FILE}` lists which ones stayed."


def how_made(plan: PrunePlan, methods: Mapping[str, str] = {}) -> str:
    """methods: the name of each -> what it is."""
    settings, before = plan.settings, plan.provenance.get("plan")
    lines = ["## How it was made", ""]
    if before is not None:
        lines += [f"Its neurons were chosen before: {chosen(before, methods)}{and_trained(before)}."]
    elif "method" in settings:
        lines += [f"{_method(settings, methods)}."]
    if text := _calibrated(plan.record()):
        lines += [f"{'Refitted' if before else 'Calibrated'} on {text}."]
    if (training := settings.get("training")) and (text := plan.provenance.get("training")):
        distilled = f", distilled from {code(public(training['teacher']))}" if "teacher" in training else ""
        lora = f", LoRA of rank {training['lora_rank']}" if "lora_rank" in training else ""
        lines += [
            f"Trained for {training['steps']:,} steps on {_named(text)}{distilled}{lora} "
            f"(SHA-256 of the text: `{text['sha256'][:16]}…`); `training_log.jsonl` has the loss of each step."
        ]
    if (dtype := plan.provenance.get("dtype")) and dtype["computed"] != dtype["saved"]:
        lines += [f"Computed in {dtype['computed']}, saved in {dtype['saved']}."]
    if versions := plan.provenance.get("versions"):
        lines += [
            "Made with " + ", ".join(inline(f"{name} {number}") for name, number in sorted(versions.items())) + "."
        ]
    if command := plan.provenance.get("command"):
        lines += ["To make it again:", "", fenced(shlex.join(command), "sh")]
    if run := plan.provenance.get("run"):
        lines += ["It is a step of this run (`lmprune run`):", "", fenced(run.strip(), "yaml")]
    return "\n".join(lines)


def _method(settings: Mapping[str, Any], methods: Mapping[str, str]) -> str:
    name = settings.get("method", "unknown")
    about = f" ({methods[name]})" if name in methods else ""
    return f"Method {code(name)}{about}, scope {inline(settings.get('scope') or 'unknown')}"


def _calibrated(record: Mapping[str, Any]) -> str | None:
    """The text that neurons were scored, or layers refitted on. record: a plan's."""
    settings, text = record["settings"], record["provenance"].get("calibration")
    return text and (
        f"{settings.get('calibration_tokens') or 0:,} tokens of {_named(text)}, in sequences "
        f"of {settings.get('seq_len')} (SHA-256 of the text: `{text['sha256'][:16]}…`)"
    )


def _named(text: Mapping[str, Any]) -> str:
    return f"{code(text['source'])}, split {inline(text['split'])}"


def chosen(record: Mapping[str, Any], methods: Mapping[str, str] = {}) -> str:
    """How another plan chose its neurons, in a clause; it may itself have taken them over."""
    while (before := record["provenance"].get("plan")) is not None:
        record = before
    text, model = _calibrated(record), (record["provenance"].get("model") or {}).get("source")
    if "method" not in record["settings"]:
        return "all that the model has"
    of = f" among those of {code(public(model))}" if model else ""
    return f"{_method(record['settings'], methods)}{of}{f', on {text}' if text else ''}"


def and_trained(record: Mapping[str, Any]) -> str:
    """Whether what another plan is of was trained, in a clause."""
    training, text = record["settings"].get("training"), record["provenance"].get("training")
    return f", trained for {training['steps']:,} steps on {code(text['source'])}" if training and text else ""


def how_to_load(*, stock: bool) -> str:
    if stock:
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


def not_measured(source: str) -> str:
    compare = code(f"lmprune eval {_HERE} --data SRC --baseline {shlex.quote(source)}")
    return (
        "## How good it is\n\nNothing was measured when this checkpoint was made. "
        f"Compare it with the model it came from on your own text: {compare}."
    )


def held(quality: Mapping[str, Any]) -> str:
    """What a model that was chosen by its quality came to (`lmprune prune`'s `quality`, docs/json.md)."""
    told = f"{quality['ratio']:.3f} times the dense perplexity on {quality['tokens']:,} held-out tokens"
    if quality["interval"] is None:
        return told
    low, high = quality["interval"]
    return (
        f"{told} [{low:.3f}, {high:.3f}]; at most {quality['max_ppl_ratio']:g} with a chance of {quality['sure']:.0%}"
    )
