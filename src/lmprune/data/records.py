"""What a source hands over, and how its records become text: as they are, or through a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError, shown
from ..foreign import reading

#: what a chat template may take for one conversation: seconds, megabytes, and characters beside what was said
_SECONDS, _MEGABYTES, _BEYOND = 5, 512, 2**20

#: A text, or a conversation: a list of {"role": …, "content": …}.
Record = str | list[dict[str, str]]


@dataclass(frozen=True)
class Records:
    """name: what was read, for people. provenance: where it came from, for machines. notes: what was left out."""

    name: str
    records: Sequence[Record]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def pick(row: Mapping[str, Any], field: str | None, *, chat_template: bool, where: str) -> Record:
    """The text (or the conversation) of one row.

    field: the column to read, `a.b` for b in the object a; None = `messages` where there is one and a chat template is
    wanted, else `text`.
    where: the row's place, for the error. Raises: UserError where the column is missing or holds something else.
    """
    if field is None:
        field = "messages" if chat_template and "messages" in row else "text"
    value = _at(row, field)
    if value is None:
        cure = "; pass --chat-template to render its messages" if "messages" in row and field == "text" else ""
        raise UserError(f"{where}: no column {shown(field)}; it has: {names(row)}{cure}")
    if isinstance(value, str) or (chat_template and _is_conversation(value)):
        return value
    expected = "a text, or a list of messages with role and content" if chat_template else "a text"
    raise UserError(f"{where}: column {shown(field)} holds {type(value).__name__}, expected {expected}")


def _at(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or of one in an object in it (`a.b`); None where there is none."""
    if field in row:
        return row[field]
    head, _, rest = field.partition(".")
    inner = row.get(head)
    return _at(inner, rest) if rest and isinstance(inner, Mapping) else None


def _is_conversation(value: Any) -> bool:
    """Of texts: a content of parts, as models that see have them, is none that lmprune reads."""
    return isinstance(value, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )


def render(records: Sequence[Record], tokenizer: Any, *, ask: bool = False) -> list[str]:
    """Each record as the model's chat template writes it; a plain text becomes one user message.

    ask: up to where the model's answer begins.
    Raises: UserError where the tokenizer has no template, or the template refuses a conversation.
    """
    check_template(tokenizer)
    return [_render(record, tokenizer, number, ask) for number, record in enumerate(records, 1)]


def check_template(tokenizer: Any) -> None:
    """Raises: UserError where it has no chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError("--chat-template needs a tokenizer with a chat template; this model's has none")


def _render(record: Record, tokenizer: Any, number: int, ask: bool) -> str:
    messages = [{"role": "user", "content": record}] if isinstance(record, str) else record
    return rendered(tokenizer, messages, f"record {number}", ask=ask)


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], what: str, *, ask: bool) -> str:
    """What the tokenizer's template makes of a conversation: a program of the model's maker, which has to end, and to
    make do with the memory that it is given. Raises: UserError where it refuses, or does not."""
    with reading(f"the model's chat template can't render {what}", seconds=_SECONDS, megabytes=_MEGABYTES):
        text = tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=ask)
        said = sum(len(message["content"]) for message in messages)
        if len(text) > _BEYOND + 10 * said:
            raise UserError(f"the model's chat template makes {len(text):,} characters of {said:,}")
        return text


def names(row: Mapping[str, Any]) -> str:
    """The fields of a row, as a message names them."""
    told = ", ".join(map(str, row))
    return told if len(told) <= 150 else f"{told[:150]}…"


@dataclass(frozen=True)
class Pair:
    """What a model reads, and what it should write after it.

    completion: never empty. A token that begins it may need the space before it, which is then a part of it.
    record: what the source's metric needs beyond the text (for WikiSQL, a `wikisql.Question`).
    """

    context: str
    completion: str
    record: Any = None


@dataclass(frozen=True)
class PairData:
    """name, provenance: as `Records`. notes: what was left out, a sentence each."""

    name: str
    pairs: Sequence[Pair]
    provenance: Mapping[str, str | int | float]
    notes: tuple[str, ...] = ()
