"""`prune --steps`, `finetune` and `teach` as a user meets them: records, files, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import refused
from tiny_checkpoints import DOCS, byte_tokenizer, documented, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture
from tiny_models import LAYERS, WIDTH, logits, tiny_model, tokens
from transformers import TrainerCallback

from lmprune import data
from lmprune.checkpoints import checkpoint, models
from lmprune.data.pairs import IGNORED
from lmprune.data.tokens import stream
from lmprune.errors import UserError
from lmprune.evaluation.perplexity import perplexity
from lmprune.gradual import GradualPruner
from lmprune.jobs.training_checks import training_of
from lmprune.jobs.training_options import Training
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites
from lmprune.training.examples import Corpus
from lmprune.training.lora import add_lora, merged
from lmprune.training.settings import TrainSettings
from lmprune.training.train import _arguments, train
from lmprune.training.trainer import PruneTrainer

SHORT = ("--steps", 12, "--seq-len", 32)
GUM = ("--method", "gum", "--keep", 0.5, "--multiple-of", 1)
PAIRS = [{"context": f"{i} and {i} is", "completion": f" {2 * i}"} for i in range(40)]


@pytest.fixture(scope="module")
def pruned(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a pruning on the way of a training."""
    out = tmp_path_factory.mktemp("pruned") / "llama"
    return lmprune("prune", model, "--data", text, *SHORT, *GUM, "--eval-every", 5, "--out", out, "--json").record


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of one's own."""
    file = tmp_path_factory.mktemp("pairs") / "numbers.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return file


def keys_of_training() -> set[str]:
    """What docs/json.md says is in `training`."""
    (told,) = re.findall(r"`training` is an object: (.*?)\n\n", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    others = {"cubic", "oneshot", "null", "finetune", "prune"}
    return set(re.findall(r"`(\w+)`", told.split("The checkpoint's")[0])) - others


# -- what comes out


def test_prune_with_steps(pruned: dict[str, Any], model: Path) -> None:
    assert set(pruned) == documented("prune")
    assert set(pruned["training"]) == keys_of_training()
    assert pruned["training"]["schedule"] == "cubic" and pruned["training"]["steps"] == 12
    assert pruned["kept"] == 0.5 and sum(pruned["widths"]) == LAYERS * WIDTH // 2
    out = Path(pruned["out"])
    assert [ffn.width for ffn in find_sites(models.load(out))] == pruned["widths"]
    assert not out.with_name("llama.training").exists()
    plan = PrunePlan.load(out / PLAN_FILE)
    assert plan.widths == pruned["widths"] and plan.settings["training"]["steps"] == 12
    card = (out / "README.md").read_text()
    assert "and fine-tuned on the way down for 12 steps" in card and "without any training" not in card
    assert models.load_tokenizer(out).decode([65])


def test_the_log(pruned: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (Path(pruned["out"]) / "training_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert set(steps[0]) == {"step", "loss", "lr", "keep", "penalty"}
    assert set(steps[1]) == {*steps[0], "similarity"}, "of 12 steps the first is before any estimate"
    assert all(0 < line["similarity"] < 1 for line in steps[1:])
    assert steps[0]["keep"] == 1 and steps[-1]["keep"] == 0.5
    assert [line["step"] for line in lines if "perplexity" in line] == [0, 5, 10, 12]
    assert pruned["training"]["perplexity"] == lines[-2]["perplexity"] > 1
    assert pruned["training"]["last_loss"] == steps[-1]["loss"] != pruned["training"]["first_loss"]


def test_the_recorded_command_makes_the_same_model(pruned: dict[str, Any], tmp_path: Path) -> None:
    out = Path(pruned["out"])
    again = [str(tmp_path / "o") if word == str(out) else word for word in pruned["command"][1:]]
    assert lmprune(*again).code == 0
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    (shown,) = re.findall(r"```sh\n(lmprune .*)\n```", (out / "README.md").read_text())
    assert shlex.split(shown) == pruned["command"]


def test_people_see_how_it_went(model: Path, text: Path, tmp_path: Path) -> None:
    shown = lmprune("prune", model, "--data", text, *SHORT, *GUM, "--eval-every", 12, "--out", tmp_path / "o")
    assert re.search(
        r"trained for 12 steps: loss \d\.\d{3} → \d\.\d{3}, perplexity [\d,.]+ → [\d,.]+ on validation", shown.out
    )
    assert f"training on {text}" in shown.err and "12/12 loss" in shown.err and "keep 0.500" in shown.err
    assert "has no validation split: perplexity will be of the training text" in shown.err


def test_how_much_is_measured_on(model: Path, text: Path, tmp_path: Path) -> None:
    """And at both ends, where nothing says how often."""
    how = ("--data", text, *SHORT, *GUM, "--eval-tokens", 64, "--out", tmp_path / "o")
    told = lmprune("prune", model, *how, "--json").record["training"]
    ids = stream(models.load_tokenizer(model), data.load(str(text)), 64)[0]
    alone = perplexity(models.load(model, dtype="float32"), ids, context=32)
    assert told["first_perplexity"] == pytest.approx(alone.perplexity, rel=1e-4)
    log = (tmp_path / "o" / "training_log.jsonl").read_text().splitlines()
    assert len([line for line in log if "perplexity" in line]) == 2


def test_the_plan_of_a_learned_method_is_applied_at_once(pruned: dict[str, Any], model: Path, tmp_path: Path) -> None:
    plan = Path(pruned["out"]) / PLAN_FILE
    record = lmprune("prune", model, "--plan", plan, "--out", tmp_path / "o", "--json").record
    assert record["widths"] == pruned["widths"] and record["data"] is None and "training" not in record


def test_a_plan_and_then_training(pruned: dict[str, Any], model: Path, text: Path, tmp_path: Path) -> None:
    plan = Path(pruned["out"]) / PLAN_FILE
    out = tmp_path / "o"
    record = lmprune("prune", model, "--plan", plan, "--data", text, *SHORT, "--out", out, "--json").record
    assert record["widths"] == pruned["widths"] and record["training"]["schedule"] == "oneshot"
    assert "and fine-tuned afterwards for 12 steps" in (out / "README.md").read_text()
    assert PrunePlan.load(out / PLAN_FILE).kept == PrunePlan.load(plan).kept


def test_experts_go_and_then_it_trains(text: Path, tmp_path: Path) -> None:
    """The whole training was lost: a mixture has no neurons whose uniqueness could be told in the end."""
    sizes = {"vocab_size": 257, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 256}
    checkpoint.save(tiny_mixture("mixtral", **sizes), tmp_path / "dense", tokenizer=byte_tokenizer())
    how = ("--units", "experts", "--method", "reap", "--keep", 0.5, "--calibration-tokens", 256, "--answer-tokens", 0)
    out = ("--out", tmp_path / "out", "--json")
    done = lmprune("prune", tmp_path / "dense", "--data", text, *SHORT, "--schedule", "oneshot", *how, *out)
    assert set(done.record["training"]) == keys_of_training() - {"uniqueness"}


def test_finetune(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    shown = lmprune("finetune", model, "--data", text, *SHORT, "--lr", 3e-3, "--out", out, "--json")
    record = shown.record
    assert set(record) == documented("finetune") and set(record["training"]) == keys_of_training() - {"uniqueness"}
    assert record["training"]["schedule"] is None and record["training"]["lr"] == 3e-3
    assert record["training"]["last_loss"] < record["training"]["first_loss"]
    before, after = models.load(model), models.load(out)
    assert record["params"] == sum(p.numel() for p in after.parameters()) == sum(p.numel() for p in before.parameters())
    assert not torch.equal(find_sites(before)[0].reader(), find_sites(after)[0].reader())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]


def test_finetuning_a_pruned_model_keeps_its_plan(pruned: dict[str, Any], text: Path, tmp_path: Path) -> None:
    record = lmprune("finetune", pruned["out"], "--data", text, *SHORT, "--out", tmp_path / "o", "--json").record
    assert record["params"] == pruned["params_after"]
    before, after = (PrunePlan.load(folder / PLAN_FILE) for folder in (Path(pruned["out"]), tmp_path / "o"))
    assert (after.kept, after.counts_before) == (before.kept, before.counts_before)
    assert after.provenance["plan"]["settings"] == before.settings and after.settings["schedule"] is None
    assert [ffn.width for ffn in find_sites(models.load(tmp_path / "o"))] == pruned["widths"]


def test_teach(model: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    record = lmprune(
        "teach", model, "--data", text, "--seq-len", 32, "--train-tokens", 320, "--out", file, "--json"
    ).record
    assert set(record) == documented("teach")
    assert (record["examples"], record["tokens"]) == (10, 320) and record["bytes"] == file.stat().st_size
    how = ("--seq-len", 64, "--train-tokens", 320)
    again = lmprune("teach", model, "--data", text, *how, "--out", tmp_path / "t.safetensors")
    assert f"320 tokens of {text}, the 64 likeliest of each at temperature 2" in again.out


def test_logs_of_tensorboard_outlive_the_run(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    where: list[str] = []

    def started(*_: Any, **__: Any) -> None:
        where.append(os.environ["TENSORBOARD_LOGGING_DIR"])
        raise UserError("enough")

    monkeypatch.setattr("lmprune.jobs.train.check_tracker", lambda _name: None)  # it need not be installed here
    monkeypatch.setattr("lmprune.jobs.train.train", started)
    shown = lmprune("finetune", model, "--data", text, *SHORT, "--report-to", "tensorboard", "--out", tmp_path / "o")
    assert where == [str(tmp_path / "o.tensorboard")] and where[0] in shown.err


def test_trackers_are_told_of_the_pruning_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append({"step": state.global_step, **logs})

    monkeypatch.setattr("lmprune.training.train.PruneTrainer", partial(PruneTrainer, callbacks=[Tracker()]))
    net = models.load(model)
    pruner = GradualPruner(net, method="gum", keep=0.5, num_steps=12)
    examples = [{"input_ids": list(range(i, i + 16))} for i in range(8)]
    result = train(net, examples, TrainSettings(steps=12, eval_every=6), pruner=pruner, held_out=examples[:2])
    perplexities = {line["step"]: line["perplexity"] for line in seen if "perplexity" in line}
    assert list(perplexities) == [0, 6, 12]
    assert perplexities == {line["step"]: line["perplexity"] for line in result.log if "perplexity" in line}
    steps = [line for line in seen if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    for line in steps[1:]:
        assert {"keep", "penalty", "similarity"} <= set(line)
    assert [line["keep"] for line in steps] == [line["keep"] for line in result.log if "loss" in line]


def test_what_was_left_out_of_pairs_is_said_once(model: Path, tmp_path: Path) -> None:
    rows = [{"id": str(i), "dialogue": "A: hi " * (i % 5), "summary": "They greet."} for i in range(40)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = ("--data", "samsum", "--data-dir", tmp_path)
    commands: list[tuple[Any, ...]] = [
        ("prune", model, *of, "--calibration-tokens", 64, "--seq-len", 32, "--out", tmp_path / "calibrated"),
        ("finetune", model, *of, "--steps", 2, "--seq-len", 128, "--out", tmp_path / "tuned"),
        ("eval", model, *of, "--limit", 1, "--max-new-tokens", 2),
    ]
    for command in commands:
        assert lmprune(*command).err.count("8 of 40 records") == 1, command


def test_epochs_become_steps(model: Path, text: Path, tmp_path: Path) -> None:
    record = lmprune(
        "finetune", model, "--data", text, "--seq-len", 32, "--train-tokens", 640, "--epochs", 1.5, "--batch-size", 2,
        "--grad-accum", 2, "--out", tmp_path / "o", "--json",
    ).record  # fmt: skip
    assert record["training"]["steps"] == 8  # 20 blocks, 1.5 times, 4 at once


@pytest.mark.parametrize(("examples", "epochs", "steps"), [(17, 10, 20), (16, 10, 10), (17, 2.5, 5), (17, 0.01, 1)])
def test_an_epoch_that_does_not_come_out_even_is_read_whole(
    examples: int, epochs: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Training(epochs=epochs, batch_size=4, grad_accum=4).settings(examples, seed=0)
    assert settings.steps == steps
    seen, usual = list[int](), PruneTrainer.compute_loss

    def listening(self: Any, model: Any, inputs: Any, *args: Any, **how: Any) -> Any:
        seen.extend(inputs["row"].tolist())
        return usual(self, model, inputs, *args, **how)

    monkeypatch.setattr(PruneTrainer, "compute_loss", listening)
    train(tiny_model("llama"), [{"input_ids": row} for row in tokens(examples, 12)], settings)
    often = [seen.count(row) for row in range(examples)]
    assert max(often) - min(often) <= 1 and epochs <= sum(often) / examples < epochs + 1


# -- pairs


def test_pairs_are_trained_on_with_the_loss_on_the_completion(numbers: Path) -> None:
    examples = Corpus(str(numbers)).examples("train", byte_tokenizer(), seq_len=32)
    assert len(examples) == len(PAIRS)
    first = examples[7]
    assert byte_tokenizer().decode(first["input_ids"]) == "7 and 7 is 14<s>"
    assert first["labels"] == [IGNORED] * len("7 and 7 is") + first["input_ids"][len("7 and 7 is") :]
    whole = Corpus(str(numbers), loss_on="sequence").examples("train", byte_tokenizer(), seq_len=32)
    assert [each["labels"] for each in whole] == [each["input_ids"] for each in examples]
    few = Corpus(str(numbers)).examples("train", byte_tokenizer(), seq_len=32, num_tokens=50)
    assert few == examples[:3]


def test_a_model_is_pruned_on_pairs_with_their_stored_teacher(numbers: Path, model: Path, tmp_path: Path) -> None:
    how = ("--data", numbers, "--seq-len", 32)
    teacher = tmp_path / "teacher.safetensors"
    taught = lmprune("teach", model, *how, "--out", teacher, "--json").record
    assert taught["examples"] == 40
    args = ("prune", model, *how, *GUM, "--steps", 12, "--teacher", teacher, "--eval-every", 6)
    record = lmprune(*args, "--out", tmp_path / "o", "--json").record
    assert record["data"]["source"] == str(numbers) and record["training"]["perplexity"] > 1
    assert record["kept"] == 0.5


def test_padding_that_the_embedding_does_not_know(numbers: Path, tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense")
    tokenizer = byte_tokenizer(pad_token="[PAD]")
    assert tokenizer.pad_token_id == models.load(dense).config.vocab_size
    tokenizer.save_pretrained(dense)
    how = ("--data", numbers, "--seq-len", 32, "--steps", 2, "--eval-every", 1)
    assert lmprune("finetune", dense, *how, "--out", tmp_path / "o").code == 0


# -- from Python


def test_pairs_that_are_shorter_together_than_one_block_can_be_pruned_on(model: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"context": f"{i} =", "completion": f" {i}"}) + "\n" for i in range(8)))
    train = ("--steps", 10, "--batch-size", 2, "--seq-len", 256, "--multiple-of", 1)
    done = lmprune("prune", model, "--method", "top_v", "--data", few, *train, "--out", tmp_path / "out", "--json")
    assert 0 <= done.record["training"]["uniqueness"] <= 1 and (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_loss_is_the_mean_over_the_tokens_that_are_predicted(name: str) -> None:
    net, ids = tiny_model(name), tokens(4, 8)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        predicted = net(ids).logits[:, :-1].flatten(0, 1)
    expected = float(torch.nn.functional.cross_entropy(predicted, ids[:, 1:].flatten()))
    result = train(net, [{"input_ids": row} for row in ids], TrainSettings(steps=1, batch_size=2, grad_accum=2))
    assert result.log[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_gradient_checkpointing_is_switched_on(model: Path) -> None:
    net = models.load(model)
    examples = [{"input_ids": torch.arange(16) + i} for i in range(4)]
    assert not net.is_gradient_checkpointing
    train(net, examples, TrainSettings(steps=1, gradient_checkpointing=True))
    assert net.is_gradient_checkpointing


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_model_computes_and_caches_as_before(lora: bool) -> None:
    """The Trainer turns the cache off in the config, with which it would be saved, and mixed precision stays on."""
    model, examples = tiny_model("llama"), [{"input_ids": row} for row in tokens(8, 16)]
    config = model.config.to_dict()
    trained = add_lora(model, 2) if lora else model
    train(trained, examples, TrainSettings(2, bf16=True))
    model, fresh = merged(trained).eval(), tiny_model("llama")
    fresh.load_state_dict(model.state_dict())
    assert model.config.to_dict() == config and logits(model).equal(logits(fresh))


def test_nothing_is_saved_without_a_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [{"input_ids": torch.arange(16) + i} for i in range(4)]
    result = train(models.load(model), examples, TrainSettings(steps=2, save_every=1))
    assert [line["step"] for line in result.log] == [1, 2] and list(tmp_path.iterdir()) == []


# -- what is refused


@pytest.fixture
def fails(model: Path, text: Path, tmp_path: Path) -> Any:
    """`lmprune prune` of the tiny model with training options; checks that it wrote nothing."""

    def run(*args: object, verb: str = "prune", data: object = text, out: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        seq_len = () if "--seq-len" in args else ("--seq-len", 32)
        sentence = refused(verb, model, "--data", data, *seq_len, "--out", out or tmp_path / "o", *args)
        assert sorted(tmp_path.rglob("*")) == before
        return sentence

    return run


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--method gum", "method 'gum' learns its scores while the model trains; say how long with --steps"),
        ("--method gum --steps 20 --schedule oneshot", "--schedule oneshot leaves it no time"),
        ("--lr 0.1", "--lr is about training; say how long with --steps or --epochs, or leave it out"),
        ("--score-lr 0", "--score-lr is about training"),
        ("--steps 20 --method soft --scope global", "method 'soft' has a threshold for all layers, and no --scope"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--steps 9 --method gum", "9 training steps are too few for the cubic schedule, which needs at least 10"),
        ("--epochs 0.01 --method gum", "1 training steps are too few for the cubic schedule"),
        ("--steps 20 --epochs 1", "give --steps or --epochs, not both"),
        ("--epochs nan", "epochs must be above 0, got nan"),
        ("--steps 20 --method gum --score-lr 0", "score-lr must be above 0, got 0: nothing would be learned"),
        ("--steps 20 --lr 0", "lr must be above 0, got 0: nothing would be learned"),
        ("--steps 20 --lr nan", "lr must be above 0, got nan"),
        ("--steps 20 --warmup 5", "warmup is a share of the steps, in [0, 1), got 5"),
        ("--steps 20 --weight-decay -1", "weight-decay must be 0 or more, got -1"),
        ("--steps 20 --batch-size 0", "batch-size must be at least 1, got 0"),
        ("--steps 20 --save-every 0", "save-every must be at least 1, got 0"),
        ("--steps 20 --schedule linear", "unknown schedule 'linear'; known: cubic, oneshot"),
        ("--steps 20 --method gum --compute gatherd", "unknown compute 'gatherd'; did you mean gathered?"),
        ("--steps 20 --loss-on sequence", "--loss-on is about pairs of context and completion, and this is plain text"),
        ("--steps 20 --loss-on context", "unknown loss_on 'context'; known: completion, sequence"),
        ("--steps 20 --kl-weight 0.3", "--kl-weight and --temperature are about distillation; name a --teacher"),
        ("--steps 20 --teacher x --kl-weight 2", "kl-weight must be in (0, 1], got 2"),
        ("--steps 20 --teacher x --temperature 0", "temperature must be above 0, got 0"),
        ("--steps 20 --method magnitude --score-lr 0.1", "--score-lr is about learned scores, which this run"),
        ("--steps 20 --method hard --penalty-weight 1", "--penalty-weight is about the penalty on learned scores"),
        ("--steps 20 --method soft --similarity-weight 1", "--similarity-weight is about the penalty on neurons that"),
        ("--steps 20 --method gum --penalty-weight -1", "penalty-weight must be 0 or more, got -1"),
        ("--steps 20 --method magnitude --warm-start", "--warm-start is about learned scores, which this run"),
        ("--steps 20 --schedule oneshot --compute full", "--compute is about pruning on a schedule"),
        ("--steps 20 --method flap", "gives layers a bias, which an optimizer at work can't take in"),
        ("--steps 20 --method top_v --ffn up=mlp.up_proj,down=mlp.down_proj", "the FFN that was named can't be cut"),
        ("--steps 20 --report-to nowhere", "can't report to 'nowhere'; installed here: "),
        ("--steps 20 --data self", "say how much with --train-tokens"),
        ("--steps 20 --data self --train-tokens 64 --eval-every 5", "has no validation split; leave out --eval-every"),
        ("--steps 20 --data self --train-tokens 64 --eval-tokens 64", "leave out --eval-tokens"),
        ("--steps 20 --eval-tokens 20", "20 tokens don't hold one sequence of 32"),
        ("--steps 20 --train-tokens 96", "3 training examples are fewer than one step's 4; give more text"),
        ("--steps 20 --seq-len 1", "should be greater than or equal to 2"),
        ("--steps 20 --train-tokens 20", "20 tokens don't hold one sequence of 32"),
        ("--steps 20 --dtype float16", "weights in float16 can't be trained"),
        ("--steps 20 --seq-len 512", "seq_len 512 is more than the model's 256 positions; use 256 or less"),
    ],
)  # fmt: skip
def test_options_that_can_not_be(fails: Any, options: str, sentence: str) -> None:
    method = () if "--method" in options else ("--method", "random")
    assert sentence in fails(*method, *options.split())


def test_one_process_trains_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: what transformers would do with two is asked of its arguments."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert _arguments(TrainSettings(steps=10), str(tmp_path), torch.device("cuda")).n_gpu == 1
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=1, and use --device cuda$"):
        _arguments(TrainSettings(steps=10), str(tmp_path), torch.device("cuda:1"))


def test_finetune_without_an_end(fails: Any) -> None:
    assert fails(verb="finetune") == "say how long to train with --steps or --epochs"
    assert "--lr is about training" in fails("--lr", 1e-3, verb="finetune")
    assert "No such option" in fails("--steps", 10, "--score-lr", 1, verb="finetune")


def test_finetune_of_an_unknown_family_is_refused_before_the_work(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAMILIES, "llama")
    monkeypatch.setattr("lmprune.jobs.train.train", lambda *_, **__: pytest.fail("it was trained"))
    assert "model type 'llama' is not in lmprune's table" in fails("--steps", 10, verb="finetune")


def test_a_plan_is_not_applied_little_by_little(fails: Any, pruned: dict[str, Any]) -> None:
    plan = Path(pruned["out"]) / PLAN_FILE
    assert "a plan prunes at once" in fails("--plan", plan, "--steps", 20, "--schedule", "cubic")


def test_an_out_that_is_taken(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.tex").write_text("ten years of work")
    for verb in ("prune", "finetune"):
        assert "is not empty; choose another --out" in fails("--steps", 12, verb=verb)
    file = tmp_path / "taken.safetensors"
    file.write_text("")
    assert "is there already; choose another --out" in fails(verb="teach", out=file)
    assert "a teacher file ends in .safetensors" in fails(verb="teach")


@pytest.mark.parametrize("verb", ["finetune", "prune", "teach"])
def test_text_with_tokens_that_the_model_does_not_know(verb: str, text: Path, tmp_path: Path) -> None:
    small = tiny_checkpoint(tmp_path / "small", vocab_size=100, bos_token_id=0, eos_token_id=0)
    how = {"teach": ("--top-k", 4), "prune": ("--steps", 12, "--method", "random")}.get(verb, ("--steps", 12))
    out = tmp_path / ("t.safetensors" if verb == "teach" else "o")
    sentence = refused(verb, small, "--data", text, "--seq-len", 32, *how, "--out", out)
    assert sentence.endswith("but the model knows 100 tokens; is this the model's own tokenizer?")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("temperature", [0, -1, "nan"])
def test_a_teacher_s_temperature(fails: Any, temperature: object, tmp_path: Path) -> None:
    said = fails("--temperature", temperature, verb="teach", out=tmp_path / "t.safetensors")
    assert said == f"temperature must be above 0, got {temperature}"


def test_teachers_that_are_no_teacher(fails: Any, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", vocab_size=300)
    assert fails("--method", "random", "--steps", 12, "--teacher", other) == (
        "the teacher predicts 300 tokens, the student 257: distillation needs one vocabulary; "
        "take as teacher the dense model that the student came from"
    )
    short = tiny_checkpoint(tmp_path / "short", max_position_embeddings=16)
    assert fails("--method", "random", "--steps", 12, "--teacher", short) == (
        "seq_len 32 is more than the teacher's 16 positions; use 16 or less"
    )
    assert "no model at" in fails("--method", "random", "--steps", 12, "--teacher", tmp_path / "none")
    none = tmp_path / "none.safetensors"
    assert "no teacher file at" in fails("--method", "random", "--steps", 12, "--teacher", none)


@pytest.mark.parametrize(
    "options", ["--teacher none", "--report-to nowhere", "--train-tokens 96", "--seq-len 512", "--grad-accum 100"]
)
def test_nothing_is_pruned_at_once_for_a_training_that_can_not_be(
    fails: Any, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fails` looks for what the pruning would leave behind for --resume."""
    monkeypatch.setattr("lmprune.pruning.prune", lambda *_, **__: pytest.fail("it was pruned"))
    fails("--method", "activation", "--schedule", "oneshot", "--steps", 12, *options.split())


def test_pairs_that_do_not_fit(fails: Any, numbers: Path) -> None:
    sentence = fails("--steps", 12, "--seq-len", 3, "--method", "random", data=numbers)
    assert "none of the 40 completions fits into 3 tokens" in sentence


@pytest.mark.parametrize("few", ["--eval-tokens", "--train-tokens"])
@pytest.mark.parametrize("verb", ["prune", "finetune", "recover"])
def test_tokens_that_do_not_hold_one_pair(fails: Any, numbers: Path, model: Path, few: str, verb: str) -> None:
    how = {"prune": ("--method", "random"), "finetune": (), "recover": ("--teacher", model)}[verb]
    sentence = fails(*how, "--steps", 12, few, 3, "--holdout", 0.2, data=numbers, verb=verb)
    assert re.fullmatch(r"3 tokens don't hold the first pair, which has \d+; ask for more", sentence)


def test_training_options_from_python() -> None:
    assert training_of({"steps": None, "resume": False, "lr": None}) is None
    given = training_of({"steps": 5, "bf16": True, "score_lr": 0.5, "ctx": 1})
    assert given == Training(steps=5, bf16=True, score_lr=0.5)
    assert given.settings(100, seed=3) == TrainSettings(steps=5, bf16=True, score_lr=0.5, seed=3)
    assert Training(steps=5, lora_rank=2).gradual().compute == "full"
