from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import byte_tokenizer
from tiny_models import tiny_model

from lmprune.data import pairs
from lmprune.data.records import Pair, PairData
from lmprune.data.sql import Query
from lmprune.data.wikisql import Question, SqlTable
from lmprune.errors import UserError
from lmprune.evaluation import tasks
from lmprune.evaluation.decoding import DECODINGS
from lmprune.evaluation.predictions import PREDICTIONS

GREEDY = DECODINGS["greedy"]


@pytest.fixture(scope="module")
def model() -> Any:
    found = tiny_model("llama-untied", vocab_size=257, max_position_embeddings=256)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(4)
    return found


class Scripted:
    """A model that writes what the test says after each context, by the context's last bytes."""

    def __init__(self, script: dict[str, str]):
        self.script, self.calls, self.fails_at, self.generation_config = script, 0, -1, None
        self.config = tiny_model("llama").config
        self.config.max_position_embeddings = 200
        self.device, self.dtype, self.training = torch.device("cpu"), torch.float32, False

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(257, 1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def generate(self, ids: torch.Tensor, **_: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        tokenizer = byte_tokenizer()
        rows = []
        for row in ids.tolist():
            context = tokenizer.decode(row, skip_special_tokens=True)
            (text,) = [written for end, written in self.script.items() if context.endswith(end)]
            rows.append([*tokenizer(text).input_ids, 256])
        length = max(map(len, rows))
        return torch.tensor(
            [[*row, *new, *[256] * (length - len(new))] for row, new in zip(ids.tolist(), rows, strict=True)]
        )


def data_of(*found: Pair) -> PairData:
    return PairData("a test's pairs", list(found), {"sha256": "1"})


def run(model: Any, data: PairData, task: tasks.Task, **rest: Any) -> tasks.TaskResult:
    return tasks.evaluate(model, byte_tokenizer(), data, GREEDY, task=task, max_new_tokens=100, **rest)


def without_first_choices(task: tasks.Task) -> tasks.Task:
    """For a scripted model, which has no forward pass."""
    return tasks.Task(task.max_new_tokens, task.score, merged=task.merged)


def test_wikisql_end_to_end():
    table = SqlTable(("Player", "No."))
    questions = [Question(f"Who is {i}?", table, Query(0, 0, ((1, 0, str(i)),))) for i in range(4)]
    found = [question.pair() for question in questions]
    right = [pair.completion for pair in found]
    script = dict(zip([pair.context for pair in found], right, strict=True))
    script[found[1].context] = right[1].replace("'1'", "'7'")
    script[found[2].context] = "SELECT"
    result = run(Scripted(script), data_of(*found), without_first_choices(tasks.TASKS["wikisql"]), batch_size=3)
    assert result.metrics["exact_match"].value == result.metrics["logical_form"].value == 0.5
    assert "execution" not in result.metrics
    assert (result.items, result.decoded, result.unfinished, result.contexts_cut) == (4, 4, 0, 0)
    record = result.to_dict()
    assert record["exact_match_ci"][0] <= 0.5 <= record["exact_match_ci"][1] and record["sequences_per_second"] > 0


def test_references_of_e2e_are_merged_and_the_limit_counts_items():
    found = [Pair("a\nText:", " one two three four"), Pair("b\nText:", " x"), Pair("a\nText:", " five six seven eight")]
    model = Scripted({"a\nText:": "five six seven eight", "b\nText:": "nothing of the kind at all"})
    result = run(model, data_of(*found), tasks.TASKS["e2e"], limit=1)
    assert result.items == 1 and result.metrics["bleu"].value == pytest.approx(100)
    assert run(model, data_of(*found), tasks.TASKS["e2e"]).metrics["bleu"].value < 60


def test_samsum_and_ones_own():
    found = [Pair("a\nSummary:", " Ann left."), Pair("b\nSummary:", " Bob stayed.")]
    model = Scripted({"a\nSummary:": " Ann left. ", "b\nSummary:": "Bob was there."})
    assert run(model, data_of(*found), tasks.TASKS["samsum"]).metrics["rouge1"].value == pytest.approx(70)
    own = run(model, data_of(*found), without_first_choices(tasks.task_of("mine.jsonl")))
    assert own.metrics["exact_match"].value == 0.5 and own.metrics["rouge1"].value == pytest.approx(70)
    assert tasks.task_of("wikisql:types") is tasks.TASKS["wikisql"]


def test_first_choices_are_told_where_there_is_one_answer(model):
    found = data_of(Pair("abc", " d"), Pair("xyz", " w"))
    assert run(model, found, tasks.OWN).metrics["first_choices"].value == 0
    assert "first_choices" not in run(model, found, tasks.TASKS["samsum"]).metrics


def test_an_evaluation_that_was_stopped_goes_on(tmp_path):
    found = data_of(*(Pair(f"context {i}:", f" {i}") for i in range(7)))
    script = {f"context {i}:": str(i if i % 2 else 9) for i in range(7)}
    whole = run(
        Scripted(script), found, task := without_first_choices(tasks.OWN), batch_size=2, folder=tmp_path / "whole"
    )
    model = Scripted(script)
    model.fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(model, found, task, batch_size=2, folder=tmp_path / "part")
    assert len((tmp_path / "part" / PREDICTIONS).read_text().splitlines()) == 4
    model.calls, model.fails_at = 0, -1
    resumed = run(model, found, task, batch_size=2, folder=tmp_path / "part")
    assert (model.calls, resumed.decoded) == (2, 3)
    assert resumed.metrics == whole.metrics and resumed.items == whole.items
    lines = [set((tmp_path / name / PREDICTIONS).read_text().splitlines()) for name in ("whole", "part")]
    assert lines[0] == lines[1] and len(lines[0]) == 7
    assert run(model, found, task, folder=tmp_path / "part").decoded == 0 and model.calls == 2
    assert run(model, found, task, folder=tmp_path / "part", limit=3).items == 3 and model.calls == 2
    with pytest.raises(UserError, match="another evaluation"):
        tasks.evaluate(
            model, byte_tokenizer(), found, DECODINGS["beam"], task=task, max_new_tokens=100, folder=tmp_path / "part"
        )


def test_long_contexts_lose_their_beginning():
    model = Scripted({"end:": "right"})
    found = data_of(Pair("x" * 300 + "end:", " right"), Pair("end:", " right"))
    result = run(model, found, without_first_choices(tasks.OWN))
    assert result.contexts_cut == 1 and result.metrics["exact_match"].value == 1
    with pytest.raises(UserError, match="200 new tokens leave no room for a context in the model's 200 positions"):
        tasks.evaluate(model, byte_tokenizer(), found, GREEDY, task=tasks.OWN, max_new_tokens=200)


def test_outputs_that_never_end_are_counted(model):
    """A random model goes on and on."""
    result = tasks.evaluate(
        model, byte_tokenizer(), data_of(Pair("abc", " d")), GREEDY, task=tasks.OWN, max_new_tokens=5
    )
    assert result.unfinished == 1 and result.items == 1


def test_progress_is_told(model):
    told: list[tuple[str, int, int]] = []
    found = data_of(*(Pair(f"c{i}", " d") for i in range(5)))
    stages = lambda name: lambda done, total: told.append((name, done, total))  # noqa: E731
    tasks.evaluate(
        model, byte_tokenizer(), found, GREEDY, task=tasks.OWN, max_new_tokens=2, batch_size=2, stages=stages
    )
    assert told[:3] == [("decoding", 2, 5), ("decoding", 4, 5), ("decoding", 5, 5)] and told[-1] == (
        "first choices",
        5,
        5,
    )


@pytest.mark.conformance
@pytest.mark.slow
def test_a_real_model_that_learns_a_few_by_heart(shared: Path):
    """From nothing right to all right: template, examples, decoding and metrics fit together on real data."""
    import lmprune

    folder = shared / "models" / "gpt2-mini"
    model, tokenizer = lmprune.load(folder), lmprune.load_tokenizer(folder)
    found = pairs.load("wikisql", data_dir=shared / "data" / "wikisql")
    few = PairData("a few questions", found.pairs[::2000][:4], {})
    task = tasks.TASKS["wikisql"]

    def scores() -> dict[str, float]:
        result = tasks.evaluate(model, tokenizer, few, GREEDY, task=task, max_new_tokens=100, batch_size=4)
        return {name: found.value for name, found in result.metrics.items()}

    assert set(scores().values()) == {0}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = [{k: torch.tensor([v]) for k, v in e.items()} for e in pairs.examples(few.pairs, tokenizer, max_len=512)]
    for _ in range(40):
        for row in rows:
            model(**row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert scores() == {"exact_match": 1, "logical_form": 1, "first_choices": 1}
