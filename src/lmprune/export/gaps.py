"""Layers without an attention or a feed-forward layer, and runtimes that have none such."""

from __future__ import annotations

import re
from typing import Any

from ..checkpoints.shim import gone_in
from ..errors import UserError

_LAYER = re.compile(r"\.(\d+)\.")


def gaps(model: Any, what: str) -> set[int]:
    """The layers that have no `attention`, or no `ffn`."""
    places = (_LAYER.search(path) for path, instead_of in gone_in(model).items() if instead_of == what)
    return {int(place[1]) for place in places if place}


def attention_alone(model: Any) -> set[int]:
    """The layers that have an attention and no feed-forward layer."""
    return gaps(model, "ffn") - gaps(model, "attention")


def refuse_gaps(model: Any, who: str) -> None:
    """Raises: UserError where a layer lacks one. who: has no such layers."""
    if gone := gone_in(model):
        raise UserError(
            f"{who} has no layer without an attention or a feed-forward layer, and this model has {next(iter(gone))} "
            "no longer; use --to onnx"
        )
