"""The hidden states of a text on their way along the blocks, of which only so many are in memory as may be."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .shelf import Shelf, Tensors


class States(Sequence[Tensor]):
    """The hidden states (B, T, D) of a text, batch by batch, the first in memory and the others on the disk.

    bound: how many bytes of all states may be in memory; None: as many as there are. One batch beside them is, while
    somebody has it.
    """

    def __init__(self, tensors: Iterable[Tensor], bound: Bound | None = None):
        self._here: dict[int, Tensor] = {}
        self._shelf: Shelf | None = None
        self._bound, self._length = bound, 0
        if bound is not None:
            bound.users.add(self)
        for tensor in tensors:
            self.append(tensor)

    @property
    def bytes_here(self) -> int:
        return sum(tensor.nbytes for tensor in self._here.values())

    def append(self, tensor: Tensor) -> None:
        self._length += 1
        self[self._length - 1] = tensor

    def __setitem__(self, number: int, tensor: Tensor) -> None:
        self._here.pop(number, None)
        if self._bound is None or tensor.nbytes <= self._bound.left:
            self._here[number] = tensor
            return
        self._shelf = self._shelf or Shelf.for_now("hidden-states")
        self._shelf[str(number)] = {"states": tensor}

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._length))]
        if not 0 <= number < self._length:
            raise IndexError(number)
        if number in self._here:
            return self._here[number]
        assert self._shelf is not None
        return self._shelf[str(number)]["states"]

    def __len__(self) -> int:
        return self._length


class Bound:
    """How many bytes of hidden states may be in memory at a time."""

    def __init__(self, most: float):
        self.most, self.users = most, weakref.WeakSet[States]()

    @property
    def left(self) -> float:
        return self.most - sum(states.bytes_here for states in self.users)


_BOUNDS: weakref.WeakKeyDictionary[Any, Bound] = weakref.WeakKeyDictionary()


def bind(model: Any, most: float) -> None:
    """Of the hidden states of what this model reads at most so many bytes are in memory from now on."""
    _BOUNDS[model] = Bound(most)


def states_of(model: Any, tensors: Iterable[Tensor]) -> States:
    """What enters a block of the model, a batch at a time."""
    return States(tensors, _BOUNDS.get(model))


class Numbered(Mapping[str, Tensor]):
    """Sequences as they are kept, by what their names begin with; each tensor is asked for when it is written."""

    def __init__(self, sequences: Mapping[str, Sequence[Tensor]]):
        self._sequences = sequences
        self._places = {f"{name}{n}": (name, n) for name, each in sequences.items() for n in range(len(each))}

    def __getitem__(self, name: str) -> Tensor:
        sequence, number = self._places[name]
        return self._sequences[sequence][number]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def listed(tensors: Tensors, device: torch.device, begin: str = "") -> Iterator[Tensor]:
    """What `Numbered` was made of, one at a time."""
    for number in range(sum(name.startswith(begin) for name in tensors)):
        yield tensors[f"{begin}{number}"].to(device)
