"""A site: one place of a model where units can be removed, seen unit by unit; the only code that changes shapes.

A **unit** is a run of `size` inputs of a linear reader, with the outputs of the linear writers that make them. A neuron
of a feed-forward layer is a run of one input of `down`; a key/value group of an attention layer is a run of
(query heads of the group) · (head dimension) inputs of `o`. Removing a unit is exactly the same as setting its run to
zero at the input of the reader, the **seam**.

Axes: N tokens, D model width, F inputs of the seam, U units; F = U · size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..checkpoints.shim import count_of, set_count
from ..errors import UserError
from .address import Address
from .linears import (
    bias_of,
    computes_as_its_class,
    gathered,
    index_in,
    index_out,
    pad_in,
    pad_out,
    replace_product,
    rows_are_inputs,
)
from .place import Place
from .runs import runs_of


@dataclass(frozen=True)
class Writer:
    """A linear that makes inputs of the seam, and how its outputs belong to units.

    runs: how many outputs a unit has in each of the runs that the outputs consist of, one run after the other. (1,) is
    `up`; (1, 1) is [gate; up] in one matrix; (4 · 64, 64, 64) is [q; k; v] in one, of groups of 4 query heads.
    shared: how many outputs, after those, belong to no unit and stay, as a key and a value that all heads read.
    """

    linear: nn.Module
    runs: tuple[int, ...]
    shared: int = 0

    def rows(self, units: Tensor, count: int) -> Tensor:
        """The outputs of `units` (K,), of `count` that there are, run after run."""
        starts = torch.tensor([0, *self.runs]).cumsum(0).tolist()
        rows = [start * count + runs_of(units, size) for start, size in zip(starts, self.runs, strict=False)]
        return torch.cat([*rows, starts[-1] * count + torch.arange(self.shared, device=units.device)])

    def split(self, outputs: Tensor, count: int, dim: int = 0) -> list[Tensor]:
        """What belongs to the outputs of the linear along `dim`, by runs: in each, unit after unit."""
        return list(outputs.split([*(size * count for size in self.runs), self.shared], dim))[:-1]


#: takes the whole branch that a site is in out of its block
Leaves = Callable[[nn.Module], None]


@dataclass(eq=False)
class Site:
    """The units of one layer.

    Views (`writers`, `reader`) share memory with the model's parameters: writing into them changes the model.
    scaled: attributes of modules that count units or their rows, and must follow a cut.
    what: the reader's name, for messages. leaves: None where the model can't do without the branch.
    stays: the units that the last cut left, as they were numbered before it.
    """

    address: Address
    block: nn.Module
    made_by: tuple[Writer, ...]
    reader_linear: nn.Module
    size: int = 1
    scaled: tuple[tuple[nn.Module, str], ...] = ()
    what: str = "the reader"
    leaves: Leaves | None = None
    stays: Tensor | None = field(default=None, repr=False)
    _put_back: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        return f"Site({self.address}, {self.count} × {self.size} inputs of {self.what})"

    @property
    def layer(self) -> int:
        return self.address.layer

    @property
    def width(self) -> int:
        """F, the inputs of the seam."""
        return self.reader().shape[0]

    @property
    def count(self) -> int:
        """U, the number of units."""
        return self.width // self.size

    @property
    def params(self) -> int:
        """Parameters that one unit takes along."""
        mine = [*self.writers(), *self.writer_biases(), self.reader()]
        return sum(tensor.numel() for tensor in mine) // max(self.count, 1)

    @property
    def least(self) -> int:
        return 1

    @property
    def parts(self) -> int:
        return 1

    def check(self, units: Tensor) -> None:
        if not len(units) and self.leaves is None:
            raise UserError(
                f"layer {self.layer}: no {self.address.kind} would stay, and this model can't do without; keep one"
            )

    @property
    def writer_linears(self) -> list[nn.Module]:
        return [writer.linear for writer in self.made_by]

    @property
    def linears(self) -> list[nn.Module]:
        """The modules whose parameters belong to units: writers, then the reader."""
        return [*self.writer_linears, self.reader_linear]

    @property
    def modules(self) -> list[nn.Module]:
        return [*self.linears, *(module for module, _ in self.scaled)]

    def writers(self) -> list[Tensor]:
        """Each (U · rows, D), unit after unit: [up], [up, gate], the two halves of a fused [gate; up], [q, k, v]."""
        return [run for w in self.made_by for run in w.split(_out_major(w.linear), self.count)]

    def writer_biases(self) -> list[Tensor]:
        """Each (U · rows,), for the writers that have a bias."""
        found = [(w, bias_of(w.linear)) for w in self.made_by]
        return [run for w, bias in found if bias is not None for run in w.split(bias, self.count)]

    def reader(self) -> Tensor:
        """(F, D): row j is what the reader does with input j of the seam."""
        weight = cast(Tensor, self.reader_linear.weight)
        return weight if rows_are_inputs(self.reader_linear) else weight.T

    def reader_bias(self) -> Tensor | None:
        """(D,), or None where the reader has no bias."""
        return bias_of(self.reader_linear)

    def reader_state(self) -> tuple[Tensor, Tensor | None]:
        """Copies of the reader and of its bias, for `set_reader`."""
        bias = self.reader_bias()
        return self.reader().detach().clone(), None if bias is None else bias.detach().clone()

    def inputs_of(self, units: Tensor) -> Tensor:
        """The inputs of the seam that `units` (K,) are, (K · size,)."""
        return runs_of(units, self.size)

    def tap(self, see: Callable[[Tensor], object]) -> Callable[[], None]:
        """Let `see` have what enters the reader, (…, F), in each forward pass; what comes back ends it."""

        def hook(_reader: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(args[0].detach())

        return self.reader_linear.register_forward_pre_hook(hook).remove

    def mask(self, values_U: Tensor) -> Callable[[], None]:
        """Multiply the units by `values_U`, 0/1 or real, at the seam; what comes back ends it."""
        values_F = self.on_inputs(values_U)

        def multiply(_reader: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h_NF, *rest = args
            return (h_NF * values_F.to(h_NF), *rest)

        return self.reader_linear.register_forward_pre_hook(multiply).remove

    def on_inputs(self, values_U: Tensor) -> Tensor:
        """(F,): each unit's value on every input of its run."""
        return values_U if self.size == 1 else values_U.repeat_interleave(self.size)

    def per_unit(self, values: Tensor) -> Tensor:
        """(U, …): sums of values that lie unit after unit along their first dimension, (U · n, …)."""
        return values if len(values) == self.count else values.unflatten(0, (self.count, -1)).sum(1)

    def keep(self, units: Tensor) -> None:
        """Cut the site down to `units` (sorted, unique, (K,)); the rest of the model is untouched.

        Without any unit the whole branch leaves its block, the reader's bias and the branch's own norms included.
        """
        assert units.ndim == 1 and (len(units) or self.leaves), "keep at least one unit"
        count, self.stays = self.count, units
        for writer in self.made_by:
            index_out(writer.linear, writer.rows(units, count))
        index_in(self.reader_linear, self.inputs_of(units))
        self._scale(len(units), count)
        if self.leaves and not len(units):
            self.leaves(self.block)

    def pad(self, count: int) -> None:
        """Add units without any effect, until there are `count`: all weights zero."""
        before = self.count
        assert count >= before, "a site is cut by `keep`"
        for writer in self.made_by:
            runs = [(size * before, size * (count - before)) for size in writer.runs]
            pad_out(writer.linear, [*runs, (writer.shared, 0)])
        pad_in(self.reader_linear, (count - before) * self.size)
        self._scale(count, before)

    def _scale(self, count: int, before: int) -> None:
        for module, name in self.scaled:
            set_count(module, name, count_of(module, name) * count // before)

    def compute_only(self, units: Tensor | None) -> None:
        """From now on compute only `units` (sorted, unique, (K,)); None = all of them again.

        The parameters stay whole: every forward pass gathers their rows, so that gradients reach the units that were
        computed, and the others can come back. What passes the seam is then (…, K · size). Hooks around the layers,
        such as accelerate's that fetch offloaded weights, go on working.
        Raises: UserError for layers whose product is not a plain one (LoRA, quantised, a forward of their own).
        """
        while self._put_back:
            self._put_back.pop()()
        if units is None:
            return
        self.check_gathers()
        for writer in self.made_by:
            product = partial(gathered, writer.linear, writer.rows(units, self.count), outputs=True)
            self._put_back.append(replace_product(writer.linear, product))
        product = partial(gathered, self.reader_linear, self.inputs_of(units), outputs=False)
        self._put_back.append(replace_product(self.reader_linear, product))
        self._put_back += [partial(set_count, m, name, count_of(m, name)) for m, name in self.scaled]
        self._scale(len(units), self.count)

    def check_gathers(self) -> None:
        """Raises: UserError where `compute_only` would."""
        for linear in self.linears:
            plain = isinstance(linear, nn.Linear) or hasattr(linear, "nf")
            if not plain or not computes_as_its_class(linear):
                what = "forward that was put into a" if plain else f"{self.address.kind} of a"
                raise UserError(
                    f"layer {self.layer}: the {what} {type(linear).__name__} can't be gathered; use --compute full "
                    '(in Python: GradualSettings(compute="full"))'
                )

    @torch.no_grad()
    def set_reader(self, reader_FD: Tensor, bias_D: Tensor | None = None) -> None:
        """Write new reader weights (and bias), of the present width; dtype and device stay the model's."""
        self.reader().copy_(reader_FD)
        if bias_D is not None:
            bias = self.reader_bias()
            if bias is None:
                weight = cast(Tensor, self.reader_linear.weight)
                self.reader_linear.register_parameter("bias", nn.Parameter(bias_D.to(weight, copy=True)))
            else:
                bias.copy_(bias_D)


def _out_major(linear: nn.Module) -> Tensor:
    weight = cast(Tensor, linear.weight)
    return weight.T if rows_are_inputs(linear) else weight


def seams(places: Sequence[Place], what: str) -> list[Site]:
    """The places as sites with a seam. Raises: UserError where one has none. what: what needs it."""
    found = [place for place in places if isinstance(place, Site)]
    if len(found) < len(places):
        without = ", ".join(dict.fromkeys(p.address.kind for p in places if not isinstance(p, Site)))
        raise UserError(f"{what} can't remove {without}: it works on neurons and heads")
    return found


def by_layer(sites: Sequence[Site]) -> list[list[Site]]:
    """The sites of each block together, in the blocks' order, and within a block in the order in which they act."""
    found: dict[int, list[Site]] = {}
    for site in sorted(sites, key=lambda site: site.address.order()):
        found.setdefault(site.layer, []).append(site)
    return list(found.values())
