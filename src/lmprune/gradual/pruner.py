"""Prune while a model trains: which neurons take part in which step, and what presses on their scores.

A state machine (docs/methods.md, "Schedule"), without any trainer: call `begin_step`, run the step's forward and
backward passes with `penalty()` added to the loss, call `end_step`. `training.PruneCallback` does that from a Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..budget.selection import Scope, check_keep, check_multiple_of
from ..errors import UserError
from ..methods import get_method, needs_text
from ..pruning import check_tokens
from ..sites.families import FFNSpec
from ..sites.find import find_sites
from ..sites.limits import check_in_memory
from ..sites.masks import Compute, UnitMasks
from .milestones import Milestones
from .penalties import pressure, sparsity_penalty
from .ranking import Ranking
from .schedules import WAIT, cubic
from .similarity import SimilarityEstimate
from .soft import SoftThreshold
from .warm_start import WarmStart


@dataclass(frozen=True)
class GradualSettings:
    """compute: see `masks.Compute`.

    penalty_weight: λ_f, the penalty's weight at the end. similarity_weight: λ_u, how much more a neuron is pressed
    that is like all others (u = 1). similarity_rows, similarity_every: token rows that u is estimated from, and the
    steps between two estimates, at most the schedule's wait: the first is made before the first neuron goes.
    num_milestones: how often a criterion that reads text is asked during the descent.
    warm_start: learned scores begin at the ranks of `obs`, whose refit is made at each milestone (`warm_start`).
    """

    compute: Compute = "gathered"
    penalty_weight: float = 0.67
    similarity_weight: float = 5.0
    similarity_rows: int = 1024
    similarity_every: int = 16
    num_milestones: int = 5
    warm_start: bool = False


class Chooser(Protocol):
    """Decides which neurons take part."""

    def choose(self, step: int, keep: float) -> Sequence[Tensor] | None:
        """The kept neurons of each layer after `step` steps, where the schedule asks for `keep`; None = as they are."""
        ...


class GradualPruner:
    """Attaches masks to a model, and moves them along the schedule; `finish` takes them off and gives the kept neurons.

    model: a transformers causal-LM model. method: a name in METHODS. keep: the ratio of neurons in the end.
    num_steps: optimizer steps of the whole run. scope: None = the method's own.
    calibration: token ids (sequences, T), for methods whose criterion reads text.
    Raises: UserError, the model untouched.
    """

    def __init__(
        self,
        model: Any,
        *,
        method: str,
        keep: float,
        num_steps: int,
        scope: Scope | None = None,
        multiple_of: int = 1,
        seed: int = 0,
        calibration: Tensor | None = None,
        settings: GradualSettings = GradualSettings(),
        spec: FFNSpec | None = None,
    ):
        self.method, self.settings, self.keep = get_method(method), settings, check_keep(keep)
        self.schedule = cubic(keep, num_steps)
        self.step = 0
        self.similarity_every = min(settings.similarity_every, max(1, int(WAIT * num_steps)))
        reads_text = needs_text(self.method)
        if settings.warm_start and not self.method.learned:
            raise UserError(f"method {method!r} has no learned scores to warm-start; leave out --warm-start")
        if (reads_text or settings.warm_start) and calibration is None:
            raise UserError(f"method {method!r} scores neurons on text while it prunes; pass calibration tokens")
        if calibration is not None:
            check_tokens(calibration, model)
        if self.method.refit == "bias":
            raise UserError(
                f"method {method!r} gives layers a bias, which an optimizer at work can't take in; "
                f"use --schedule oneshot, or --method {self.method.criterion}"
            )
        sites = find_sites(model, spec=spec)
        check_in_memory(model)
        check_multiple_of(multiple_of, keep, [site.count for site in sites])
        self.masks = UnitMasks(model, sites, learned=self.method.learned, compute=settings.compute)
        self.estimate: SimilarityEstimate | None = None
        if self.method.penalty in ("uniqueness", "anti_uniqueness"):
            self.estimate = SimilarityEstimate(self.masks, max_rows=settings.similarity_rows)
            self.estimate.observe()
        scope = scope or self.method.scope
        self.soft: SoftThreshold | None = None
        if self.method.penalty == "l1":
            self.soft = SoftThreshold(self.masks, keep, num_steps, multiple_of=multiple_of, seed=seed)
        self.chooser: Chooser
        if self.soft is not None:
            self.chooser = self.soft
        elif calibration is not None and reads_text:
            self.chooser = Milestones(
                model, self.masks, self.method, calibration, num_steps, settings.num_milestones,
                scope=scope, multiple_of=multiple_of, seed=seed, spec=spec,
            )  # fmt: skip
        else:
            self.chooser = Ranking(self.masks, self.method, scope=scope, multiple_of=multiple_of, seed=seed)

        self.warm: WarmStart | None = None
        if settings.warm_start:
            assert calibration is not None
            self.warm = WarmStart(
                model, self.masks, calibration, num_steps, settings.num_milestones, scope=scope, seed=seed, spec=spec
            )

    def begin_step(self, step: int) -> None:
        """Choose the neurons that take part in the next step, `step` being done."""
        self.step = step
        before = self.masks.kept
        kept = self.chooser.choose(step, self.schedule(step))
        if kept is not None:
            self.masks.set(kept)
        if self.warm is not None:
            self.warm.refit(step, before)
        if self.estimate is not None and step > 0 and step % self.similarity_every == 0:
            self.estimate.refresh()

    def penalty(self) -> Tensor | None:
        """R, what this step's loss gets on top, a scalar; None for methods without a penalty."""
        if self.method.penalty == "none":
            return None
        similarities = self.estimate.similarities if self.estimate else []
        weights = pressure(self.method.penalty, similarities, self.settings.similarity_weight)
        return self.penalty_weight() * sparsity_penalty(self.masks.scores, weights)

    def penalty_weight(self) -> float:
        """λ(t): falls to λ_f with the keep ratio, λ_f · v(t) / v_f; `soft`'s rises with its threshold instead."""
        if self.soft is not None:
            return self.settings.penalty_weight * self.soft.strength(self.step)
        return self.settings.penalty_weight * self.schedule(self.step) / self.keep

    def progress(self) -> dict[str, float]:
        """What a log shows of this step: `keep`, the ratio of neurons that take part, and where the method has them
        `penalty`, R, and, once there is an estimate, `similarity`, the neurons' mean u."""
        values = {"keep": self.masks.keep}
        if (penalty := self.penalty()) is not None:
            values["penalty"] = float(penalty.detach())
        if self.estimate is not None and self.step >= self.similarity_every:
            values["similarity"] = self.estimate.mean()
        return values

    def end_step(self) -> None:
        """The optimizer has stepped."""
        if self.estimate is not None:
            self.estimate.end_step()

    def finish(self) -> list[Tensor]:
        """Take the masks off, and return the kept neurons of each layer."""
        kept = self.masks.kept
        self.masks.detach()
        return kept

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the model's parameters, as named tensors."""
        found = {f"kept.{layer}": kept for layer, kept in enumerate(self.masks.kept)}
        if self.estimate is not None:
            found |= {f"estimate.{name}": value for name, value in self.estimate.state().items()}
        if self.soft is not None:
            found["soft.effort"] = torch.tensor(self.soft.effort, dtype=torch.float64)
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.masks.set([state[f"kept.{layer}"] for layer in range(len(self.masks))])
        if self.estimate is not None:
            self.estimate.load_state({k.removeprefix("estimate."): v for k, v in state.items() if "estimate." in k})
        if self.soft is not None:
            self.soft.effort = float(state["soft.effort"])
