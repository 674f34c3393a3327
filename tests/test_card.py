"""The model card says what was done, how to load it, and claims nothing that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_checkpoints import byte_tokenizer, tiny_checkpoint
from tiny_checkpoints import lmprune as run
from tiny_models import LAYERS, WIDTH, tiny_model

import lmprune
from lmprune.checkpoints.card import title, units, width_summary
from lmprune.jobs.card import model_card
from lmprune.plan import PLAN_FILE, PrunePlan
from lmprune.runtimes.gguf_file import read_gguf
from lmprune.sites.address import Address

SETTINGS = {"method": "obs", "scope": "local", "calibration_tokens": 1024, "seq_len": 64}
CALIBRATION = {"source": "python-docs", "split": "train", "sha256": "ab" * 32}
REPORT: dict[str, Any] = {
    "params_before": 1000, "params_after": 800, "ffn_params_before": 400, "ffn_params_after": 200, "stock": True
}  # fmt: skip


def plan(*, kept: tuple[tuple[int, ...], ...] = ((0, 2), (1, 3)), **provenance: Any) -> PrunePlan:
    return PrunePlan.of_neurons(kept, (4, 4), SETTINGS, {"model": {"source": "org/name"}} | provenance)


def test_front_matter_is_what_the_hub_reads() -> None:
    origin = {"source": "smollm2-135m", "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    data = ModelCard(model_card(plan(model=origin), REPORT)).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {"lmprune", "pruned"} <= set(data.tags)
    assert ModelCard(model_card(plan(), REPORT)).data.base_model is None


def test_what_and_how() -> None:
    command = ["lmprune", "prune", "org/name", "--out", "a b"]
    card = model_card(plan(calibration=CALIBRATION, command=command, versions={"torch": "9.9"}), REPORT)
    assert "# org/name, 50% of its feed-forward neurons" in card
    assert "| parameters | 1,000 | 800 | 80.0% |" in card and "| 400 | 200 | 50.0% |" in card
    assert "before: 4 in each of 2 layers; now: 2 in each of 2 layers" in card
    assert "Method `obs`" in card and "1,024 tokens of `python-docs`" in card and "torch 9.9" in card
    assert "```sh\nlmprune prune org/name --out 'a b'\n```" in card


def test_a_method_without_text_has_no_calibration() -> None:
    assert "Calibrated" not in model_card(plan(), REPORT)


def test_dequantised_weights_are_owned_up_to() -> None:
    origin = {"source": "smollm2-135m", "dequantised_from": "Q4_1"}
    assert "dequantised from Q4_1" in model_card(plan(model=origin), REPORT)
    assert "dequantised" not in model_card(plan(), REPORT)


def test_a_revision_is_named() -> None:
    assert "(revision `v2`)" in model_card(plan(model={"source": "org/name", "revision": "v2"}), REPORT)


def test_folders_of_the_maker_are_not_in_the_title() -> None:
    card = model_card(plan(model={"source": "/home/me/models/mine"}), REPORT)
    assert "# mine, 50%" in card and "This is `mine`" in card


def test_loading_stock_and_with_the_shim() -> None:
    assert "trust_remote_code" not in model_card(plan(), REPORT)
    card = model_card(plan(kept=((0,), (1, 2))), REPORT | {"stock": False})
    assert 'from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    assert 'lmprune.load("path/to/this/folder")' in card and "now: 1, 2." in card


def test_only_what_was_measured_is_claimed() -> None:
    card = model_card(plan(), REPORT)
    assert "Nothing was measured" in card and "--baseline org/name" in card and "±" not in card
    results = [{"perplexity": 20.0, "perplexity_se": 0.5}, {"perplexity": 25.0, "perplexity_se": None}]
    text = {"name": "python-docs validation", "tokens": 4088, "context": 512}
    measured = {"evaluation": {"evaluation": text, "before": results[0], "after": results[1]}}
    card = model_card(plan(), REPORT | measured)
    assert "Nothing was measured" not in card and "Nothing else was measured" in card
    assert "4,088 tokens of python-docs validation, in windows of 512: 20.00 ± 0.50 before, 25.00 after" in card


@pytest.mark.parametrize(
    ("widths", "words"),
    [([8], "8 in each of 1 layers"), ([8, 8], "8 in each of 2 layers"), ([8, 8, 4, 8], "8 ×2, 4, 8")],
)
def test_width_summary(widths: list[int], words: str) -> None:
    assert width_summary(widths) == words


def test_save_writes_a_card_of_what_the_plan_says(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = lmprune.prune(model, method="magnitude", keep=0.5, multiple_of=8)
    lmprune.save(model, tmp_path / "out", plan=plan)
    file = tmp_path / "out" / "README.md"
    card = ModelCard(file.read_text(encoding="utf-8"))
    assert card.data.library_name == "transformers" and {"lmprune", "pruned"} <= set(card.data.tags)
    params = sum(p.numel() for p in lmprune.load(tmp_path / "out").parameters())
    assert f"{params:,} parameters are left" in card.text and "Method `magnitude`, scope local" in card.text
    assert f"Neurons before: {WIDTH} in each of {LAYERS} layers; now: {WIDTH // 2} in each" in card.text
    assert "Nothing was measured" in card.text and "trust_remote_code" not in card.text
    assert "without any training" not in card.text  # which nobody here can know
    lmprune.save(model, tmp_path / "own", plan=plan, card="# Mine")
    assert (tmp_path / "own" / "README.md").read_text(encoding="utf-8") == "# Mine"
    lmprune.save(model, tmp_path / "none")
    assert not (tmp_path / "none" / "README.md").exists()


def test_a_card_of_other_units() -> None:
    kept = {Address("heads", 0): (0, 2), Address("heads", 1): (1,), Address("layers", 0): (0, 1, 2)}
    counts = {Address("heads", 0): 4, Address("heads", 1): 4, Address("layers", 0): 4}
    made = PrunePlan(kept, counts, {"method": "obs", "scope": "global"})
    assert title(made, "org/name") == "# org/name, 38% of its attention heads and 75% of its layers"
    assert units(made).startswith("Heads before: 4 in each of 2 layers; now: 2, 1. Layers before: 4; now: 3. ")


@pytest.mark.parametrize("model", [".", "..", "../m", "../m/"])
def test_the_model_of_the_working_directory_has_a_name(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is the same elsewhere."""
    folder = tiny_checkpoint(tmp_path / "m", vocab_size=258, tokenizer=False)
    byte_tokenizer(merges=[("a", "b")]).save_pretrained(folder)
    (here := folder / "sub" if model == ".." else folder).mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    assert run("prune", model, "--method", "magnitude", "--multiple-of", 8, "--out", tmp_path / "o").code == 0
    assert run("export", model, "--to", "gguf", "--no-verify", "--out", tmp_path / "o.gguf").code == 0
    assert read_gguf(tmp_path / "o.gguf").metadata["general.name"] == "m"
    monkeypatch.chdir(tmp_path)
    assert run("export", "o", "--to", "hf-uniform", "--out", "p").code == 0
    for out in ("o", "p"):
        assert "\n# m, " in (Path(out) / "README.md").read_text()
        assert (here / PrunePlan.load(Path(out) / PLAN_FILE).provenance["model"]["source"]).samefile(folder)
