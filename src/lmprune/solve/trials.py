"""The last word of a search: its best choices are really cut for a try, and trained a little if that is asked for.

The judge of a search takes readers that were made behind the ranking's cuts; a choice far from the ranking may be
another thing when it is cut, and another one again after a training (DarwinLM's training-aware selection). All of it
happens in the readers, which can be put back: units that went are zeros there, and stay zeros while others are trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ..errors import UserError
from ..progress import Stages
from ..sites.limits import check_one_device, check_whole
from ..sites.site import Site
from .stitched import DenseEnds, as_before, divergence
from .walks import Probe, problems

#: sequences of a step of a training, and the rate that it begins with (docs/lab_notes.md, 27 November: readers alone)
_A_STEP, _RATE = 8, 1e-3


def check_tunes(model: Any) -> None:
    """Raises: UserError where readers can't be trained."""
    check_whole(model, "--tune-survivors can't train")
    check_one_device(model, "--tune-survivors can't train")
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise UserError("weights can't be trained in float16, as --tune-survivors does; take --dtype float32")


@dataclass(frozen=True)
class Tryout:
    """judged: sequences that choices are judged on. trained: those that a survivor is trained on. passes: over them."""

    probe: Probe
    judged: DenseEnds
    trained: DenseEnds | None
    passes: int
    stages: Stages

    @torch.no_grad()
    def losses(self, counts: Sequence[int]) -> dict[str, float]:
        """How far from the dense model it is with so many units of each site, chosen and refitted behind the cuts
        before, nats a token: as `loss`, and as `tuned` after the training. The model is left as it was."""
        probe = self.probe
        until = dict(zip([site.address for site in probe.sites], counts, strict=True))
        progress = self.stages("a cut for a try")
        with as_before(probe.sites):
            for site, problem in problems(probe.model, probe.sites, probe.input_ids, probe.settings, progress):
                probe.mask(site, problem, until[site.address])
                del problem
            found = {"loss": self.judged.divergence()}
            if self.trained is None:
                return found
            tune(probe.model, probe.sites, self.trained, self.passes, seed=probe.seed)
            return {**found, "tuned": self.judged.divergence()}


def tune(model: Any, sites: Sequence[Site], ends: DenseEnds, passes: int, *, seed: int = 0) -> None:
    """Train the readers on KL(dense ‖ model), but for weights that are zero: as if their units were gone.

    ends: of the dense model, on the sequences to train on. passes: over all of them. seed: of their order.
    AdamW without weight decay, eight sequences a step, its rate falling by a cosine.
    """
    draw = torch.Generator().manual_seed(seed)
    order = [int(place) for _ in range(passes) for place in torch.randperm(len(ends.batches), generator=draw)]
    steps = [order[at : at + _A_STEP] for at in range(0, len(order), _A_STEP)]
    with _training(model, sites) as readers:
        optimizer = torch.optim.AdamW(readers, lr=_RATE, weight_decay=0.0)
        for step, places in enumerate(steps):
            for place in places:
                logits_TV = model(input_ids=ends.batches[place], use_cache=False).logits[0].float()
                (divergence(ends.logits(place), logits_TV).mean() / len(places)).backward()
            optimizer.param_groups[0]["lr"] = _RATE * (1 + math.cos(math.pi * step / len(steps))) / 2
            optimizer.step()
            optimizer.zero_grad()


@contextmanager
def _training(model: Any, sites: Sequence[Site]) -> Iterator[list[nn.Parameter]]:
    """The readers, which alone have gradients in a `with` block, and none where they are zero."""
    readers = [cast(nn.Parameter, site.reader_linear.weight) for site in sites]
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    with ExitStack() as undo, torch.enable_grad():
        for reader in readers:
            reader.requires_grad_(True)
            there = reader.detach() != 0
            undo.callback(reader.register_hook(partial(torch.mul, there)).remove)
        try:
            yield readers
        finally:
            for parameter, before in asked.items():
                parameter.requires_grad_(before)
