"""Answers before and after: what is asked, what the shares mean, and who hears of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import byte_tokenizer, lmprune, tiny_checkpoint
from tiny_models import tiny_model

from lmprune.checkpoints import models
from lmprune.data import prompts
from lmprune.errors import UserError
from lmprune.evaluation.answers import REPETITIVE, answer, ends_of, repetition, same_choices
from lmprune.evaluation.decoding import Output
from lmprune.report.answers import block, summary

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="module")
def pruned(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record, and the folder."""
    out = tmp_path_factory.mktemp("pruned") / "half"
    args = ["--keep", 0.34, "--method", "magnitude", "--multiple-of", 1, "--data", text, "--answer-tokens", 6]
    return lmprune("prune", model, "--out", out, *args, "--json").record, out


def _chat_model(folder: Path, template: str = TEMPLATE) -> Path:
    tiny_checkpoint(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_answers_are_each_model_s_own_first_choices(pruned: Any, model: Path):
    """By a loop of forward passes, without a cache, padding or transformers' generate."""
    record, out = pruned
    tokenizer = models.load_tokenizer(model)
    for side, folder in (("before", model), ("after", out)):
        loaded = models.load(folder)
        for item in record["answers"]["items"]:
            ids = list(tokenizer(item["prompt"]).input_ids)
            start = len(ids)
            for _ in range(6):
                with torch.no_grad():
                    ids.append(int(loaded(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
            assert item[side] == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_agreement_is_of_the_dense_model_s_tokens_under_the_pruned_one(pruned: Any, model: Path):
    record, out = pruned
    tokenizer, dense, after = models.load_tokenizer(model), models.load(model), models.load(out)
    same, total = 0, 0
    for text in prompts.BEGINNINGS:
        ids = list(tokenizer(text).input_ids)
        for _ in range(6):
            with torch.no_grad():
                first, other = (int(m(torch.tensor([ids])).logits[0, -1].argmax()) for m in (dense, after))
            same, total = same + (first == other), total + 1
            ids.append(first)
            if first == tokenizer.eos_token_id:
                break
    found = record["answers"]
    assert found["tokens"] == total and found["agreement"] == pytest.approx(same / total)
    assert 0 < found["agreement"] < 1, "or the test could not tell"
    assert found["items"][0].keys() == {"prompt", "before", "after", "agreement", "repetition"}


def test_a_model_agrees_with_itself():
    model, tokenizer = tiny_model("llama", vocab_size=257).eval(), byte_tokenizer()
    read = prompts.encoded(tokenizer, ["one", "a longer one"])
    said = answer(model, tokenizer, read, max_new_tokens=12)
    assert same_choices(model, read, said) == [len(each.ids) for each in said]
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    assert same_choices(model, read, said) != [len(each.ids) for each in said]


def test_repetition_counts_runs_that_were_there_before():
    text = [1, 2, 3, 4, 1, 2, 3, 4, 5]
    runs = [tuple(text[i : i + 4]) for i in range(6)]
    again = sum(run in runs[:i] for i, run in enumerate(runs))
    assert repetition(text) == pytest.approx(again / len(runs)) == 1 / 6
    assert repetition([]) == repetition([7, 7, 7]) == 0
    loop, listed = [5, 6, 7] * 12, [*range(40), 1, 2, 3, 4, 5, 6]
    assert repetition(loop) > REPETITIVE > repetition(listed)


def test_loops_are_said():
    item = {"prompt": "p", "before": "b", "after": "a way of a way of", "agreement": 0.5, "repetition": {}}
    found = {"items": [item], "tokens": 8, "agreement": 0.5, "repetitive": {"before": 0, "after": 1}}
    assert summary(found)[0].startswith("50% of the 8 tokens") and "1 after repeat themselves" in summary(found)[1]
    assert summary(found | {"repetitive": {"before": 0, "after": 0}})[1] == "No answer repeats itself."
    fenced = block({"items": [item | {"after": "```python\nx\n```"}]})
    assert fenced.startswith("````text\n") and fenced.endswith("\n````") and "  after:  ```python x ```" in fenced


def test_a_chat_model_is_asked_by_its_template(tmp_path: Path, text: Path):
    dense = _chat_model(tmp_path / "chat")
    tokenizer = models.load_tokenizer(dense)
    (ids,) = prompts.encoded(tokenizer, ["Hi"])
    assert tokenizer.decode(ids) == "<user>Hi<bot>"
    args = ["--method", "magnitude", "--data", text, "--multiple-of", 1, "--answer-tokens", 2]
    record = lmprune("prune", dense, "--out", tmp_path / "out", *args, "--json").record
    assert record["answers"]["chat_template"] and record["answers"]["prompts"] == "built in"
    assert [item["prompt"] for item in record["answers"]["items"]] == [*prompts.QUESTIONS]


def test_everything_that_ends_an_answer_ends_it():
    model, tokenizer = tiny_model("llama", vocab_size=257), byte_tokenizer()
    model.config.eos_token_id = model.generation_config.eos_token_id = [256, 7]
    assert ends_of(model, tokenizer) == [7, 256]
    read = prompts.encoded(tokenizer, ["abc"])
    first = answer(model, tokenizer, read, max_new_tokens=1)[0].ids[0]
    model.generation_config.eos_token_id = first
    (said,) = answer(model, tokenizer, read, max_new_tokens=8)
    assert said == Output("", True, (first,))


def test_own_prompts(model: Path, text: Path, tmp_path: Path):
    lines, rows = tmp_path / "mine.txt", tmp_path / "mine.jsonl"
    lines.write_text("The cat\n\nOn day 3\n")
    rows.write_text(json.dumps({"prompt": "The cat\nsaw"}) + "\n" + json.dumps({"prompt": "On day 3"}))
    args = ["--data", text, "--context", 64, "--max-tokens", 512, "--baseline", model, "--answer-tokens", 3]
    found = lmprune("eval", model, *args, "--prompts", lines, "--json").record["answers"]
    assert [item["prompt"] for item in found["items"]] == ["The cat", "On day 3"]
    assert found["prompts"] == str(lines) and found["agreement"] == 1.0
    assert all(item["before"] == item["after"] for item in found["items"])
    assert prompts.load(rows).texts == ("The cat\nsaw", "On day 3")
    shown = lmprune("eval", model, *args, "--prompts", lines)
    assert "On day 3" in shown.out and "100% of the" in shown.out


def test_they_can_be_left_out(model: Path, text: Path, tmp_path: Path):
    args = ["--method", "magnitude", "--data", text, "--multiple-of", 1]
    record = lmprune("prune", model, "--out", tmp_path / "o", *args, "--answer-tokens", 0, "--json").record
    assert record["answers"] is None
    assert "What it answers" not in (tmp_path / "o" / "README.md").read_text()
    evaluated = lmprune("eval", model, "--data", text, "--context", 64, "--max-tokens", 512, "--json").record
    assert "answers" not in evaluated


def test_the_card_shows_them(pruned: Any):
    record, out = pruned
    card = (out / "README.md").read_text()
    assert block(record["answers"]) in card and " ".join(summary(record["answers"])) in card


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "p.txt", "is empty"),
        (b"\n \n", "p.txt", "is empty"),
        (b"\xff\xfe\x00", "p.txt", "not UTF-8"),
        (None, "p.txt", "no such file"),
        (b"x", "p.csv", "no file of prompts"),
        (b'{"text": "a"}', "p.jsonl", "no column 'prompt'"),
        (b'{"prompt": ""}', "p.jsonl", "no prompt in"),
        (b"a" * 300, "p.txt", "has 300 tokens, and beside 48"),
    ],
)
def test_prompts_that_can_t_be_asked(
    content: bytes | None, name: str, says: str, model: Path, text: Path, tmp_path: Path
):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    args = ["--method", "magnitude", "--data", text, "--out", tmp_path / "out"]
    told = lmprune("prune", model, *args, "--prompts", file)
    assert told.code == 2 and says in told.err and len(told.err.strip().splitlines()[-1]) < 300
    assert not (tmp_path / "out").exists()


def test_prompts_that_nothing_answers(model: Path, text: Path, tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_text("The cat")
    with pytest.raises(UserError, match="no file of prompts"):
        prompts.load(tmp_path / "p.pdf")
    told = lmprune("eval", model, "--data", text, "--prompts", file)
    assert told.code == 2 and "name a --baseline" in told.err
    told = lmprune("prune", model, "--out", tmp_path / "o", "--data", text, "--prompts", file, "--answer-tokens", 0)
    assert told.code == 2 and "wants none" in told.err


def test_a_model_without_room_for_built_in_prompts_says_so(text: Path, tmp_path: Path):
    short = tiny_checkpoint(tmp_path / "short", max_position_embeddings=40)
    args = ["--method", "magnitude", "--data", text, "--seq-len", 32, "--multiple-of", 1]
    told = lmprune("prune", short, "--out", tmp_path / "o", *args)
    assert told.code == 0 and "no answers: the model has no room" in told.err


def test_a_model_that_can_t_write_is_pruned_all_the_same(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before or after: what was worked for is written, and it is said why there are no answers."""
    from lmprune.jobs import answers as job

    args = ["--method", "magnitude", "--data", text, "--multiple-of", 1, "--answer-tokens", 2]
    for name, written in (("same_choices", "after"), ("answer", "before")):

        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no cache\nof this kind")

        monkeypatch.setattr(job, name, broken)
        told = lmprune("prune", model, "--out", tmp_path / written, *args)
        assert told.code == 0 and "no answers: the model can't write them here (RuntimeError: no cache)" in told.err
        assert (tmp_path / written / "model.safetensors").is_file()


def test_a_template_that_takes_no_question_is_no_reason_not_to_prune(tmp_path: Path, text: Path):
    dense = _chat_model(tmp_path / "chat", "{{ raise_exception('only tools') }}")
    args = ["--method", "magnitude", "--data", text, "--multiple-of", 1]
    told = lmprune("prune", dense, "--out", tmp_path / "out", *args)
    assert told.code == 0 and "no answers: the model's chat template can't render" in told.err
    (tmp_path / "p.txt").write_text("Hi")
    told = lmprune("prune", dense, "--out", tmp_path / "own", *args, "--prompts", tmp_path / "p.txt")
    assert told.code == 2 and not (tmp_path / "own").exists()
