"""Text to calibrate and to evaluate on: one file a source, one small interface."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from . import files, holdout, hub, mix, pairs, python_code, python_docs, self_generated, wikitext
from .records import PairData, Records, render
from .splits import check_split

#: What `load` takes, as a message shows it.
SOURCES = (
    "mix",
    "wikitext",
    "wikisql",
    "samsum",
    "e2e",
    "python-docs",
    "python-code",
    "self",
    f"FILE ({' '.join(files.SUFFIXES)})",
    "ORG/NAME on the hub",
)


_PYTHON = {"python-docs": python_docs.load, "python-code": python_code.load}


@dataclass(frozen=True)
class TextData:
    """name: what was loaded, for people. documents: texts in the source's order; they may be empty.

    provenance: source, split, where it came from, `documents` (their number) and `sha256` of all of them joined;
    for a plain file or WikiText that is the checksum of the file (behind a byte order mark). notes: what was left out,
    a sentence each.
    """

    name: str
    documents: list[str]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def load(
    source: str,
    split: str = "validation",
    *,
    data_dir: Path | str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    chat_template: bool = False,
    seed: int = 0,
    num_tokens: int | None = None,
    held_out: float | None = None,
) -> TextData:
    """Load the text of `source`.

    source: `mix` (see `mix`), `wikitext[:raw|:tokens]`, `python-docs`, `python-code`, `self`, a file (`.txt .raw
        .tokens .md .jsonl`, and `file.jsonl:FIELD` for another field than `text`), or a hub data set id
        `org/name[:config]`; of a source of pairs (`wikisql`, `samsum`, `e2e`, see `pairs`) each context with its
        completion is a text.
    split: train, validation or test; a single file is the same for every split.
    data_dir: for a mix, a folder as `kinds` has it, for wikitext, one with wiki.{train,valid,test}.{raw,tokens}, for
        pairs as `pairs.load` says; None = the hub.
    model, tokenizer, seed: what writes the text of `self`, that of train with `seed` and that of another split with the
        one after it; the tokenizer also has the chat template.
    chat_template: render every record with the tokenizer's template, a plain text as one user message.
    held_out: a share of a file, alone or in a mix, which has no splits: validation and test read it, train the rest
        (`holdout`).
    num_tokens: how many tokens will be wanted. `self` writes that many; a hub stream stops when there is ample text.
    Raises: UserError for an unknown source or split, an unreadable file, a broken line, a hub that can't be reached.
    """
    data_dir = Path(data_dir) if data_dir else None
    check_options(source, data_dir, chat_template, held_out)
    if mix.is_mix(source):
        found = mix.load(
            source, split, data_dir=data_dir, tokenizer=tokenizer, seed=seed, num_tokens=num_tokens,
            other=_reader(split, model, tokenizer, seed, held_out),
        )  # fmt: skip
        return _rendered(found, source, split, chat_template=False, tokenizer=tokenizer)
    base, _, variant = source.partition(":")
    if pairs.is_source(source):
        found = _as_texts(pairs.load(source, split, data_dir=data_dir, held_out=held_out), tokenizer)
    elif base == "wikitext":
        found = wikitext.load(variant or None, split, data_dir, num_tokens)
    elif source in _PYTHON:
        found = _PYTHON[source](split)
    elif source == "self":
        check_split(split)
        # another text for another split: what a model was fitted to is not held out
        found = self_generated.load(model, tokenizer, num_tokens, seed if split == "train" else seed + 1)
    elif (file := files.parse(source)) is not None:
        check_split(split)
        found = files.load(*file, chat_template=chat_template)
        found = found if held_out is None else holdout.part(found, split, held_out)
    else:
        dataset = hub.parse(source)
        assert dataset is not None
        found = hub.load(*dataset, split, chat_template=chat_template, num_tokens=num_tokens)
    return _rendered(found, source, split, chat_template=chat_template, tokenizer=tokenizer)


def needs_model(source: str, data_dir: Path | None = None) -> bool:
    """Whether the model has to write the text, or a part of it. Raises: UserError for a mix that is none."""
    return source == "self" or mix.needs_model(source, data_dir)


def as_long_as_you_like(source: str) -> bool:
    """Whether the source has no end, so that somebody has to say how much is read."""
    return source == "self" or mix.is_mix(source)


def load_kinds(split: str, *, data_dir: Path | None, tokenizer: Any, num_tokens: int) -> dict[str, TextData]:
    """Text of each kind that `mix` is made of, by its name; data_dir as there. num_tokens: will be wanted of each.

    Raises: UserError as `load`.
    """
    found = mix.every_kind(
        split, data_dir=data_dir, tokenizer=tokenizer, num_tokens=num_tokens, other=_reader(split, None, tokenizer, 0)
    )
    return {
        kind: _rendered(records, kind, split, chat_template=False, tokenizer=tokenizer)
        for kind, records in found.items()
    }


def _reader(split: str, model: Any, tokenizer: Any, seed: int, held_out: float | None = None) -> mix.ReadOther:
    """What reads the parts of a mix that are sources by themselves, of which files are divided and no others."""

    def read(name: str, num_tokens: int) -> Records:
        share = None if files.parse(name) is None else held_out
        whose: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "seed": seed}
        found = load(name, split, num_tokens=num_tokens, held_out=share, **whose)
        return Records(found.name, found.documents, found.provenance, found.notes)

    return read


def _named(source: str) -> Sequence[str]:
    """The source, or of a mix those that it names."""
    if not mix.is_mix(source):
        return [source]
    return [] if source == "mix" else [*mix.shares_of(source, None)]


def check_options(source: str, data_dir: Path | None, chat_template: bool, held_out: float | None) -> None:
    """Raises: UserError for a source that is none, a file that is not there, and what does not go with it: what can be
    said before a text is read."""
    if held_out is not None:
        holdout.check_share(held_out)
    if pairs.is_source(source):
        pairs.check_options(source, data_dir, held_out)
        if chat_template:
            raise UserError(f"--chat-template does not go with pairs ({source}), which have templates of their own")
        return
    if held_out is not None and not any(map(files.parse, _named(source))):
        raise UserError(f"--holdout goes with a file of your own; {source} has splits, or none at all")
    if data_dir is not None and source.partition(":")[0] not in ("mix", "wikitext"):
        raise UserError(f"--data-dir goes with mix, wikitext, wikisql, samsum and e2e, not with {source!r}")
    if mix.is_mix(source) and chat_template:
        raise UserError("drop --chat-template: the conversations of a mix are rendered with it, and nothing else is")
    if source == "self" and chat_template:
        raise UserError("--chat-template has nothing to render in text that the model writes itself (self)")
    for file, _ in filter(None, map(files.parse, _named(source))):
        files.check_there(file)
    if not mix.is_mix(source):
        _check_known(source)


def _check_known(source: str) -> None:
    """Raises: UserError for a name that is no source of text."""
    if source in _PYTHON or source == "self" or source.partition(":")[0] == "wikitext" or files.parse(source):
        return
    if Path(source).exists():
        raise UserError(f"{source} is not a text file that lmprune reads; expected {' '.join(files.SUFFIXES)}")
    if hub.parse(source) is None:
        raise unknown("data source", source, SOURCES)


def _rendered(found: Records, source: str, split: str, *, chat_template: bool, tokenizer: Any) -> TextData:
    if chat_template:
        documents = render(found.records, tokenizer)
    else:
        documents = [record for record in found.records if isinstance(record, str)]
        assert len(documents) == len(found.records), "conversations come only with a chat template"
    if not any(documents):
        raise UserError(f"there is no text in {found.name}")
    provenance = {
        "source": source,
        "split": split,
        **found.provenance,
        **({"chat_template": "user messages and conversations"} if chat_template else {}),
        "documents": len(documents),
        "sha256": hashlib.sha256("".join(documents).encode()).hexdigest(),
    }
    return TextData(found.name + (", chat template" if chat_template else ""), documents, provenance, found.notes)


def from_texts(texts: Sequence[str]) -> TextData:
    """Texts that are at hand, as `load` gives those of a source. Raises: UserError where there is none, or no text."""
    if not all(isinstance(text, str) for text in texts) or not any(texts):
        raise UserError("expected a list of texts (str), one of them not empty at least")
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    provenance = {"source": "texts in memory", "split": "train", "documents": len(texts), "sha256": digest}
    return TextData("texts in memory", list(texts), provenance)


def _as_texts(found: PairData, tokenizer: Any) -> Records:
    """Each pair in one piece, ended as in training where the tokenizer is known and has a token for it."""
    end = getattr(tokenizer, "eos_token", None) or ""
    whole = [pair.context + pair.completion + end for pair in found.pairs]
    return Records(found.name, whole, found.provenance, found.notes)
