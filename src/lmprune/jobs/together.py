"""One command in several processes (torchrun): what it can't do, and where each of them works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from ..checkpoints.devices import check_device
from ..errors import UserError
from ..processes import several
from ..sites.pages import pages_of


def device_of_mine(options: Mapping[str, Any]) -> str:
    """Where this process prunes at once: each of several on an accelerator of its own. It meets the others.

    Raises: UserError for what several processes can't do.
    """
    device = options["device"]
    if not several():
        return device
    if options.get("time_budget") is not None:
        raise UserError("--time-budget measures one process, and there are several; leave it out, or torchrun")
    _check_whole(options["stream"])
    place = check_device(device)
    PartialState(cpu=place.type == "cpu")
    return f"{place.type}:{os.environ.get('LOCAL_RANK', 0)}" if place.type != "cpu" and place.index is None else device


def check_whole(model: Any) -> None:
    """Raises: UserError where several processes would read the model block by block."""
    _check_whole(several() and pages_of(model) is not None)


def _check_whole(streamed: bool) -> None:
    if streamed:
        raise UserError("a model is read block by block in one process, and there are several; leave out torchrun")
