"""The experts of a layer as a place: no linear seam, but a router that chooses among them.

A removed expert is one that is never chosen: its logit is -∞, so that the top k are found among the others and their
gates are what they are without it. Cut, the router has no row for it and the stacked tensors no slice.

Axes: N tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from .address import Address
from .linears import index_out, outputs_of, replace, replace_forward
from .mixtures import MixtureSpec

#: the attribute that counts experts, wherever modules have one
_COUNT = "num_experts"


@dataclass(eq=False)
class Experts:
    """The experts of one layer.

    router: what chooses. logits: its linear map, a row an expert. stacked: the module that holds their tensors.
    choice: (module, name) of a bias that only the choice is made by.
    parts: the number of groups that the router chooses among first; each must be left with equally many experts.
    in_group: the fewest that a group may be left with. chosen_groups: how many groups are chosen.
    """

    address: Address
    block: nn.Module
    home: nn.Module
    router: nn.Module
    logits: nn.Module
    stacked: nn.Module
    choice: tuple[nn.Module, str] | None = None
    parts: int = 1
    in_group: int = 1
    chosen_groups: int = 1

    def __repr__(self) -> str:
        return f"Experts({self.address}, {self.count}, {self.top_k} a token)"

    @property
    def layer(self) -> int:
        return self.address.layer

    @property
    def count(self) -> int:
        """E, the number of experts."""
        return outputs_of(self.logits)

    @property
    def top_k(self) -> int:
        """How many a token goes to."""
        return cast(int, self.router.top_k)

    @property
    def least(self) -> int:
        in_group = max(self.in_group, -(-self.top_k // self.chosen_groups))
        return self.parts * in_group if self.parts > 1 else max(self.in_group, self.top_k)

    @property
    def params(self) -> int:
        tensors = [*self._tensors().values(), *self.logits.parameters(recurse=False)]
        if self.choice is not None and isinstance(bias := getattr(*self.choice), nn.Parameter):  # else a buffer
            tensors.append(bias)
        return sum(tensor.numel() for tensor in tensors) // self.count

    @property
    def modules(self) -> list[nn.Module]:
        return [self.home, self.router, self.logits, self.stacked, *([self.choice[0]] if self.choice else [])]

    @property
    def scaled(self) -> list[tuple[nn.Module, str]]:
        return [(m, _COUNT) for m in (self.home, self.router, self.stacked) if hasattr(m, _COUNT)]

    def rows(self) -> Tensor:
        """(E, D): what the router multiplies a token by."""
        return cast(Tensor, self.logits.weight)

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.stacked.named_parameters(recurse=False))

    def keep(self, units: Tensor) -> None:
        """Cut down to the experts `units` (sorted, unique, (K,)); top-k stays. Raises: UserError, as `check` does."""
        self.check(units)
        index_out(self.logits, units)
        for name, tensor in self._tensors().items():
            replace(self.stacked, name, tensor.index_select(0, units.to(tensor.device)))
        if self.choice is not None:
            bias = cast(Tensor, getattr(*self.choice))
            replace(*self.choice, bias.index_select(-1, units.to(bias.device)))
        for module, name in self.scaled:
            setattr(module, name, len(units))

    def check(self, units: Tensor) -> None:
        """Raises: UserError where the router can't choose among these experts alone."""
        layer = f"layer {self.layer}"
        if self.parts > 1:
            of_each = torch.bincount(units * self.parts // self.count, minlength=self.parts)
            if len(of_each.unique()) > 1:
                raise UserError(
                    f"{layer}: its router chooses among {self.parts} groups of experts, each of which must keep "
                    f"equally many; got {', '.join(map(str, of_each.tolist()))}"
                )
        if len(units) < self.least:
            why = f"{self.top_k} go to a token" if self.parts == 1 else f"with {self.top_k} a token, in groups"
            raise UserError(
                f"{layer}: {len(units)} of {self.count} experts would stay, and {self.least} are needed ({why}); "
                f"keep at least {self.least / self.count:.3g}"
            )

    def mask(self, values_U: Tensor) -> Callable[[], None]:
        """From now on experts whose value is 0 are never chosen; what comes back ends it."""
        rows = self.rows()
        gone_E = torch.zeros(self.count, device=rows.device).masked_fill(values_U.to(rows.device) == 0, -torch.inf)
        return _together(self._mask_logits(gone_E), self._mask_choice(gone_E))

    def _mask_logits(self, gone_E: Tensor) -> Callable[[], None]:
        choose = self.router.forward

        def masked(*args: Any, **kwargs: Any) -> Any:
            with _AddedToLogits(gone_E):
                return choose(*args, **kwargs)

        return replace_forward(self.router, masked)

    def _mask_choice(self, gone_E: Tensor) -> Callable[[], None]:
        """The bias comes after the sigmoid or softmax, where -∞ is 0: that alone would leave the expert in the race."""
        if self.choice is None:
            return lambda: None
        module, name = self.choice
        bias = cast(Tensor, getattr(module, name))
        replace(module, name, bias + gone_E.to(bias))

        def put_back() -> None:
            (module._buffers if name in module._buffers else module._parameters)[name] = bias  # type: ignore[assignment]

        return put_back


class _AddedToLogits(TorchFunctionMode):
    """Adds to what `functional.linear` computes: inside a router's forward, where there is one, to its logits."""

    def __init__(self, added_E: Tensor):
        super().__init__()
        self.added_E = added_E

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out + self.added_E.to(out) if func is functional.linear else out


def _together(*actions: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        for action in actions:
            action()

    return act


def experts(block: nn.Module, spec: MixtureSpec, layer: int) -> Experts | None:
    """The experts of a block, or None where it is a dense one. Raises: AttributeError where it lacks a path."""
    home = block.get_submodule(spec.home)
    if not hasattr(home, spec.experts):
        return None
    router = home.get_submodule(spec.router)
    where, _, name = spec.choice.rpartition(".")
    choice = (home.get_submodule(where), name) if name else None
    groups = (spec.groups and getattr(router, spec.groups)) or 1
    if any(getattr(router, name) != value for name, value in spec.grouped):
        groups = 1
    return Experts(
        *(Address("experts", layer), block, home, router, home.get_submodule(spec.logits)),
        home.get_submodule(spec.experts),
        choice if choice and hasattr(*choice) else None,
        parts=groups,
        in_group=spec.in_group,
        chosen_groups=router.topk_group if groups > 1 else 1,  # type: ignore[arg-type]
    )
