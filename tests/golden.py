"""What the golden tests share: exact arithmetic, and a tiny model whose every operation obeys it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import tiny_model


@contextmanager
def exactly() -> Iterator[None]:
    """All in float64, also what casts with `.float()` (transformers' loss, our moments), for a `with` block.

    In float32 an optimizer makes a whole step of rounding wherever a gradient is 0 (a key's bias has none): two ways
    to write one step would be apart by as much as a fault moves them.
    """
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def exact_model(*, seed: int = 0) -> Any:
    """gpt2: no operation of its own asks for float32. Without dropout, so that a step can be told beforehand."""
    return tiny_model("gpt2", seed=seed, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).double()
