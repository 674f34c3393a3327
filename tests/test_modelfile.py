"""Ollama's Modelfile: the chat template in Go's words says what the model's own says, or is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_gguf import bpe, model_of
from tiny_checkpoints import lmprune

from lmprune.checkpoints import checkpoint, models
from lmprune.export.modelfile import go_template, modelfile

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|h|>{{ m.role }}</h>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant</h>\n\n{% endif %}"
)
GEMMA = (
    "<s>{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
#: the answer's number stands in the prompt: no text around the parts says that
COUNTING = "{% for m in messages %}{{ loop.index }}{{ m.role }}:{{ m.content }};{% endfor %}{{ messages | length }}>"


def go(text: str, system: str | None, prompt: str, response: str) -> str:
    """What Go's template engine makes of it, as far as such a template goes."""
    for name, value in (("System", system), ("Prompt", prompt)):
        head, _, rest = text.partition(f"{{{{ if .{name} }}}}")
        inner, _, tail = rest.partition("{{ end }}")
        if rest:
            text = head + (inner.replace(f"{{{{ .{name} }}}}", value) if value else "") + tail
    return text.replace("{{ .Response }}", response)


@pytest.mark.parametrize(
    ("template", "system"), [(CHATML, "Be good."), (LLAMA3, None)], ids=["a system message of its own", "none"]
)
def test_a_turn_reads_as_the_model_s_own_template_writes_it(template: str, system: str | None):
    tokenizer = bpe(chat_template=template)
    found = go_template(tokenizer)
    assert found is not None and found.system == system
    turn = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    own = tokenizer.apply_chat_template(turn, tokenize=False)
    assert go(found.spelt(), system, "Why?", "So.") == own
    told = [{"role": "system", "content": "Be short."}, *turn]
    assert go(found.spelt(), "Be short.", "Why?", "So.") == tokenizer.apply_chat_template(told, tokenize=False)


def test_a_template_without_a_system_role():
    found = go_template(bpe(chat_template=GEMMA.removeprefix("<s>")))
    assert found is not None and ".System" not in found.spelt()
    assert go(found.spelt(), None, "Why?", "So.") == "<turn>user\nWhy?<end>\n<turn>model\nSo.<end>\n"


def test_what_can_t_be_said_in_go_is_left_out_and_told():
    assert go_template(bpe(chat_template=COUNTING)) is None
    text, notes = modelfile("./m.gguf", bpe(chat_template=COUNTING), 256)
    assert "TEMPLATE" not in text and "no TEMPLATE" in notes[0]
    text, notes = modelfile("./m.gguf", bpe(), None)
    assert text == 'FROM ./m.gguf\nTEMPLATE "{{ .Prompt }}"\n' and not notes


@pytest.mark.parametrize(("mark", "stays"), [("{{", False), ("{", False), ('"""', False), ("}}", True), ('"', True)])
def test_what_go_or_a_modelfile_would_read_otherwise(mark: str, stays: bool):
    """An action of Go's, also one that begins with the brace before ours; the end of a text."""
    tokenizer = bpe(chat_template=LLAMA3.replace("</h>\n\n", f"{{{{ '{mark}' }}}}"))
    text, notes = modelfile("./m.gguf", tokenizer, 256)
    assert ("TEMPLATE" in text) == stays and bool(notes) != stays
    assert not stays or go(go_template(tokenizer).spelt(), None, "Why?", "So.").startswith(f"<|h|>user{mark}Why?")


def test_it_is_written_beside_the_file(tmp_path: Path):
    folder = checkpoint.save(model_of("llama"), tmp_path / "m", tokenizer=bpe(chat_template=CHATML))
    (tmp_path / "ollama").mkdir()
    place, out = tmp_path / "ollama" / "Modelfile", tmp_path / "m.gguf"
    args: list[Any] = ["export", folder, "--to", "gguf", "--out", out, "--modelfile", place, "--no-verify"]
    record = lmprune(*args, "--json").record
    lines = place.read_text().splitlines()
    assert record["modelfile"] == str(place) and lines[0] == "FROM ./../m.gguf"
    assert (place.parent / lines[0].removeprefix("FROM ")).resolve() == out
    assert 'PARAMETER stop "<s>"' in lines and "PARAMETER num_ctx 256" in lines
    tokenizer = bpe(chat_template=CHATML)
    tokenizer.eos_token = "<｜end▁of▁sentence｜>"
    assert 'PARAMETER stop "<｜end▁of▁sentence｜>"\n' in modelfile("./m.gguf", tokenizer, 256)[0]
    again = lmprune(*args)
    assert again.code == 2 and "exists" in again.err


def test_its_context_is_the_file_s(tmp_path: Path):
    """llama.cpp does not know a Mistral's window: the file ends where it would begin to slide."""
    model = model_of("mistral", sliding_window=32)
    folder = checkpoint.save(model, tmp_path / "m", tokenizer=bpe(chat_template=CHATML))
    place, out = tmp_path / "Modelfile", tmp_path / "m.gguf"
    assert lmprune("export", folder, "--to", "gguf", "--out", out, "--modelfile", place, "--no-verify").code == 0
    assert "PARAMETER num_ctx 32" in place.read_text().splitlines()


def test_it_is_another_file_than_the_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("too late"))
    monkeypatch.chdir(tmp_path)
    told = lmprune("export", model, "--to", "gguf", "--out", "m.gguf", "--modelfile", tmp_path / "m.gguf")
    assert told.code == 2 and "m.gguf is --out, too; choose another --modelfile" in told.err
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("to", "place", "says"), [("onnx", "Modelfile", "drop --modelfile"), ("gguf", "no/such/Modelfile", "no folder for")]
)
def test_where_it_can_t_be(to: str, place: str, says: str, model: Path, tmp_path: Path):
    out = tmp_path / ("m.gguf" if to == "gguf" else "m")
    told = lmprune("export", model, "--to", to, "--out", out, "--modelfile", tmp_path / place)
    assert told.code == 2 and says in told.err and not out.exists()
