"""ONNX models with their KV cache, run in ONNX Runtime and compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import per_layer_plan
from test_gguf import continuation
from tiny_models import tiny_model, tokens

import lmprune
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.evaluation.engines import OnnxRuntime
from lmprune.export import Order, export
from lmprune.sites.find import find_sites

pytest.importorskip("onnxscript", reason="no ONNX here: pip install 'lmprune[onnx]'")
pytest.importorskip("onnxruntime", reason="no ONNX Runtime here: pip install 'lmprune[onnx]'")

#: what differs in a way that the graph could get wrong: learned, rotary and ALiBi positions, biases. Local attention is
#: in the real model below and in the tests of heads and layers; all other families are in benchmarks/export_grid.py
QUICK = ["llama-tied"]
MORE = ["opt", "bloom", "phi3"]  # torch needs a quarter of a minute for each


def exported(model: Any, out: Path, tokenizer: Any = None) -> OnnxRuntime:
    export(Order(model, find_sites(model), tokenizer, None, "tiny"), out, "onnx")
    return OnnxRuntime(str(out), threads=1, context=64)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.conformance) for name in MORE)])
def test_prefill_and_decode_with_a_width_for_each_layer(name: str, tmp_path: Path) -> None:
    """Other numbers of sequences and tokens than the graph was traced with; then one more token on the cache."""
    model = tiny_model(name)
    shrink(model, per_layer_plan(model))
    ids_BT, next_B1 = tokens(3, 30), tokens(3, 1, seed=5)
    with torch.no_grad():
        wanted = model(torch.cat([ids_BT, next_B1], 1)).logits.numpy()
    longer = [continuation(model, ids_BT[0].tolist(), 12)]
    engine = exported(model, tmp_path / "out")
    logits, past = engine.step(ids_BT.numpy(), [])
    assert np.abs(logits - wanted[:, :-1]).max() < 1e-4
    again, grown = engine.step(next_B1.numpy(), past)
    assert np.abs(again - wanted[:, -1:]).max() < 1e-4 and grown[0].shape[2] == 31
    without = engine.step(next_B1.numpy(), [])[0]  # the control: the cache matters
    assert np.abs(without - wanted[:, -1:]).max() > 1e-3
    assert engine.generate(ids_BT[:1].numpy(), 12).tolist() == longer
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.onnx", "config.json", "generation_config.json"}
    assert "shim" not in (tmp_path / "out" / "config.json").read_text()


def test_what_torch_can_not_trace_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("Failed\nlong report") from ValueError("data-dependent shape\nmore")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match=r"torch can't write this gpt2 to ONNX: data-dependent shape$"):
        exported(tiny_model("gpt2"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.conformance
@pytest.mark.slow
def test_real_text(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "gpt-neo-mini"
    model, tokenizer = lmprune.load(folder), lmprune.load_tokenizer(folder)
    lmprune.prune(model, method="magnitude", keep=0.75, scope="global")
    ids = tokenizer("It was the best of times , it was the worst of times , it was the age of wisdom")["input_ids"]
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits.numpy()
    longer = continuation(model, ids, 40)
    engine = exported(model, tmp_path / "out", tokenizer)
    assert np.abs(engine.step(np.array([ids]), [])[0] - wanted).max() < 1e-3
    assert engine.generate(np.array([ids]), 40)[0].tolist() == longer
    many = torch.tensor([(ids * 50)[:450]])  # more than the half of the context that the graph was traced for
    with torch.no_grad():
        wanted = model(many).logits.numpy()
    assert np.abs(engine.step(many.numpy(), [])[0] - wanted).max() < 1e-3
    past = engine.step(many[:, :400].numpy(), [])[1]
    assert np.abs(engine.step(many[:, 400:].numpy(), past)[0] - wanted[:, 400:]).max() < 1e-3
    assert lmprune.load_tokenizer(tmp_path / "out")("times")["input_ids"] == tokenizer("times")["input_ids"]
