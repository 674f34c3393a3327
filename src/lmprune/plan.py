"""PrunePlan: which neurons stay, and how that was decided. The artefact that makes a pruning reproducible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

PLAN_FILE = "prune_plan.json"
PLAN_FORMAT = 1


@dataclass(frozen=True)
class PrunePlan:
    """kept: sorted neuron indices, one tuple a layer. widths_before: F of each layer before the cut.

    settings: everything needed to make the plan again (method, keep, scope, data, seed, …).
    provenance: where it came from (model, versions, hashes, what was measured on the way).
    """

    kept: tuple[tuple[int, ...], ...]
    widths_before: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.widths_before):
            raise UserError(f"plan: {len(self.kept)} lists of kept neurons for {len(self.widths_before)} layers")
        for layer, (kept, width) in enumerate(zip(self.kept, self.widths_before, strict=True)):
            whole = all(type(index) is int for index in kept)
            if not kept or not whole or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= width:
                raise UserError(f"plan, layer {layer}: kept neurons must be sorted, unique and within 0…{width - 1}")

    @property
    def widths(self) -> list[int]:
        """Neurons left in each layer."""
        return [len(kept) for kept in self.kept]

    @property
    def keep(self) -> float:
        """The ratio of neurons that stay, as it came out."""
        return sum(self.widths) / sum(self.widths_before)

    def indices(self) -> list[Tensor]:
        """One int64 tensor (K_l,) a layer."""
        return [torch.tensor(kept, dtype=torch.long) for kept in self.kept]

    def to_json(self) -> str:
        return json.dumps({"format": PLAN_FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, name: str = "plan") -> PrunePlan:
        """Raises: UserError where the text is not a plan of this format."""
        try:
            record = json.loads(text)
            if record.pop("format") != PLAN_FORMAT:
                raise UserError(f"{name}: this lmprune reads plans of format {PLAN_FORMAT}")
            record["kept"] = tuple(map(tuple, record["kept"]))
            record["widths_before"] = tuple(record["widths_before"])
            return cls(**record)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{name} is not a prune plan ({why}); expected a {PLAN_FILE} that lmprune wrote") from None

    @classmethod
    def load(cls, path: Path) -> PrunePlan:
        if not path.is_file():
            raise UserError(f"no plan at {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a prune plan; expected a {PLAN_FILE} that lmprune wrote") from None
        return cls.from_json(text, name=str(path))
