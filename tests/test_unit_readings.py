"""What `analyze --units` reads of heads, experts and layers: against the long way, as records, as figures."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import refused
from tiny_checkpoints import byte_tokenizer, documented, lmprune
from tiny_mixtures import EXPERTS, tiny_mixture
from tiny_models import tiny_model, tokens
from transformers import AutoTokenizer

from lmprune.checkpoints.models import load
from lmprune.data import load as load_text
from lmprune.data.tokens import sequences
from lmprune.scores.layers import along
from lmprune.scores.routing import expert_cosines
from lmprune.scores.statistics import collect
from lmprune.sites.find import find_sites
from lmprune.solve.elimination import LeastSquares, replaceable

IDS = tokens(4, 16, seed=3)


@pytest.mark.parametrize("size", [1, 3])
def test_replaceable_is_what_a_refit_of_the_others_makes_up_for(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x_NF = torch.randn(500, 4 * size, generator=generator, dtype=torch.float64)
    x_NF[:, -size:] = x_NF[:, :size] + 0.3 * x_NF[:, -size:]
    reader_FD = torch.randn(4 * size, 5, generator=generator, dtype=torch.float64)
    y_ND = x_NF @ reader_FD
    problem = LeastSquares.of(
        x_NF.T @ x_NF / 500, x_NF.T @ y_ND / 500, reader_FD, rel_damp=1e-12, size=size
    )  # fmt: skip
    for unit, share in enumerate(replaceable(problem)):
        mine = slice(unit * size, (unit + 1) * size)
        others_NF = x_NF.clone()
        others_NF[:, mine] = 0
        left = y_ND - others_NF @ torch.linalg.lstsq(others_NF, y_ND, driver="gelsd").solution
        nothing_done = x_NF[:, mine] @ reader_FD[mine]
        assert share == pytest.approx(1 - float(left.square().sum() / nothing_done.square().sum()), abs=1e-6)


def test_a_twin_is_replaceable_and_a_loner_is_not() -> None:
    h_NF = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h_NF, _ = torch.linalg.qr(h_NF)
    x_NF = torch.cat([h_NF, h_NF[:, :1]], 1)
    reader_FD = torch.ones(4, 2, dtype=torch.float64)
    problem = LeastSquares.of(x_NF.T @ x_NF, x_NF.T @ (x_NF @ reader_FD), reader_FD, rel_damp=1e-9)
    torch.testing.assert_close(replaceable(problem), torch.tensor([1.0, 0, 0, 1]).double(), atol=1e-6, rtol=0)


def test_the_stream_along_the_model_and_its_loss() -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    (site,) = find_sites(model, ("layers",))
    cosines, loss = along(model, site, IDS)  # type: ignore[arg-type]
    with torch.no_grad():
        out = model(IDS, labels=IDS, output_hidden_states=True)
    assert loss == pytest.approx(float(out.loss), rel=1e-5)
    states = out.hidden_states[:-1]  # the last is behind the model's norm
    for a in range(3):
        for b in range(3):
            expected = torch.cosine_similarity(states[a], states[b], dim=-1).mean()
            assert float(cosines[a, b]) == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(4).double(), atol=1e-5, rtol=0)
    assert cosines[0, 3] < 0.999


def test_experts_that_do_the_same_are_seen() -> None:
    model = tiny_mixture("qwen3_moe")
    sites: Any = find_sites(model, ("experts",))
    apart = expert_cosines(model, sites, IDS)
    assert all(c.fill_diagonal_(0).abs().max() < 0.9 for c in apart)
    twins = copy.deepcopy(model)
    sites = find_sites(twins, ("experts",))
    with torch.no_grad():
        for tensor in sites[0].stacked.parameters(recurse=False):
            tensor[2] = tensor[0]
    first, *_ = expert_cosines(twins, sites, IDS)
    assert first.shape == (EXPERTS, EXPERTS)
    assert float(first[0, 2]) == pytest.approx(1, abs=1e-5) and abs(float(first[0, 1])) < 0.9
    assert torch.equal(logits_of(model), logits_of(model))  # no hook stays


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(IDS).logits


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "qwen3_moe"
    tiny_mixture("qwen3_moe", vocab_size=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def analysed(model: Path, text: Path, out: Path, kinds: str) -> dict[str, Any]:
    how = ("--max-tokens", 64, "--seq-len", 16)
    return lmprune("analyze", model, "--units", kinds, "--data", text, *how, "--out", out, "--json").record


def test_heads_and_layers_of_a_model(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    record = analysed(model, text, out, "neurons,heads,layers,ffns")
    assert set(record) <= documented("analyze") and set(record["units"]) == {"heads", "layers", "ffns"}
    assert json.loads((out / "analysis.json").read_text())["units"] == record["units"]
    told = {key for found in record["units"].values() for site in found["sites"] for key in site}
    assert told <= documented("analyze --units") | {"layer", "loss_tokens"}
    heads, blocks = record["units"]["heads"]["sites"], record["units"]["layers"]
    assert [site["layer"] for site in heads] == list(range(len(heads)))
    assert all(len(site["sensitivity"]) == len(site["replaceable"]) > 1 for site in heads)
    assert len(blocks["stream_cosines"]) == len(blocks["sites"][0]["influence"]) + 1
    figures = {file.stem for file in out.glob("*.svg")}
    assert {"heads_sensitivity", "heads_replaceable", "layers_stream", "ffns_influence", "cos_ranges"} <= figures
    assert figures == {file.stem for file in out.glob("*.png")}


def test_the_readings_are_the_models(model: Path, text: Path, tmp_path: Path) -> None:
    record = analysed(model, text, tmp_path / "a", "heads")
    assert "uniqueness" not in record and "neurons" not in json.loads((tmp_path / "a" / "analysis.json").read_text())
    loaded, tokenizer = load(str(model)), AutoTokenizer.from_pretrained(model)
    ids = sequences(tokenizer, load_text(str(text), "validation"), seq_len=16, num_tokens=64, seed=None)
    found = collect(loaded, find_sites(loaded, ("heads",)), ids, needs=frozenset({"sensitivity"}))
    for site, stats in zip(record["units"]["heads"]["sites"], found, strict=True):
        assert site["sensitivity"] == pytest.approx(stats.per_sequence("sensitivity").tolist(), rel=1e-6)


def test_experts_of_a_mixture(mixture: Path, text: Path, tmp_path: Path) -> None:
    done = lmprune("analyze", mixture, "--units", "experts", "--data", text, "--max-tokens", 64, "--seq-len", 16,
                   "--out", tmp_path / "a")  # fmt: skip
    assert "rarest" in done.out
    record = json.loads((tmp_path / "a" / "analysis.json").read_text())
    for site in record["units"]["experts"]["sites"]:
        assert sum(site["frequency"]) == pytest.approx(site["top_k"])
        assert len(site["reap"]) == len(site["nearest_cos"]) == EXPERTS
    assert (tmp_path / "a" / "experts_reap.png").is_file()


def test_what_can_not_be_read(model: Path, text: Path, tmp_path: Path) -> None:
    how = ("analyze", model, "--data", text, "--out", tmp_path / "a", "--units")
    assert "analyze does not read expert_neurons; it reads neurons, heads" in refused(*how, "expert_neurons")
    assert "experts" in refused(*how, "experts")
    assert "name neurons among --units" in refused(*how, "heads", "--baseline", model)
    assert not (tmp_path / "a").exists()
