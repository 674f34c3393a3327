"""The tokenizer in a GGUF file: as llama.cpp reads it, and as `export` writes it.

Byte-level BPE splits by a rule that the file names; SentencePiece's BPE merges by score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ..errors import UserError, unknown
from ..runtimes.architectures import (
    BYTE_LEVEL,
    DIGITS,
    GPT2_SPLIT,
    SENTENCE_PIECE,
    SPLIT_ALIASES,
    SPLIT_NAMES,
    UNDERLINE,
)
from ..runtimes.gguf_file import GGUFFile

_FILLER = re.compile(r"\[PAD\d+\]")  # what converters call embeddings that no token has
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_MODEL = {"model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix"}
_ENDS = {"add_bos_token", "add_eos_token"}
#: these say what a program may do with a token, and nothing of how text becomes ids
_HINT = re.compile(r"(eot|eom|cls|fim_\w+|prefix|suffix|middle|separator|seperator)_(token_)?id|fim_\w+_token_id")


def read_tokenizer(file: GGUFFile) -> Any:
    """Raises: UserError for a tokenizer that can't be read as it is, naming the key."""
    begin = "tokenizer.ggml."
    told = {key.removeprefix(begin): value for key, value in file.metadata.items() if key.startswith(begin)}
    _check(file, told)
    build = {BYTE_LEVEL: _byte_level, SENTENCE_PIECE: _sentence_piece}.get(told["model"])
    if build is None:
        raise UserError(
            f"{file.path} has a tokenizer of kind {told['model']}; lmprune reads {BYTE_LEVEL} and {SENTENCE_PIECE}"
        )
    backend = build(file, told)
    kinds = told.get("token_type") or [TokenType.NORMAL] * len(told["tokens"])
    pairs = list(zip(told["tokens"], kinds, strict=True))
    special = [text for text, kind in pairs if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    plain = [text for text, kind in pairs if kind == TokenType.USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain])
    ids = {ours: told.get(f"{theirs}_token_id") for ours, theirs in _NAMED.items()}
    named = {f"{ours}_token": told["tokens"][index] for ours, index in ids.items() if index is not None}
    _add_ends(backend, told, named)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_templates(file.metadata),
        model_max_length=file.settings().get("context_length"),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _check(file: GGUFFile, told: Mapping[str, Any]) -> None:
    for key in ("model", "tokens"):
        if key not in told:
            raise UserError(f"{file.path} holds no tokenizer (tokenizer.ggml.{key}); put one beside the model instead")
    known = _MODEL | _ENDS | {f"{name}_token_id" for name in _NAMED.values()}
    for key, value in told.items():
        if key not in known and value is not False and not _HINT.fullmatch(key):
            raise UserError(f"{file.path} has tokenizer.ggml.{key} = {value!s:.40}, which lmprune does not know")
    if len(set(told["tokens"])) < len(told["tokens"]):
        raise UserError(f"{file.path} has the same text for several tokens, so its tokenizer can't be read")


def _vocabulary(told: Mapping[str, Any]) -> dict[str, int]:
    kinds = told.get("token_type") or [TokenType.NORMAL] * len(told["tokens"])
    return {
        text: index
        for index, (text, kind) in enumerate(zip(told["tokens"], kinds, strict=True))
        if not (kind == TokenType.UNUSED and _FILLER.fullmatch(text))
    }


def _byte_level(file: GGUFFile, told: Mapping[str, Any]) -> Tokenizer:
    rules = {name: rule for rule, name in SPLIT_NAMES.items()}
    name: str = told.get("pre", "default")
    name = SPLIT_ALIASES.get(name, name)
    if name not in rules:
        raise unknown(f"way of splitting text (tokenizer.ggml.pre) in {file.path}:", name, [*rules, *SPLIT_ALIASES])
    steps, whole_words = rules[name]
    merges = [tuple(merge.split(" ", 1)) for merge in told.get("merges", ())]
    found = Tokenizer(BPE(vocab=_vocabulary(told), merges=merges, ignore_merges=whole_words))
    found.pre_tokenizer = pre_tokenizers.Sequence([part for step in steps for part in _splitting(step)])  # type: ignore[assignment]
    found.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return found


def _splitting(step: str) -> Sequence[Any]:
    if step == DIGITS:
        return [pre_tokenizers.Digits(individual_digits=True)]
    if step == GPT2_SPLIT:
        return [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    by_rule = pre_tokenizers.Split(Regex(step), "isolated")
    return [by_rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _sentence_piece(file: GGUFFile, told: Mapping[str, Any]) -> Tokenizer:
    kinds = told.get("token_type") or [TokenType.NORMAL] * len(told["tokens"])
    if "scores" not in told:
        raise UserError(f"{file.path} lacks tokenizer.ggml.scores, by which its tokenizer merges")
    unk = told.get("unknown_token_id", 0)
    vocabulary = _vocabulary(told)
    normal = {
        text: score
        for text, kind, score in zip(told["tokens"], kinds, told["scores"], strict=True)
        if kind == TokenType.NORMAL
    }
    found = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=_merges(normal, vocabulary),
            unk_token=told["tokens"][unk],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    first = told.get("add_space_prefix", True)
    space = normalizers.Replace(" ", UNDERLINE)
    found.normalizer = normalizers.Sequence([normalizers.Prepend(UNDERLINE), space]) if first else space  # type: ignore[assignment]
    parts = [decoders.Replace(UNDERLINE, " "), decoders.ByteFallback(), decoders.Fuse()]
    found.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if first else [])])  # type: ignore[assignment]
    return found


def _merges(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two, the token of the highest score first."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                found.append((-score, ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _add_ends(backend: Tokenizer, told: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """What every text begins and ends with; llama.cpp begins with BOS where a file does not say, in some kinds."""
    usual = told["model"] == SENTENCE_PIECE or SPLIT_ALIASES.get(told.get("pre", ""), told.get("pre")) == "llama-bpe"
    first = [named["bos_token"]] if told.get("add_bos_token", usual) and "bos_token" in named else []
    last = [named["eos_token"]] if told.get("add_eos_token", False) and "eos_token" in named else []
    if first or last:
        backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *(f"{text}:1" for text in first), "$B:1", *(f"{text}:1" for text in last)],
            special_tokens=[(text, backend.token_to_id(text)) for text in {*first, *last}],
        )


def _templates(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    begin = "tokenizer.chat_template."
    others = {key.removeprefix(begin): value for key, value in metadata.items() if key.startswith(begin)}
    default = metadata.get("tokenizer.chat_template")
    return {**({"default": default} if default else {}), **others} if others else default
