"""Running a model block by block gives what the whole model gives, in every family."""

from __future__ import annotations

import pytest
import torch
from tiny_models import NAMES, tiny_model

from lmprune.sites.find import find_sites
from lmprune.sites.walk import Blocks


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_blocks_one_by_one_equal_the_model(name: str):
    model = tiny_model(name)
    blocks = [ffn.block for ffn in find_sites(model)]
    input_ids = torch.randint(0, 128, (3, 20), generator=torch.Generator().manual_seed(1))
    seen = []
    handle = blocks[-1].register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    model(input_ids=input_ids, use_cache=False)
    handle.remove()
    runner = Blocks(model, blocks)
    for batch, expected in zip(input_ids.split(2), seen[0].split(2), strict=True):  # batches of 2 and of 1
        hidden = runner.inputs(batch)
        for layer in range(len(blocks)):
            hidden = runner.run(layer, hidden)
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    assert not any(block._forward_pre_hooks for block in blocks)


@torch.no_grad()
def test_a_left_out_block_is_noticed():
    """Control: the comparison above can fail."""
    model = tiny_model("llama")
    blocks = [ffn.block for ffn in find_sites(model)]
    runner = Blocks(model, blocks)
    hidden = runner.inputs(torch.arange(8)[None])
    full = runner.run(2, runner.run(1, runner.run(0, hidden)))
    assert not torch.allclose(full, runner.run(2, runner.run(0, hidden)), rtol=1e-4, atol=1e-5)
