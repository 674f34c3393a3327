"""What the house needs of any place where units can be removed, whatever kind they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from torch import Tensor, nn

from .address import Address
from .pages import done_with, here


class Place(Protocol):
    """One place of a model, and its units there. Where units have a seam, `site.Site` is the place; a kind without
    one is a class of its own, and `find.FINDERS` says which function finds it.

    block: the block of the model that holds it.
    count: how many units there are now.
    least: the fewest that may stay.
    parts: in how many runs of equal length they lie, of which each must keep equally many.
    params: parameters that one unit takes along.
    modules: those whose parameters, buffers, submodules or attributes `keep` changes.
    scaled: (module, attribute) of what counts units or their rows, and must follow a cut.
    """

    @property
    def address(self) -> Address: ...
    @property
    def block(self) -> nn.Module: ...
    @property
    def count(self) -> int: ...
    @property
    def least(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def params(self) -> int: ...
    @property
    def modules(self) -> Sequence[nn.Module]: ...
    @property
    def scaled(self) -> Sequence[tuple[nn.Module, str]]: ...

    def check(self, units: Tensor) -> None:
        """Raises: UserError where the layer can't do with `units` (sorted, unique, (K,)) alone."""
        ...

    def keep(self, units: Tensor) -> None:
        """Cut down to `units` (sorted, unique, (K,)); the rest of the model is untouched."""
        ...

    def mask(self, values_U: Tensor) -> Callable[[], None]:
        """From now on compute what is left where a unit's value is 0; what comes back takes the mask off again."""
        ...


def block_by_block(sites: Sequence[Place]) -> Iterator[tuple[int, Place]]:
    """Each site with its number, those of a block together, and in memory; when the next block comes, this one is done
    with."""
    order = sorted(range(len(sites)), key=lambda number: sites[number].address.layer)
    for _, numbers in groupby(order, key=lambda number: sites[number].address.layer):
        of_block = [*numbers]
        for number in of_block:
            here(sites[number].block)
            yield number, sites[number]
        done_with(sites[of_block[0]].block)
