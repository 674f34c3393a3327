"""Every config field that changes what a model computes: exactly so in llama.cpp, or refused in a sentence.

The conformance grid runs over all of `variants`; here is what has a rule of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from llamacpp import serving
from test_gguf import VOCABULARY, difference, field, in_llama_cpp, model_of, written
from tiny_models import tiny_config
from transformers import CONFIG_MAPPING
from variants import variants_of

from lmprune.errors import UserError
from lmprune.export.gguf_metadata import SHOWN_BY_TENSORS, WITHOUT_EFFECT, WRITTEN, spec_of, unaccounted
from lmprune.runtimes.architectures import GGUF, NOT_IN_LLAMA_CPP
from lmprune.runtimes.mixtures import ROWS
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites

SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}


def variant(name: str) -> Any:
    """The model of "family-variant", as `variants` has it."""
    family, _, kind = name.rpartition("-")
    return next(each for each in variants_of(family) if each.name == kind).model(**SIZES)


@pytest.mark.parametrize("model_type", sorted(GGUF))
def test_no_field_of_a_config_is_forgotten(model_type: str) -> None:
    """A field that a later transformers adds fails here, and is refused by `export` where it has not its default."""
    assert unaccounted(CONFIG_MAPPING[model_type](), GGUF[model_type]) == []


def test_every_field_is_looked_at_in_one_way() -> None:
    assert not WITHOUT_EFFECT & SHOWN_BY_TENSORS and not WRITTEN & (WITHOUT_EFFECT | SHOWN_BY_TENSORS)
    known = {f for name in ROWS for f in CONFIG_MAPPING[name].__dataclass_fields__}
    assert known >= WITHOUT_EFFECT | SHOWN_BY_TENSORS | WRITTEN


def test_a_field_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmprune.export.gguf_metadata.WRITTEN", WRITTEN - {"rope_parameters"})
    with pytest.raises(UserError, match=r"doesn't know what rope_parameters .* is to llama.cpp's llama"):
        spec_of(tiny_config("llama-tied"))


def test_every_family_has_a_row_or_a_reason() -> None:
    assert {*GGUF, *NOT_IN_LLAMA_CPP} == set(FAMILIES) and not {*GGUF} & {*NOT_IN_LLAMA_CPP}
    for name, why in NOT_IN_LLAMA_CPP.items():
        with pytest.raises(UserError) as caught:
            spec_of(tiny_config(name))
        assert str(caught.value) == f"lmprune can't write {name} to GGUF: {why}; use --to onnx"


@pytest.mark.parametrize(
    "name",
    [
        *("gpt_neox-parallel-tie_word_embeddings", "phi-tie_word_embeddings", "nemotron-tie_word_embeddings"),
        *("stablelm-tie_word_embeddings", "olmo2-tie_word_embeddings", "apertus-tie_word_embeddings"),
        *("gemma3_text-tie_word_embeddings", "gpt_neox-sequential-attention_bias", "starcoder2-use_bias"),
        *("stablelm-use_qkv_bias", "stablelm-use_parallel_residual", "granite-attention_bias", "nemotron-mlp_bias"),
        *("seed_oss-attention_bias", "glm4-attention_bias", "gpt_bigcode-multi_query", "falcon-old-multi_query"),
        *("falcon-new-one_norm", "mpt-clip_qkv", "olmo-clip_qkv", "mpt-six_heads", "bloom-six_heads"),
        *("gemma2-attention_cap", "gemma2-final_cap", "gemma3_text-final_cap", "gemma3_text-theta_by_kind"),
        *("gemma2-plain", "gemma3_text-first_layer_slides", "cohere2-first_layer_slides", "olmo3-first_layer_slides"),
        *("gemma3_text-all_layers_full", "qwen3-head_dim", "gemma-head_dim", "granite-attention_multiplier"),
        *("phi-rope_linear", "qwen2-rope_linear", "apertus-rope_llama3", "glm-rope_whole", "llama-tied-rope_partial"),
    ],
)
def test_exact(name: str, tmp_path: Path) -> None:
    model = model_of("falcon-old", multi_query=False) if name == "falcon-old-multi_query" else variant(name)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("smollm3-interval", "no_rope_layers no rotary positions in every fourth layer"),
        ("smollm3-attention_bias", "no place for model.layers.0.self_attn.o_proj.bias"),
        ("smollm3-mlp_bias", "no place for model.layers.0.mlp.gate_proj.bias"),
        ("gemma-silu", "hidden_act gelu"),
        ("gemma-attention_bias", "no place for model.layers.0.self_attn.o_proj.bias"),
        ("gemma-tie_word_embeddings", "no place for lm_head.weight"),
        ("gemma2-query_scale", "query_pre_attn_scalar its head_dim"),
        ("gemma2-no_final_cap", "final_logit_softcapping a number"),
        ("gemma2-all_layers_full", "layer_types sliding_attention in some layers"),
        ("gemma3_text-attention_cap", "attn_logit_softcapping False or None"),
        ("gemma3_text-use_bidirectional_attention", "use_bidirectional_attention False or None"),
        ("cohere-attention_bias", "no place for model.layers.0.self_attn.o_proj.bias"),
        ("cohere-use_qk_norm", "use_qk_norm False or None"),
        ("ernie4_5-use_bias", "no place for model.layers.0.mlp.gate_proj.bias"),
        ("arcee-mlp_bias", "no place for model.layers.0.mlp.up_proj.bias"),
        ("seed_oss-mlp_bias", "no place for model.layers.0.mlp.gate_proj.bias"),
        ("falcon-old-plain", "no place for transformer.h.0.self_attention.query_key_value.bias"),
        ("falcon-new-alibi", "alibi False or None, but this model has True"),
        ("exaone4-window", "sliding_window None (a number in a model of 64 layers), but this model has 8"),
        ("mpt-softmax_scale", "attn_config.softmax_scale False or None, but this model has 0.1"),
        ("gpt_bigcode-scale_attn_weights", "scale_attn_weights True, but this model has False"),
        ("nemotron-head_dim", "heads as wide as the model together, 32, but this model has 4 of head_dim 16"),
        ("qwen2-rope_llama3", "rotary positions of type llama3"),
        ("gemma3_text-rope_linear", "rotary positions of type linear"),  # in layers with a window, too
        ("phi3-rope_longrope", "rotary positions of type longrope"),
    ],
)
def test_refused(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        written(variant(name), tmp_path / "m.gguf")
    assert sentence in str(caught.value) and str(caught.value).endswith("use --to onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["phi3-window", "qwen2-window", "starcoder2-window", "mistral-window"])
def test_a_window_that_llama_cpp_does_not_know_ends_the_context(name: str, tmp_path: Path) -> None:
    model = variant(name)
    details = written(model, tmp_path / "m.gguf")
    assert "its context is 8 tokens, not 256: llama.cpp does not know this model's sliding window" in details["notes"]
    assert field(tmp_path / "m.gguf", f"{GGUF[name.split('-')[0]].arch}.context_length") == 8


@pytest.mark.parametrize(
    ("name", "layers", "changes"),
    [
        ("exaone4", 64, {"sliding_window": 8, "layer_types": None, "tie_word_embeddings": True}),
        ("gemma2", 46, {"head_dim": 16, "query_pre_attn_scalar": 8}),
        ("gemma3_text", 62, {"head_dim": 16, "query_pre_attn_scalar": 8}),
    ],
)
def test_what_llama_cpp_decides_by_the_number_of_layers(
    name: str, layers: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(name, num_hidden_layers=layers, **changes)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-2  # of so many layers' GELU
        with torch.no_grad():
            find_sites(model)[1].reader().normal_()
        assert difference(model, llama) > 0.1
    with pytest.raises(UserError, match=r"sliding_window|query_pre_attn_scalar"):
        written(model_of(name, num_hidden_layers=layers - 1, **changes), tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("mpt", True),
        ("falcon-new", True),
        ("gpt_neox-parallel", True),
        ("gpt2", False),
        ("bloom", False),
        ("llama", False),
    ],
)
def test_gelu_that_llama_cpp_approximates_is_said(name: str, exact: bool, tmp_path: Path) -> None:
    notes = written(model_of(name), tmp_path / "m.gguf")["notes"]
    assert any("GELU by its tanh approximation" in note for note in notes) == exact


def test_hunyuans_alpha_is_a_larger_base(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
    model = model_of("hunyuan_v1_dense", rope_parameters=rope)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 1e-4
    assert field(tmp_path / "m.gguf", "hunyuan-dense.rope.freq_base") == pytest.approx(1e8)


def test_whole_numbers_are_written_as_llama_cpp_wants_them(tmp_path: Path) -> None:
    """It refuses a file whose multiplier is stored as an integer."""
    model = model_of("granite", embedding_multiplier=3)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3


def test_head_and_biases_that_a_model_has_not_are_written_for_those_that_insist(tmp_path: Path) -> None:
    model = variant("phi-tie_word_embeddings")
    written(model, tmp_path / "m.gguf")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert torch.equal(torch.from_numpy(tensors["output.weight"].copy()), model.get_input_embeddings().weight)
    written(variant("starcoder2-use_bias"), tmp_path / "zeros.gguf")
    zeros = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "zeros.gguf").tensors}
    assert not zeros["blk.0.ffn_up.bias"].any() and "blk.0.attn_q.bias" not in zeros


def test_a_file_opens_that_was_written_for_a_head_of_its_own(tmp_path: Path) -> None:
    model = model_of("gpt_neox-parallel", tie_word_embeddings=True, intermediate_size=64)
    written(model, tmp_path / "m.gguf", dtype="q8_0")
    with serving(tmp_path / "m.gguf") as llama:
        assert llama.tokenize("cat")
