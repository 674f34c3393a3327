"""The guard of `export`: what was written computes what the model does, or nothing is left there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import per_layer_plan
from test_gguf import bpe, model_of
from tiny_checkpoints import byte_tokenizer, lmprune, tiny_checkpoint
from tiny_models import tiny_model

from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.evaluation import llamacpp
from lmprune.export import Order, export, folder, gguf, gguf_tensors, readers, verify
from lmprune.export.arithmetic import Rounding, log_probs, through
from lmprune.sites.find import find_sites


def job_of(model: Any, dtype: str | None = None) -> Order:
    return Order(model, find_sites(model), bpe(), dtype, "tiny")


def caught(model: Any, out: Path, to: str, dtype: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        export(job_of(model, dtype), out, to)
    assert not out.exists() and not list(out.parent.iterdir())
    return str(error.value)


# -- llama.cpp


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    """Whose first token is none of the model's."""
    order = Order(tiny_model("llama"), [], byte_tokenizer(), None, "tiny")
    with pytest.raises(UserError, match="begins texts with token 256, and the model knows 128 tokens"):
        verify.prepare(order, "hf-uniform")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_a_wrong_gguf_file_is_caught_in_every_dtype(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own rounding is not in the way: what is wrong is one layer's reader, half as large again."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    right = export(job_of(model_of("llama-tied", intermediate_size=64), dtype), tmp_path / "m.gguf", "gguf")
    verdict = right["verification"]
    assert verdict["verified"] and verdict["engine"] == "llama.cpp" and verdict["lengths"] == [24, 48]
    assert 0 < verdict["difference"] < verdict["allowed"] < 0.1
    assert "verified in llama.cpp after 24 and 48 tokens" in right["notes"][-1]
    (tmp_path / "m.gguf").unlink()
    data = gguf_tensors.Writable.data

    def wrong(self: gguf_tensors.Writable) -> Any:
        values = self.values
        if self.name == "blk.1.ffn_down.weight":
            return data(gguf_tensors.Writable(self.name, self.shape, self.kind, lambda: values() * 1.5))
        return data(self)

    monkeypatch.setattr(gguf_tensors.Writable, "data", wrong)
    sentence = caught(model_of("llama-tied", intermediate_size=64), tmp_path / "m.gguf", "gguf", dtype)
    assert sentence.startswith("llama.cpp computes something else from what was exported")
    assert "--no-verify writes it nevertheless" in sentence


def test_a_tokenizer_that_llama_cpp_runs_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    metadata = gguf.tokenizer_metadata
    monkeypatch.setattr(
        gguf, "tokenizer_metadata", lambda *args: metadata(*args) | {"tokenizer.ggml.pre": "smollm"}
    )  # single digits
    assert "llama.cpp cuts text into other tokens than the tokenizer: [" in caught(
        model_of("llama-tied"), tmp_path / "m.gguf", "gguf", "f32"
    )


def test_a_file_that_llama_cpp_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(UserError, match=r"llama\.cpp can't run the file: "):
        llamacpp.ask(tmp_path / "m.gguf", [[1, 2]], last=1, top=4, neutral=70, threads=1)
    (tmp_path / "m.gguf").unlink()
    tensors = gguf.stored_tensors
    monkeypatch.setattr(gguf, "stored_tensors", lambda *args: list(tensors(*args))[:-1])  # one is missing
    assert "llama.cpp can't run the file" in caught(model_of("llama-tied"), tmp_path / "m.gguf", "gguf", "f32")


def test_an_engine_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "find_spec", lambda _: None)
    details = export(job_of(model_of("llama-tied"), "f32"), tmp_path / "m.gguf", "gguf")
    assert details["verification"] == verify.not_verified("xllamacpp is not installed (pip install 'lmprune[serve]')")
    assert details["notes"][-1].startswith("not verified: xllamacpp is not installed")


# -- folders


@pytest.mark.parametrize("to", ["hf-uniform", "vllm"])
def test_wrong_weights_in_a_folder_are_caught(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = folder.write_model

    def wrong(model: Any, *args: Any) -> None:
        with torch.no_grad():
            find_sites(model)[1].reader().mul_(1.1)
        write(model, *args)

    def pruned_llama() -> Any:
        model = tiny_model("llama")
        shrink(model, per_layer_plan(model))
        return model

    (tmp_path / "right").mkdir()
    verdict = export(job_of(pruned_llama(), "bf16"), tmp_path / "right" / "o", to)["verification"]
    assert verdict["verified"] and verdict["difference"] < 1e-4
    monkeypatch.setattr(folder, "write_model", wrong)
    (tmp_path / "wrong").mkdir()
    assert "computes something else" in caught(pruned_llama(), tmp_path / "wrong" / "o", to)


def test_a_window_is_seen_past_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten in the folder's config, it changes nothing in a text that is shorter."""
    write = folder.write_model

    def forgetful(model: Any, out: Path, *args: Any) -> None:
        write(model, out, *args)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | {"sliding_window": None}))

    def mistral() -> Any:
        return tiny_model("mistral", sliding_window=60, max_position_embeddings=256)

    monkeypatch.setattr(folder, "write_model", forgetful)
    assert "after 84 tokens differ by" in caught(mistral(), tmp_path / "o", "hf-uniform")
    monkeypatch.setattr(verify, "AFFORDABLE", 1e6)
    verdict = export(job_of(mistral()), tmp_path / "o", "hf-uniform")["verification"]
    assert verdict["verified"] and verdict["why"] == "not beyond the 60 tokens where it may change"


# -- the reference


def test_half_precision_weights_in_float32_arithmetic() -> None:
    model, ids = tiny_model("gpt2").bfloat16(), list(range(1, 31))
    whole = tiny_model("gpt2").bfloat16().float()
    here = log_probs(model, ids, last=5, rounding=Rounding())
    with torch.no_grad():
        wanted = whole(torch.tensor([ids])).logits[0, -5:].log_softmax(-1)
        rough = model(torch.tensor([ids])).logits[0, -5:].float().log_softmax(-1)
    assert torch.allclose(here, wanted, atol=1e-5) and not torch.allclose(rough, wanted, atol=1e-4)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    rounded = log_probs(tiny_model("gpt2"), ids, last=5, rounding=Rounding(through(torch.bfloat16)))
    assert torch.allclose(rounded, wanted, atol=1e-5)


# -- the command


def test_the_command_says_whether_it_was_verified(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "in")
    record = lmprune("export", checkpoint, "--to", "hf-uniform", "--out", tmp_path / "o", "--json").record
    assert record["verification"]["verified"] and "verified in stock transformers" in record["notes"][-1]
    assert "verified in stock transformers" in (tmp_path / "o" / "README.md").read_text()
    shown = lmprune("export", checkpoint, "--to", "hf-uniform", "--out", tmp_path / "p", "--no-verify")
    assert "not verified: --no-verify" in shown.out
    assert "not verified: --no-verify" in (tmp_path / "p" / "README.md").read_text()
    assert (
        "--no-verify"
        in lmprune("export", checkpoint, "--to", "hf-uniform", "--out", tmp_path / "q", "--no-verify", "--json").record[
            "command"
        ]
    )
