"""A model's log probabilities in float32 arithmetic, whatever its dtype, with its numbers as a file will hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rounding:
    """What a file's dtype does to the numbers of a module: to a parameter, and to what its matrix is multiplied by."""

    weights: Callable[[nn.Module, nn.Parameter], Tensor] = lambda module, parameter: parameter.data
    inputs: Callable[[Tensor], Tensor] = lambda x: x


def through(dtype: torch.dtype) -> Callable[[nn.Module, nn.Parameter], Tensor]:
    """The rounding of a parameter to a float type."""
    return lambda module, parameter: parameter.data.to(dtype)


@torch.no_grad()
def log_probs(model: Any, ids: Sequence[int], *, last: int, rounding: Rounding, rounded_inputs: bool = False) -> Tensor:
    """Of the token after each of the `last` positions, (last, V) float32.

    Memory: the model's, its largest parameter in float32, and (last, V); the model is as it was afterwards.
    """
    few = {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    ids_1T = torch.tensor([ids], device=model.device)
    with _in_float32(model, rounding, rounded_inputs):
        logits = model(ids_1T, use_cache=False, **few).logits
    return logits[0, -last:].float().log_softmax(-1).cpu()


@contextmanager
def _in_float32(model: nn.Module, rounding: Rounding, rounded_inputs: bool) -> Iterator[None]:
    """Each module computes with its own parameters in float32, which exist for the length of its forward only."""

    def round_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounding.inputs(args[0]), *args[1:]) if args else args

    with ExitStack() as stack:
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False))
            if not own:
                continue
            held: list[tuple[nn.Parameter, Tensor]] = []

            def widen(module: nn.Module, *_: Any, held: list[Any] = held) -> None:
                for parameter in module.parameters(recurse=False):  # by now: a block that is read anew has new ones
                    held.append((parameter, parameter.data))
                    parameter.data = rounding.weights(module, parameter).float()

            def restore(*_: Any, held: list[Any] = held) -> None:
                while held:
                    parameter, values = held.pop()
                    parameter.data = values

            stack.callback(module.register_forward_pre_hook(widen).remove)
            stack.callback(module.register_forward_hook(restore, always_call=True).remove)
            if rounded_inputs and any(p.ndim > 1 for p in own.values()) and not isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_pre_hook(round_first).remove)
        yield
