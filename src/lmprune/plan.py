"""PrunePlan: which units stay, and how that was decided. The artefact that makes a pruning reproducible."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError, shown
from .foreign import NUMBER, json_of, misfit, reading, text_of
from .sites.address import LAYER_KINDS, SEAM_KINDS, Address, Kind

PLAN_FILE = "prune_plan.json"
#: format 1 had neurons alone: `kept` a list a layer, `widths_before`
PLAN_FORMAT = 2
#: the settings that say which units stay: what a plan that is used again stands for
CHOICE = ("method", "keep", "scope", "multiple_of")


@dataclass(frozen=True)
class PrunePlan:
    """kept: sorted indices of the units that stay, of each site; without any, the attention or feed-forward layer is
    gone. counts_before: units of each site before the cut.

    settings: everything needed to make the plan again (method, keep, scope, data, seed, …).
    provenance: where it came from (model, versions, hashes, what was measured on the way); `plan`: the `record` of
    the plan that was used, where the neurons were chosen before.
    unknown: what a later version wrote beside these; it is kept.
    scores: what they were chosen by, larger = keep, (U,) of each site, where that is known; no part of the file.
    """

    kept: Mapping[Address, tuple[int, ...]]
    counts_before: Mapping[Address, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[Address, Tensor] | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if set(self.kept) != set(self.counts_before):
            raise UserError(f"plan: kept units of {len(self.kept)} sites for {len(self.counts_before)} sites")
        for address, kept in self.kept.items():
            count = self.counts_before[address]
            if type(count) is not int or count < 1:
                raise UserError(f"plan, layer {address.layer}: {count!r:.40} {address.kind} before; expected a number")
            if not kept and address.kind not in SEAM_KINDS:
                where = "" if address.kind in LAYER_KINDS else f", layer {address.layer}"
                raise UserError(f"plan{where}: no {address.kind} would stay; keep at least one")
            whole = all(type(index) is int for index in kept)
            if not whole or list(kept) != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < count):
                raise UserError(
                    f"plan, layer {address.layer}: kept {address.kind} must be sorted, unique and within 0…{count - 1}"
                )

    @classmethod
    def of(
        cls,
        addresses: Iterable[Address],
        kept: Iterable[Tensor],
        counts_before: Iterable[int],
        settings: Mapping[str, Any] = {},
        provenance: Mapping[str, Any] = {},
    ) -> PrunePlan:
        """From what stays of each site, (K,), and how many units there were, in the order of the addresses."""
        found = list(zip(addresses, kept, counts_before, strict=True))
        return cls(
            {address: tuple(indices.tolist()) for address, indices, _ in found},
            {address: count for address, _, count in found},
            settings,
            provenance,
        )

    @classmethod
    def of_neurons(
        cls,
        kept: Sequence[Sequence[int]],
        widths_before: Sequence[int],
        settings: Mapping[str, Any] = {},
        provenance: Mapping[str, Any] = {},
    ) -> PrunePlan:
        """From the kept neurons and the width before of every layer."""
        if len(kept) != len(widths_before):
            raise UserError(f"plan: {len(kept)} lists of kept neurons for {len(widths_before)} layers")
        addresses = [Address("neurons", layer) for layer in range(len(kept))]
        return cls(
            dict(zip(addresses, map(tuple, kept), strict=True)),
            dict(zip(addresses, widths_before, strict=True)),
            settings,
            provenance,
        )

    @property
    def addresses(self) -> list[Address]:
        """All sites that the plan speaks of, in the order in which a forward pass meets them."""
        return sorted(self.kept, key=Address.order)

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of units that the plan speaks of."""
        return list(dict.fromkeys(address.kind for address in self.addresses))

    @property
    def widths(self) -> list[int]:
        """Neurons left in each layer."""
        return self.counts("neurons")[1]

    @property
    def widths_before(self) -> list[int]:
        """Neurons of each layer before the cut."""
        return self.counts("neurons")[0]

    @property
    def keep(self) -> float:
        """The ratio of units that stay, as it came out."""
        return sum(map(len, self.kept.values())) / sum(self.counts_before.values())

    def counts(self, kind: Kind) -> tuple[list[int], list[int]]:
        """How many units of a kind each site had, and has."""
        own = [address for address in self.addresses if address.kind == kind]
        return [self.counts_before[address] for address in own], [len(self.kept[address]) for address in own]

    def shares(self) -> dict[Kind, float]:
        """The ratio of units of each kind that stay, as it came out."""
        counted: dict[Kind, tuple[list[int], list[int]]] = {kind: self.counts(kind) for kind in self.kinds}
        return {kind: sum(after) / sum(before) for kind, (before, after) in counted.items()}

    def indices(self, addresses: Iterable[Address] | None = None) -> list[Tensor]:
        """One int64 tensor (K,) a site: of these addresses, or of all `addresses`."""
        chosen = self.addresses if addresses is None else addresses
        return [torch.tensor(self.kept[address], dtype=torch.long) for address in chosen]

    @property
    def chosen(self) -> dict[str, Any]:
        """What of the settings is about the choice of neurons, for a plan that takes them over."""
        return {name: self.settings[name] for name in CHOICE if name in self.settings}

    def record(self) -> dict[str, Any]:
        """How the plan came about, for the provenance of what is made with it."""
        return {**self.unknown, "settings": dict(self.settings), "provenance": dict(self.provenance)}

    def sources(self) -> Iterator[str]:
        """The model that it was made for, the one that this one was cut from, and so on to the first."""
        record: Mapping[str, Any] = self.record()
        while source := (model := record["provenance"].get("model") or {}).get("source"):
            yield source
            trained = record["settings"].get("schedule", "") is None  # as it was: the plan is that model's own
            record = model.get("record") or (trained and record["provenance"].get("plan")) or _NO_RECORD

    def first_source(self) -> str | None:
        """The model whose neurons the indices name: that of the plan which was not made with another."""
        provenance: Mapping[str, Any] = self.provenance
        while provenance.get("plan"):
            provenance = provenance["plan"]["provenance"]
        return (provenance.get("model") or {}).get("source")

    def remarks(self) -> list[str]:
        """Sentences for whoever reads it."""
        if not self.unknown:
            return []
        names = ", ".join(sorted(self.unknown))
        return [f"the plan says more than this lmprune understands, which is kept and not acted on: {names}"]

    def to_frame(self) -> Any:
        """A pandas table with a row a unit: `kind`, `layer`, `unit`, `kept`, and `score` where the scores are known.

        Scores of `obs` are what the layer's error grew by when the unit went; ∞ = it stayed.
        """
        from pandas import DataFrame

        rows = [(*address, unit) for address in self.addresses for unit in range(self.counts_before[address])]
        frame = DataFrame(rows, columns=["kind", "layer", "unit"])
        kept = {address: set(indices) for address, indices in self.kept.items()}
        frame["kept"] = [
            unit in kept[address] for address in self.addresses for unit in range(self.counts_before[address])
        ]
        if self.scores is not None:
            frame["score"] = torch.cat([self.scores[address].double() for address in self.addresses]).numpy()
        return frame

    def named_scores(self) -> dict[str, Tensor]:
        """The scores as a file has them, by address: `neurons.0`, `neurons.1`, …"""
        return {str(address): scores_U.contiguous() for address, scores_U in (self.scores or {}).items()}

    def to_json(self) -> str:
        record = {
            **self.unknown,
            "format": PLAN_FORMAT,
            "kept": {str(address): kept for address, kept in self.kept.items()},
            "counts_before": {str(address): count for address, count in self.counts_before.items()},
            "settings": self.settings,
            "provenance": self.provenance,
        }
        return json.dumps(record, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, name: str = "plan") -> PrunePlan:
        """Raises: UserError where the text is not a plan of this format, or of an earlier one."""
        with reading(f"{name} is not a prune plan", f"expected a {PLAN_FILE} that lmprune wrote"), _named(name):
            record = json_of(text)
            number, unknown = record.pop("format"), record
            settings, provenance = record.pop("settings", {}), record.pop("provenance", {})
            _check_history(settings, provenance)
            if number == 1:
                plan = cls.of_neurons(record.pop("kept"), record.pop("widths_before"), settings, provenance)
                return replace(plan, unknown=unknown)
            if number != PLAN_FORMAT:
                raise UserError(
                    f"{name}: this lmprune reads plans of format {PLAN_FORMAT} and before, not {shown(number)}"
                )
            if wrong := misfit(record, {"kept": {str: list}, "counts_before": {str: int}}):
                raise TypeError(f"its {wrong} is of another type")
            kept = {Address.parse(address): tuple(units) for address, units in record.pop("kept").items()}
            counts = {Address.parse(address): count for address, count in record.pop("counts_before").items()}
            return cls(kept, counts, settings, provenance, unknown)

    @classmethod
    def load(cls, path: Path | str) -> PrunePlan:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no plan at {path}")
        with reading(f"{path} is not a prune plan", f"expected a {PLAN_FILE} that lmprune wrote"):
            text = text_of(path)
        return cls.from_json(text, name=str(path))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Sentences about a plan name its file."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None


_TEXT = {"source": str, "split": str, "sha256": str}
_READ = {**_TEXT, "file": str, "parts": {str: {**_TEXT, "file": str}}}
_SETTINGS = {
    "method": str, "scope": str, "multiple_of": int, "calibration_tokens": int, "seq_len": int, "seed": int,
    "schedule": str, "training": {"steps": int, "teacher": str, "lora_rank": int},
}  # fmt: skip
_MODEL = {"source": str, "revision": str, "base_model": str, "dequantised_from": str, "record": dict}
_MODEL |= {"license": str, "license_name": str, "license_link": str, "license_files": [str]}
_PROVENANCE = {
    "model": _MODEL, "calibration": _READ, "training": _READ, "plan": {"settings": dict, "provenance": dict},
    "versions": {str: str}, "command": [str], "run": str, "dtype": {"computed": str, "saved": str},
    "search": [{"by": str, "loss": NUMBER, "best": NUMBER, "evaluations": int, "seconds": NUMBER}],
}  # fmt: skip
#: what is told of a part whenever it is there
_WHOLE = {
    "settings.training": ("steps",), "provenance.calibration": tuple(_TEXT), "provenance.training": tuple(_TEXT),
    "provenance.dtype": ("computed", "saved"), "provenance.plan": ("settings", "provenance"),
}  # fmt: skip
_NO_RECORD: Mapping[str, Any] = {"settings": {}, "provenance": {}}
#: plans made with plans made with plans
_DEEPEST = 20


def _check_history(settings: Any, provenance: Any, depth: int = 0) -> None:
    """Raises: TypeError for what a card, or a message, could not tell of how a plan came about."""
    wrong = misfit({"settings": settings, "provenance": provenance}, {"settings": _SETTINGS, "provenance": _PROVENANCE})
    if wrong:
        raise TypeError(f"it has another {wrong} than a plan has")
    if depth > _DEEPEST:
        raise TypeError("it was made with too many others")
    for part, names in _WHOLE.items():
        holder, _, name = part.partition(".")
        found = (settings if holder == "settings" else provenance).get(name)
        if found is not None and any(found.get(each) is None for each in names):
            raise TypeError(f"its {part} lacks one of {', '.join(names)}")
    for record in filter(None, (provenance.get("plan"), (provenance.get("model") or {}).get("record"))):
        if None in (record.get("settings"), record.get("provenance")):
            raise TypeError("a plan before it has no settings, or no provenance")
        _check_history(record["settings"], record["provenance"], depth + 1)


def whole(counts: Mapping[Address, int]) -> PrunePlan:
    """The plan of a model that nothing was cut out of. counts: units of each site."""
    return PrunePlan({address: tuple(range(count)) for address, count in counts.items()}, dict(counts))


def in_order(
    scores: Sequence[Tensor] | Mapping[Address, Tensor] | Mapping[str, Tensor], addresses: Sequence[Address]
) -> list[Tensor]:
    """Scores in the order of the sites: a list of them, `PrunePlan.scores`, or a file's. Raises: UserError."""
    if not isinstance(scores, Mapping):
        return list(scores)
    named = {str(address): scores_U for address, scores_U in scores.items()}
    if set(named) != set(map(str, addresses)):
        raise UserError(f"scores are named {addresses[0]} to {addresses[-1]}, a layer each, got {', '.join(named)}")
    return [named[str(address)] for address in addresses]
