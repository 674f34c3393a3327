"""`lmprune serve` and `lmprune chat`, with stock llama.cpp: who answers, what is asked, what can't be served."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gguf import bpe, model_of
from tiny_checkpoints import documented, hear_ctrl_c, lmprune
from typer.testing import CliRunner

from lmprune.checkpoints import checkpoint, models
from lmprune.commands.cli import app
from lmprune.errors import UserError
from lmprune.evaluation.llama_server import LlamaServer, Serving, check_ready

pytest.importorskip("xllamacpp")

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("served") / "dense")


@pytest.fixture(scope="module")
def gguf(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(dense, tmp_path_factory.mktemp("gguf") / "plain.gguf")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatty")
    return exported(saved(folder / "model", chat_template=TEMPLATE), folder / "c.gguf")


def saved(folder: Path, name: str = "llama", **extra: Any) -> Path:
    torch.manual_seed(0)
    return checkpoint.save(
        model_of(name, **({"intermediate_size": 64} if name == "llama" else {})), folder, tokenizer=bpe(**extra)
    )


def exported(folder: Path, file: Path) -> Path:
    assert lmprune("export", folder, "--to", "gguf", "--dtype", "f32", "--out", file, "--no-verify").code == 0
    return file


def talk(lines: str, *args: object) -> Any:
    return CliRunner().invoke(app, ["chat", *map(str, args), "--threads", "1"], input=lines, catch_exceptions=False)


def test_an_answer_is_what_the_model_writes(gguf: Path, dense: Path):
    """Greedy, beside a loop over the model in transformers."""
    said = talk("On day 3\n", gguf, "--max-new-tokens", 8, "--json")
    record = json.loads(said.stdout)
    assert set(record) == documented("chat")
    (turn,) = record["turns"]
    tokenizer, model = models.load_tokenizer(dense), models.load(dense)
    ids = list(tokenizer("On day 3").input_ids)
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    (answer,) = turn["answers"]
    assert turn["prompt"] == "On day 3" and answer["model"] == "plain" and answer["tokens"] <= 8
    assert answer["text"] == tokenizer.decode(ids[len(tokenizer("On day 3").input_ids) :], skip_special_tokens=True)


def test_two_models_answer_behind_their_names(gguf: Path, chatty: Path):
    said = talk("Hello\n/new\nBye\n", gguf, "--baseline", chatty, "--max-new-tokens", 3)
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert sum(line.startswith("[c] ") for line in lines) == sum(line.startswith("[plain] ") for line in lines) == 2
    assert "no chat template in plain" in said.stderr
    record = json.loads(talk("Hello\n", gguf, "--baseline", chatty, "--max-new-tokens", 3, "--json").stdout)
    assert [each["model"] for each in record["turns"][0]["answers"]] == ["c", "plain"]


def test_a_conversation_goes_on_until_new(chatty: Path):
    with LlamaServer(Serving(str(chatty), "c", context=256)) as server:
        asked: list[list[Any]] = []

        class Recorded:
            serving = server.serving

            def chat(self, messages: Any, **how: Any) -> Any:
                asked.append([dict(each) for each in messages])
                return server.chat(messages, **how)

        from lmprune.jobs.serve import _Conversation

        one = _Conversation(Recorded(), True, 2, 0.0)  # type: ignore[arg-type]
        answers = [one.answer(question, lambda _: None, named=False)["text"] for question in ("a", "b")]
    assert asked[0] == [{"role": "user", "content": "a"}]
    assert [each["content"] for each in asked[1]] == ["a", answers[0], "b"]


@contextlib.contextmanager
def serving(*args: object) -> Iterator[dict[str, Any]]:
    """`lmprune serve --json` in a process of its own, until it is interrupted."""
    line = [sys.executable, "-m", "lmprune", "serve", *map(str, args), "--port", "0", "--threads", "1", "--json"]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=hear_ctrl_c
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_serve_speaks_openai_s_protocol_and_says_who_answers(chatty: Path):
    with serving(chatty) as record:
        assert set(record) == documented("serve") and record["name"] == "c" and record["chat_template"]
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
        request = urllib.request.Request(
            f"{record['address']}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)
        assert said["model"] == "c" and said["choices"][0]["message"]["role"] == "assistant"
        page = urllib.request.Request(record["address"], headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(page, timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/html")
    with pytest.raises(OSError):
        urllib.request.urlopen(record["address"], timeout=5)


@pytest.mark.slow
def test_a_checkpoint_is_exported_for_as_long_as_it_is_served(dense: Path):
    with serving(dense, "--dtype", "q8_0") as record:
        assert Path(record["file"]).is_file() and record["name"] == "dense" and not record["chat_template"]
    assert not Path(record["file"]).exists()


def test_a_port_in_use(gguf: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = lmprune("serve", gguf, "--port", taken.getsockname()[1])
    assert told.code == 2 and "address already in use" in told.err and "--port" in told.err
    assert len(told.err.strip().splitlines()) == 1


def test_a_model_that_llama_cpp_has_no_architecture_for(tmp_path: Path):
    other = saved(tmp_path / "opt", "opt")
    told = lmprune("serve", other, "--port", 0)
    assert told.code == 2 and "llama.cpp has no such architecture" in told.err.splitlines()[-1]


def test_a_file_that_llama_cpp_can_t_open(gguf: Path, tmp_path: Path):
    """In its own words, and one sentence of them."""
    broken = tmp_path / "broken.gguf"
    content = gguf.read_bytes().replace(b"llama.block_count", b"llama.block_cuont")
    broken.write_bytes(content)
    told = lmprune("chat", broken)
    assert told.code == 2 and "llama.cpp can't run broken: " in told.err and "block_count" in told.err
    assert len(told.err.strip().splitlines()) == 1
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"GGUF nonsense")
    told = lmprune("serve", empty, "--port", 0)
    assert told.code == 2 and "empty.gguf" in told.err


def test_without_xllamacpp(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmprune.evaluation.llama_server.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"lmprune\[serve\]"):
        check_ready()


def test_a_question_that_does_not_fit(chatty: Path):
    told = talk("x" * 300 + "\n", chatty, "--context", 64)
    assert told.exit_code == 2 and "c did not answer" in told.stderr and "context" in told.stderr


def test_more_context_than_the_model_has_is_refused(chatty: Path, gguf: Path):
    sentence = "c can have 256 tokens in a conversation, not 257; give a smaller --context"
    for arguments in (("chat", chatty), ("chat", chatty, "--baseline", gguf), ("serve", chatty, "--port", 0)):
        verb, *others = map(str, arguments)
        told = CliRunner().invoke(app, [verb, *others, "--threads", "1", "--context", "257"], catch_exceptions=False)
        assert told.exit_code == 2 and sentence.removeprefix("c ") in told.stderr
    record = json.loads(talk("hi\n", chatty, "--context", 256, "--max-new-tokens", 2, "--json").stdout)
    assert record["turns"]


def test_the_server_ends_with_whoever_started_it(gguf: Path):
    code = (
        "import sys, time; from lmprune.evaluation.llama_server import LlamaServer, Serving;"
        f"s = LlamaServer(Serving({str(gguf)!r}, 'x', context=64)); print(s._process.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    gone = threading.Event()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        gone.wait(0.1)
    else:
        pytest.fail("the server runs on")
