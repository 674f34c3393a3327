"""prune(): every method, both scopes, on token ids and on text; plans give the same model again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import byte_tokenizer
from tiny_models import is_pruned_class, logits, tiny_model

import lmprune
from lmprune import PrunePlan, UserError, prune, shrink
from lmprune.budget.budget import Budget
from lmprune.data import pairs
from lmprune.methods import METHODS
from lmprune.sites.address import Kind
from lmprune.sites.families import FAMILIES
from lmprune.sites.find import find_sites

ONE_SHOT = [name for name, row in METHODS.items() if not row.learned and "neurons" in row.kinds]


def text(rows: int = 12, length: int = 24) -> torch.Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("method", ONE_SHOT)
def test_every_method_cuts_to_the_count_and_its_plan_repeats_it(method: str, scope):
    model = tiny_model("qwen2")
    plan = lmprune.prune(model, method=method, keep=0.5, scope=scope, data=text(), multiple_of=1)
    assert sum(plan.widths) == 72 and plan.keep == 0.5
    assert plan.widths == [24, 24, 24] or scope == "global"
    assert plan.settings["method"] == method and plan.settings["scope"] == scope
    again = tiny_model("qwen2")
    repeated = lmprune.prune(again, data=text(), plan=lmprune.PrunePlan.from_json(plan.to_json()))
    assert torch.equal(logits(model), logits(again))
    assert repeated.kept == plan.kept and repeated.chosen == plan.chosen


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("method", ONE_SHOT)
@pytest.mark.parametrize("name", ["llama-untied", "gpt2", "gemma2", "phi3"])
def test_keep_1_is_the_identity_bit_for_bit(name: str, method: str, scope):
    model, stock = tiny_model(name), tiny_model(name)
    plan = lmprune.prune(model, method=method, keep=1, scope=scope, data=text())
    assert plan.keep == 1 and type(model) is type(stock)
    assert model.config.to_dict() == stock.config.to_dict()
    before, after = stock.state_dict(), model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_flap_gives_no_bias_to_a_layer_that_stays_whole():
    model, stock = tiny_model("llama-untied"), find_sites(tiny_model("llama-untied"))
    kept = (tuple(range(48)), tuple(range(0, 48, 2)), tuple(range(48)))
    lmprune.prune(model, data=text(), plan=lmprune.PrunePlan.of_neurons(kept, (48,) * 3, {"method": "flap"}))
    assert [ffn.reader_bias() is not None for ffn in find_sites(model)] == [False, True, False]
    assert torch.equal(find_sites(model)[2].reader(), stock[2].reader())


def test_the_config_says_what_was_left():
    model = tiny_model("llama")
    lmprune.prune(model, method="magnitude", keep=0.5, multiple_of=1)
    assert model.config.intermediate_size == 24
    lmprune.prune(model, method="magnitude", scope="global", keep=0.5, multiple_of=1)
    assert is_pruned_class(model) and model.config.lmprune["format"] == 2


def test_scores_that_are_given_are_rounded_to_multiples_too():
    scores = [torch.arange(48.0), torch.arange(48.0) + 30, torch.arange(48.0) + 60]
    plan = lmprune.prune(tiny_model("llama"), scores=scores, keep=0.5, scope="global", multiple_of=8)
    assert len(set(plan.widths)) > 1 and all(width % 8 == 0 for width in plan.widths)


def test_multiple_of_rounds_each_layer():
    plan = lmprune.prune(tiny_model("llama"), method="activation", keep=0.5, scope="global", data=text(), multiple_of=8)
    assert all(width % 8 == 0 for width in plan.widths)
    assert abs(sum(plan.widths) - 72) <= 3 * 8 / 2


def test_six_lines(tmp_path, shared):
    folder = shared / "models" / "gpt2-mini"
    model, tokenizer = lmprune.load(folder), lmprune.load_tokenizer(folder)
    plan = lmprune.prune(
        model, tokenizer, keep=0.75, data="python-docs", calibration_tokens=2048, seq_len=256
    )  # fmt: skip
    lmprune.save(model, tmp_path / "smaller", tokenizer=tokenizer, plan=plan)
    again = lmprune.load(tmp_path / "smaller")
    ids = torch.arange(64)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert plan.widths == [576] * 6
    assert plan.provenance["calibration"]["source"] == "python-docs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magnitud"}, "did you mean magnitude"),
        ({"method": "gum"}, "learns its scores while the model trains; say how long"),
        ({"keep": 0}, r"keep must be in \(0, 1\]"),
        ({"keep": 75}, "to keep 75%, pass 0.75"),
        ({"multiple_of": 0}, "multiple_of must be at least 1"),
        ({"data": "python-docs"}, "needs a tokenizer"),
        ({"plan": lmprune.PrunePlan.of_neurons(((0, 1),), (4,), {"method": "random"})}, "the plan is for 1 layers"),
    ],
)
def test_wrong_arguments_leave_the_model_as_it_was(options, message):
    model = tiny_model("llama")
    before = logits(model)
    with pytest.raises(UserError, match=message):
        lmprune.prune(model, **{"data": text(), **options})
    assert torch.equal(logits(model), before)


def test_a_spec_that_does_not_fit_is_found_out():
    model = tiny_model("llama")
    wrong = lmprune.FFNSpec("model.layers", "mlp.up_proj", "mlp.down_proj", "intermediate_size")  # the gate is missing
    with pytest.raises(UserError, match="gate"):
        lmprune.prune(model, data=text(), keep=0.5, spec=wrong)


DROPPING = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}


@pytest.mark.parametrize(
    ("method", "units", "options"),
    [
        ("obs", "neurons", {}),
        ("obs", "neurons", {"scope": "global"}),
        ("obs", "neurons", {"budget": Budget(by="dp")}),
        ("plain_obs", "heads", {}),
        ("ppl_without", "layers", {"keep": 2 / 3}),
        ("sleb", "attentions", {"keep": 2 / 3}),
    ],
)
def test_a_model_in_training_mode_is_read_without_its_dropout(method: str, units: Kind, options):
    found, chosen_by = [], []
    for training in (False, True):
        model = tiny_model("gpt2", **DROPPING).train(training)
        model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
        modes = {module: module.training for module in model.modules()}
        how = {"keep": 0.5, "multiple_of": 1, **options}
        plan = lmprune.prune(model, units=(units,), method=method, data=text(), **how)
        assert all(module.training == modes.get(module, module.training) for module in model.modules())
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {*dict(model.named_parameters())} - trains <= {"transformer.h.0.mlp.c_fc.weight"}
        found.append(model.state_dict())
        chosen_by.append([*(plan.scores or {}).values()])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert chosen_by[0] and all(map(torch.equal, *chosen_by))


def test_a_spec_is_proved_without_dropout():
    model = tiny_model("gpt2", **DROPPING).train()
    lmprune.prune(model, method="magnitude", multiple_of=1, spec=FAMILIES["gpt2"])
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": torch.full((2, 8), 128)}, "token id 128, but the model knows 128 tokens"),
        ({"data": torch.ones(2, 65, dtype=torch.long)}, "seq_len 65 is more than the model's 64 positions"),
        ({"data": torch.ones(8, dtype=torch.long)}, r"of shape \(sequences, T\)"),
        ({"scope": "globl"}, "did you mean global"),
    ],
)
def test_text_that_the_model_cannot_read(options, message):
    with pytest.raises(UserError, match=message):
        lmprune.prune(tiny_model("llama"), **{"data": text(), **options})


def test_keep_one_keeps_all_whatever_the_multiple():
    plan = lmprune.prune(tiny_model("llama"), method="random", keep=1, multiple_of=32)
    assert plan.widths == [48, 48, 48]


def test_texts_at_hand_are_calibrated_on():
    texts = ["the cat sat on the mat. " * 20, "the dog sat on the log. " * 20]
    options = {"keep": 0.5, "multiple_of": 8, "seq_len": 32, "calibration_tokens": 512, "method": "activation"}
    plan = prune(tiny_model("llama", vocab_size=257), byte_tokenizer(), data=texts, **options)
    assert plan.keep == 0.5 and plan.provenance["calibration"]["source"] == "texts in memory"
    for wrong in ([], [""], ["a", 3]):
        with pytest.raises(UserError, match="expected a list of texts"):
            prune(tiny_model("llama"), byte_tokenizer(), data=wrong, **options)


def test_folders_and_files_may_be_named_by_text(tmp_path):
    for split, words in (("train", "cat"), ("valid", "dog")):
        (tmp_path / f"wiki.{split}.raw").write_text(f" = Title = \n \n the {words} sat on the mat. " * 40)
    options = {"keep": 0.5, "multiple_of": 8, "seq_len": 32, "calibration_tokens": 512, "method": "obs"}
    plans = [
        prune(
            tiny_model("llama", vocab_size=257), byte_tokenizer(), data="wikitext", data_dir=path(tmp_path),
            budget=Budget(by="ranking", levels=path(tmp_path / "levels")), **options,
        )
        for path in (str, Path)
    ]  # fmt: skip
    assert plans[0].kept == plans[1].kept
    (tmp_path / "plan.json").write_text(plans[0].to_json())
    assert PrunePlan.load(str(tmp_path / "plan.json")).kept == plans[0].kept
    with pytest.raises(UserError, match="none"):
        pairs.load("samsum", data_dir=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: prune("gpt2", method="magnitude"),
            "expected a model, such as lmprune.load returns, got str 'gpt2'",
        ),
        (lambda model: prune(model, method="magnitude", keep="0.5"), r"keep must be a number in \(0, 1\], got '0.5'"),
        (lambda model: shrink(model, "plan.json"), "expected a PrunePlan, got str"),
    ],
)
def test_the_wrong_kind_of_thing(call, message: str):
    with pytest.raises(UserError, match=message):
        call(tiny_model("llama"))


@pytest.mark.parametrize(
    ("method", "units"), [("obs", "neurons"), ("activation", "neurons"), ("ppl_without", "layers")]
)
def test_sequences_in_which_nothing_is_predicted(method, units):
    """Would end in a matrix that can't be factored, or in a checkpoint that is blamed."""
    model, ids = tiny_model("llama"), torch.arange(64)[:, None]
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match="in a sequence of one token nothing is predicted; make sequences of 2"):
        prune(model, data=ids, method=method, units=(units,), keep=2 / 3, multiple_of=1)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))
    with pytest.raises(UserError, match="nothing is predicted"):
        lmprune.GradualPruner(tiny_model("llama"), method="obs", keep=0.5, num_steps=20, calibration=ids)
    prune(model, data=ids.view(-1, 2), method=method, units=(units,), keep=2 / 3, multiple_of=1)
