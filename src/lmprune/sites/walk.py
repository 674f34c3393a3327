"""Run a model block by block, observed from outside: no modelling code is copied.

What a block needs beside the hidden states (rotary embeddings, masks, alibi) is taken from a real forward pass. The
sequences all have one length and no padding, so those arguments depend on the batch size alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from .pages import passed


class _Stop(Exception):
    """Ends a forward pass as soon as what was to be seen has been."""


class _Stated(nn.Module):
    """A block that puts out what was said."""

    def __init__(self, hidden_BTD: Tensor, in_tuple: bool):
        super().__init__()
        self.out = (hidden_BTD, None) if in_tuple else hidden_BTD

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.out


def list_of(model: nn.Module, block: nn.Module) -> nn.ModuleList:
    """The model's list of blocks, of which `block` is one, or which it is."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(blocks for blocks in lists if any(one is block for one in (blocks, *blocks)))


class Blocks:
    """The blocks of a model as functions of the hidden states (B, T, D), for calibration sequences of one length."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]):
        self.model = model
        self.blocks = list(blocks)
        self._calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}  # batch size -> a call for each block
        self._tuples = False  # whether a block puts out a tuple, whose first is the hidden states

    @torch.no_grad()
    def learn(self, batches: Iterable[Tensor]) -> None:
        """See what blocks are called with for batches (B, T) of these sizes, where nobody asks for `inputs`."""
        for batch_BT in batches:
            if len(batch_BT) not in self._calls:
                self._calls[len(batch_BT)] = self._observe(batch_BT)

    @torch.no_grad()
    def inputs(self, batch_BT: Tensor) -> Tensor:
        """The hidden states (B, T, D) that enter the first block for these token ids."""
        self.learn([batch_BT])
        seen: list[Tensor] = []

        def stop(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(_hidden(args, kwargs))
            raise _Stop

        handle = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(input_ids=batch_BT, use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()
        return seen[0]

    @torch.no_grad()
    def run(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        """The hidden states (B, T, D) after block `layer`."""
        return self.through(layer, hidden_BTD)

    def through(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        """What `run` gives, with a gradient where the caller wants one."""
        args, kwargs = self._calls[len(hidden_BTD)][layer]
        if args:
            out = self.blocks[layer](hidden_BTD, *args[1:], **kwargs)
        else:
            out = self.blocks[layer](**{**kwargs, "hidden_states": hidden_BTD})
        self._tuples = isinstance(out, tuple)
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def logits(self, hidden_BTD: Tensor, batch_BT: Tensor) -> Tensor:
        """What the model makes of the hidden states (B, T, D) after its last block: (B, T, V).

        The model runs with one block in place of all, which puts these states out as the real ones do.
        """
        return self.head(hidden_BTD, batch_BT)

    def head(self, hidden_BTD: Tensor, batch_BT: Tensor) -> Tensor:
        """What `logits` gives, with a gradient where the caller wants one."""
        home = list_of(self.model, self.blocks[0])
        before, home._modules = home._modules, dict[str, nn.Module]({"0": _Stated(hidden_BTD, self._tuples)})
        try:
            return self.model(input_ids=batch_BT, use_cache=False).logits
        finally:
            home._modules = before

    def _observe(self, batch_BT: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of every block's call, with the hidden states left out: of a forward pass as far as the last
        block, in which all but the first hand on what they get. The logits of a batch would be more than a block."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            calls.append(((None, *args[1:]) if args else (), kwargs))
            if len(calls) == len(self.blocks):
                raise _Stop

        handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in self.blocks]
        try:
            with passed(self.blocks), suppress(_Stop):
                self.model(input_ids=batch_BT, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        assert len(calls) == len(self.blocks), "every block is called once a forward pass"
        return calls


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
