"""An Ollama Modelfile beside a GGUF file: what Ollama has to be told that the file's header does not tell it.

Ollama knows chat templates in Go's language only, and guesses one for a file that it has not seen. So the model's own
(Jinja) is asked what it puts around each part of a conversation, and that is written down in Go's language, if a whole
conversation then comes out the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.beginning import Beginning
from ..data.records import rendered
from ..errors import UserError

_QUOTES = '"""'
_S, _U, _A, _V = "@system@", "@user@", "@answer@", "@again@"  # what no template writes itself
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class GoTemplate:
    """What stands before and after each part; around a system message None where the template takes none.

    system: what the model is told unless the user says otherwise.
    """

    before_system: str | None
    after_system: str | None
    before_user: str
    after_user: str
    after_answer: str
    system: str | None

    def render(self, messages: Messages) -> str:
        """As Ollama would, up to where the next answer begins."""
        system = next((m["content"] for m in messages if m["role"] == "system"), self.system)
        text = "" if system is None else f"{self.before_system}{system}{self.after_system}"
        for message in messages:
            if message["role"] == "user":
                text += self.before_user + message["content"] + self.after_user
            elif message["role"] == "assistant":
                text += message["content"] + self.after_answer
        return text

    @property
    def can_be_spelt(self) -> bool:
        """Whether Go takes no text for an action of its own, and a Modelfile's quotes end where they should."""
        parts = (self.before_system, self.after_system, self.before_user, self.after_user, self.after_answer)
        plain = all(f"{part}{{{{".index("{{") == len(part) for part in parts if part)
        return plain and _QUOTES not in self.spelt() and _QUOTES not in (self.system or "")

    def spelt(self) -> str:
        system = f"{{{{ if .System }}}}{self.before_system}{{{{ .System }}}}{self.after_system}{{{{ end }}}}"
        return ("" if self.before_system is None else system) + (
            f"{{{{ if .Prompt }}}}{self.before_user}{{{{ .Prompt }}}}{self.after_user}{{{{ end }}}}"
            f"{{{{ .Response }}}}{self.after_answer}"
        )


def modelfile(gguf: str, tokenizer: Any, context: int | None) -> tuple[str, list[str]]:
    """Its text, and what there is to say of it. gguf: the file, from where the Modelfile lies."""
    lines, notes = [f"FROM {gguf}"], []
    if context:
        lines += [f"PARAMETER num_ctx {context}"]
    template = go_template(tokenizer)
    if template is not None:
        if tokenizer.eos_token:
            lines += [f'PARAMETER stop "{tokenizer.eos_token}"']  # Ollama knows no escapes
        lines += [f"TEMPLATE {_quoted(template.spelt())}"]
        lines += [f"SYSTEM {_quoted(template.system)}"] if template.system else []
    elif getattr(tokenizer, "chat_template", None):
        notes += ["the Modelfile has no TEMPLATE: this model's says more than Go's language can be made to here"]
    else:
        lines += ['TEMPLATE "{{ .Prompt }}"']  # it goes on with a text, as it was trained to
    return "\n".join(lines) + "\n", notes


def go_template(tokenizer: Any) -> GoTemplate | None:
    """The tokenizer's chat template; None where it has none, one that a conversation comes out of otherwise, or one
    whose texts mean something else in Go's language or in a Modelfile."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    try:
        found = _found(tokenizer)
        talks = _TALKS if found.before_system is not None else _TALKS[:-1]
        same = all(found.render(talk) == _render(tokenizer, talk) for talk in talks)
    except Exception:  # whatever a template raises: it refuses a role, or wants what is not there
        return None
    return found if same and found.can_be_spelt else None


def _found(tokenizer: Any) -> GoTemplate:
    """By what stands around the parts of four short conversations. Raises: ValueError where a part is missing."""
    system, user, answer, second = (
        {"role": role, "content": content}
        for role, content in (("system", _S), ("user", _U), ("assistant", _A), ("user", _V))
    )
    before, after_user = _render(tokenizer, [user]).split(_U)
    _, after_answer = _render(tokenizer, [user, answer], ask=False).split(_A)
    between, _ = _render(tokenizer, [user, answer, second]).split(_A)[1].split(_V)
    before_user = between.removeprefix(after_answer)
    default = before.removesuffix(before_user)  # a system message that is there unless there is another
    try:
        told = _render(tokenizer, [system, user])
    except UserError:  # it takes no system message
        told = None
    if told is None:
        return GoTemplate(None, None, before, after_user, after_answer, None)
    before_system, rest = told.split(_S)
    after_system = rest.split(_U)[0].removesuffix(before_user)
    if default:
        if not (default.startswith(before_system) and default.endswith(after_system)):
            raise ValueError("it begins otherwise without a system message")
        default = default.removeprefix(before_system).removesuffix(after_system)
    return GoTemplate(before_system, after_system, before_user, after_user, after_answer, default or None)


def _say(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


#: conversations that have to come out the same
_TALKS: Sequence[Messages] = (
    _say("Hi"),
    _say("Hi", "Hello, \n1.", "Why?"),
    [{"role": "system", "content": "Be short."}, *_say("Hi", "Hello.", "Why?", "So.", "Yes?")],
)


def _render(tokenizer: Any, messages: Messages, *, ask: bool = True) -> str:
    """Without the token that begins every text, which llama.cpp puts there itself."""
    text = rendered(tokenizer, messages, "a conversation", ask=ask)
    return text.removeprefix(tokenizer.bos_token) if _begins_with_bos(tokenizer) else text


def _begins_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in Beginning.of(tokenizer).ids


def _quoted(text: str) -> str:
    return f"{_QUOTES}{text}{_QUOTES}"
