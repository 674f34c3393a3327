"""`--device auto` where a machine has several accelerators: which block goes where, and who asks for it.

That results are the same is in test_accelerator.py, on pretended devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import refused
from tiny_checkpoints import lmprune
from tiny_models import tiny_model

from lmprune.checkpoints import devices, models
from lmprune.checkpoints.devices import over

CPU, SAME = torch.device("cpu"), torch.device("cpu", 0)  # two names, one place


def share(outside: int, blocks: Sequence[int], free: Sequence[int], found: Sequence[int]) -> float:
    """Of its memory, what the fullest device holds."""
    held = [outside, *[0] * (len(free) - 1)]
    for size, device in zip(blocks, found, strict=True):
        held[device] += size
    return max(one / size for one, size in zip(held, free, strict=True))


@given(
    st.integers(0, 40), st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.lists(st.integers(20, 150), min_size=1, max_size=3),
)  # fmt: skip
def test_no_way_is_better(outside: int, blocks: list[int], free: list[int]) -> None:
    """Beside all ways to put blocks on devices in their order."""

    def best(number: int) -> float:
        every = itertools.combinations_with_replacement(range(number), len(blocks))
        return min(share(outside, blocks, free[:number], way) for way in every)

    bests = [best(number) for number in range(1, len(free) + 1)]
    number = next((n for n, each in enumerate(bests, 1) if each <= 0.5), len(free))
    found = over(outside, blocks, free)
    if bests[number - 1] > 1:
        assert found is None
    else:
        assert found is not None and found == sorted(found) and max(found) < number
        assert share(outside, blocks, free[:number], found) == bests[number - 1]


def have(monkeypatch: pytest.MonkeyPatch, free: int, *, number: int = 2) -> list[set[torch.device]]:
    """So many devices with so much memory; what is spread over them is told."""
    found: list[set[torch.device]] = []
    before = devices.spread

    def spread(model: Any, home: torch.device, of_blocks: list[torch.device]) -> Any:
        found.append({*of_blocks})
        return before(model, home, of_blocks)

    monkeypatch.setattr(devices, "accelerators", lambda: dict.fromkeys([CPU, SAME][:number], free))
    monkeypatch.setattr(devices, "spread", spread)
    return found


SIZE = 4 * tiny_model("llama").num_parameters()


def test_blocks_are_spread_where_one_device_holds_too_little(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    ids_BT = torch.arange(20)[None]
    whole = models.load(model)(ids_BT).logits
    size = sum(p.nbytes for p in models.load(model).parameters())
    found = have(monkeypatch, size)
    apart = models.load(model, device="auto")
    assert [SAME in each for each in found] == [True] and torch.equal(apart(ids_BT).logits, whole)
    assert len(apart.model.layers) == 3 and all(layer._forward_pre_hooks for layer in apart.model.layers)
    models.load(model, device="cpu")
    monkeypatch.undo()
    found = have(monkeypatch, 4 * size)
    assert not models.load(model, device="auto").model.layers[0]._forward_pre_hooks and found == []


def test_what_accelerators_do_not_hold_streams_by_itself_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Path, text: Path, tmp_path: Path
) -> None:
    plain = lmprune("eval", model, "--data", text, "--context", 64, "--json").record
    have(monkeypatch, 1000)
    told = lmprune("eval", model, "--data", text, "--context", 64, "--device", "auto", "--json")
    assert told.record["perplexity"] == plain["perplexity"] and "its blocks are read one by one" in told.err
    said = refused("teach", model, "--data", text, "--out", tmp_path / "t.safetensors", "--device", "auto")
    assert "GB, which 2 accelerators with 2e-06 GB free don't hold; take --dtype bfloat16, or" in said


def test_one_accelerator_or_several_processes_are_as_ever(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    found = have(monkeypatch, 1000, number=1)
    models.load(model, device="auto")
    monkeypatch.undo()
    found += have(monkeypatch, 10**6)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun says
    assert not devices.spreads("auto")
    models.load(model, device="auto")
    assert found == []


def test_a_training_takes_one_device(monkeypatch: pytest.MonkeyPatch, model: Path, text: Path, tmp_path: Path) -> None:
    found = have(monkeypatch, SIZE)
    words = ("--data", text, "--steps", 1, "--batch-size", 1, "--seq-len", 32, "--device", "auto")
    assert lmprune("finetune", model, "--out", tmp_path / "tuned", *words).code == 0 and found == []
    how = ("--method", "activation", "--keep", 0.5, "--answer-tokens", 0)
    assert (
        lmprune("prune", model, "--out", tmp_path / "trained", *words, *how, "--schedule", "oneshot").code == 0
        and found == []
    )
    assert lmprune("prune", model, "--out", tmp_path / "cut", "--data", text, *how, *words[-4:]).code == 0
    assert [SAME in each for each in found] == [True]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "opt", "bloom"])
def test_token_ids_go_where_the_embeddings_are(name: str) -> None:
    """A model's first parameter tells where its inputs go, and is no block's."""
    model = tiny_model(name)
    blocks = {id(parameter) for parameter in devices._blocks(model).parameters()}
    assert id(next(model.parameters())) not in blocks
