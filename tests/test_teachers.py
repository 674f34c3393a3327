"""A stored teacher says what the model in memory says; it is refused for anything it was not made for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_bad_input import refused
from tiny_checkpoints import lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture
from tiny_models import VOCABULARY, tiny_model, tokens

import lmprune as package
from lmprune.data import load as load_text
from lmprune.errors import UserError
from lmprune.training.callbacks import perplexity_of
from lmprune.training.distillation import divergence, divergence_from_top_k, top_k
from lmprune.training.examples import token_blocks
from lmprune.training.teachers import OnlineTeacher, StoredTeacher, check_teacher_file, fingerprint, write_teacher
from lmprune.training.trainer import IGNORED, collate

TEMPERATURE = 2.0


def examples_of(number: int = 5) -> list[dict[str, Any]]:
    """Of different lengths, the first half of every other one not counted."""
    generator = torch.Generator().manual_seed(4)
    found: list[dict[str, Any]] = []
    for row in range(number):
        ids = torch.randint(1, VOCABULARY, (8 + 3 * row,), generator=generator)
        found.append({"input_ids": ids, "row": row})
        if row % 2:
            labels = ids.clone()
            labels[: len(ids) // 2] = IGNORED
            found[-1]["labels"] = labels
    return found


def divergence_of(teacher: Any, student: Any, examples: list[dict[str, Any]]) -> torch.Tensor:
    inputs = collate(examples)
    rows = inputs.pop("row")
    counted = torch.zeros_like(inputs["labels"], dtype=torch.bool)
    counted[:, :-1] = inputs["labels"][:, 1:] != IGNORED
    with torch.no_grad():
        logits = student(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return teacher.divergence(inputs, rows, logits[counted], counted)


@pytest.fixture(scope="module")
def student() -> Any:
    return tiny_model("llama", seed=1)


@pytest.fixture(scope="module")
def dense() -> Any:
    return tiny_model("llama")


def stored(dense: Any, student: Any, folder: Path, k: int) -> StoredTeacher:
    file = folder / f"{k}.safetensors"
    write_teacher(dense, examples_of(), file, k=k, temperature=TEMPERATURE)
    return StoredTeacher(file, examples_of(), student, TEMPERATURE)


def test_all_logits_stored_are_the_model_in_memory(dense: Any, student: Any, tmp_path: Path):
    online = OnlineTeacher(dense, student, TEMPERATURE)
    offline = stored(dense, student, tmp_path, VOCABULARY)
    mixed = [examples_of()[row] for row in (4, 1, 2)]  # as a shuffled batch has them
    ours, theirs = (divergence_of(teacher, student, mixed) for teacher in (offline, online))
    assert len(theirs) == sum(len(e["input_ids"]) - 1 for e in mixed) - (len(mixed[1]["input_ids"]) // 2 - 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    wrong = [{**example, "row": 4 - example["row"]} for example in mixed]
    assert (divergence_of(offline, student, wrong) - theirs).abs().max() > 1e-2, "control: rows matter"


def test_fewer_logits_are_the_closer_the_more_there_are(dense: Any, student: Any, tmp_path: Path):
    exact = divergence_of(OnlineTeacher(dense, student, TEMPERATURE), student, examples_of()).mean()
    found = [
        float(divergence_of(stored(dense, student, tmp_path, k), student, examples_of()).mean() / exact)
        for k in (4, 32, 112, 126)
    ]
    assert found == sorted(found) and found[0] < 0.5 and 0.9 < found[-1] <= 1.0001, "what is left out is never made up"


def test_a_training_is_the_same_with_either(tmp_path: Path, text: Path):
    student, dense = tiny_checkpoint(tmp_path / "student", seed=1), tiny_checkpoint(tmp_path / "dense")
    how = ("--data", text, "--seq-len", 32, "--train-tokens", 640)
    lmprune("teach", dense, *how, "--top-k", 257, "--out", tmp_path / "t.safetensors")
    logs = []
    for teacher in (tmp_path / "t.safetensors", dense, None):
        out = tmp_path / f"out{len(logs)}"
        distil = () if teacher is None else ("--teacher", teacher)
        assert lmprune("finetune", student, *how, "--steps", 6, *distil, "--out", out).code == 0
        lines = (out / "training_log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["loss"] for line in lines])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    assert logs[2] != pytest.approx(logs[1], rel=1e-2), "control: the teacher matters"


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"examples": examples_of(4)}, "was made for examples of "),
        ({"examples": examples_of()[::-1]}, "was made for examples of "),
        ({"temperature": 1.0}, "was made for a temperature of 2.0, this run has 1.0; run `lmprune teach` with this"),
        ({"student": tiny_model("llama", vocab_size=64)}, "was made for a vocabulary of 128, this run has 64"),
    ],
)
def test_a_file_for_something_else(changes: dict[str, Any], sentence: str, dense: Any, student: Any, tmp_path: Path):
    file = tmp_path / "t.safetensors"
    write_teacher(dense, examples_of(), file, k=4, temperature=TEMPERATURE)
    fitting = {"examples": examples_of(), "student": student, "temperature": TEMPERATURE}
    StoredTeacher(file, **fitting)
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        StoredTeacher(file, **{**fitting, **changes})


def test_other_data_is_named_on_the_command_line(model: Path, text: Path, tmp_path: Path):
    teacher = tmp_path / "t.safetensors"
    assert lmprune("teach", model, "--data", text, "--seq-len", 32, "--train-tokens", 640, "--out", teacher).code == 0
    args = ("finetune", model, "--data", text, "--seq-len", 32, "--steps", 4, "--teacher", teacher)
    sentence = refused(*args, "--train-tokens", 320, "--out", tmp_path / "o")
    assert sentence.endswith("run `lmprune teach` with this run's --data, --seq-len, --train-tokens and --temperature")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.safetensors"]


def test_a_name_that_is_too_long_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="can't write"):
        check_teacher_file(tmp_path / ("x" * 250 + ".safetensors"))


def test_files_that_are_no_teacher(student: Any, tmp_path: Path):
    file = tmp_path / "t.safetensors"
    file.write_bytes(b"not one")
    with pytest.raises(UserError, match="is not a teacher file"):
        StoredTeacher(file, examples_of(), student, TEMPERATURE)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="is not a teacher file; make one with `lmprune teach`"):
        StoredTeacher(file, examples_of(), student, TEMPERATURE)


def test_a_file_that_changes_under_a_running_training(dense: Any, student: Any, tmp_path: Path):
    file = tmp_path / "t.safetensors"
    write_teacher(dense, examples_of(), file, k=4, temperature=TEMPERATURE)
    teacher = StoredTeacher(file, examples_of(), student, TEMPERATURE)
    divergence_of(teacher, student, examples_of())
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(UserError, match="changed while it was read"):
        divergence_of(teacher, student, examples_of())


def test_the_fingerprint_sees_order_and_lengths():
    one, two = [{"input_ids": [1, 2]}, {"input_ids": [3]}], [{"input_ids": [1]}, {"input_ids": [2, 3]}]
    assert fingerprint(one) == fingerprint([{"input_ids": torch.tensor([1, 2])}, {"input_ids": [3]}])
    assert len({fingerprint(x) for x in (one, two, one[::-1], one[:1])}) == 4


def test_more_logits_than_there_are(dense: Any, tmp_path: Path):
    with pytest.raises(UserError, match="top-k must be within 1…128, the vocabulary, got 129"):
        write_teacher(dense, examples_of(), tmp_path / "t.safetensors", k=VOCABULARY + 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_64_logits_of_a_real_teacher(shared: Path):
    """What training sees is the gradient: how far it points where all the logits' gradient points.

    gpt-neo-mini teaches itself with half of its neurons gone.
    """
    folder = shared / "models" / "gpt-neo-mini"
    dense, tokenizer = package.load(folder), package.load_tokenizer(folder)
    student = package.load(folder)
    package.prune(student, method="magnitude", keep=0.5)
    text = load_text("wikitext:tokens", "validation", data_dir=shared / "data" / "wikitext")
    ids = torch.stack([block["input_ids"] for block in token_blocks(tokenizer, text, 256, 4 * 256)])
    with torch.no_grad():
        teacher_NV, student_NV = (model(ids).logits.flatten(0, 1) for model in (dense, student))

    def gradient(far: Any) -> torch.Tensor:
        return torch.autograd.grad(far(leaf := student_NV.clone().requires_grad_()).mean(), leaf)[0].flatten().double()

    exact = gradient(lambda s: divergence(s, teacher_NV, TEMPERATURE))
    cosines = []
    for k in (16, 64, 256, 4096):
        best = top_k(teacher_NV, k, TEMPERATURE)
        found = gradient(lambda s, best=best: divergence_from_top_k(s, best, TEMPERATURE))
        cosines.append(float(torch.cosine_similarity(found, exact, dim=0)))
    print(f"\ncosines of the gradients at k = 16, 64, 256, V: {cosines}")
    assert cosines == sorted(cosines) and cosines[1] > 0.75 and cosines[3] > 0.999999


def test_a_teacher_says_the_same_whatever_mode_it_was_left_in(tmp_path: Path) -> None:
    dense = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    files = [tmp_path / "eval.safetensors", tmp_path / "train.safetensors"]
    for file, mode in zip(files, (False, True), strict=True):
        write_teacher(dense.train(mode), examples_of(2), file, k=4, temperature=TEMPERATURE)
    said = [load_file(file) for file in files]
    assert all(torch.equal(said[0][name], said[1][name]) for name in said[0])


def test_the_same_tokens_in_other_examples_are_other_examples() -> None:
    one, other = ([{"input_ids": torch.tensor(ids)} for ids in rows] for rows in ([[1, 0, 2]], [[1], [2]]))
    assert fingerprint(one) != fingerprint(other)


def test_a_teacher_does_not_look_at_padding(dense: Any) -> None:
    """Padded on the left, where every later token would see it: the teacher is the student, so they agree."""
    ids = torch.tensor([[0, 0, 0, 5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    where = torch.tensor([[False, False, False, True, True, True, False]])
    with torch.no_grad():
        logits = dense(**inputs).logits[where]
    apart = OnlineTeacher(dense, dense, TEMPERATURE).divergence(inputs, None, logits, where)
    assert float(apart.abs().max()) < 1e-6


def test_perplexity_on_the_way_is_over_all_counted_tokens(dense: Any) -> None:
    batches = [collate(examples_of(5)[:2]), collate(examples_of(5)[2:])]
    total, count = 0.0, 0
    for example in examples_of(5):
        labels = example.get("labels", example["input_ids"])
        logits = dense(example["input_ids"][None]).logits[0, :-1].detach()
        losses = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum")
        total, count = total + float(losses), count + int((labels[1:] != IGNORED).sum())
    dense.train()
    assert perplexity_of(dense, batches) == pytest.approx(math.exp(total / count), rel=1e-4)
    assert dense.training
    dense.eval()


def test_perplexity_on_the_way_is_the_text_s_alone() -> None:
    """Of a mixture that trains its router it held the router's loss, and a batch without counted tokens made it NaN."""
    model = tiny_mixture("mixtral")
    batches = [collate(examples_of(5)[:2])]
    found = perplexity_of(model, batches)
    model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.1
    nothing = collate([{"input_ids": tokens(1, 8)[0], "labels": torch.full((8,), IGNORED)}])
    assert perplexity_of(model, [*batches, nothing]) == pytest.approx(found)
