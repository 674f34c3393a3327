"""GGUF files, run in stock llama.cpp and compared with transformers: every row of the table, every tokenizer rule."""

from __future__ import annotations

import copy
import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from llamacpp import LlamaCpp, serving
from test_checkpoint import per_layer_plan, uniform_plan, with_reader_bias
from tiny_models import LAYERS, NAMES, tiny_model
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import AddedToken, PreTrainedTokenizerFast

import lmprune
from lmprune.checkpoints import models
from lmprune.checkpoints.shrinking import shrink
from lmprune.data import load as load_text
from lmprune.errors import UserError
from lmprune.export import Order, export
from lmprune.plan import PrunePlan
from lmprune.runtimes.architectures import GGUF, SPLIT_NAMES
from lmprune.sites.find import find_sites

VOCABULARY = 300
TEXT = (
    "On day 1234 the cat saw 56 birds, didn't it?\n\n  The king's men   asked: 'WE'LL see'…\n\tπ ≈ 3.14159, "
    "naïve café; 我想在apple工作1314151天 🦙!! def f(x):\n        return x**2  # ok\r\n"
)
NAMES_IN_GGUF = sorted(name for name in NAMES if name.split("-")[0] in GGUF)
#: what a tiny model needs for llama.cpp to run it: Exaone 4 has windows in a model of 64 layers only
_FOR_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * LAYERS},
    "falcon-old": {"bias": False},
}


def bpe(
    split: pre_tokenizers.PreTokenizer | None = None, *, ignore_merges: bool = False, **extra: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY tokens."""
    tokenizer = Tokenizer(tokenizer_models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 3], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", **extra)


def model_of(name: str, **changes: Any) -> Any:
    """A tiny model for `bpe`, whose norms are no longer the identity."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}
    return with_other_norms(tiny_model(name, **{**sizes, **_FOR_LLAMA_CPP.get(name, {}), **changes}))


@torch.no_grad()
def with_other_norms(model: Any) -> Any:
    """The model, whose norms (and other vectors) are no longer the identity."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def written(
    model: Any,
    out: Path,
    *,
    dtype: str = "f32",
    tokenizer: Any = None,
    plan: PrunePlan | None = None,
    verify: bool = True,
) -> dict[str, Any]:
    job = Order(model, find_sites(model), tokenizer or bpe(), dtype, "tiny", plan)
    return export(job, out, "gguf", verify=verify)


@contextmanager
def in_llama_cpp(model: Any, out: Path, **options: Any) -> Iterator[LlamaCpp]:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    written(model, out, verify=False, **options)  # as whoever asks for this compares the two
    with serving(out) as llama:
        yield llama


@torch.no_grad()
def difference(model: Any, llama: LlamaCpp) -> float:
    """The largest of the next token's log probabilities after a few random ids."""
    ids = torch.randint(1, VOCABULARY, (1, 13), generator=torch.Generator().manual_seed(3))
    wanted = model(ids).logits[0, -1].log_softmax(-1)
    return (llama.log_probs(ids[0].tolist(), VOCABULARY) - wanted).abs().max().item()


# -- models


@pytest.mark.parametrize("name", NAMES_IN_GGUF)
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    """Its GELU is the tanh approximation, from a table."""
    model = model_of(name)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
        with torch.no_grad():  # the control: one layer's reader is another
            find_sites(model)[1].reader().normal_()
        assert difference(model, llama) > 5e-3


def test_every_row_is_tried() -> None:
    assert {name.split("-")[0] for name in NAMES_IN_GGUF} == set(GGUF)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "gpt2", "qwen2", "bloom", "mpt"])
def test_one_width_stays_the_models_own_architecture(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    shrink(model, uniform_plan(model))
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 2e-3
    assert field(tmp_path / "m.gguf", "general.architecture") == GGUF[name.split("-")[0]].arch
    assert field(tmp_path / "m.gguf", f"{GGUF[name.split('-')[0]].arch}.feed_forward_length") == 16


@pytest.mark.parametrize("case", ["llama", "llama-tied", "mistral", "ministral", "helium", "bias"])
def test_a_width_for_each_layer_runs_as_deci(case: str, tmp_path: Path) -> None:
    model = model_of("llama-tied" if case == "bias" else case)
    shrink(model, per_layer_plan(model))
    if case == "bias":  # as flap leaves it
        with_reader_bias(model)
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 1e-4
    assert field(tmp_path / "m.gguf", "general.architecture") == "deci"
    assert field(tmp_path / "m.gguf", "deci.feed_forward_length") == [24, 16, 12]


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}])  # fmt: skip
@pytest.mark.parametrize("per_layer", [False, True])
def test_scaled_rotary_positions(rope: dict[str, Any], per_layer: bool, tmp_path: Path) -> None:
    model = model_of("llama-tied", rope_parameters={"rope_theta": 10000.0, **rope})
    if per_layer:
        shrink(model, per_layer_plan(model))
    with in_llama_cpp(model, tmp_path / "m.gguf") as llama:
        assert difference(model, llama) < 1e-4
    assert "rope_freqs.weight" in {tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}


@pytest.mark.parametrize(
    ("dtype", "limit"), [("f16", 5e-3), ("bf16", 5e-2), ("q8_0", 0.1), ("q5_0", 0.3), ("q4_0", 0.6)]
)
def test_smaller_types(dtype: str, limit: float, tmp_path: Path) -> None:
    model = model_of("llama-tied", intermediate_size=64)
    with in_llama_cpp(model, tmp_path / "m.gguf", dtype=dtype) as llama:
        assert difference(model, llama) < limit
    tensors = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["blk.1.ffn_up.weight"] == dtype and tensors["blk.1.ffn_norm.weight"] == "f32"
    assert tensors["token_embd.weight"] == {"q5_0": "q8_0", "q4_0": "q8_0"}.get(dtype, dtype)


def test_the_sliding_window_that_llama_cpp_does_not_know_limits_the_context(tmp_path: Path) -> None:
    written(model_of("mistral", sliding_window=40), tmp_path / "m.gguf")
    assert field(tmp_path / "m.gguf", "llama.context_length") == 40


def field(file: Path, key: str) -> Any:
    return gguf.GGUFReader(file).fields[key].contents()


# -- tokenizers


def split_of(steps: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer that a key of SPLIT_NAMES stands for."""
    found: list[pre_tokenizers.PreTokenizer] = []
    for step in steps:
        if step == "<Digits>":
            found.append(pre_tokenizers.Digits(individual_digits=True))
        elif step == "<ByteLevel>":
            found.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        else:
            from tokenizers import Regex

            found += [
                pre_tokenizers.Split(Regex(step), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
    return pre_tokenizers.Sequence(found)


@pytest.mark.parametrize(("steps", "ignore_merges"), list(SPLIT_NAMES), ids=list(SPLIT_NAMES.values()))
def test_llama_cpp_splits_as_the_tokenizer_does(steps: tuple[str, ...], ignore_merges: bool, tmp_path: Path) -> None:
    tokenizer = bpe(split_of(steps), ignore_merges=ignore_merges)
    with in_llama_cpp(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=tokenizer) as llama:
        for text in (TEXT, TEXT[::-1], "  a  b\n\n\n c 12345678 don't 'S\t\t"):
            assert llama.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.pre") == SPLIT_NAMES[steps, ignore_merges]


def sentence_piece(*, space_first: bool) -> PreTrainedTokenizerFast:
    """A BPE with byte fallback as Gemma has it, whose texts may begin with a space as Llama's do."""
    tokenizer = Tokenizer(tokenizer_models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replaced = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (  # type: ignore[assignment]
        normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if space_first else replaced
    )
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False, max_token_length=9)
    tokenizer.train_from_iterator([TEXT.replace("🦙", "")] * 3, trainer)
    described = json.loads(tokenizer.to_str())  # bytes are no added tokens
    described["added_tokens"] = described["added_tokens"][:2]
    found = Tokenizer.from_str(json.dumps(described))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="<s>", unk_token="<unk>")
    wrapped.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<unused>", normalized=False)])
    return wrapped


@pytest.mark.parametrize("space_first", [False, True])
def test_sentence_piece_splits_as_the_tokenizer_does(space_first: bool, tmp_path: Path) -> None:
    tokenizer = sentence_piece(space_first=space_first)
    model = tiny_model("llama-tied", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1)
    with in_llama_cpp(model, tmp_path / "m.gguf", tokenizer=tokenizer) as llama:
        for text in (TEXT, TEXT[::-1], "  a  b 🦙 c 12345678 don't 'S\t\t"):
            assert llama.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.add_space_prefix") is space_first


def with_steps(normalizer: Any, pre_tokenizer: Any = None) -> PreTrainedTokenizerFast:
    """The tokenizer above, but for these; what was learned stays."""
    described = json.loads(sentence_piece(space_first=False).backend_tokenizer.to_str())
    empty = Tokenizer(tokenizer_models.BPE())
    empty.normalizer, empty.pre_tokenizer = normalizer, pre_tokenizer  # type: ignore[assignment]
    steps = json.loads(empty.to_str())
    described |= {name: steps[name] for name in ("normalizer", "pre_tokenizer")}
    backend = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>", unk_token="<unk>")


SPACES = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]


@pytest.mark.parametrize(
    ("step", "steps"),
    [
        ("Lowercase", (normalizers.Sequence([normalizers.Lowercase(), *SPACES]),)),
        ("Strip", (normalizers.Sequence([normalizers.Strip(), *SPACES]),)),
        ("NFKC", (normalizers.Sequence([normalizers.NFKC(), *SPACES]),)),
        ("Replace", (normalizers.Sequence([*SPACES, normalizers.Replace("▁▁", "▁")]),)),
        ("Digits", (normalizers.Sequence(SPACES), pre_tokenizers.Digits(individual_digits=True))),
        ("Metaspace", (None, pre_tokenizers.Metaspace("▁", split=True))),
    ],
)
def test_steps_that_llama_cpp_s_sentence_piece_has_not(step: str, steps: tuple[Any, ...], tmp_path: Path) -> None:
    tokenizer = with_steps(*steps)
    model = tiny_model("llama-tied", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1)
    with pytest.raises(UserError, match=f"llama.cpp does not do what its step {step} does"):
        written(model, tmp_path / "m.gguf", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("never", None),
        ("always", "llama.cpp puts a space before text that begins with one, too: other tokens there"),
        ("first", "too and behind special tokens, where the tokenizer puts none: other tokens there"),
    ],
)
def test_spaces_that_llama_cpp_puts_and_the_tokenizer_does_not_are_said(
    scheme: Any, said: str | None, tmp_path: Path
) -> None:
    tokenizer = with_steps(None, pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False))
    model = tiny_model("llama-tied", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1)
    job = Order(model, find_sites(model), tokenizer, "f32", "tiny")
    notes = export(job, tmp_path / "m.gguf", "gguf", verify=False)["notes"]  # these few merges are not in its order
    assert [said in note for note in notes].count(True) == 1 if said else not any("space" in note for note in notes)
    with serving(tmp_path / "m.gguf") as llama:  # it is so
        same = [
            llama.post("/tokenize", {"content": text, "parse_special": True})["tokens"]
            == tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in ("a cat", " a cat", "a<s>cat")
        ]
    assert same == [True, scheme == "never", scheme != "first"]


def test_special_tokens_and_the_template_come_along(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer = bpe(chat_template=template)
    written(model_of("llama-tied"), tmp_path / "none.gguf", tokenizer=tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    with in_llama_cpp(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=tokenizer) as llama:
        assert llama.tokenize("cat", special=True) == tokenizer("cat")["input_ids"]
        assert llama.tokenize("cat<s>", special=True)[0::3][0] == 0
        prompt = llama.post("/apply-template", {"messages": [{"role": "user", "content": "hi"}]})["prompt"]
        assert prompt == "<user>hi"
    assert [field(tmp_path / f"{name}.gguf", "tokenizer.ggml.add_bos_token") for name in ("none", "m")] == [False, True]
    assert field(tmp_path / "m.gguf", "tokenizer.chat_template") == template


def test_a_token_beyond_the_embeddings_is_refused_where_ids_have_holes(tmp_path: Path) -> None:
    described = json.loads(bpe().backend_tokenizer.to_str())
    vocab = described["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    vocab[last] = VOCABULARY + 5
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)), bos_token="<s>")
    assert len(tokenizer) <= VOCABULARY
    with pytest.raises(UserError, match=rf"ids go to {VOCABULARY + 5}, but the model has only {VOCABULARY} embeddings"):
        written(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=tokenizer)


def test_flags_of_added_tokens_that_gguf_has_no_place_for_are_said(tmp_path: Path) -> None:
    tokenizer = bpe()
    first, *others = written(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=tokenizer)["notes"]
    assert first == "llama.cpp runs it as llama" and all(note.startswith("verified") for note in others)
    tokenizer.add_tokens([AddedToken("<|end|>", rstrip=True, special=True), AddedToken("naïve", single_word=True)])
    model = model_of("llama-tied", vocab_size=VOCABULARY + 2)
    notes = written(model, tmp_path / "flags.gguf", tokenizer=tokenizer)["notes"]
    assert [note for note in notes[1:] if not note.startswith("verified")] == [
        "llama.cpp takes no notice of spaces after <|end|> (rstrip); letters beside naïve (single_word): "
        "GGUF has no place for that"
    ]
    with serving(tmp_path / "flags.gguf") as llama:  # it is so
        ids = llama.tokenize("<|end|>  a", special=True)
    assert ids != tokenizer("<|end|>  a")["input_ids"] and ids[0] == VOCABULARY


def test_text_that_is_not_in_normal_form_is_said(tmp_path: Path) -> None:
    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    notes = written(model_of("llama-tied"), tmp_path / "m.gguf", tokenizer=tokenizer)["notes"]
    assert "llama.cpp does not bring text into Unicode's normal form (NFC), in which nearly all text is" in notes
    with serving(tmp_path / "m.gguf") as llama:  # it is so
        same = [llama.tokenize(text) == tokenizer(text)["input_ids"] for text in ("na\u00efve", "nai\u0308ve")]
    assert same == [True, False]


def test_embeddings_that_no_token_has_are_unused_tokens(tmp_path: Path) -> None:
    model = tiny_model("llama-tied", vocab_size=VOCABULARY + 4)
    written(model, tmp_path / "m.gguf")
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.token_type")[-4:] == [int(gguf.TokenType.UNUSED)] * 4


# -- what can't be written


def refused(model: Any, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        written(model, tmp_path / "m.gguf", **options)
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "phi3", "gpt_neox-parallel", "phi"])
def test_widths_that_llama_cpp_has_no_architecture_for(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    shrink(model, per_layer_plan(model))
    assert "export with --to hf-uniform first" in refused(model, tmp_path)


def test_an_architecture_that_is_not_there(tmp_path: Path) -> None:
    sentence = refused(model_of("gpt_neo"), tmp_path)
    assert sentence.startswith("lmprune can't write gpt_neo to GGUF") and "use --to onnx" in sentence


def test_what_llama_cpp_takes_for_granted(tmp_path: Path) -> None:
    assert "hidden_act silu or swish, but this model has relu" in refused(
        model_of("llama", hidden_act="relu"), tmp_path
    )
    rope = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}
    assert "rotary positions of type yarn" in refused(model_of("llama", rope_parameters=rope), tmp_path)


def test_dtypes_that_can_not_be_had(tmp_path: Path) -> None:
    model = model_of("llama-tied")
    assert "llama-quantize" in refused(model, tmp_path, dtype="q4_k")
    assert "did you mean" in refused(model, tmp_path, dtype="q8")
    assert "blocks of 32, but those of" in refused(model, tmp_path, dtype="q8_0")  # F = 48
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = 1e6
    assert "beyond f16's 65,504" in refused(model, tmp_path, dtype="f16")


def test_tokenizers_that_can_not_be_converted(tmp_path: Path) -> None:
    model = model_of("llama-tied")
    assert "no name for its way of splitting (<Whitespace>)" in refused(
        model, tmp_path, tokenizer=bpe(pre_tokenizers.Whitespace())
    )
    lower = bpe()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "a normalizer of type Lowercase" in refused(model, tmp_path, tokenizer=lower)
    words = Tokenizer(tokenizer_models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    by_words = PreTrainedTokenizerFast(tokenizer_object=words)
    assert "type WordLevel" in refused(model, tmp_path, tokenizer=by_words)
    small = tiny_model("llama-tied")  # 128 embeddings
    assert "ids go to 299, but the model has only 128 embeddings" in refused(small, tmp_path)
    with pytest.raises(UserError, match="comes with none"):
        export(Order(model, find_sites(model), None, "f32", "tiny"), tmp_path / "m.gguf", "gguf")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    assert "No space left on device; nothing was left there" in refused(model_of("llama-tied"), tmp_path)


def test_the_plan_licence_and_original_are_in_the_file(tmp_path: Path) -> None:
    origin = {"base_model": "org/dense", "license": "other", "license_name": "gemma", "license_link": "http://x"}
    provenance = {"model": origin, "calibration": {"source": "wikitext"}}
    plan = PrunePlan.of_neurons([[0, 1, 2]] * 3, [4] * 3, {"method": "obs"}, provenance)
    written(model_of("llama-tied"), tmp_path / "m.gguf", plan=plan)
    told = {key: f.contents() for key, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert {key: told[key] for key in told if key.startswith(("general.license", "general.base", "lmprune."))} == {
        "general.license": "other",
        "general.license.name": "gemma",
        "general.license.link": "http://x",
        "general.base_model.count": 1,
        "general.base_model.0.name": "dense",
        "general.base_model.0.organization": "org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/dense",
        "lmprune.method": "obs",
        "lmprune.keep": 0.75,
        "lmprune.calibration": "wikitext",
        "lmprune.plan": plan.to_json(),
    }
    about = "Pruned by lmprune: method obs, 75% of its neurons kept, calibrated on wikitext"
    assert told["general.description"] == about and told["general.name"] == "tiny"
    assert told["general.tags"] == ["lmprune", "pruned"]


def test_a_model_that_was_only_fine_tuned_is_not_called_pruned(tmp_path: Path) -> None:
    plan = PrunePlan.of_neurons([range(4)] * 3, [4] * 3, {}, {"training": {"source": "wikitext"}})
    written(model_of("llama-tied"), tmp_path / "m.gguf", plan=plan)
    told = {key: f.contents() for key, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert told["general.description"] == "Fine-tuned by lmprune: trained on wikitext"
    assert told["general.tags"] == ["lmprune"] and told["lmprune.training"] == "wikitext"
    assert "lmprune.method" not in told and "lmprune.keep" not in told


def test_a_model_that_was_not_pruned_tells_its_original(tmp_path: Path) -> None:
    model = model_of("llama-tied")
    job = Order(model, find_sites(model), bpe(), "f32", "tiny", origin={"base_model": "gpt2", "license": "mit"})
    export(job, tmp_path / "m.gguf", "gguf")
    told = {key: f.contents() for key, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert told["general.license"] == "mit" and told["general.base_model.0.name"] == "gpt2"
    assert not [key for key in told if key.startswith("lmprune.") or key == "general.description"]


# -- real models


def continuation(model: Any, ids: list[int], number: int) -> list[int]:
    output = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=number, eos_token_id=None, pad_token_id=0
    )
    return output[0, len(ids) :].tolist()


@torch.no_grad()
def nll(model: Any, llama: LlamaCpp, ids: list[int]) -> tuple[float, float]:
    """Mean negative log likelihood of the second half of the ids, in transformers and in llama.cpp."""
    wanted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    scored = range(len(ids) // 2, len(ids))
    theirs = [llama.log_probs(ids[:i], wanted.shape[1])[ids[i]].item() for i in scored]
    return -sum(wanted[i - 1, ids[i]].item() for i in scored) / len(scored), -sum(theirs) / len(scored)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-mini", "stories260k"])
@pytest.mark.parametrize("pruned", [pytest.param(False, marks=pytest.mark.conformance), True])
def test_real_text(shared: Path, tmp_path: Path, name: str, pruned: bool) -> None:
    model, tokenizer = lmprune.load(shared / "models" / name), lmprune.load_tokenizer(shared / "models" / name)
    if pruned:
        lmprune.prune(model, method="magnitude", keep=0.75, multiple_of=4)
    if name == "gpt2-mini":
        text = load_text("wikitext:tokens", "validation", data_dir=shared / "data" / "wikitext").documents[0]
    else:
        text = "Once upon a time there was a little girl named Lily. She loved to play outside with her 2 dogs. " * 3
    ids = tokenizer(text)["input_ids"][:200]
    with in_llama_cpp(model, tmp_path / "m.gguf", tokenizer=tokenizer) as llama:
        assert llama.tokenize(text, special=True)[:200] == ids
        assert llama.greedy(ids[:30], 40) == continuation(model, ids[:30], 40)
        here, there = nll(model, llama, ids)
        assert there == pytest.approx(here, abs=1e-3)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    try:
        return lmprune.load("smollm2-135m"), lmprune.load_tokenizer("smollm2-135m")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "arch"),
    [
        pytest.param(None, "llama", marks=pytest.mark.conformance),
        pytest.param({"method": "activation", "scope": "local"}, "llama", marks=pytest.mark.conformance),
        pytest.param({"method": "activation", "scope": "global"}, "deci", marks=pytest.mark.conformance),
        pytest.param({"method": "flap"}, "deci", marks=pytest.mark.conformance),  # with biases
    ],
)
def test_smollm2(smollm2: tuple[Any, Any], options: dict[str, Any] | None, arch: str, tmp_path: Path) -> None:
    dense, tokenizer = smollm2
    model = copy.deepcopy(dense)
    if options:  # the weights and the vocabulary are real in six of its blocks, too
        del model.model.layers[6:]
        model.config.num_hidden_layers = 6
    text = "\n".join(load_text("python-docs", "validation").documents)[:4000]
    ids = tokenizer(text)["input_ids"]
    if options:
        lmprune.prune(model, keep=0.8, data=torch.tensor([ids[:512]]), **options)
    with in_llama_cpp(model, tmp_path / "m.gguf", tokenizer=tokenizer) as llama:
        assert arch.encode() in (tmp_path / "m.gguf").open("rb").read(100)  # GGUFReader takes seconds for the tokens
        assert llama.tokenize(text) == ids
        assert llama.greedy(ids[-64:], 24) == continuation(model, ids[-64:], 24)
        here, there = nll(model, llama, ids[-12:])  # a second each
        assert there == pytest.approx(here, abs=1e-3)
        if options is None:
            question = [{"role": "user", "content": "What is the capital of France?"}]
            answer = llama.post("/v1/chat/completions", {"messages": question, "max_tokens": 16, "temperature": 0})
            assert "Paris" in answer["choices"][0]["message"]["content"]


# -- where an answer ends


def stops_at(file: Path) -> list[int]:
    """The tokens after 299 that end an answer in llama.cpp, which is made to write them."""
    found = []
    with serving(file) as llama:
        for token in [0, *range(VOCABULARY, VOCABULARY + 4)]:
            asked = {"prompt": [5, 6], "n_predict": 2, "temperature": 0, "logit_bias": [[token, 1e4]]}
            found += [token] if llama.post("/completion", asked)["stop_type"] == "eos" else []
    return found


@pytest.mark.parametrize("named", [True, False])
def test_an_answer_ends_where_the_model_ends_it(named: bool, tmp_path: Path) -> None:
    """Chat models have several such tokens, and the tokenizer names one of them at most."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install 'lmprune[serve]'")
    tokenizer = bpe()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<end {i}>" for i in range(4)]})
    tokenizer.eos_token = "<s>" if named else None
    model = model_of("llama-tied", vocab_size=VOCABULARY + 4)
    ends = [0, 301, 302] if named else [301, 302, 303]
    model.config.eos_token_id, model.generation_config.eos_token_id = (0 if named else None), ends
    notes = written(model, tmp_path / "m.gguf", tokenizer=tokenizer)["notes"]
    assert not any("end an answer" in note for note in notes)
    assert stops_at(tmp_path / "m.gguf") == ends
    assert models.load(tmp_path / "m.gguf").generation_config.eos_token_id == ends
    model.generation_config.eos_token_id = [*ends, 300]
    (tmp_path / "m.gguf").unlink()
    notes = written(model, tmp_path / "m.gguf", tokenizer=tokenizer, verify=False)["notes"]
    left = "<end 2>" if named else "<end 3>"
    assert f"llama.cpp knows 3 tokens that end an answer: unless it knows it by name, not {left}" in notes
