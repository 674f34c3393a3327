"""`export --stream`: a block in memory at a time, and what is written is what is written of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from test_bad_input import refused
from test_checkpoint import per_layer_plan
from test_gguf import NAMES_IN_GGUF, bpe, model_of
from test_gguf_mixtures import NAMES as MIXTURES
from test_gguf_mixtures import mixture_of_words
from test_gguf_reading import some
from tiny_checkpoints import lmprune

import lmprune as library
from lmprune.checkpoints import models
from lmprune.export import Order, export
from lmprune.export.arithmetic import Rounding, log_probs
from lmprune.jobs import opening
from lmprune.sites.find import find_sites
from lmprune.sites.mixtures import is_mixture
from lmprune.sites.pages import pages_of


def save(model: Any, folder: Path) -> Path:
    return library.save(model, folder, tokenizer=bpe())


def written(source: Path, out: Path, to: str, dtype: str | None, *, stream: bool, verify: bool = False) -> Any:
    model = models.load(source, dtype="auto", stream=stream)
    assert (pages_of(model) is not None) == stream
    ffns = [] if is_mixture(model.config) else find_sites(model)
    tokenizer = bpe()  # not as the folder has it: transformers gives a qwen2 a token more than the tiny model knows
    return export(Order(model, ffns, tokenizer, dtype, "tiny"), out, to, verify=verify)


@pytest.mark.parametrize("name", some(NAMES_IN_GGUF, "llama", "gpt2", "gemma2"))
def test_the_same_gguf_file(name: str, tmp_path: Path, blocks_here: list[int]) -> None:
    source = save(model_of(name), tmp_path / "m")
    for stream in (False, True):
        written(source, tmp_path / f"{stream}.gguf", "gguf", "f16", stream=stream)
    assert (tmp_path / "True.gguf").read_bytes() == (tmp_path / "False.gguf").read_bytes()
    assert set(blocks_here) == {1}


@pytest.mark.parametrize("name", some(MIXTURES, "qwen3_moe", "ernie4_5_moe"))
def test_the_same_gguf_file_of_a_mixture(name: str, tmp_path: Path, blocks_here: list[int]) -> None:
    source = save(mixture_of_words(name), tmp_path / "m")
    for stream in (False, True):
        written(source, tmp_path / f"{stream}.gguf", "gguf", "f32", stream=stream)
    assert (tmp_path / "True.gguf").read_bytes() == (tmp_path / "False.gguf").read_bytes()
    assert set(blocks_here) == {1}


@pytest.mark.parametrize("dtype", ["q8_0", "q4_k_m", "f16"])
def test_from_gguf_to_gguf(dtype: str, tmp_path: Path, blocks_here: list[int]) -> None:
    """Pruned and written again with one block dequantised at a time; llama.cpp computes what the model does."""
    big = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 4}
    source = save(model_of("llama", **big), tmp_path / "m")
    written(source, tmp_path / "m.gguf", "gguf", "q8_0", stream=False)
    (tmp_path / "cats.txt").write_text("On day 1 the cat saw a bird. " * 200)
    cut = ("--keep", 0.5, "--seq-len", 32, "--calibration-tokens", 128, "--answer-tokens", 0, "--data")
    for name, more in (("whole", ()), ("streamed", ("--stream",))):
        blocks_here.clear()
        out = tmp_path / name
        text = (*cut, tmp_path / "cats.txt")
        assert lmprune("prune", tmp_path / "m.gguf", *text, "--method", "activation", "--out", out, *more).code == 0
        done = lmprune("export", out, "--to", "gguf", "--dtype", dtype, "--out", tmp_path / f"{name}.gguf", *more)
        assert done.code == 0 and "verified in llama.cpp" in done.out, done.err + done.out
        assert set(blocks_here) == ({1} if more else set())
    whole, streamed = (gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors for name in ("whole", "streamed"))
    for one, other in zip(whole, streamed, strict=True):
        assert one.name == other.name and one.tensor_type == other.tensor_type and (one.data == other.data).all()


@pytest.mark.parametrize("dtype", [None, "f16"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_same_stock_checkpoint(name: str, dtype: str | None, tmp_path: Path, blocks_here: list[int]) -> None:
    model = model_of(name)
    library.shrink(model, per_layer_plan(model))
    source, told = save(model, tmp_path / "m"), []
    for stream in (False, True):
        told.append(written(source, tmp_path / str(stream), "hf-uniform", dtype, stream=stream, verify=True))
    assert told[0] == told[1] and told[0]["params_added"] > 0 and told[0]["verification"]["verified"]
    whole, streamed = ({**load(tmp_path / folder)} for folder in ("False", "True"))
    assert whole.keys() == streamed.keys() and all(torch.equal(whole[name], streamed[name]) for name in whole)
    assert all(whole[name].dtype == streamed[name].dtype for name in whole)
    names = {file.name for file in (tmp_path / "False").iterdir() if file.suffix == ".json"}
    assert names and all((tmp_path / "False" / n).read_text() == (tmp_path / "True" / n).read_text() for n in names)
    assert set(blocks_here) == {1}


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_guard_sees_what_a_streamed_model_computes(tmp_path: Path) -> None:
    """And a file of other numbers is refused."""
    source = save(model_of("llama"), tmp_path / "m")
    whole, streamed = (models.load(source, stream=stream) for stream in (False, True))
    ids = list(range(1, 40))
    ours, theirs = (log_probs(model, ids, last=8, rounding=Rounding()) for model in (whole, streamed))
    assert torch.equal(ours, theirs) and torch.equal(ours, log_probs(streamed, ids, last=8, rounding=Rounding()))
    rounded = log_probs(streamed, ids, last=8, rounding=Rounding(lambda _, p: (p * 4).round() / 4))
    assert not torch.allclose(ours, rounded)
    assert torch.equal(log_probs(streamed, ids, last=8, rounding=Rounding()), ours), "it is as it was afterwards"


def test_a_model_is_as_it_was_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of("llama").bfloat16(), list(range(1, 40))
    ours = log_probs(model, ids, last=8, rounding=Rounding())
    forward = type(model).forward
    monkeypatch.setattr(model, "forward", lambda ids, use_cache: forward(model, ids, use_cache=use_cache))
    assert torch.equal(log_probs(model, ids, last=8, rounding=Rounding()), ours), "of all positions, the last are told"

    def fail(*_: Any) -> None:
        raise RuntimeError

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        log_probs(model, ids, last=8, rounding=Rounding())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_a_gguf_file_rounds_is_seen_in_blocks_that_come_anew(tmp_path: Path, blocks_here: list[int]) -> None:
    """q4_0 differs from float32 by far more than the engine's arithmetic: unseen, the guard would refuse the file."""
    source = save(model_of("llama", hidden_size=64, intermediate_size=128), tmp_path / "m")
    told = [
        written(source, tmp_path / f"{stream}.gguf", "gguf", "q4_0", stream=stream, verify=True)["verification"]
        for stream in (False, True)
    ]
    assert told[0] == told[1] and told[1]["verified"] and set(blocks_here) == {1}


def test_it_streams_by_itself_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(model_of("llama"), tmp_path / "m")
    monkeypatch.setattr(opening, "fits", lambda *_: False)
    for to, out in (("gguf", "a.gguf"), ("hf-uniform", "b")):
        done = lmprune("export", source, "--to", to, "--out", tmp_path / out)
        assert done.code == 0 and "its blocks are read one by one" in done.err
    assert "read one by one" not in lmprune("export", source, "--to", "vllm", "--out", tmp_path / "c").err
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.gguf", "b", "c", "m"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--to", "onnx", "--out", "o"), "--stream goes with --to gguf and hf-uniform; onnx needs the whole model"),
        (("--to", "vllm", "--out", "o"), "vllm needs the whole model in memory"),
        (("--to", "gguf", "--out", "o.gguf", "--ffn", "up=a,down=b"), "--ffn is proved on the whole model"),
    ],
)
def test_what_can_not_be_streamed(
    words: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model_of("llama"), tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("export", "m", "--stream", *words)
    assert [place.name for place in tmp_path.iterdir()] == ["m"]
