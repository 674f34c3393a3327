"""A fast tokenizer as llama.cpp reads it: the vocabulary, how text is split before merging, special tokens, template.

Two kinds can be written: byte-level BPE, and SentencePiece's BPE. llama.cpp knows a splitting rule by a name only, so
a rule has to be in SPLIT_NAMES.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf import TokenType

from ..errors import UserError
from ..runtimes.architectures import BYTE_LEVEL, DIGITS, GPT2_SPLIT, SENTENCE_PIECE, SPLIT_NAMES, UNDERLINE

#: keys of the tokens at which llama.cpp ends an answer
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_metadata(tokenizer: Any, vocab_size: int, ends: Sequence[int]) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file.

    vocab_size: rows of the model's embedding; those that no token has are filled with unused ones. ends: tokens at
    which the model ends an answer (`generation.ends_of`).
    Raises: UserError for a tokenizer that llama.cpp could not run as it is.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{type(tokenizer).__name__} can't be written to GGUF: expected a fast tokenizer (with a tokenizer.json)"
        )
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= vocab_size:
        raise UserError(f"the tokenizer's ids go to {last}, but the model has only {vocab_size} embeddings")
    described = json.loads(backend.to_str())
    if (kind := described["model"]["type"]) != "BPE":
        raise UserError(f"a tokenizer of type {kind} can't be written to GGUF; BPE can")
    write = _sentence_piece if described["model"].get("byte_fallback") else _byte_level
    tokens = _tokens(tokenizer, vocab_size)
    found = {
        **write(described, tokens),
        "tokens": [token for token, _ in tokens],
        "token_type": [int(kind) for _, kind in tokens],
        **_special(tokenizer),
        **_ends(tokenizer, ends),
    }
    return {**{f"tokenizer.ggml.{key}": value for key, value in found.items()}, **_templates(tokenizer.chat_template)}


def _templates(template: str | Mapping[str, str] | None) -> dict[str, Any]:
    """The chat template, and those with names of their own: `tool_use` llama.cpp takes where there are tools."""
    named = dict(template) if isinstance(template, Mapping) else {"default": template}
    default = named.pop("default", None)
    return {
        **({"tokenizer.chat_template": default} if default else {}),
        **{f"tokenizer.chat_template.{name}": text for name, text in named.items()},
        **({"tokenizer.chat_templates": [*named]} if named else {}),
    }


def _ends(tokenizer: Any, ends: Sequence[int]) -> dict[str, int]:
    """Where llama.cpp ends an answer: the tokenizer's own last token first, and two more."""
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return dict(zip(_ENDS, [*own, *(end for end in ends if end not in own)], strict=False))


def lost(tokenizer: Any, ends: Sequence[int]) -> list[str]:
    """Sentences on what of the tokenizer GGUF has no place for; llama.cpp does some of it by hand, for single models
    that it knows by name. ends: see `tokenizer_metadata`."""
    steps = _lost_steps(json.loads(tokenizer.backend_tokenizer.to_str()))
    return [*_lost_flags(tokenizer), *steps, *_lost_ends(tokenizer, ends)]


def _lost_ends(tokenizer: Any, ends: Sequence[int]) -> Iterator[str]:
    if not ends:
        yield "llama.cpp ends an answer at a token of its own choice: neither tokenizer nor model names one"
    if left := sorted({*ends} - {*_ends(tokenizer, ends).values()}):
        texts = ", ".join(tokenizer.convert_ids_to_tokens(left))
        yield f"llama.cpp knows {len(_ENDS)} tokens that end an answer: unless it knows it by name, not {texts}"


def _lost_steps(described: dict[str, Any]) -> Iterator[str]:
    steps = _steps_of(described)
    if any(step["type"] == "NFC" for step in steps):
        yield "llama.cpp does not bring text into Unicode's normal form (NFC), in which nearly all text is"
    scheme = next((step["prepend_scheme"] for step in steps if step["type"] == "Metaspace"), "never")
    if scheme != "never":
        where = {"first": " and behind special tokens, where the tokenizer puts none", "always": ""}[scheme]
        yield f"llama.cpp puts a space before text that begins with one, too{where}: other tokens there"


def _lost_flags(tokenizer: Any) -> list[str]:
    """On added tokens."""
    told = {"lstrip": "spaces before", "rstrip": "spaces after", "single_word": "letters beside"}
    found = [
        f"{words} {', '.join(texts[:3])}{' and others' if texts[3:] else ''} ({flag})"
        for flag, words in told.items()
        if (texts := [token.content for token in tokenizer.added_tokens_decoder.values() if getattr(token, flag)])
    ]
    return [f"llama.cpp takes no notice of {'; '.join(found)}: GGUF has no place for that"] if found else []


def _tokens(tokenizer: Any, vocab_size: int) -> list[tuple[str, TokenType]]:
    """Every id's text and kind."""
    added = tokenizer.added_tokens_decoder
    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    kinds: list[tuple[str, TokenType]] = []
    for index in range(vocab_size):
        text = texts.get(index)
        if text is None:
            kinds.append((f"[PAD{index}]", TokenType.UNUSED))
        elif index in added and index == tokenizer.unk_token_id != tokenizer.eos_token_id:
            kinds.append((text, TokenType.UNKNOWN))
        elif index in added:
            kinds.append((text, TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED))
        else:
            kinds.append((text, TokenType.NORMAL))
    return kinds


def _byte_level(described: dict[str, Any], tokens: list[tuple[str, TokenType]]) -> dict[str, Any]:
    steps, bpe = list(_steps(described["pre_tokenizer"])), described["model"]
    split = SPLIT_NAMES.get((tuple(steps), bool(bpe.get("ignore_merges"))))
    normalizer = (described["normalizer"] or {"type": "NFC"})["type"]
    if split is None or normalizer != "NFC":  # which changes no text that is normal already, as nearly all text is
        how = " then ".join(steps) if normalizer == "NFC" else f"a normalizer of type {normalizer}"
        raise UserError(
            f"the tokenizer can't be written to GGUF: llama.cpp has no name for its way of splitting ({how})"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    if not merges:
        raise UserError("the tokenizer can't be written to GGUF: llama.cpp wants a BPE tokenizer to have merges")
    return {"model": BYTE_LEVEL, "pre": split, "merges": merges}


def _steps(pre_tokenizer: dict[str, Any] | None) -> Iterator[str]:
    """What a pre-tokenizer does, as the keys of SPLIT_NAMES say it."""
    for step in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {"type": "none"}]):
        plain = not step.get("add_prefix_space")
        if step["type"] == "ByteLevel" and plain:
            yield from [GPT2_SPLIT] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            yield DIGITS
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            yield step["pattern"].get("Regex") or repr(step["pattern"])
        else:
            yield f"<{step['type']}{'' if plain else ' with a space first'}>"


def _sentence_piece(described: dict[str, Any], tokens: list[tuple[str, TokenType]]) -> dict[str, Any]:
    """llama.cpp merges the pair whose token has the highest score: the earlier a merge stands, the higher."""
    steps = _steps_of(described)
    if UNDERLINE not in json.dumps(steps, ensure_ascii=False):
        raise UserError("the tokenizer can't be written to GGUF: BPE with byte fallback, but not SentencePiece's")
    if other := next((step for step in steps if not _is_sentence_pieces(step)), None):
        raise UserError(
            f"the tokenizer can't be written to GGUF: llama.cpp does not do what its step {other['type']} does, which "
            "is none of SentencePiece's"
        )
    rank: dict[str, int] = {}
    for number, merge in enumerate(described["model"]["merges"]):
        rank.setdefault("".join(merge) if not isinstance(merge, str) else merge.replace(" ", "", 1), number)
    for index, (text, kind) in enumerate(tokens):
        if kind == TokenType.NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            tokens[index] = (text, TokenType.BYTE)
    first = any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps)
    return {
        "model": SENTENCE_PIECE,
        "pre": "default",
        "scores": [float(-rank.get(text, len(rank))) for text, _ in tokens],
        "add_space_prefix": first,
    }


def _steps_of(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The single steps of normalizer and pre-tokenizer."""
    normalizer, pre_tokenizer = (described[name] or {} for name in ("normalizer", "pre_tokenizer"))
    parts = (normalizer.get("normalizers", [normalizer]), pre_tokenizer.get("pretokenizers", [pre_tokenizer]))
    return [step for part in parts for step in part if step]


def _is_sentence_pieces(step: dict[str, Any]) -> bool:
    """Whether llama.cpp does it, too: all that its SentencePiece does is to write ▁ for spaces, and one in front."""
    kind = step["type"]
    return (
        (kind == "Prepend" and step["prepend"] == UNDERLINE)
        or (kind == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, UNDERLINE))
        or (kind == "Metaspace" and step["replacement"] == UNDERLINE and not step["split"])
        or (kind == "Split" and step["pattern"] == {"String": " "})  # there are no spaces any more
    )


def _special(tokenizer: Any) -> dict[str, Any]:
    """Ids, and whether an encoding begins or ends with one, seen by encoding a word."""
    names = {"bos": "bos", "unk": "unknown", "pad": "padding"}
    found = {
        f"{theirs}_token_id": index
        for ours, theirs in names.items()
        if (index := getattr(tokenizer, f"{ours}_token_id")) is not None
    }
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), len(whole))
    first, last = whole[:start], whole[start + len(bare) :]
    if first not in ([], [tokenizer.bos_token_id]) or last not in ([], [tokenizer.eos_token_id]):
        raise UserError(
            "the tokenizer can't be written to GGUF: it adds other tokens to a text than its first and last special one"
        )
    return found | {"add_bos_token": bool(first), "add_eos_token": bool(last)}
