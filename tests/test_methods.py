"""The table of methods, and the repair that one of them uses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_statistics import ids_of, tiny
from tiny_models import WIDTH

from lmprune.errors import UserError
from lmprune.gradual.penalties import PENALTIES
from lmprune.methods import METHODS, get_method, methods_table
from lmprune.scores.criteria import CRITERIA
from lmprune.sites.find import find_sites
from lmprune.solve.bias import bias_compensation

NAMES = (
    "magnitude random activation fluctuation taylor sensitivity obs plain_obs wanda_sp flap two_ssp minitron llm_pruner"
    " reap frequency router gum top_v hard soft anti_gum"
)


def test_the_table_is_complete_and_consistent():
    assert set(METHODS) == set(NAMES.split())
    for name, method in METHODS.items():
        assert method.name == name and method.summary and method.source
        assert method.scope in ("local", "global") and method.refit in ("none", "bias", "obs")
        assert (method.criterion == "obs") == (method.refit == "obs")
        assert method.criterion in CRITERIA or method.criterion == "obs" or method.learned
        assert method.penalty in PENALTIES and (method.learned or method.penalty == "none")
    assert {name for name, method in METHODS.items() if method.learned} == set("gum top_v hard soft anti_gum".split())
    assert (METHODS["flap"].criterion, METHODS["flap"].scope, METHODS["flap"].refit) == (
        "fluctuation",
        "global",
        "bias",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["obs"].scope = "global"  # type: ignore[misc]


def test_an_unknown_method_teaches():
    assert get_method("magnitude") is METHODS["magnitude"]
    with pytest.raises(UserError, match=r"unknown method 'magnitud'; did you mean magnitude.*known: obs, "):
        get_method("magnitud")


def test_the_markdown_table_has_a_row_a_method_and_seven_cells_each():
    lines = methods_table().splitlines()
    assert len(lines) == 2 + len(METHODS) and set(lines[1]) == set("| -")
    for line, name in zip(lines[2:], METHODS, strict=True):
        cells = line.replace(r"\|", "").strip("|").split("|")
        assert len(cells) == 7 and cells[0].strip() == f"`{name}`"


@pytest.mark.parametrize("name", ["mistral", "gpt2", "phi3", "opt"])  # no bias on `down`; Conv1D; fused; bias
def test_removing_constant_neurons_changes_nothing_after_bias_compensation(name):
    model, ids = tiny(name), ids_of()
    ffns, constants = find_sites(model), {2: 0.7, 9: -1.3, 47: 2.0}
    kept = torch.tensor([j for j in range(WIDTH) if j not in constants])

    def freeze(_module, args):
        h = args[0].clone()
        for neuron, value in constants.items():
            h[..., neuron] = value
        return (h,)

    handles = [ffn.reader_linear.register_forward_pre_hook(freeze) for ffn in ffns]
    mean_h = torch.randn(WIDTH, dtype=torch.float64)  # of neurons that stay: must not matter
    mean_h[list(constants)] = torch.tensor(list(constants.values()), dtype=torch.float64)
    with torch.no_grad():
        dense = model(ids).logits
    for handle in handles:
        handle.remove()

    for ffn in ffns:
        before = [p.clone() for linear in ffn.linears for p in linear.parameters()]
        reader, bias = bias_compensation(ffn, kept, mean_h)
        assert all(
            torch.equal(a, b) for a, b in zip(before, [p for m in ffn.linears for p in m.parameters()], strict=True)
        )
        ffn.keep(kept)
        with torch.no_grad():
            without = model(ids).logits
        ffn.set_reader(reader, bias)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense, rtol=1e-5, atol=1e-5)
    assert (without - dense).abs().max() > 1e-2, "control: the repair must be what makes them equal"


def test_bias_compensation_leaves_the_mean_output_unchanged_on_real_statistics():
    from lmprune.scores.statistics import collect

    model, ids = tiny("opt"), ids_of()
    ffn = find_sites(model)[0]
    outputs: list[torch.Tensor] = []
    ffn.reader_linear.register_forward_hook(lambda m, args, out: outputs.append(out.detach().reshape(-1, 32).mean(0)))
    stats = collect(model, [ffn], ids, needs=frozenset({"sum_h"}), batch_size=5)[0]
    reader, bias = bias_compensation(ffn, kept := torch.arange(0, WIDTH, 2), stats.per_token("sum_h"))
    ffn.keep(kept)
    with torch.no_grad():
        model(ids)
    ffn.set_reader(reader, bias)
    with torch.no_grad():
        model(ids)
    dense, cut, repaired = outputs
    assert (cut - dense).abs().max() > 1e-2
    torch.testing.assert_close(repaired, dense, rtol=1e-9, atol=1e-9)
