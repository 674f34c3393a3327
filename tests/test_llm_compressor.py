"""A step of llm-compressor's recipes, on a stand-in for it; `benchmarks/llm_compressor.py` runs the real one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

import lmprune
from lmprune.errors import UserError

pydantic = pytest.importorskip("pydantic")


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lmprune.llm_compressor, over classes with what it uses of llm-compressor 0.14's."""

    class Modifier(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")

    class ModifierFactory:
        registered: dict[str, Any] = {}  # noqa: RUF012 - as there

        @classmethod
        def register(cls, name: str, modifier: Any) -> None:
            cls.registered[name] = modifier

    for name, held in {
        "llmcompressor": {},
        "llmcompressor.modifiers": {"Modifier": Modifier},
        "llmcompressor.modifiers.factory": {"ModifierFactory": ModifierFactory},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "lmprune.llm_compressor", raising=False)
    found = importlib.import_module("lmprune.llm_compressor")
    yield found
    assert ModifierFactory.registered == {"StructuredPruningModifier": found.StructuredPruningModifier}
    sys.modules.pop("lmprune.llm_compressor")


def state(model: Any, batches: Any) -> Any:
    return SimpleNamespace(model=model, data=SimpleNamespace(calib=batches))


def padded(rows: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Each row as a batch, with four tokens of padding before it."""
    ids = torch.nn.functional.pad(rows, (4, 0), value=7)
    mask = torch.nn.functional.pad(torch.ones_like(rows), (4, 0))
    return [{"input_ids": i[None], "attention_mask": m[None]} for i, m in zip(ids, mask, strict=True)]


def test_it_prunes_by_the_recipe_s_own_text(step: Any):
    ids = torch.randint(128, (6, 20), generator=torch.Generator().manual_seed(0))
    how = {"keep": 0.5, "method": "activation", "multiple_of": 8}
    model, alone = tiny_model("llama"), tiny_model("llama")
    model.config.name_or_path = "where/it/was"
    modifier = step.StructuredPruningModifier(**how, seq_len=30, calibration_tokens=100)
    assert modifier.on_initialize(state(model, padded(ids)), teacher=None)
    plan = lmprune.prune(alone, data=ids.reshape(-1)[:90].view(3, 30), **how)
    assert modifier.plan is not None and modifier.plan.kept == plan.kept
    assert model.config.intermediate_size == plan.widths[0] and model.config.name_or_path == ""
    assert torch.equal(model(ids).logits, alone(ids).logits)
    assert modifier.model_dump() == {**modifier.model_dump(), **how}, "what a recipe's file says of it"


def test_what_it_refuses(step: Any):
    ids = torch.randint(128, (2, 20))
    modifier = step.StructuredPruningModifier(method="activation", seq_len=64, multiple_of=8)
    with pytest.raises(UserError, match="has 40 tokens, and a sequence 64"):
        modifier.on_initialize(state(tiny_model("llama"), padded(ids)))
    with pytest.raises(UserError, match="give oneshot a dataset"):
        modifier.on_initialize(SimpleNamespace(model=tiny_model("llama"), data=None))
    quantised = tiny_model("llama")
    quantised.lm_head.quantization_scheme = "W4A16"
    with pytest.raises(UserError, match="first in the recipe"):
        modifier.on_initialize(state(quantised, padded(ids)))
    biased = step.StructuredPruningModifier(method="flap", seq_len=20, multiple_of=8)
    with pytest.raises(UserError, match="no model of the stock class"):
        biased.on_initialize(state(tiny_model("mistral"), padded(ids)))


def test_without_llm_compressor_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "lmprune.llm_compressor", raising=False)
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(ImportError, match="pip install llmcompressor"):
        importlib.import_module("lmprune.llm_compressor")
