"""Several processes (torchrun) that read a calibration text together: each reads its share, and what they add up is
one sum, the same to the bit in each. Everything else they do alike, so each has the pruned model in the end.

Only inside `together`: a program may call `prune` in one of its processes alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from .errors import UserError

_TOGETHER: ContextVar[bool] = ContextVar("together", default=False)


def several() -> bool:
    """Whether this process is one of several that torchrun, or what is like it, has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def writes() -> bool:
    """Whether this process is the one that writes files."""
    return not several() or PartialState().is_main_process


def wait() -> None:
    """For the other processes."""
    if several():
        PartialState().wait_for_everyone()


@contextmanager
def together() -> Iterator[None]:
    """Calibration text that is read in the `with` block is shared out. Every process must enter it, and do the same."""
    token = _TOGETHER.set(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def meets() -> bool:
    """Whether texts are shared out now."""
    return _TOGETHER.get()


def check_alike(input_ids: Tensor | None, settings: Any) -> None:
    """Raises: UserError, in every process, where they would not do the same: with other text, or asked otherwise.

    settings: whose `repr` is the same in every process.
    """
    if not meets():
        return
    text = None if input_ids is None else hashlib.sha256(input_ids.cpu().numpy().tobytes()).hexdigest()
    check_agreed({"calibration text": text, "settings": repr(settings)})


def check_agreed(mine: Mapping[str, Any]) -> None:
    """Raises: UserError, in every process, where one that torchrun has started has something else of what is in `mine`,
    by what a message calls it."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, tuple(mine.values()))
    for what, found in zip(mine, zip(*told, strict=True), strict=True):
        if others := [rank for rank, each in enumerate(found) if each != found[0]]:
            raise UserError(
                f"process {others[0]} has another {what} than process 0: start all with the same command and files"
            )


def of_first(value: Any) -> Any:
    """The first process's value, in each: of what depends on a clock, say."""
    if not meets():
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]


class Share:
    """mine: the sequences of a text (sequences, T) that this process reads; all of them, where it is alone or they are
    fewer than the processes. whole: each reads all of them."""

    def __init__(self, input_ids: Tensor, *, whole: bool = False):
        self._shared = not whole and meets() and len(input_ids) >= dist.get_world_size()
        self.mine = input_ids[dist.get_rank() :: dist.get_world_size()] if self._shared else input_ids

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self._shared:
            dist.all_reduce(values)
        return values

    def number(self, value: float) -> float:
        """The same of a number."""
        told: list[float] = [value]
        if self._shared:
            told = [0.0] * dist.get_world_size()
            dist.all_gather_object(told, value)
        return sum(told)

    def first(self, value: Any) -> Any:
        """The first process's value, in each."""
        return of_first(value) if self._shared else value
