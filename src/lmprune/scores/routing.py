"""What is seen of each expert while the model reads text: which tokens go to it, and what it makes of them.

Axes: N tokens, D model width, E experts, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..sites.experts import Experts
from .passes import undisturbed

#: statistics of experts; a forward pass gives them
ROUTING = frozenset({"routed", "gated_norm"})


@dataclass(frozen=True)
class RoutingStatistics:
    """Sums over the text, fp64 on the CPU, (E,), or None where it was not asked for.

    routed: the number of tokens that went to the expert.
    gated_norm: Σ g · ‖f(x)‖₂ over those tokens; f(x) is the expert's output, and g the gate it is multiplied by.
    """

    num_tokens: int = 0
    routed: Tensor | None = None
    gated_norm: Tensor | None = None

    def total(self, name: str) -> Tensor:
        """The sum `name` (E,) itself."""
        value = getattr(self, name)
        assert value is not None, f"{name} was not collected; add it to `needs`"
        return value


class RoutingObserver:
    """Adds up one layer's statistics as batches pass through its experts."""

    def __init__(self, site: Experts, needs: frozenset[str], seq_len: int):
        self.site = site
        self.needs = needs
        self.seq_len = seq_len
        self.num_tokens = 0
        self.sums = {name: torch.zeros(site.count, dtype=torch.float64) for name in needs & ROUTING}

    def attach(self, stack: ExitStack) -> None:
        stack.callback(self.site.stacked.register_forward_pre_hook(self._on_tokens).remove)

    @torch.no_grad()
    def _on_tokens(self, stacked: nn.Module, args: tuple[Tensor, ...]) -> None:
        x_ND, chosen_Nk, gates_Nk = args
        self.num_tokens += len(x_ND)
        if "routed" in self.sums:
            self.sums["routed"] += torch.bincount(chosen_Nk.flatten(), minlength=self.site.count).cpu()
        for expert in range(self.site.count) if "gated_norm" in self.sums else ():
            tokens, place = (chosen_Nk == expert).nonzero(as_tuple=True)
            if len(tokens):
                # by the layer's own forward, past the hooks: these tokens, this expert alone, with a gate of 1
                ones, here = gates_Nk.new_ones(len(tokens), 1), chosen_Nk.new_full((len(tokens), 1), expert)
                norms_N = stacked.forward(x_ND[tokens], here, ones).float().norm(dim=-1)
                self.sums["gated_norm"][expert] += (gates_Nk[tokens, place].float() * norms_N).double().sum().cpu()

    def end_batch(self) -> None:
        """Nothing is left open between batches."""

    def state(self) -> dict[str, Tensor]:
        return {"num_tokens": torch.tensor(self.num_tokens), **self.sums}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sums = {name: values for name, values in state.items() if name != "num_tokens"}
        self.num_tokens = int(state["num_tokens"])

    def result(self, num_sequences: int) -> RoutingStatistics:
        if self.num_tokens != num_sequences * self.seq_len:
            raise UserError(f"layer {self.site.layer}: the experts did not see every token")
        for name, value in self.sums.items():
            if not value.isfinite().all():
                raise UserError(
                    f"layer {self.site.layer}: {int((~value.isfinite()).sum())} experts have NaN or infinite {name}; "
                    "check the checkpoint's weights, or use a wider dtype (--dtype float32)"
                )
        found: dict[str, Any] = self.sums
        return RoutingStatistics(self.num_tokens, **found)


#: tokens of a sequence that every expert is shown, to see which of them do the same
_SHOWN = 128


@torch.no_grad()
def expert_cosines(model: nn.Module, sites: Sequence[Experts], input_ids: Tensor) -> list[Tensor]:
    """How alike the outputs of a layer's experts are, (E, E) fp64 a site: the mean cosine over tokens.

    Every expert is shown the same tokens, the first of the text, whether they would go to it or not.
    """
    seen: dict[int, Tensor] = {}

    def show(site: Experts, _stacked: nn.Module, args: tuple[Tensor, ...]) -> None:
        x_ND, chosen_Nk, gates_Nk = args
        ones = gates_Nk.new_ones(len(x_ND), 1)
        experts = range(site.count)
        out = [site.stacked.forward(x_ND, chosen_Nk.new_full((len(x_ND), 1), expert), ones) for expert in experts]
        directions_END = nn.functional.normalize(torch.stack(out).float(), dim=-1)
        cosines = torch.einsum("and,bnd->ab", directions_END, directions_END) / len(x_ND)
        seen[site.layer] = cosines.double().cpu()

    with undisturbed(model), ExitStack() as stack:
        for site in sites:
            stack.callback(site.stacked.register_forward_pre_hook(partial(show, site)).remove)
        model(input_ids[:1, :_SHOWN].to(next(model.parameters()).device), use_cache=False)
    return [seen[site.layer] for site in sites]
