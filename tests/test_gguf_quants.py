"""k-quants: which tensor gets which type, numbers by llama.cpp's own code, and a file that llama.cpp runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import MODEL_TENSOR as T
from gguf import GGMLQuantizationType as Q
from in_parts import few
from test_bad_input import refused
from test_gguf import bpe, model_of
from tiny_checkpoints import lmprune

from lmprune.checkpoints import checkpoint
from lmprune.errors import UserError
from lmprune.export import gguf_quants
from lmprune.export.gguf_quants import GGUF_DTYPES, Slot, fallbacks, quantize
from lmprune.runtimes.gguf_file import read_gguf

needs_llama_cpp = pytest.mark.skipif(
    gguf_quants._library() is None, reason="llama.cpp is not here: pip install 'lmprune[serve]'"
)


def test_the_layers_that_get_more_are_llama_quantize_s():
    """Those of a model of 30 layers, as published Q5_K_M files of Gemma 4 have them."""
    more = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29}
    for name, rest in (("q4_k_m", Q.Q4_K), ("q5_k_m", Q.Q5_K)):
        kinds = [GGUF_DTYPES[name].kind(Slot(T.FFN_DOWN, (256, 512), layer, 30)) for layer in range(30)]
        assert kinds == [Q.Q6_K if layer in more else rest for layer in range(30)]
        assert {GGUF_DTYPES[name].kind(Slot(T.FFN_UP, (256, 512), layer, 30)) for layer in range(30)} == {rest}


@pytest.mark.parametrize(
    ("slot", "kind"),
    [
        (Slot(T.TOKEN_EMBD, (300, 256)), Q.Q4_K),
        (Slot(T.TOKEN_EMBD, (300, 256), head=True), Q.Q6_K),
        (Slot(T.OUTPUT, (300, 256), head=True), Q.Q6_K),
        (Slot(T.ATTN_QKV, (768, 256), 1, 24), Q.Q5_K),
        (Slot(T.ATTN_V, (256, 256), 0, 24), Q.Q6_K),
        (Slot(T.ATTN_V, (256, 256), 3, 24), Q.Q4_K),
        (Slot(T.ATTN_NORM, (256,), 3, 24), Q.F32),
        # rows of 64: what llama-quantize falls back to
        (Slot(T.TOKEN_EMBD, (300, 64)), Q.Q5_0),
        (Slot(T.OUTPUT, (300, 64), head=True), Q.Q8_0),
        (Slot(T.ATTN_Q, (64, 64), 0, 1), Q.Q5_0),
        (Slot(T.ATTN_V, (64, 64), 0, 1), Q.Q8_0),
        (Slot(T.ATTN_QKV, (192, 64), 0, 1), Q.Q5_1),
    ],
)
def test_what_a_tensor_gets_in_q4_k_m(slot: Slot, kind: Q):
    assert GGUF_DTYPES["q4_k_m"].kind(slot) == kind


@needs_llama_cpp
def test_numbers_are_quantised_as_by_ggml():
    """The library's own Q4_0 is byte for byte that of the package gguf, so it is called as it should be; k-quants come
    back the nearer, the more bits they have."""
    values = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    library: Any = gguf_quants._library()
    found = np.empty((3, 512 // 32 * 18), np.uint8)
    library.ggml_quantize_chunk(int(Q.Q4_0), values.ctypes.data, found.ctypes.data, 0, 3, 512, None)
    assert (found == gguf.quantize(values, Q.Q4_0)).all()
    errors = []
    for kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
        back = gguf.dequantize(quantize(values, kind), kind)
        errors.append(float(np.sqrt(np.square(back - values).mean())))
    assert errors[0] < 0.1 and errors[1] < errors[0] / 1.8 and errors[2] < errors[1] / 1.8
    assert (quantize(values, Q.Q8_0) == gguf.quantize(values, Q.Q8_0)).all()


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q4_k_m", "q6_k"])
def test_llama_cpp_runs_what_was_written(dtype: str, tmp_path: Path):
    """The guard compares it with the model as its numbers are in the file."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_key_value_heads": 4}
    folder = checkpoint.save(model_of("llama", **sizes), tmp_path / "m", tokenizer=bpe())
    record = lmprune("export", folder, "--to", "gguf", "--dtype", dtype, "--out", tmp_path / "m.gguf", "--json").record
    assert record["verification"]["verified"] and record["dtype"] == dtype
    assert not any("instead" in note for note in record["notes"])
    tensors = read_gguf(tmp_path / "m.gguf").tensors
    assert tensors["blk.0.ffn_up.weight"].kind == {"q4_k_m": Q.Q4_K, "q6_k": Q.Q6_K}[dtype]
    assert tensors["blk.2.ffn_down.weight"].kind == Q.Q6_K
    back = lmprune("inspect", tmp_path / "m.gguf", "--json").record
    assert back["params"] == record["params"]


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q4_k_m", "q5_k_m"])
@pytest.mark.parametrize("name", few(["olmo2", "stablelm", "nemotron", "gpt_neox-parallel"]))
def test_a_tied_head_that_llama_cpp_wants_twice(name: str, dtype: str, tmp_path: Path):
    """It has more bits than the embedding that it is tied to, in the file and for the guard."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "tie_word_embeddings": True}
    folder = checkpoint.save(model_of(name, **sizes), tmp_path / "m", tokenizer=bpe())
    shown = lmprune("export", folder, "--to", "gguf", "--dtype", dtype, "--out", tmp_path / "m.gguf", "--json")
    assert shown.record["verification"]["verified"]
    tensors = read_gguf(tmp_path / "m.gguf").tensors
    kinds = [tensors[f"{tensor}.weight"].kind for tensor in ("token_embd", "output")]
    assert kinds == [{"q4_k_m": Q.Q4_K, "q5_k_m": Q.Q5_K}[dtype], Q.Q6_K]


@needs_llama_cpp
def test_widths_that_do_not_fit_are_said(tmp_path: Path):
    folder = checkpoint.save(model_of("llama", intermediate_size=64), tmp_path / "m", tokenizer=bpe())
    record = lmprune(
        "export", folder, "--to", "gguf", "--dtype", "q4_k_m", "--out", tmp_path / "m.gguf", "--json"
    ).record
    (note,) = [note for note in record["notes"] if "instead" in note]
    assert "no multiples of 256" in note and "--multiple-of 256" in note and "q5_0 or q8_0" in note
    wide = [Slot(T.FFN_DOWN, (64, 256), 0, 3), Slot(T.ATTN_Q, (64, 64), 0, 3)]
    assert (
        "--multiple-of" not in fallbacks(GGUF_DTYPES["q4_k_m"], wide)[0]
        and "1 of 2" in fallbacks(GGUF_DTYPES["q4_k_m"], wide)[0]
    )


def test_without_llama_cpp(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_quants, "_library", lambda: None)
    told = refused("export", model, "--to", "gguf", "--dtype", "q4_k_m", "--out", tmp_path / "m.gguf")
    assert "lmprune[serve]" in told
    assert "llama-quantize" in refused(
        "export", model, "--to", "gguf", "--dtype", "q3_k_m", "--out", tmp_path / "m.gguf"
    )
    with pytest.raises(UserError, match="unknown GGUF dtype"):
        gguf_quants.check_dtype("q7")
