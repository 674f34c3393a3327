"""Blocks that stay in files and come into memory when they are used: a model larger than memory, pruned as any other.

All other code sees an ordinary model. A block's parameters are on the meta device until it is called, or asked for by
`here`; then those that came first leave again, and what was changed in them is written to a folder of our own.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .linears import replace_forward

#: reads what lies under a path in the model, by the names below it: values in the dtype that is computed in
Read = Callable[[str], Mapping[str, Tensor]]


class Final(Protocol):
    """Where blocks go that nobody changes any more, by their numbers; tensors by their names below the block."""

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None: ...
    def read(self, number: int) -> Mapping[str, Tensor]: ...


#: the pages that a block belongs to, and which of them it is
_PAGED: weakref.WeakKeyDictionary[nn.Module, tuple[Pages, int]] = weakref.WeakKeyDictionary()


class Pages:
    """The blocks of a model, of which few are in memory at a time.

    blocks: those that the model has; their parameters are on the meta device. names: each block's path in the files.
    read: gives a block's tensors as these have them. spilled: a folder for blocks that were changed. device: where
    blocks are brought to. at_once: how many are in memory at most.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], names: Sequence[str], read: Read, spilled: Path, *,
        device: torch.device, at_once: int = 1,
    ):  # fmt: skip
        self.blocks, self.names, self.read, self.spilled = list(blocks), names, read, spilled
        self.device, self.at_once = device, at_once
        self._numbered = tuple(blocks)
        self._here: dict[int, _Marks] = {}  # a block that is here -> its parameters as they came
        self._changed: dict[int, Path] = {}  # a block that was changed -> where it is
        self.final: Final | None = None
        self.finished: set[int] = set()  # blocks that were changed and lie in `final`
        for number, block in enumerate(self.blocks):
            block.register_forward_pre_hook(lambda block, _args: here(block) and None)
            _PAGED[block] = self, number

    def bring(self, number: int) -> None:
        """Have this block in memory; it is then the last that leaves."""
        if number in self._here:
            self._here[number] = self._here.pop(number)
            return
        while len(self._here) >= self.at_once:
            self._leave(next(iter(self._here)))
        block = self._numbered[number]
        for name, values in self._stored(number).items():
            put(block, name, values)
        self._here[number] = _marks(block)

    def state(self, block: nn.Module) -> dict[str, Tensor]:
        """The block's parameters by their names below it, as they are now; they are read for this, and forgotten with
        it, if the block is not here."""
        number = _PAGED[block][1]
        if number in self._here:
            return {name: value.detach() for name, value in block.named_parameters()}
        return self._stored(number)

    def finish(self, number: int) -> None:
        """Nobody changes the block any more: it is written where it is to stay, if it was changed, and leaves."""
        if self.final is None:
            return
        block = self._numbered[number]
        if number in self._changed or (number in self._here and not _is_as_it_came(block, self._here[number])):
            self.final.write(number, self.state(block))
            self.finish_as(number)

    def finish_as(self, number: int) -> None:
        """The block is from now on what lies in `final`, and leaves."""
        if (spilled := self._changed.pop(number, None)) is not None:
            spilled.unlink()
        self.finished.add(number)
        if number in self._here:
            self._go(number)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """What is written into blocks in a `with` block is forgotten after it."""
        for number in [*self._here]:
            self._leave(number)
        changed, home = dict(self._changed), self.spilled
        self.spilled = home / "forgotten"
        try:
            yield
        finally:
            for number in [*self._here]:
                self._go(number)
            shutil.rmtree(self.spilled, ignore_errors=True)
            self.spilled, self._changed = home, changed

    def _stored(self, number: int) -> dict[str, Tensor]:
        """What the block still has of it: parts may be gone since."""
        block = self._numbered[number]
        there = {name: values.dtype for name, values in (*block.named_parameters(), *block.named_buffers())}
        if number in self._changed:
            stored = load_file(self._changed[number])
        elif number in self.finished and self.final is not None:
            stored = self.final.read(number)
        else:
            return {name: values for name, values in self.read(self.names[number]).items() if name in there}
        return {name: values.to(self.device, there[name]) for name, values in stored.items() if name in there}

    def _leave(self, number: int) -> None:
        block, before = self._numbered[number], self._here[number]
        if not _is_as_it_came(block, before):
            self.spilled.mkdir(parents=True, exist_ok=True)
            file = self.spilled / f"{number}.safetensors"
            save_file({name: p.detach().contiguous() for name, p in block.named_parameters()}, file)
            self._changed[number] = file
            self.finished.discard(number)
        self._go(number)

    def _go(self, number: int) -> None:
        """Out of memory, as it is."""
        block = self._numbered[number]
        del self._here[number]
        for name, parameter in list(block.named_parameters()):
            put(block, name, torch.empty_like(parameter, device="meta"))


def put(module: nn.Module, name: str, values: Tensor) -> None:
    """Let a parameter or buffer, by its name below the module, be these values, whatever it was."""
    home, _, last = name.rpartition(".")
    owner = module.get_submodule(home)
    if last in owner._buffers:
        owner._buffers[last] = values
    else:
        known = isinstance(values, nn.Parameter)
        owner._parameters[last] = values if known else nn.Parameter(values, requires_grad=False)


#: what tells that a parameter is another one, or was written to; the number of one that is gone may be another's by now
_Marks = dict[str, tuple[weakref.ref[nn.Parameter], int]]


def _marks(block: nn.Module) -> _Marks:
    return {name: (weakref.ref(parameter), parameter._version) for name, parameter in block.named_parameters()}


def _is_as_it_came(block: nn.Module, before: _Marks) -> bool:
    now = dict(block.named_parameters())
    return now.keys() == before.keys() and all(
        came() is now[name] and version == now[name]._version for name, (came, version) in before.items()
    )


def here(block: nn.Module) -> nn.Module:
    """The block, in memory: of a model that is there as a whole, it always is."""
    if (found := _PAGED.get(block)) is not None:
        pages, number = found
        pages.bring(number)
    return block


def done_with(block: nn.Module) -> None:
    """Nobody changes the block any more, but that it may leave."""
    if (found := _PAGED.get(block)) is not None:
        found[0].finish(found[1])


def place_of(block: nn.Module) -> tuple[Pages, int] | None:
    """The pages that a block belongs to, and its number there; None where it is in memory."""
    return _PAGED.get(block)


def value_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name, as it is now, in memory."""
    *path, last = name.split(".")
    module = model
    for part in path:
        module = here(module.get_submodule(part))
    return getattr(module, last).detach()


def leave_out(block: nn.Module) -> None:
    """The model no longer has the block."""
    if (found := _PAGED.pop(block, None)) is not None:
        found[0].blocks.remove(block)


def pages_of(model: nn.Module) -> Pages | None:
    """The pages that a model's blocks belong to; None where it is in memory as a whole."""
    return next((_PAGED[module][0] for module in model.modules() if module in _PAGED), None)


@contextmanager
def passed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """For the length of a `with` block the first of the blocks computes, and the others hand on what comes in, and are
    not brought into memory: what they are called with depends on the embeddings alone."""
    first, *others = blocks
    in_tuple = False

    def see(_block: nn.Module, _args: object, out: object) -> None:
        nonlocal in_tuple
        in_tuple = isinstance(out, tuple)

    def hand_on(*args: Tensor, hidden_states: Tensor | None = None, **_kwargs: object) -> object:
        hidden_BTD = args[0] if args else hidden_states
        return (hidden_BTD, None) if in_tuple else hidden_BTD

    paged = {block: _PAGED.pop(block) for block in others if block in _PAGED}
    undo = [first.register_forward_hook(see).remove, *(replace_forward(block, hand_on) for block in others)]
    try:
        yield
    finally:
        for end in undo:
            end()
        _PAGED.update(paged)
