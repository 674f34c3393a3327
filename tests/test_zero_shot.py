"""Zero-shot tasks: lm-eval's own numbers, whichever way its items come; what is added to them; what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_bad_input import refused
from tiny_checkpoints import documented, lmprune, tiny_checkpoint

from lmprune.data import zero_shot as items
from lmprune.data.zero_shot import ZERO_SHOT
from lmprune.errors import UserError
from lmprune.evaluation import zero_shot
from lmprune.evaluation.zero_shot import Answers

_LABELS = ["A", "B", "C", "D"]
_WORDS = ["rain", "a stone", "the old sea", "sun", "two cats", "milk and bread", "snow", "iron"]


def _four(i: int) -> dict[str, Any]:
    return {"text": [_WORDS[(i + k) % 8] for k in range(4)], "label": _LABELS}


#: a row of each task as its local file has it, by number
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "arc_easy": lambda i: {"id": "x", "question": f"What falls {i}?", "choices": _four(i), "answerKey": _LABELS[i % 4]},
    "arc_challenge": lambda i: {"question": f"Which {i}?", "choices": _four(i + 1), "answerKey": _LABELS[-i % 4]},
    "hellaswag": lambda i: {
        "ctx_a": f"A man [title] sits {i}.", "ctx_b": "he", "activity_label": "Sitting", "label": str(i % 4),
        "endings": [f"eats {word}." for word in _four(i)["text"]],
    },
    "piqa": lambda i: {"goal": f"How to dry {i}?", "sol1": _WORDS[i % 8], "sol2": _WORDS[-i % 8], "label": i % 2},
    "winogrande": lambda i: {
        "sentence": f"Ann met Bo {i} times, and _ sang.", "option1": "Ann", "option2": "Bo", "answer": str(i % 2 + 1),
    },
    "boolq": lambda i: {"question": f"is {i} even", "passage": f"Numbers such as {i}.", "answer": i % 3 != 0},
    "openbookqa": lambda i: {"question_stem": f"Seen at {i}:", "choices": _four(i + 2), "answerKey": _LABELS[i % 4]},
    "sciq": lambda i: {
        "question": f"What is {i}?", "support": " Some say so.", "correct_answer": _WORDS[i % 8],
        **{f"distractor{k}": _WORDS[(i + k) % 8] for k in (1, 2, 3)},
    },
    "lambada": lambda i: {"context": f"He had {i} cats, and every one a", "continuation": "cat"},
}  # fmt: skip
COUNT = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("zeroshot")
    for name, row in ROWS.items():
        write(found, name, [row(i) for i in range(COUNT)])
    return found


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.conformance
@pytest.mark.slow
def test_the_numbers_are_those_of_a_direct_run_of_lm_eval(model: Path, folder: Path, tmp_path: Path) -> None:
    """The nine tasks as lm-eval's documentation says to run them on files, by its own command."""
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    as_on_the_hub = {
        "boolq": lambda row: row | {"label": int(row["answer"])},
        "lambada": lambda row: {"text": row["context"] + " " + row["continuation"]},
    }
    for name in ROWS:
        rows = [as_on_the_hub.get(name, dict)(ROWS[name](i)) for i in range(COUNT)]
        file = write(tmp_path, name, rows)
        (tmp_path / f"direct_{name}.yaml").write_text(
            f"include: {definitions / ZERO_SHOT[name].definition}\ntask: direct_{name}\ndataset_path: json\n"
            f"dataset_name: null\ndataset_kwargs: {{data_files: {{validation: {file}}}, cache_dir: {tmp_path}/c}}\n"
            "training_split: null\nvalidation_split: validation\ntest_split: null\n"
        )
    names = ",".join(f"direct_{name}" for name in ROWS)
    command = ["run", "--model", "hf", "--model_args", f"pretrained={model}", "--tasks", names, "--device", "cpu"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--batch_size", "1"]
    subprocess.run([sys.executable, "-m", "lm_eval", *command], check=True, capture_output=True)
    (written,) = (tmp_path / "out").rglob("results_*.json")
    direct = json.loads(written.read_text())["results"]

    record = lmprune("eval", model, "--tasks", ",".join(ROWS), "--data-dir", folder, "--json").record
    assert set(record["tasks"]) == set(ROWS)
    for name, row in record["tasks"].items():
        theirs = direct[f"direct_{name}"]
        assert row["accuracy"] == pytest.approx(theirs["acc,none"])
        assert row["se"] == pytest.approx(theirs["acc_stderr,none"])
        assert (row["accuracy_norm"] is None) == ("acc_norm,none" not in theirs)
        if row["accuracy_norm"] is not None:
            assert row["accuracy_norm"] == pytest.approx(theirs["acc_norm,none"])
        assert row["items"] == COUNT
    assert len({row["accuracy"] for row in record["tasks"].values()}) > 2  # not all at chance for nothing
    assert record["mean_accuracy"] == pytest.approx(fmean(direct[f"direct_{n}"]["acc,none"] for n in ROWS))


def test_a_record_of_tasks_with_a_baseline(model: Path, folder: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", initializer_range=0.5)
    asked = ("eval", model, "--tasks", "piqa,boolq", "--data-dir", folder, "--limit", 6)
    record = lmprune(*asked, "--baseline", other, "--json").record
    assert set(record) == documented("eval --tasks NAMES") and set(record["tasks"]) == {"piqa", "boolq"}
    alone = lmprune("eval", other, "--tasks", "piqa,boolq", "--data-dir", folder, "--limit", 6, "--json").record
    for name, row in record["tasks"].items():
        assert row["items"] == 6
        assert row["baseline_accuracy"] == alone["tasks"][name]["accuracy"]
        assert row["difference"] == pytest.approx(row["accuracy"] - row["baseline_accuracy"])
    assert record["mean_difference"] == pytest.approx(record["mean_accuracy"] - alone["mean_accuracy"])
    told = lmprune(*asked, "--baseline", other)
    assert "loglikelihood" not in told.err  # lm-eval's own bars
    shown = told.out
    assert "piqa" in shown and "chance" in shown and f"{record['tasks']['boolq']['accuracy']:.3f}" in shown


def test_means_errors_and_what_is_kept_above_chance() -> None:
    mine = {"a": Answers([1.0, 0, 1, 0], None, 0.25), "b": Answers([1.0, 1, 0, 1], [1.0, 0, 0, 0], 0.5)}
    dense = {"a": Answers([1.0, 1, 1, 0], None, 0.25), "b": Answers([1.0, 1, 1, 1], [1.0, 1, 1, 1], 0.5)}
    found = zero_shot.record(mine, dense)
    assert found["mean_accuracy"] == 0.625 and found["baseline_mean_accuracy"] == 0.875
    assert found["tasks"]["b"]["accuracy_norm"] == 0.25 and found["tasks"]["a"]["accuracy_norm"] is None
    assert found["tasks"]["a"]["difference"] == -0.25
    assert found["tasks"]["a"]["difference_se"] == pytest.approx(0.25)  # of (0, -1, 0, 0): sd .5, over √4
    assert found["tasks"]["a"]["se"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert found["mean_difference_se"] == pytest.approx(math.hypot(0.25, 0.25) / 2)
    assert found["kept_above_chance"] == pytest.approx((0.625 - 0.375) / (0.875 - 0.375))
    assert zero_shot.record({"a": Answers([1.0], None, 0.25)})["mean_accuracy_se"] is None


def test_the_floor_is_chance_or_the_majority() -> None:
    def sample(target: int, *answers: str) -> dict[str, Any]:
        return {"arguments": [("prompt", answer) for answer in answers], "target": target}

    assert zero_shot.floor([sample(0, "a", "b"), sample(1, "c", "d", "e", "f")]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    yes_no = [sample(target, " no", " yes") for target in (1, 1, 0)]
    assert zero_shot.floor(yes_no) == pytest.approx(2 / 3)
    assert zero_shot.floor(yes_no[:1]) == 0.5  # of one item, any answer would be the majority
    assert zero_shot.floor([{"arguments": [("text", " word")], "target": " word"}]) == 0


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_are_no_items_are_named(name: str, tmp_path: Path) -> None:
    good = ROWS[name](1)
    assert len(items.read(name, write(tmp_path, name, [good]).parent)) == 1
    for field in ZERO_SHOT[name].fields:
        write(tmp_path, name, [good, {key: value for key, value in good.items() if key != field}])
        with pytest.raises(UserError, match=f"line 2: no field '{field}'"):
            items.read(name, tmp_path)
        write(tmp_path, name, [good, good | {field: ["neither text nor number"]}])
        with pytest.raises(UserError, match=f"line 2: not an item of {name}; expected"):
            items.read(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("piqa", {"label": 2}),
        ("arc_easy", {"answerKey": "E"}),
        ("winogrande", {"sentence": "no gap"}),
        ("winogrande", {"answer": "3"}),
        ("hellaswag", {"label": "4"}),
        ("boolq", {"answer": "yes"}),
        ("lambada", {"continuation": "two words"}),
    ],
)
def test_answers_that_there_are_not(name: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, name, [ROWS[name](1) | wrong])
    with pytest.raises(UserError, match=f"line 1: not an item of {name}"):
        items.read(name, tmp_path)


def test_tasks_that_are_wrong_are_one_sentence(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*words: object) -> str:
        return refused("eval", model, *words)

    assert ask("--tasks", "piqa,mmlu", "--data-dir", folder).startswith(
        "unknown zero-shot task 'mmlu'; known: arc_easy"
    )
    assert ask("--tasks", "piqa,piqa", "--data-dir", folder) == "--tasks names piqa twice; name each task once"
    assert ask("--tasks", "piqa", "--data-dir", tmp_path).startswith(f"no piqa.jsonl in {tmp_path}, where")
    assert "say what to evaluate on, one of --data" in ask()
    assert "say what to evaluate on, one of --data" in ask("--tasks", "piqa", "--data", "x.txt")
    sentence = "drop --stride: it goes with texts, and this is --tasks"
    assert ask("--tasks", "piqa", "--data-dir", folder, "--stride", 4) == sentence
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert ask("--tasks", "piqa", "--data-dir", folder).endswith("is not installed; pip install 'lmprune[tasks]'")


def test_without_a_folder_the_hub_is_asked_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Api:
        def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
            raise OSError(f"no way to {name}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    sentence = refused("eval", model, "--tasks", "sciq")
    assert "can't reach the hub for 'allenai/sciq'" in sentence and "a folder that holds sciq.jsonl" in sentence
