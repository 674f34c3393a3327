"""Whether a tokenizer is the one that its tokenizer.json describes: transformers builds many classes anew, from the
vocabulary alone, and some from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import shown
from ..foreign import json_of, misfit, reading, text_of

FILE, VOCABULARY = "tokenizer.json", "vocab.json"
#: no vocabulary numbers a token beyond: libraries make a list of that length
_MOST = 2**24
#: what pipelines differ in: the beginning of a text, runs of spaces, digits, ends of lines
_TEXTS = ("the cat", " the cat", "  the  cat's 12 \n\n x", "A 3456\tb")


def check_numbers(vocabulary: Path) -> None:
    """Raises: UserError for a vocabulary that is none, or has a number that would take memory without end."""
    with reading(f"can't load the tokenizer: {vocabulary}"):
        found = json_of(text_of(vocabulary))
        if wrong := misfit(found, {str: int}):
            raise ValueError(f"it numbers {shown(wrong)} as no token is")
        for name, at in found.items():
            if at is None or not 0 <= at < _MOST:
                raise ValueError(f"it numbers {shown(name)} as no token is")


def is_empty(tokenizer: Any) -> bool:
    """Whether it has special tokens alone, and none that a text could become. Raises: what it raises at a text."""
    if {*tokenizer("a")["input_ids"]} - {*tokenizer.all_special_ids}:
        return False
    special = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.get_vocab().values()} <= special | {*tokenizer.all_special_ids}


def read_otherwise(tokenizer: Any, file: Path) -> str | None:
    """A sentence with a text of which the tokenizer makes other tokens than the file says; None where there is none."""
    if not file.is_file() or getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    written = Tokenizer.from_file(str(file))
    written.no_truncation()  # what a file says of these is for batches, and not of a text
    written.no_padding()
    special = tokenizer.all_special_tokens[:1]
    for text in (*_TEXTS, *(f"the{token}cat" for token in special)):
        ours, theirs = tokenizer(text)["input_ids"], written.encode(text).ids
        if ours != theirs:
            found, said = (tokenizer.convert_ids_to_tokens(ids) for ids in (ours, theirs))
            return (
                f"transformers does not read {file} as it is written, but as its own {type(tokenizer).__name__}: "
                f"{text!r} becomes {found}, and not {said}; that is how it is measured and saved"
            )
    return None
