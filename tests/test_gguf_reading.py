"""GGUF files read back: the same logits as what was written, for every row that can be; everything else is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import test_gguf
import torch
from in_parts import some
from llamacpp import serving
from test_checkpoint import per_layer_plan, uniform_plan, with_reader_bias
from test_gguf import NAMES_IN_GGUF, SPLIT_NAMES, TEXT, bpe, model_of, split_of
from variants import variants_of

import lmprune
from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.export.gguf import _add
from lmprune.runtimes.gguf_file import GGUFFile, read_gguf
from lmprune.sites.find import find_sites
from lmprune.sites.limits import max_context
from lmprune.sites.pages import pages_of

LIMIT = 1e-5
#: without the export's guard, which asks llama.cpp about every file
written = partial(test_gguf.written, verify=False)
GELU = 2e-3  # a file does not say whether GELU is the tanh approximation


@torch.no_grad()
def difference(model: Any, other: Any) -> float:
    """The largest of all next tokens' log probabilities over a few random ids, as many as both take."""
    length = min(max_context(model.config) or 40, max_context(other.config) or 40, 40)
    ids = torch.randint(1, 300, (2, length), generator=torch.Generator().manual_seed(3))
    a, b = (m(ids).logits.log_softmax(-1) for m in (model, other))
    return (a - b).abs().max().item()


def there_and_back(model: Any, tmp_path: Path) -> Any:
    test_gguf.written(model, tmp_path / "m.gguf")
    return models.load(tmp_path / "m.gguf")


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> Path:
    """The file with its keys and tensors as `change` leaves them."""
    file = read_gguf(path)
    keys, tensors = dict(file.metadata), {name: file.values(name) for name in file.tensors}
    change(keys, tensors)
    writer = gguf.GGUFWriter(path, keys.pop("general.architecture"))
    for key, value in keys.items():
        _add(writer, key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        models.load(path)
    with pytest.raises(UserError):
        models.skeleton(path)
    return str(caught.value)


# -- models


@pytest.mark.parametrize("name", NAMES_IN_GGUF)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    """The first variant of each row that is written at all: most often the plain one."""
    for variant in variants_of(name):
        model = model_of(name, **variant.changes)
        try:
            again = there_and_back(model, tmp_path)
        except UserError as error:
            assert "use --to" in str(error), error  # `written` refuses, and nothing that it wrote is
            continue
        assert difference(model, again) < LIMIT
        with torch.no_grad():  # the control: one layer's reader is another
            find_sites(model)[1].reader().normal_()
        assert difference(model, again) > 1e-2
        return
    pytest.fail(f"no variant of {name} is written")


@pytest.mark.parametrize("name", some(NAMES_IN_GGUF, "llama", "gpt2", "bloom", "gemma3_text"))
def test_what_is_read_block_by_block_is_what_is_read_as_a_whole(name: str, tmp_path: Path) -> None:
    """To the bit, pruned and written too."""
    for variant in variants_of(name):
        try:
            written(model_of(name, **variant.changes), tmp_path / "m.gguf")
            whole = models.load(tmp_path / "m.gguf")
            break
        except UserError:
            continue
    streamed = models.load(tmp_path / "m.gguf", stream=True)
    ids = torch.randint(1, 200, (4, 16), generator=torch.Generator().manual_seed(1))
    assert pages_of(streamed) is not None and torch.equal(whole(ids).logits, streamed(ids).logits)
    plans = [lmprune.prune(model, keep=0.5, data=ids, multiple_of=1, scope="global") for model in (whole, streamed)]
    assert plans[0].kept == plans[1].kept and torch.equal(whole(ids).logits, streamed(ids).logits)
    for model in (whole, streamed):
        checkpoint.save(model, tmp_path / f"{model is streamed}")
    again = [models.load(tmp_path / place) for place in ("False", "True")]
    assert torch.equal(again[0](ids).logits, again[1](ids).logits)
    assert (tmp_path / "False/config.json").read_text() == (tmp_path / "True/config.json").read_text()


def test_a_file_that_is_cut_short_while_its_blocks_are_read(tmp_path: Path) -> None:
    written(model_of("llama"), tmp_path / "m.gguf")
    streamed, ids = models.load(tmp_path / "m.gguf", stream=True), torch.ones(1, 8, dtype=torch.long)
    streamed(ids)
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"m\.gguf was cut short while it was read"):
        streamed(ids)


@pytest.mark.conformance
@pytest.mark.parametrize("name", NAMES_IN_GGUF)
def test_every_variant_that_is_written_is_read(name: str, tmp_path: Path) -> None:
    """The guard of the export need not look at what comes back the same; what does not, it must have refused."""
    right = 0
    for variant in variants_of(name):
        model, file = model_of(name, **variant.changes), tmp_path / f"{variant.name}.gguf"
        try:
            written(model, file)
        except UserError:
            continue
        try:
            found = difference(model, models.load(file))
        except UserError as error:
            if variant.name not in REFUSED.get(name, ()):
                guarded(model, tmp_path, error)
            continue
        if found > (GELU if "gelu" in variant.name else LIMIT):
            guarded(model, tmp_path, (variant.name, found))
            continue
        right += 1
    assert right


def guarded(model: Any, tmp_path: Path, why: object) -> None:
    with pytest.raises(UserError):
        test_gguf.written(model, tmp_path / "guarded.gguf")
        pytest.fail(f"written: {why}")


#: written, and refused when it is read: which variants of a row
REFUSED = {"falcon-new": {"one_norm"}}  # two fields that no tensor's name tells apart


@pytest.mark.parametrize("case", ["llama", "llama-tied", "mistral", "bias", "bloom", "mpt", "gpt2"])
def test_pruned_models_are_read(case: str, tmp_path: Path) -> None:
    """Widths of single layers come as `deci`, one width that the stock class can't have as the model's own."""
    model = model_of("llama-tied" if case == "bias" else case)
    shrink(model, (uniform_plan if case in ("bloom", "mpt", "gpt2") else per_layer_plan)(model))
    if case == "bias":
        with_reader_bias(model)
    again = there_and_back(model, tmp_path)
    assert [ffn.width for ffn in find_sites(again)] == [ffn.width for ffn in find_sites(model)]
    assert difference(model, again) < LIMIT
    folder = checkpoint.save(again, tmp_path / "folder")
    assert difference(model, models.load(folder)) < LIMIT
    assert type(models.skeleton(tmp_path / "m.gguf")) is type(again)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "llama3", **LLAMA3}])
def test_scaled_rotary_positions_have_their_settings_again(rope: dict[str, Any], tmp_path: Path) -> None:
    model = model_of("llama", rope_parameters={"rope_theta": 10000.0, **rope})
    again = there_and_back(model, tmp_path)
    assert difference(model, again) < LIMIT
    assert rope.items() <= again.config.rope_parameters.items()


def test_any_factors_of_rotary_frequencies(tmp_path: Path) -> None:
    """As no rule makes them. The control: without them it is another model."""
    written(model := model_of("llama"), tmp_path / "m.gguf")
    factors = np.array([1.0, 1.5, 7.0, 3.0])
    again = models.load(
        rewritten(tmp_path / "m.gguf", lambda _, tensors: tensors.update({"rope_freqs.weight": factors}))
    )
    assert difference(model, again) > 1e-2
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq / torch.tensor(factors, dtype=torch.float32)
    assert difference(model, again) < LIMIT


@pytest.mark.parametrize("scaling", ["yarn", "linear"])
def test_scaling_by_keys_is_what_llama_cpp_computes(scaling: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    written(model := model_of("llama-tied"), tmp_path / "m.gguf")
    more = {"type": scaling, "factor": 4.0, "original_context_length": 64}
    rewritten(
        tmp_path / "m.gguf",
        lambda keys, _: keys.update({f"llama.rope.scaling.{key}": value for key, value in more.items()}),
    )
    again = models.load(tmp_path / "m.gguf")
    assert again.config.rope_parameters["rope_type"] == scaling
    ids = torch.randint(1, 300, (1, 50), generator=torch.Generator().manual_seed(3))
    with serving(tmp_path / "m.gguf") as llama, torch.no_grad():
        theirs = llama.log_probs(ids[0].tolist(), 300)
        assert (again(ids).logits[0, -1].log_softmax(-1) - theirs).abs().max() < 1e-3
        assert (model(ids).logits[0, -1].log_softmax(-1) - theirs).abs().max() > 1e-2


def test_a_head_that_is_the_embedding_is_tied(tmp_path: Path) -> None:
    written(model := model_of("llama-tied"), tmp_path / "m.gguf")
    copied = lambda _, tensors: tensors.update({"output.weight": tensors["token_embd.weight"]})  # noqa: E731
    again = models.load(rewritten(tmp_path / "m.gguf", copied))
    assert again.config.tie_word_embeddings and difference(model, again) < LIMIT
    other = lambda _, tensors: tensors.update({"output.weight": tensors["token_embd.weight"] * 2})  # noqa: E731
    again = models.load(rewritten(tmp_path / "m.gguf", other))
    assert not again.config.tie_word_embeddings and difference(model, again) > 1e-2


def test_the_dtype_is_the_files(tmp_path: Path) -> None:
    for dtype, name in ((torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")):
        written(model_of("llama"), tmp_path / f"{name}.gguf", dtype=name)
        assert models.load(tmp_path / f"{name}.gguf", dtype="auto").dtype == dtype
    written(model_of("llama", intermediate_size=64), tmp_path / "q.gguf", dtype="q8_0")
    assert models.load(tmp_path / "q.gguf", dtype="auto").dtype == torch.float32


# -- what can't be read


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("llama.new_thing", 3, "has llama.new_thing = 3, which a model of type"),
        ("llama.expert_count", 8, "has llama.expert_count = 8"),
        ("llama.attention.scale", 0.3, "has llama.attention.scale = 0.3"),
        ("llama.attn_logit_softcapping", 30.0, "has llama.attn_logit_softcapping = 30.0"),
        ("llama.rope.dimension_count", 4, "rope.dimension_count = 4, but a model of this type turns 8"),
        ("llama.rope.scaling.type", "longrope", "has llama.rope.scaling.type = longrope"),
        ("llama.attention.value_length", 4, "has llama.attention.value_length = 4"),
        ("llama.attention.head_count_kv", [2, 4, 2], "not as many for each key/value head in every layer"),
        ("llama.attention.head_count_kv", [2, 0, 2], "and layers without an attention are written, and not read"),
        ("llama.feed_forward_length", [48, 0, 48], "3 layers, each with an FFN"),
        ("llama.vocab_size", 299, "token_embd.weight has 300 rows"),
        ("general.type", "adapter", "is no model, but a GGUF file of type adapter"),
        ("split.count", 3, "one of 3 parts"),
    ],
)
def test_a_setting_without_a_place(key: str, value: Any, sentence: str, tmp_path: Path) -> None:
    written(model_of("llama"), tmp_path / "m.gguf")
    assert sentence in refused(rewritten(tmp_path / "m.gguf", lambda keys, _: keys.update({key: value})))


def test_a_part_that_says_nothing_of_the_model(tmp_path: Path) -> None:
    """The header is in the first part, of which others have the number alone."""
    writer = gguf.GGUFWriter(part := tmp_path / "m-00002-of-00002.gguf", "llama")
    writer.kv_data[0].clear()
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 2)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refused(part) == f"{part} is one of 2 parts; join them with llama-gguf-split --merge first"


@pytest.mark.parametrize("value", [0, 0.0])
def test_settings_that_say_nothing(value: float, tmp_path: Path) -> None:
    written(model := model_of("llama"), tmp_path / "m.gguf")
    more = {"llama.expert_count": 0, "llama.attn_logit_softcapping": float(value), "mradermacher.quantized_by": "x"}
    again = models.load(rewritten(tmp_path / "m.gguf", lambda keys, _: keys.update(more)))
    assert difference(model, again) < LIMIT


def test_tensors_without_a_place(tmp_path: Path) -> None:
    written(model_of("llama"), tmp_path / "m.gguf")
    sinks = lambda _, tensors: tensors.update({"blk.1.attn_sinks.weight": np.ones(4)})  # noqa: E731
    assert "has 1 tensors that a model of its kind (llama) has no place for, first blk.1.attn_sinks.weight" in refused(
        rewritten(tmp_path / "m.gguf", sinks)
    )
    written(model_of("llama"), tmp_path / "n.gguf")
    assert "lacks 1 tensors that llama needs, first blk.2.attn_v.weight" in refused(
        rewritten(tmp_path / "n.gguf", lambda _, tensors: tensors.pop("blk.2.attn_v.weight"))
    )
    written(model_of("llama"), tmp_path / "o.gguf")
    wide = lambda _, tensors: tensors.update({"blk.0.attn_v.weight": np.ones((32, 32))})  # noqa: E731
    assert "blk.0.attn_v.weight is (32, 32), but (16, 32)" in refused(rewritten(tmp_path / "o.gguf", wide))


def test_tensors_that_are_elsewhere_than_the_file_must_have_them(tmp_path: Path) -> None:
    """A damaged header would give a model whose parameters are each other's; llama.cpp does not open it either."""
    written(model_of("llama"), tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    at = content.index(b"blk.1.attn_k.weight") + len(b"blk.1.attn_k.weight") + 4 + 2 * 8 + 4  # its offset
    value = int.from_bytes(content[at : at + 8], "little")
    assert value > 0
    (tmp_path / "m.gguf").write_bytes(content[:at] + (value - 32).to_bytes(8, "little") + content[at + 8 :])
    assert "is damaged or cut short: its header can't be read" in refused(tmp_path / "m.gguf")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(model_of("llama"), file := tmp_path / "m.gguf")
    values = GGUFFile.values

    def changed(self: GGUFFile, name: str) -> np.ndarray:
        if name.startswith("blk.1.ffn_down"):
            with file.open("r+b") as there:  # never shorter, whoever else reads it meanwhile
                there.seek(-64, os.SEEK_END)
                there.write(bytes(64))
        return values(self, name)

    monkeypatch.setattr(GGUFFile, "values", changed)
    with pytest.raises(UserError, match="changed while it was read; try again when nothing writes to it"):
        models.load(file)


def test_a_file_that_is_cut_short_under_a_loaded_model(tmp_path: Path) -> None:
    """Nothing of it stays mapped."""
    written(model_of("llama"), file := tmp_path / "m.gguf")
    model = models.load(file, dtype="auto")
    found = read_gguf(file)
    before = model.state_dict()["lm_head.weight"].clone()
    file.write_bytes(b"")
    assert torch.equal(model.state_dict()["lm_head.weight"], before)
    with pytest.raises(ValueError, match="reshape"):  # and not the processor's bus error
        found.values("output.weight")


def test_an_architecture_that_is_not_in_the_table(tmp_path: Path) -> None:
    written(model_of("llama"), tmp_path / "m.gguf")
    another = lambda keys, _: keys.update({"general.architecture": "mamba"})  # noqa: E731
    assert "of GGUF architecture mamba, and lmprune reads" in refused(rewritten(tmp_path / "m.gguf", another))


# -- tokenizers


@pytest.mark.parametrize(("steps", "ignore_merges"), list(SPLIT_NAMES), ids=list(SPLIT_NAMES.values()))
def test_the_same_ids_by_every_way_of_splitting(steps: tuple[str, ...], ignore_merges: bool, tmp_path: Path) -> None:
    tokenizer = bpe(split_of(steps), ignore_merges=ignore_merges)
    tokenizer.add_tokens(["<think>", "  "])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    written(model_of("llama-tied", vocab_size=310), tmp_path / "m.gguf", tokenizer=tokenizer)
    again = models.load_tokenizer(tmp_path / "m.gguf")
    for text in (TEXT, TEXT[::-1], "  a  b\n\n\n c 12345678 don't 'S\t\t", "a<think> x<|end|>y   z<s>", ""):
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert (len(again), again.bos_token_id, again.eos_token_id) == (len(tokenizer), 0, 0)
    assert again.decode([5, 302], skip_special_tokens=True) == tokenizer.decode([5, 302], skip_special_tokens=True)


def test_ends_templates_and_special_ids(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = bpe(chat_template="{{ messages[0].content }}")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    written(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=tokenizer)
    again = models.load_tokenizer(tmp_path / "m.gguf")
    assert again("cat")["input_ids"] == tokenizer("cat")["input_ids"] and again("cat")["input_ids"][0] == 0
    assert again.chat_template == tokenizer.chat_template
    model = models.load(tmp_path / "m.gguf")
    assert (model.config.bos_token_id, model.generation_config.eos_token_id) == (0, 0)
    rewritten(tmp_path / "m.gguf", lambda keys, _: keys.update({"tokenizer.ggml.eot_token_id": 5}))
    assert models.load(tmp_path / "m.gguf").generation_config.eos_token_id == [0, 5]


@pytest.mark.parametrize("names", [["default", "tool_use", "rag"], ["tool_use"], ["default"]])
def test_named_templates_come_along(names: list[str], tmp_path: Path) -> None:
    templates = {name: f"{name} {{{{ messages[0].content }}}}" for name in names}
    written(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=bpe(chat_template=templates))
    again = models.load_tokenizer(tmp_path / "m.gguf").chat_template
    assert again == (templates if names != ["default"] else templates["default"])
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata.get("tokenizer.chat_templates", []) == [name for name in names if name != "default"]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("tokenizer.ggml.pre", "viking", "unknown way of splitting text"),
        ("tokenizer.ggml.model", "t5", "a tokenizer of kind t5"),
        ("tokenizer.ggml.merges", ["no such"], "can't load the tokenizer of .*Token `no` out of vocabulary"),
        ("tokenizer.ggml.normalizer.lowercase", True, "normalizer.lowercase = True, which lmprune does not know"),
    ],
)
def test_tokenizers_that_can_not_be_read(key: str, value: Any, sentence: str, tmp_path: Path) -> None:
    written(model_of("llama-tied"), tmp_path / "m.gguf")
    rewritten(tmp_path / "m.gguf", lambda keys, _: keys.update({key: value}))
    with pytest.raises(UserError, match=sentence):
        models.load_tokenizer(tmp_path / "m.gguf")


def test_sentence_piece(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260k"
    model, tokenizer = lmprune.load(folder), lmprune.load_tokenizer(folder)
    written(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    again = models.load_tokenizer(tmp_path / "m.gguf")
    for text in (TEXT, "Once upon a time, Lily saw 2 dogs.\n", "a  b", " leading", "x<s>y</s> z"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert difference(model, models.load(tmp_path / "m.gguf")) < LIMIT


@pytest.mark.conformance
def test_the_alias_against_llama_cpp() -> None:
    """A file that others wrote: its ids, and what it computes."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    from lmprune.checkpoints import sources

    model, tokenizer = lmprune.load("smollm2-135m"), lmprune.load_tokenizer("smollm2-135m")
    text = (TEXT + "The population was 12,345 in 1999. ") * 4
    ids = tokenizer(text)["input_ids"]
    with serving(Path(str(sources.resolve("smollm2-135m"))), context=512) as llama, torch.no_grad():
        assert llama.tokenize(text) == ids
        ours = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        theirs = llama.log_probs(ids, len(ours))
    assert (ours.exp() * (ours - theirs)).sum() < 1e-2  # it computes in the quantised type
    assert ours.argmax() == theirs.argmax()
