"""The numbers of docs/results.md that stand on its first page, each made again from its record."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FIRST = PAGE.split("## Everything that was measured")[0]


def records(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "benchmarks" / "records" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else [json.loads(text)]


def row(start: str) -> str:
    (found,) = [line for line in FIRST.splitlines() if line.startswith(f"| {start}")]
    return found.split(" | ", 1)[1]


def one_shot(method: str, scope: str, keep: float) -> float:
    found = [r for r in records("oneshot-smollm2-135m.jsonl") if (r["text"], r["max_tokens"]) == ("wikitext", 32768)]
    (dense,) = [r["perplexity"] for r in found if r["method"] == "dense"]
    (mine,) = [r["perplexity"] for r in found if (r["method"], r["scope"], r["keep"]) == (method, scope, keep)]
    return mine / dense


def budgets(model: str = "smollm2-135m", units: str = "neurons", **how: int) -> dict[tuple[str, float, int], Any]:
    """The ratios of one round without passes after the cut, unless `how` says how many, by way, keep and seed."""
    return {
        (r["by"], r["keep"], r["seed"]): r["ratio"]
        for r in records("budgets.jsonl")
        if (r["model"], r["units"]) == (model, units)
        and all(r.get(name, usual) == how.get(name, usual) for name, usual in (("rounds", 1), ("recover", 0)))
    }


def budget(by: str, keep: float, seed: int) -> dict[str, float]:
    return budgets()[by, keep, seed]


def unit(kinds: str, method: str, scope: str, asked: float | None, model: str = "smollm2-135m") -> float:
    (found,) = [
        r["ratio"]
        for r in records(f"units-{model}.jsonl")
        if (",".join(r["units"]), r["method"], r["scope"], r["asked"]) == (kinds, method, scope, asked)
    ]
    return found


def test_one_shot_and_the_seeds():
    told = " / ".join(f"{one_shot('obs', 'local', keep):.3f}" for keep in (0.9, 0.7, 0.5))
    seeds = [budget("uniform", 0.5, seed)["wikitext"] for seed in range(3)]
    assert f"**{told}**" in row("neurons, `obs`")
    assert f"{fmean(seeds):.3f} ± {stdev(seeds) / math.sqrt(3):.3f}" in row("neurons, `obs`")


def test_other_rules():
    peers = {"plain_obs": "local", "two_ssp": "local", "wanda_sp": "local", "minitron": "local", "llm_pruner": "local"}
    found = [float(number) for number in re.findall(r"\d+\.\d+", row("the same at 50%"))]
    peers |= {"llm_pruner, ends spared": "local"}
    expected = [one_shot(name, scope, 0.5) for name, scope in (*peers.items(), ("flap", "global"), ("flap", "local"))]
    assert found == pytest.approx(expected, rel=3e-3)


def test_foreign_text_and_the_mix():
    uniform, searched = budget("uniform", 0.5, 0), budget("evolution", 0.5, 0)
    told = row("the same model on text")
    assert f"web pages {uniform['c4']:.2f}, code {uniform['code']:.2f}" in told
    assert f"{searched['c4']:.2f} and {searched['code']:.2f}" in told
    alone = [r for r in records("quality.jsonl") if "accelerator" not in r]  # of the first day
    measured = {(r["tokens"], r["scope"] or "local"): r["report"] for r in alone}
    section = PAGE.split("### Calibrated on text of several kinds")[1].split("\n## ")[0]
    for (tokens, scope), found in measured.items():
        assert f"| {tokens:,} | {scope} | {' | '.join(f'{value:.3f}' for value in found.values())} |" in section
    mix = measured[65_536, "local"]
    kinds = [value for kind, value in mix.items() if kind != "mean_log"]
    told = f"{min(kinds):.2f} to {max(kinds):.2f} on six kinds, geometric mean {math.exp(mix['mean_log']):.2f}"
    assert told in row("calibrated on five") and len(kinds) == 6


def test_methods_and_a_second_model_on_the_mix():
    section = PAGE.split("### Calibrated on text of several kinds")[1].split("\n## ")[0]
    found = [
        r for r in records("quality.jsonl") if "accelerator" in r and r["method"] != "dense" and "recover" not in r
    ]
    assert len(found) > 50
    for r in found:
        numbers = " | ".join(f"{value:.3f}" for value in r["report"].values())
        accuracy = f"{r['zero_shot']['mean_accuracy']:.3f}" if "zero_shot" in r else "not run"
        name = f"{r['method']}, global" if r["scope"] else r["method"]
        told = f"| {r['keep']:g} | {name} | {r['seed']} | {numbers} | {accuracy} |"
        if r["model"] == "gemma-3-270m-q4_k_m.gguf":
            told = f"| {r['keep']:g} | {name} | {numbers} | {accuracy} |"
        elif r["model"] == "gemma-3-270m":
            told = f"| {r['calibrate']} | {numbers} |"
        elif r["calibrate"] == "wikitext":
            told = f"| {name} | {numbers} |"
        assert told in section
    dense, *gemmas = (r["zero_shot"] for r in records("quality.jsonl") if r["method"] == "dense")
    assert {f"{gemma['mean_accuracy']:.3f}" for gemma in gemmas} == {"0.519"} and "dense 0.519" in section
    chance = fmean(task["chance"] for task in dense["tasks"].values())
    assert f"dense model has {dense['mean_accuracy']:.3f} ± 0.013 and chance {chance:.3f}" in section
    mix, wiki = (r["report"]["mean_log"] for r in found if r["model"] == "gemma-3-270m")
    assert f"{mix / wiki:.2f}, **met**" in section


def test_recovery_and_units():
    (dense,) = [r["perplexity"] for r in records("oneshot-smollm2-135m.jsonl")
                if (r["method"], r["text"], r["max_tokens"]) == ("dense", "wikitext", 32768)]  # fmt: skip
    (recovery,) = records("recovery.json")
    best = next(r["recovered"] for r in records("recovery_mix.jsonl") if "wikitext" in r["recovered"])
    told = (
        recovery["recovered_eval"] / dense,
        best["wikitext"]["perplexity_ratio"],
        math.exp(best["report"]["mean_log"]),
    )
    assert re.findall(r"\d\.\d\d", row("after 120 steps")) == [f"{ratio:.2f}" for ratio in told]
    told = row("a fifth of the blocks")
    assert f"neurons {unit('neurons', 'obs', 'global', 0.2):.3f}" in told
    assert f"neurons and heads {unit('neurons,heads', 'obs', 'global', 0.2):.3f}" in told
    assert f"layers {unit('layers', 'obs', 'local', 0.2):.3f}" in told
    assert f"ShortGPT {unit('layers', 'shortgpt', 'local', 0.2):.3f}" in told
    told = row("one of three key/value")
    assert told.startswith(f"{unit('heads', 'obs', 'local', None):.3f}")
    for method in ("flap", "taylor"):
        assert f"`{method}` {unit('heads', method, 'local', None):.3f}" in told


#: of both tables of units: how a row begins, kinds, method, scope
UNIT_ROWS = (
    ("neurons | local", "neurons", "obs", "local"),
    ("neurons | global", "neurons", "obs", "global"),
    ("neurons and heads, one ranking | global", "neurons,heads", "obs", "global"),
    ("layers | –", "layers", "obs", "local"),
    ("layers, `shortgpt` without a refit | –", "layers", "shortgpt", "local"),
)


def test_units_at_equal_parameters():
    section = PAGE.split("At equal removed parameters")[1].split("And Gemma")[0]
    for name, kinds, method, scope in UNIT_ROWS:
        (told,) = [line for line in section.splitlines() if line.startswith(f"| {name} |")]
        expected = [f"{unit(kinds, method, scope, asked):.3f}" for asked in (0.1, 0.2, 0.35)]
        assert re.findall(r"\d+\.\d{3}", told) == expected
    for asked in (0.1, 0.2, 0.35):
        assert unit("neurons,heads", "obs", "global", asked) < 1.01 * unit("neurons", "obs", "global", asked)


def test_units_of_a_second_model():
    gemma = "gemma-3-270m-q4_k_m"
    section = PAGE.split("And Gemma-3-270M (4-bit GGUF")[1].split("\n#")[0]
    for name, kinds, method, scope in UNIT_ROWS:
        told = next(line for line in section.splitlines() if line.startswith(f"| {name} |"))
        expected = [f"{unit(kinds, method, scope, asked, gemma):.3f}" for asked in (0.1, 0.2, 0.35)]
        assert re.findall(r"\d+\.\d{3}", told) == expected
    assert f"{unit('neurons', 'obs', 'local', 0.2, gemma):.3f} with a fifth of its blocks gone" in FIRST
    for method in ("obs", "flap", "taylor", "random", "magnitude"):
        assert f"{unit('heads', method, 'local', None, gemma):.3f}" in section.split("|")[0]


def spread(values: list[float], digits: int, *, of_mean: bool = False) -> str:
    """Mean ± standard deviation, or error."""
    width = stdev(values) / (math.sqrt(len(values)) if of_mean else 1)
    return f"{fmean(values):.{digits}f} ± {width:.{digits}f}"


def test_budgets_over_seeds():
    """The table of the section too: every cell of it."""
    half, more = ([budget("evolution", keep, seed)["wikitext"] for seed in range(3)] for keep in (0.5, 0.7))
    assert row("the same with widths").startswith(
        f"{spread(half, 3, of_mean=True)}; at 70% {spread(more, 3, of_mean=True)}"
    )
    known = budgets()
    lines = [line for line in PAGE.splitlines() if re.match(r"\| 0\.[57] \| (uniform|ranking|dp|evolution)", line)]
    assert len(lines) == 8
    for line in lines:
        keep, by, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        ratios = [known.get((by.split()[0], float(keep), seed)) for seed in range(3)]
        for cell, kind in zip((cells[0], *cells[2:]), ("wikitext", "c4", "code"), strict=True):
            assert cell == ", ".join("not run" if r is None else f"{r[kind]:.3f}" for r in ratios)
        assert cells[1] == spread([r["wikitext"] for r in ratios if r], 3, of_mean=True)


def test_passes_after_the_cut():
    section = PAGE.split("### Passes over the calibration text")[1].split("\n### ")[0]
    alone, found = budgets(), budgets(recover=1)
    assert found
    for (_, keep, seed), ratio in found.items():
        numbers = [each[kind] for each in (ratio, alone["ranking", keep, seed]) for kind in ("wikitext", "c4", "code")]
        assert f"| {keep:g} | {seed} | {' | '.join(f'{number:.3f}' for number in numbers)} |" in section
    for r in (r for r in records("quality.jsonl") if "recover" in r):
        numbers = [*r["report"].values(), r["zero_shot"]["mean_accuracy"]]
        assert f"| {r['keep']:g} | {r['seed']} | {' | '.join(f'{number:.3f}' for number in numbers)} |" in section
        assert f"{r['choose']['mean_log']:.3f}" in section
        kinds = [ratio for kind, ratio in r["report"].items() if kind != "mean_log"]
        told = f"{min(kinds):.2f} to {max(kinds):.2f}, mean {math.exp(r['report']['mean_log']):.2f}"
        assert told in row("calibrated on five")
    half = found["global", 0.5, 0]
    told = f"{half['wikitext']:.3f}; web pages {half['c4']:.2f}, code {half['code']:.2f}"
    assert row("the same with one pass").startswith(told)


def test_budgets_of_both_kinds_and_of_a_second_model():
    section = PAGE.split("### A budget that is spread by search")[1].split("\n### ")[0]
    both, gemma = budgets(units="neurons+heads"), budgets(model="gemma-3-270m-q4_k_m")
    for by in ("global", "evolution"):
        seeds = [both[key]["wikitext"] for key in sorted(both) if key[:2] == (by, 0.625)]
        told = f"{spread(seeds, 3, of_mean=True)}" if len(seeds) > 1 else f"{seeds[0]:.3f}"
        assert ", ".join(f"{ratio:.3f}" for ratio in seeds) in section and told in section
    for by in ("uniform", "ranking", "evolution"):
        ratio = gemma[by, 0.5, 0]
        assert f"| {by} | {ratio['wikitext']:.3f} | {ratio['c4']:.3f} | {ratio['code']:.3f} |" in section


def test_the_paper_on_smollm2():
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for r in records("paper_smollm2_wikitext.jsonl"):
        config = r["config"]
        if config["keep"] in (0.25, 1.0) and not config["distil"]:
            found.setdefault(config["method"], {})[config["seed"]] = r
    told = row("pruned to 25%")
    section = PAGE.split("### The paper on SmolLM2-135M")[1].split("### ")[0]
    assert len(found) == 9
    for method, runs in found.items():
        perplexities = [runs[seed]["eval"]["perplexity"] for seed in sorted(runs)]
        (line,) = [line for line in section.splitlines() if line.startswith(f"| {method} | ")]
        each = ", ".join(f"{runs[s]['eval']['perplexity']:.2f}" if s in runs else "not run" for s in range(4))
        assert f" {each} | {spread(perplexities, 2)} |" in line
        if method in ("gum", "top_v", "random"):
            assert spread(perplexities, 2) in told
        if method != "dense":
            assert spread([r["redundancy"]["uniqueness_ratio"] for r in runs.values()], 4) in line
    gains = [
        math.log(found["gum"][s]["eval"]["perplexity"] / found["top_v"][s]["eval"]["perplexity"]) for s in range(3)
    ]
    assert f"{fmean(gains):.3f} [" in section
    for other in ("top_v", "soft", "hard", "magnitude"):
        beyond = [math.log(run["eval"]["perplexity"] / found[other][s]["eval"]["perplexity"] / 1.05)
                  for s, run in found["random"].items()]  # fmt: skip
        assert f"`{other}` {fmean(beyond):+.3f} [" in section and len(beyond) == 4
    taught: dict[tuple[str, float], dict[int, float]] = {}
    for r in records("paper_smollm2_teacher.jsonl"):
        key = (r["config"]["method"], r["config"]["keep"])
        taught.setdefault(key, {})[r["config"]["seed"]] = r["eval"]["perplexity"]
    for (_, keep), by_seed in taught.items():
        each = ", ".join(f"{by_seed[seed]:.2f}" if seed in by_seed else "not run" for seed in range(3))
        assert f"| {keep:g} | {each} | {spread([*by_seed.values()], 2)} |" in section
    assert spread([*taught["obs", 0.25].values()], 2) in told
    for dense, closed in (
        ({s: r["eval"]["perplexity"] for s, r in found["dense"].items()}, "51, 56 and 54%"),
        (taught["dense", 1.0], "44, 48\nand 46%"),
    ):
        gum = {s: r["eval"]["perplexity"] for s, r in found["gum"].items()}
        shares = [(gum[s] - taught["obs", 0.25][s]) / (gum[s] - dense[s]) for s in range(3)]
        assert re.findall(r"\d+", closed) == [f"{100 * share:.0f}" for share in shares] and closed in section


def test_from_nothing():
    (found,) = records("from_nothing.jsonl")
    assert f"**{found['total']:.0f} s**" in PAGE.split("## From an empty machine")[1] and "Paris" in found["answer"]


def test_families():
    section = PAGE.split("### Families")[1].split("### ")[0]
    for family in records("families.jsonl"):
        for model in family["comparison"]:
            ratio = "–" if model["perplexity_ratio"] is None else f"{model['perplexity_ratio']:.3f}"
            told = f"{model['params']:,} | {model['perplexity']:.2f} ± {model['perplexity_se']:.2f} | {ratio} |"
            assert told in section


def test_recovery_on_a_mix():
    found = records("recovery_mix.jsonl")
    section = PAGE.split("### Recovery on text of several kinds")[1].split("### ")[0]
    kinds = ("wiki", "c4", "code", "technical", "chat", "dialogues", "mean_log")
    first = [r for r in found if "scope" not in r]
    stages = [("`obs` alone", first[0]["one_shot"]), *((f"{r['text']} | {r['lr']:g}", r["recovered"]) for r in first)]
    for name, stage in stages:
        (line,) = [line for line in section.splitlines() if line.startswith(f"| {name} ")]
        assert line.endswith(" | ".join(f"{stage['report'][kind]:.3f}" for kind in kinds) + " |")
        assert f"{stage['choose']['mean_log']:.3f}" in line
    for r in (r for r in found if "scope" in r):
        for stage, how in (("one_shot", "`obs` alone |  |  | "), ("recovered", None)):
            how = how or f"recovered | {r['steps']} | {r['lr']:g} | {r['temperature']:g}"
            numbers = [r[stage]["choose"]["mean_log"], *(r[stage]["report"][kind] for kind in kinds)]
            assert f"| {r['keep']:g} | {how} | {' | '.join(f'{number:.3f}' for number in numbers)} |" in section
            if "zero_shot" in r[stage]:
                assert f"{r[stage]['zero_shot']['kept_above_chance']:.3f}" in section
                assert f"{r[stage]['wikitext']['perplexity_ratio']:.3f}" in section


def test_speed_in_llama_cpp():
    of = [r for r in records("deploy_speed.jsonl") if (r["model"], r["engine"]) == ("smollm2-135m", "llamacpp")]
    half = next(r for r in of[-1]["rows"] if r["keep"] == 0.5)
    assert f"{half['speedup_prefill']:.2f} times in llama.cpp's prefill, {half['speedup_decode']:.2f}" in row("speed")
    assert f"{min(half['share_prefill'], half['share_decode']):.0%} or more" in row("speed")


def test_a_number_that_is_not_its_record_s_shows():
    assert f"{one_shot('obs', 'local', 0.5) + 0.01:.3f}" not in row("neurons, `obs`")


def test_the_matrix():
    """Every row that was run, with the versions that were found."""
    table = PAGE.split("`python benchmarks/matrix.py")[1].split("## ")[0]
    for r in records("matrix.jsonl"):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {r['name']} ")]
        torch, transformers = r["found"]["torch"].split("+")[0], r["found"]["transformers"]
        assert line.endswith(f"| {r['python']} | {torch} | {transformers} | {r['passed']} | {r.get('failed', 0)} |")


def test_heads_while_it_trains():
    section = PAGE.split("### Heads while it trains")[1].split("### ")[0]
    found: dict[str, dict[int, float]] = {}
    for r in records("heads_movement.jsonl"):
        found.setdefault(r["config"]["method"], {})[r["config"]["seed"]] = r["eval"]["perplexity"]
    assert set(found) == {"dense", "random", "magnitude", "top_v", "gum"} and all(
        set(v) == {0, 1, 2} for v in found.values()
    )
    for method, by_seed in found.items():
        each = ", ".join(f"{by_seed[seed]:.2f}" for seed in range(3))
        assert f"| {method} | {each} | {spread([*by_seed.values()], 2)} |" in section
    for better, other in (("top_v", "random"), ("top_v", "magnitude"), ("gum", "top_v")):
        gains = [math.log(found[better][seed] / found[other][seed]) for seed in range(3)]
        assert f"{fmean(gains):.4f} [" in section


def test_targets_for_speed():
    section = PAGE.split("### Targets for speed")[1].split("### ")[0]
    found = records("speed_targets.jsonl")
    for engine in ("llamacpp", "torch"):
        plans = [r for r in found if (r["stage"], r["engine"]) == ("plans", engine)]
        told, errors = [r["told"] for r in plans], [r["measured"] / r["told"] - 1 for r in plans]
        numbers = f"{min(told):.2f} to {max(told):.2f} | {min(errors):+.1%} to {max(errors):+.1%} |"
        assert f"| {engine}, {plans[0]['phase']} | {len(plans)} | {numbers}" in section
    for r in (r for r in found if r["stage"] == "targets"):
        assert r["told"] == pytest.approx(r["cost"]["before"] / r["cost"]["after"])
        numbers = f"{r['told']:.3f} | {r['measured']:.3f} | {r['measured'] / r['target'] - 1:+.1%}"
        assert (
            f"| {r['target']:g} × | {r['budget']} | {numbers} | {r['params'] / 1e6:.1f} M | {r['ratio']:.3f} |"
            in section
        )
