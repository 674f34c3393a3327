"""What other runtimes make of models that lost layers, attentions or feed-forward layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_gguf import bpe, difference, field, in_llama_cpp, model_of
from test_layers import plan_of
from tiny_models import is_pruned_class, logits
from torch import Tensor
from transformers import AutoModelForCausalLM

from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.export import Order, export
from lmprune.sites.address import Kind
from lmprune.sites.find import find_sites

_FEWER = ("llama", "gemma3_text", "gpt2", "phi3", "falcon-new")


def without(name: str, kept: dict[Kind, Tensor], layers: int = 4) -> Any:
    length = "n_layer" if name == "gpt2" else "num_hidden_layers"
    model = model_of(name, **{length: layers})
    return shrink(model, plan_of(model, kept))


@pytest.mark.parametrize("name", _FEWER)
def test_fewer_layers_are_an_ordinary_model_to_llama_cpp(name: str, tmp_path: Path) -> None:
    model = without(name, {"layers": torch.tensor([1, 2])})
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
    arch = field(tmp_path / "m.gguf", "general.architecture")
    assert arch != "deci" and field(tmp_path / "m.gguf", f"{arch}.block_count") == 2


@pytest.mark.parametrize("name", ["llama", "mistral", "helium"])
def test_a_missing_attention_runs_as_deci(name: str, tmp_path: Path) -> None:
    model = without(name, {"attentions": torch.tensor([0, 2]), "layers": torch.tensor([0, 1, 2])})
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
    assert field(tmp_path / "m.gguf", "deci.attention.head_count")[1] == 0


@pytest.mark.parametrize("kept", [{"ffns": [0, 2]}, {"ffns": [1, 2], "attentions": [0, 1, 3]}], ids=str)
def test_a_missing_ffn_is_one_that_adds_nothing(kept: dict[Kind, list[int]], tmp_path: Path) -> None:
    """Of 32 neurons, all zero: without one `deci` leaves out the attention of that layer too."""
    model = without("llama", {kind: torch.tensor(units) for kind, units in kept.items()})
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
    widths = [48 if layer in kept["ffns"] else 32 for layer in range(4)]
    assert field(tmp_path / "m.gguf", "deci.feed_forward_length") == widths


def job_of(model: Any, dtype: str | None = None) -> Order:
    return Order(model, find_sites(model), bpe(), dtype, "tiny")


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        # whose places in the cache are 0 and 1, of 4
        ("gemma2", {"attentions": [1, 3], "ffns": [0, 2]}),
        ("gpt2", {"layers": [0, 3]}),
    ],
)
def test_onnx_has_them_all(name: str, kept: dict[Any, Any], tmp_path: Path) -> None:
    """Verified in ONNX Runtime, token by token with the cache."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not here: pip install 'lmprune[onnx]'")
    model = without(name, {kind: torch.tensor(units) for kind, units in kept.items()})
    done = export(job_of(model), tmp_path / "m", "onnx")
    assert done["verification"]["verified"]


@pytest.mark.parametrize("to", ["hf-uniform", "vllm"])
def test_fewer_layers_of_different_widths_are_padded(to: str, tmp_path: Path) -> None:
    model = without("llama", {"layers": torch.tensor([0, 3])})
    expected = logits(model)
    export(job_of(model), tmp_path / "m", to)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(logits(again), expected) and not is_pruned_class(again)


@pytest.mark.parametrize(
    ("name", "to", "kept", "sentence"),
    [
        ("qwen2", "gguf", {"attentions": [0, 2]}, "llama.cpp's qwen2 has no layer without an attention or a feed-forw"),
        (
            "llama",
            "vllm",
            {"attentions": [1, 2]},
            "can't begin with a feed-forward layer, and layer 0 of this model ha",
        ),
        ("gpt2", "vllm", {"attentions": [0, 2]}, "only llama and mistral; use --to onnx"),  # nor can it be padded
        ("llama", "hf-uniform", {"ffns": [0, 2]}, "a stock transformers class has no layer without an attention or a"),
    ],
)
def test_gaps_that_a_runtime_does_not_know_are_refused(
    name: str, to: str, kept: dict[Any, Any], sentence: str, tmp_path: Path
) -> None:
    model = without(name, {kind: torch.tensor(units) for kind, units in kept.items()})
    with pytest.raises(UserError, match=sentence) as caught:
        export(job_of(model, "f32" if to == "gguf" else None), tmp_path / f"m{'.gguf' if to == 'gguf' else ''}", to)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
