"""A modifier for llm-compressor: units go before the weights that stay are quantised, in one run.

    from lmprune.llm_compressor import StructuredPruningModifier

    oneshot(model=…, dataset=…, recipe=[StructuredPruningModifier(keep=0.75), GPTQModifier(targets="Linear", …)])

llm-compressor is not a dependency: this module needs it, and nothing else of lmprune does (docs/deploy.md).
"""

from __future__ import annotations

from typing import Any

import torch

try:
    from llmcompressor.modifiers import Modifier  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.factory import ModifierFactory  # pyright: ignore[reportMissingImports]
    from pydantic import Field, PrivateAttr
except ImportError as error:
    raise ImportError(
        "lmprune.llm_compressor is for llm-compressor, which is not installed: pip install llmcompressor"
    ) from error

from .checkpoints import models
from .checkpoints.shrinking import is_stock
from .errors import UserError
from .plan import PrunePlan
from .pruning import prune


class StructuredPruningModifier(Modifier):
    """What `lmprune.prune` does, as the first step of a recipe.

    keep, method, units, seq_len, seed: as there. multiple_of: of every layer's number of neurons; by default the usual
    group of quantised weights.
    data: a text that `lmprune.prune` knows by its name; None = the recipe's own calibration set, all tokens of it that
    are no padding, up to `calibration_tokens`.
    plan: what stayed, once it is initialized.

    Raises: UserError where the model was quantised before, where layers would differ (the stock class, which
    llm-compressor saves, can't say so), and as `lmprune.prune` does.
    """

    keep: float | dict[str, float] = 0.75
    method: str | None = None
    units: list[str] = Field(default_factory=lambda: ["neurons"])
    multiple_of: int = 128
    data: str | None = None
    calibration_tokens: int = 65536
    seq_len: int = 512
    seed: int = 0
    _plan: Any = PrivateAttr(None)

    @property
    def plan(self) -> PrunePlan | None:
        return self._plan

    def on_initialize(self, state: Any, **_: Any) -> bool:
        model = state.model
        if any(hasattr(module, "quantization_scheme") for module in model.modules()):
            raise UserError("the model is quantised, or about to be; put StructuredPruningModifier first in the recipe")
        how: dict[str, Any] = {name: getattr(self, name) for name in ("keep", "method", "units", "multiple_of", "seed")}
        if self.data is None:
            how["data"] = self._calibration(state)
        else:
            tokens = {"calibration_tokens": self.calibration_tokens, "seq_len": self.seq_len}
            how |= {"tokenizer": models.load_tokenizer(model.config.name_or_path), "data": self.data, **tokens}
        self._plan = prune(model, scope="local", **how)
        if not is_stock(model):
            raise UserError(
                "what stays is no model of the stock class, which llm-compressor saves; "
                "take another method, or prune by lmprune and quantise what `lmprune export --to hf-uniform` makes"
            )
        # llm-compressor writes the config of the place that it names, with the old widths, over the model's own
        model.config.name_or_path = ""
        return True

    def _calibration(self, state: Any) -> torch.Tensor:
        """The recipe's own text as sequences (N, seq_len)."""
        if state.data is None or state.data.calib is None:
            raise UserError("StructuredPruningModifier reads text: give oneshot a dataset, or the modifier data='mix'")
        parts, found = [], 0
        for batch in state.data.calib:
            ids = torch.as_tensor(batch["input_ids"])
            seen = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids))).bool()
            parts.append(ids[seen])
            found += int(seen.sum())
            if found >= self.calibration_tokens:
                break
        stream = torch.cat(parts)[: self.calibration_tokens]
        if len(stream) < self.seq_len:
            raise UserError(
                f"the recipe's calibration set has {len(stream):,} tokens, and a sequence {self.seq_len}; give more, "
                "or a smaller seq_len"
            )
        return stream[: len(stream) // self.seq_len * self.seq_len].view(-1, self.seq_len)


ModifierFactory.register("StructuredPruningModifier", StructuredPruningModifier)
