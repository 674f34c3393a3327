"""Masks, most at the seam: the input of a reader, where setting a unit's run to 0 is exactly the removal of the unit.

`masked` is for a moment's look; `UnitMasks` stays on a model while it trains, and holds its learned scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .address import Kind
from .limits import is_offloaded
from .place import Place
from .site import Site

#: `full`: all neurons are computed, and masked ones still get a gradient; `gathered`: only the kept ones are computed
Compute = Literal["full", "gathered"]
COMPUTES: tuple[Compute, ...] = get_args(Compute)
#: the name under which a model holds its UnitMasks
ATTRIBUTE = "neuron_masks"


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor's values, where FSDP has spread them over the processes all of them on each."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def masked(sites: Sequence[Place], masks: Sequence[Tensor]) -> Iterator[None]:
    """Each site under its mask (U,) for the length of a `with` block. At a seam it multiplies, so it may be real."""
    with ExitStack() as stack:
        for site, mask in zip(sites, masks, strict=True):
            stack.callback(site.mask(mask))
        yield


class UnitMasks(nn.ModuleList):
    """A mask on each site of a model in training, one UnitMask a site, as a submodule of that model.

    As its submodule, so that the learned scores are parameters of the model: whoever trains it (Trainer, DDP, an
    optimizer over `model.parameters()`) trains, averages over processes and saves them too. `detach` takes it all off.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], *, learned: bool, compute: Compute):
        super().__init__(UnitMask(site, learned, compute) for site in sites)
        self.sites = list(sites)
        self._model = (model,)  # in a tuple, or the model would be a submodule of its own submodule
        self.attach()

    def __iter__(self) -> Iterator[UnitMask]:
        return cast(Iterator[UnitMask], super().__iter__())

    @property
    def model(self) -> nn.Module:
        """Whose masks these are."""
        return self._model[0]

    @property
    def scores(self) -> list[nn.Parameter]:
        """The learned scores, one (U,) a site; empty where nothing is learned."""
        return [mask.scores for mask in self if mask.scores is not None]

    def whole_scores(self) -> list[Tensor]:
        """The scores' values, one (U,) a site."""
        return [whole_tensor(scores) for scores in self.scores]

    @property
    def kept(self) -> list[Tensor]:
        """The kept units of each site, sorted, int64."""
        return [mask.kept for mask in self]

    @property
    def keep(self) -> float:
        """The share of all units that is kept now."""
        return sum(map(len, self.kept)) / sum(mask.count for mask in self)

    def keep_of(self, kind: Kind) -> float:
        """The same, of one kind."""
        own = [mask for mask in self if mask.kind == kind]
        return sum(len(mask.kept) for mask in own) / sum(mask.count for mask in own)

    def set(self, kept: Sequence[Tensor]) -> None:
        """From now on only the units `kept`, one sorted (K,) a site, take part."""
        for mask, indices in zip(self, kept, strict=True):
            mask.set(indices)

    def attach(self) -> None:
        (model,) = self._model
        assert not hasattr(model, ATTRIBUTE), "the model already has masks"
        model.add_module(ATTRIBUTE, self)
        for mask in self:
            mask.attach()

    def detach(self) -> None:
        """The model as it was, without masks; its weights are what training made of them."""
        for mask in self:
            mask.detach()
        delattr(self._model[0], ATTRIBUTE)

    @contextmanager
    def off(self) -> Iterator[None]:
        """No masks for the length of a `with` block."""
        self.detach()
        try:
            yield
        finally:
            self.attach()


class UnitMask(nn.Module):
    """One site's mask: which units are kept, how the others are left out, and the scores that are learned.

    observer: called with (h, kept) once in every training forward pass, h (…, F or K · size) what the units put out,
    before the mask.
    """

    def __init__(self, site: Site, learned: bool, compute: Compute):
        super().__init__()
        self._site = site
        self.count, self.size, self.compute = site.count, site.size, compute
        self.kind: Kind = site.address.kind
        if compute == "gathered":
            site.check_gathers()  # now, and not when the first unit goes
        self.scores = nn.Parameter(torch.zeros(site.count, device=self.device)) if learned else None
        self.observer: Callable[[Tensor, Tensor], None] | None = None
        self.set(torch.arange(site.count))

    @property
    def device(self) -> torch.device:
        """The layer's, wherever the model has been moved; the CPU while its weights are offloaded."""
        return torch.device("cpu") if is_offloaded(self._site.reader_linear) else self._site.reader().device

    def attach(self) -> None:
        self._handle = self._site.reader_linear.register_forward_pre_hook(self._at_seam)
        self.set(self.kept)

    def set(self, kept: Tensor) -> None:
        """Keep the units `kept` (K,), sorted."""
        self.kept = kept
        everything = len(kept) == self.count
        self._where: Tensor | None = None if everything else kept.to(self.device)
        self._mask: Tensor | None = None
        if not everything and self.compute == "full":
            mask_U = torch.zeros(self.count, device=self.device)
            mask_U[self._where] = 1
            self._mask = self._site.on_inputs(mask_U)
        if self.compute == "gathered":
            self._site.compute_only(self._where)

    def _at_seam(self, _down: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, *rest = args
        if self.training and self.observer is not None and not _in_backward():
            self.observer(h.detach(), self.kept)
        if self.training and self.scores is not None and torch.is_grad_enabled():
            computed = self.scores if h.shape[-1] == self.count * self.size else self.scores[self._where]
            return (cast(Tensor, _StraightThrough.apply(h, computed, self._mask)), *rest)
        return args if self._mask is None else (h * self._mask.to(h), *rest)

    def detach(self) -> None:
        self._handle.remove()
        self._site.compute_only(None)


def _in_backward() -> bool:
    """Whether a backward pass is at work, in which gradient checkpointing computes the blocks a second time."""
    return torch._C._current_graph_task_id() != -1


class _StraightThrough(torch.autograd.Function):
    """h' = h · mask forward; backward, the mask passes its gradient straight on to the scores: Σ_n h_nj ∂L/∂h'_nj, and
    the sum of it over the run of a unit.

    With mask None, all of h is kept: h' = h. Source: docs/methods.md, "Learned scores".
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(h, *([] if mask is None else [mask]))
        ctx.score_dtype, ctx.units = scores.dtype, len(scores)
        return h.view_as(h) if mask is None else h * mask.to(h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        h, *mask = ctx.saved_tensors
        (grad,) = grads
        score_grad = (h * grad).flatten(0, -2).sum(0, dtype=ctx.score_dtype)
        if len(score_grad) != ctx.units:
            score_grad = score_grad.unflatten(0, (ctx.units, -1)).sum(1)
        return grad * mask[0].to(grad) if mask else grad, score_grad, None
