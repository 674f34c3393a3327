"""Prune while a model trains: which neurons take part in which step, and what presses on their scores.

A state machine (docs/methods.md, "Schedule"), without any trainer. In a loop of one's own:

    pruner = GradualPruner(model, method="gum", keep=0.25, num_steps=2000)
    optimizer = AdamW(pruner.param_groups(lr=5e-4, score_lr=1e-2))
    for t, batch in enumerate(batches):
        with pruner.step(t):
            loss = pruner.loss(model(**batch).loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    plan = pruner.finish()  # then lmprune.shrink(model, plan)

`training.PruneCallback` does it from a plain Trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..budget.keeps import Keep, check_keeps
from ..budget.selection import Scope
from ..errors import UserError
from ..methods import MethodLike, check_kinds, get_method
from ..plan import PrunePlan
from ..pruning import versions
from ..sites.address import Kind
from ..sites.families import FFNSpec
from ..sites.find import find_sites
from ..sites.limits import check_in_memory, check_one_device, check_tokens, check_whole
from ..sites.masks import ATTRIBUTE, UnitMasks
from ..sites.site import seams
from ..solve.learned import Learned
from ..solve.scored import Scored
from .checks import check_loss, check_trainable
from .goal import Chooser, Goal
from .milestones import Milestones
from .optimizing import check_groups, checked_optimizers, param_groups, score_group
from .pressing import Pressing
from .ranking import Ranking
from .settings import GradualSettings
from .similarity import SimilarityEstimate
from .soft import SoftThreshold
from .warm_start import WarmStart

#: of a state's names, what the estimate's begin with
_ESTIMATE = "estimate."


class GradualPruner:
    """Attaches masks to a model, and moves them along the schedule; `finish` takes them off and gives the plan.

    model: a transformers causal-LM model. units: neurons, heads, or both. method: as `lmprune.prune` takes it.
    keep: the ratio of units in the end, or one for each kind.
    num_steps: optimizer steps of the whole run. scope: None = the method's own.
    calibration: token ids (sequences, T), for methods whose criterion reads text.
    named: False = nobody named this ratio, which a target came to: layers of few units need not come near it.
    Raises: UserError, the model untouched.
    """

    def __init__(
        self,
        model: Any,
        *,
        units: Sequence[Kind] = ("neurons",),
        method: MethodLike,
        keep: Keep,
        num_steps: int,
        scope: Scope | None = None,
        multiple_of: int = 1,
        seed: int = 0,
        calibration: Tensor | None = None,
        settings: GradualSettings = GradualSettings(),
        spec: FFNSpec | None = None,
        named: bool = True,
    ):
        self.method, self.settings, self.model = get_method(method), settings, model
        check_kinds(self.method, units)
        self.goal = Goal(check_keeps(keep, units), num_steps, scope or self.method.scope, multiple_of, seed, named)
        self.schedule, self.num_steps, self.keep = self.goal.schedule, num_steps, self.goal.lowest
        self.done = self._ended = 0
        self._one_rate = False
        check_trainable(self.method, scope, settings, calibration)
        if calibration is not None:
            check_tokens(calibration, model)
        if hasattr(model, ATTRIBUTE):
            raise UserError("the model is being pruned already; finish() the GradualPruner that it has first")
        sites = seams(find_sites(model, units, spec), "pruning while a model trains")
        check_in_memory(model)
        check_whole(model, "units can't go little by little")
        check_one_device(model, "units can't go little by little")
        self.goal.check(sites)
        self.masks = UnitMasks(model, sites, learned=self.method.learned, compute=settings.compute)
        self.chooser = self._chooser(calibration, spec)
        self._pressed: Tensor | None = None  # the penalty that was in the last loss
        self.pressing: Pressing | None = None
        if self.method.pressure is not None:
            self.pressing = Pressing(self.method.pressure, self.masks, self.chooser, settings)
        self.warm: WarmStart | None = None
        if settings.warm_start:
            assert calibration is not None
            self.warm = WarmStart(model, self.masks, calibration, self.goal, settings.num_milestones, spec)

    def _chooser(self, calibration: Tensor | None, spec: FFNSpec | None) -> Chooser:
        solver = self.method.solver
        if isinstance(solver, Learned):
            return SoftThreshold(self.masks, self.goal) if solver.threshold else Ranking(self.masks, None, self.goal)
        if isinstance(solver, Scored) and not solver.reads_text():
            return Ranking(self.masks, solver.criterion, self.goal)
        assert calibration is not None
        return Milestones(
            self.model, self.masks, self.method, calibration, self.goal, self.settings.num_milestones, spec
        )

    @property
    def estimate(self) -> SimilarityEstimate | None:
        """How alike the neurons are, for a penalty that asks for it."""
        return self.pressing.estimate if self.pressing else None

    def param_groups(
        self, *, lr: float, score_lr: float | None = None, weight_decay: float = 0.1
    ) -> list[dict[str, Any]]:
        """What an optimizer (AdamW) is to be built over: all of the model's parameters that train, learned scores in a
        group of their own with their rate, ε = 1e-4 and no weight decay; biases and norms don't decay either.

        score_lr: None = 1e-2, for `soft` at least 10 / num_steps.
        """
        score_lr = self.score_lr if score_lr is None else score_lr
        self._one_rate = score_lr == lr
        return param_groups(self.model, self.masks.scores, lr=lr, score_lr=score_lr, weight_decay=weight_decay)

    def score_group(self, lr: float | None = None) -> dict[str, Any]:
        """The scores' group alone, for an optimizer that has the weights already. lr: None = as in `param_groups`."""
        return score_group(self.masks.scores, self.score_lr if lr is None else lr)

    @property
    def score_lr(self) -> float:
        """The learned scores' usual learning rate."""
        return self.chooser.score_lr

    def check_optimizer(self, optimizer: Any) -> None:
        """Raises: UserError where it would not train learned scores as scores."""
        check_groups(optimizer, self.masks.scores, one_rate=self._one_rate)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """One optimizer step, `number` of them being done: forward, `loss`, backward and `optimizer.step()` in a `with`
        block.

        Raises: UserError where the count has a gap or starts anew, where the optimizer would not train the scores as
        scores, and where the step ended without the method's penalty.
        """
        self.check_follows(number)
        self.begin_step(number)
        with checked_optimizers(self.model, self.masks.scores, one_rate=self._one_rate):
            yield
        self.check_pressed()
        self.end_step()

    def check_follows(self, number: int) -> None:
        """Raises: UserError where not so many steps are done: neurons that went, and scores, are of those that are."""
        if number != self._ended:
            raise UserError(
                f"step {number} can't follow after {self._ended} steps; count the optimizer's steps from 0, "
                "through all epochs, and begin a new run with a new GradualPruner"
            )

    def loss(self, loss: Tensor, *, parts: float = 1) -> Tensor:
        """A training step's loss with the method's penalty; what to call backward() on.

        parts: the number of batches whose losses add up to the step's; 1 = it is their mean, or there is one batch.
        Raises: UserError for what is no loss.
        """
        check_loss(loss)
        penalty = self.penalty()
        if penalty is None:
            return loss
        self._pressed = penalty.detach()
        return loss + penalty.to(loss.device) / parts

    def begin_step(self, step: int) -> None:
        """Choose the neurons that take part in the next step, `step` being done. What `step` does, for trainers."""
        self.done = step
        before = self.masks.kept
        kept = self.chooser.choose(step, self.schedule(step))
        if kept is not None:
            self.masks.set(kept)
        if self.warm is not None:
            self.warm.refit(step, before)
        if self.pressing is not None:
            self.pressing.begin_step(step)

    def penalty(self) -> Tensor | None:
        """R, what this step's loss gets on top, a scalar; None for methods without a penalty."""
        return self.pressing.penalty(self.done) if self.pressing else None

    def check_pressed(self) -> None:
        """Raises: UserError where the method has a penalty, and no gradient of this step went through it."""
        if self.pressing is not None and not self.pressing.reached:
            raise UserError(
                f"step {self.done} ended without the penalty of {self.method.name!r}: call backward() on "
                "pruner.loss(loss), within the step; in a Trainer, leave the loss to the model (no label smoothing, no "
                "loss of your own)"
            )

    def penalty_weight(self) -> float:
        """λ(t), the weight of R in this step's loss; 0 for methods without a penalty."""
        return self.pressing.weight(self.done) if self.pressing else 0.0

    def progress(self) -> dict[str, float]:
        """What a log shows of this step: `keep`, the ratio of neurons that take part, and where the method has them
        `penalty`, R as it was in the step's loss (before the scores moved), and, once there is an estimate,
        `similarity`, the neurons' mean u."""
        values = {"keep": self.masks.keep}
        if (penalty := self.penalty() if self._pressed is None else self._pressed) is not None:
            values["penalty"] = float(penalty.detach())
        if self.pressing is not None and self.estimate is not None and self.done >= self.pressing.every:
            values["similarity"] = self.estimate.mean()
        return values

    def end_step(self) -> None:
        """The optimizer has stepped."""
        self._ended = self.done + 1
        if self.estimate is not None:
            self.estimate.end_step()

    def finish(self, *, early: bool = False) -> PrunePlan:
        """Take the masks off, and return the plan of the neurons that are kept: `lmprune.shrink(model, plan)` cuts.

        early: also where the schedule has not come down to `keep` yet.
        Raises: UserError without `early` then, the masks still on; and where they are off already.
        """
        if getattr(self.model, ATTRIBUTE, None) is not self.masks:
            raise UserError("this GradualPruner is finished; its masks are off the model")
        if not early and self.schedule(self.done) > self.keep:
            raise UserError(
                f"{self._ended} of {self.num_steps} steps are done, and {self.schedule(self.done):.0%} of the neurons "
                f"asked for, not {self.keep:.0%} yet; train on, or take what there is with finish(early=True)"
            )
        kept = self.masks.kept
        self.masks.detach()
        if self.estimate is not None:
            self.estimate.forget()
        settings = {
            "method": self.method.name, "keep": self.goal.keep, "scope": self.goal.scope,
            "multiple_of": self.goal.multiple_of, "seed": self.goal.seed, "schedule": "cubic",
            "gradual": asdict(self.settings),
        }  # fmt: skip
        scores = [s.detach().float().cpu() for s in self.chooser.scores()]
        addresses = [site.address for site in self.masks.sites]
        plan = PrunePlan.of(addresses, kept, [m.count for m in self.masks], settings, {"versions": versions()})
        return replace(plan, scores=dict(zip(addresses, scores, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the model's parameters, as named tensors."""
        found = {f"kept.{layer}": kept for layer, kept in enumerate(self.masks.kept)}
        found["step"] = torch.tensor(self._ended)
        if self.estimate is not None:
            found |= {f"{_ESTIMATE}{name}": value for name, value in self.estimate.state().items()}
        return found | self.chooser.state()

    def load_state(self, state: dict[str, Tensor], *others: dict[str, Tensor], process: int = 0) -> None:
        """Go on from what `state` gave. others: where the processes are not as many as they were, the states of the
        others that there were; `process` is then the number of this one."""
        if others and self.estimate is not None:
            estimates = [_of_estimate(each) for each in (state, *others)]
            dealt = self.estimate.dealt(estimates, process)
            state = state | {f"{_ESTIMATE}{name}": value for name, value in dealt.items()}
        self.masks.set([state[f"kept.{layer}"] for layer in range(len(self.masks))])
        self._ended = int(state.get("step", 0))  # states of lmprune before 2026-11-25 have none
        self.done = max(self._ended - 1, 0)  # as after the last step: a state may be that of a whole run
        if self.estimate is not None:
            self.estimate.load_state(_of_estimate(state))
        self.chooser.load_state(state)


def _of_estimate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_ESTIMATE): value for name, value in state.items() if name.startswith(_ESTIMATE)}
