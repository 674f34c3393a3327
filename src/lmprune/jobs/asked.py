"""What `lmprune prune` goes through, as values: what was asked for, what was opened for it, what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..budget.budget import Budget
from ..checkpoints.licences import Licence
from ..checkpoints.writing import Destination
from ..data import TextData
from ..data.prompts import Prompts
from ..methods import Method
from ..plan import PrunePlan
from ..progress import Phase, Teller
from ..sites.address import Kind
from ..sites.families import FFNSpec
from ..training.examples import Corpus
from ..training.run_folder import RunFolder
from .kept import Kept
from .training_options import Training


@dataclass(frozen=True)
class Asked:
    """What was asked for, checked as far as it can be before a weight is read.

    options: as the command line has them. row: the method, or the plan's. kinds: of units that go.
    how: dtype, device, … that models are loaded with. kind: what is saved, None = as the original.
    prompts: of the user's. run: where a training keeps its states, or None. budget: a target, and how it is spread.
    kept: where pruning at once keeps what it has worked out of a model that is read block by block, or None.
    phases: of pruning at once, and how long they will take, once the model is open. destination: where it will go;
    scores: where what units are chosen by will, or None."""

    options: Mapping[str, Any]
    row: Method
    kinds: Sequence[Kind]
    plan: PrunePlan | None
    training: Training | None
    calibration_tokens: int
    corpus: Corpus
    how: Mapping[str, Any]
    kind: torch.dtype | None
    spec: FFNSpec | None
    prompts: Prompts | None
    run: RunFolder | None
    phases: Sequence[Phase] = ()
    budget: Budget | None = None
    destination: Destination | None = None
    kept: Kept | None = None
    scores: Destination | None = None

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    @property
    def gradual(self) -> bool:
        return goes_on_schedule(self.training, self.plan)

    @property
    def calibrates(self) -> bool:
        return bool(self["recover"]) or self.row.solver_of(self.kinds).reads_text(chosen=self.plan is not None)

    def begun(self, model: Any, terminal: Teller) -> AbstractContextManager[None]:
        """Around the work on the model that was opened."""
        if self.kept is not None:
            return self.kept.keeping(model, terminal)
        return self.run.begun() if self.run else nullcontext()

    def named(self, *names: str) -> dict[str, Any]:
        return {name: self.options[name] for name in names}


@dataclass(frozen=True)
class Opened:
    """before: the sizes of the dense model. provenance: what the plan says of where it comes from."""

    dense: Any
    tokenizer: Any
    text: TextData | None
    before: Mapping[str, Any]
    licence: Licence
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """The pruned model and its plan; of a training its record and its log. quality: how a ratio was found by it."""

    model: Any
    plan: PrunePlan
    training: Mapping[str, Any]
    log: list[dict[str, Any]]
    quality: Mapping[str, Any] | None = None


def usual_text(*, trains: bool) -> str:
    """What is read where nobody said: text of several kinds, for a cut shows on each that it was not fitted to; by a
    training the paper's."""
    return "wikitext" if trains else "mix"


def goes_on_schedule(training: Training | None, plan: PrunePlan | None) -> bool:
    """Whether neurons go little by little while the model trains."""
    return training is not None and training.schedule != "oneshot" and plan is None
