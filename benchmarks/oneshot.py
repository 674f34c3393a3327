"""One-shot pruning, every method: perplexity of the pruned model as a ratio to the dense one's.

    python benchmarks/oneshot.py --stage main                      # obs, plain OBS, the peers; other text too
    python benchmarks/oneshot.py --stage short                     # the same, 8,192 tokens of WikiText only
    python benchmarks/oneshot.py --stage methods                   # all methods, both scopes, 8,192 tokens
    python benchmarks/oneshot.py --stage obs_global                # obs under global scope, both lengths of WikiText
    python benchmarks/oneshot.py --stage procedures                # peers as their authors run them
    python benchmarks/oneshot.py --stage table                     # print what has been measured so far

Resumable: results go to benchmarks/runs/oneshot-MODEL.jsonl as they come, and what is there is not run again.
Calibration: 128 × 512 tokens of WikiText train; evaluation: first tokens of WikiText validation (raw), context 1,024
or the model's maximum; fp32; widths not rounded (multiple_of 1), so that ratios are exact.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lmprune
from lmprune import data
from lmprune.budget.selection import num_kept, select
from lmprune.data.tokens import sequences, stream
from lmprune.evaluation.perplexity import perplexity
from lmprune.methods import METHODS, get_method
from lmprune.scores.criteria import CRITERIA, score_from
from lmprune.scores.statistics import SeamStatistics, collect
from lmprune.sites.find import find_sites
from lmprune.solve.bias import bias_compensation
from lmprune.solve.elimination import eliminate
from lmprune.solve.obs import PLAIN, ObsSettings, error_curves, obs_to_counts
from lmprune.solve.scored import GRADIENT_TOKENS
from lmprune.solve.targets import layer_problems
from lmprune.solve.walks import cut

RUNS = Path(__file__).parent / "runs"
ONE_SHOT = [name for name, method in METHODS.items() if not method.learned and "neurons" in method.kinds]
KEEPS = (0.5, 0.7, 0.8, 0.9)
#: the first blocks and the last, which LLM-Pruner leaves whole in its authors' own run (of LLaMA-7B's 32)
SPARED = (4, 2)
PROCEDURES = {
    "wanda_sp, sequential": "local",  # each layer is scored on what the pruned ones before it put out
    "llm_pruner, ends spared": "local",  # more goes of the others, so that as much goes in all
    "flap": "local",
}
PEERS = ("flap", "wanda_sp", "two_ssp", "minitron", "llm_pruner")
CALIBRATION_TOKENS, SEQ_LEN = 128 * 512, 512
LONG, SHORT, BRIEF = 32768, 8192, 4096


class Bench:
    """The dense model, its calibration text and statistics, each made once and only when needed."""

    def __init__(self, name: str, shared: Path, seed: int, device: str = "cpu"):
        self.shared, self.seed, self.name = shared, seed, name
        source = shared / "models" / name if (shared / "models" / name).is_dir() else name
        self.model = lmprune.load(source, device=device)
        self.tokenizer = lmprune.load_tokenizer(source)
        self.seq_len = min(SEQ_LEN, self.model.config.max_position_embeddings)

    @cached_property
    def calibration(self) -> Tensor:
        text = data.load("wikitext", "train", data_dir=self.shared / "data" / "wikitext")
        print(f"calibration: {text.name}", flush=True)
        return sequences(
            self.tokenizer, text, seq_len=self.seq_len, num_tokens=CALIBRATION_TOKENS, seed=self.seed
        )  # fmt: skip

    @cached_property
    def statistics(self) -> list[SeamStatistics]:
        """Everything that any criterion needs, from one forward and one (shorter) backward reading."""
        ffns = find_sites(self.model)
        known = {field.name for field in fields(SeamStatistics)}  # of neurons: experts have others
        gradient = frozenset(n for c in CRITERIA.values() if c.needs_gradients for n in c.needs) & known
        forward = frozenset(n for c in CRITERIA.values() if not c.needs_gradients for n in c.needs) & known
        few = self.calibration[: GRADIENT_TOKENS // self.seq_len]
        seen = collect(self.model, ffns, self.calibration, needs=forward)
        felt = collect(self.model, ffns, few, needs=gradient)
        return [
            SeamStatistics(
                s.num_tokens, s.num_sequences,
                **{n: s.total(n) for n in forward}, **{n: f.total(n) for n in gradient},
            )
            for s, f in zip(seen, felt, strict=True)
        ]  # fmt: skip

    def texts(self, name: str, max_tokens: int) -> Tensor:
        if name == "wikitext":
            text = data.load("wikitext:raw", "validation", data_dir=self.shared / "data" / "wikitext")
        elif name == "samsum":
            text = data.load(f"{self.shared / 'data' / 'samsum' / 'validation.jsonl'}:dialogue")
        else:
            text = data.load(name, "validation")
        return stream(self.tokenizer, text, max_tokens)[0]

    def pruned(self, method: str, scope: str, keeps: Sequence[float]) -> Iterator[tuple[float, Any]]:
        """(keep, pruned copy of the model) for each ratio."""
        if method == "dense":
            yield 1.0, self.model
        elif method == "plain_obs":
            yield from self._plain_obs(scope, keeps)
        elif method == "wanda_sp, sequential":
            yield from ((keep, self._wanda_in_turn(keep)) for keep in keeps)
        elif method == "llm_pruner, ends spared":
            yield from self._ends_spared("llm_pruner", keeps)
        elif get_method(method).refit == "obs" and scope == "global":
            yield from self._obs_global(method, keeps)
        elif get_method(method).refit == "obs":
            for keep in keeps:
                model = copy.deepcopy(self.model)
                lmprune.prune(
                    model, method=method, scope=scope, keep=keep,  # type: ignore[arg-type]
                    data=self.calibration, multiple_of=1, seed=self.seed,
                )  # fmt: skip
                yield keep, model
        else:
            yield from self._scored(method, scope, keeps)

    def _scored(self, method: str, scope: str, keeps: Sequence[float]) -> Iterator[tuple[float, Any]]:
        row, ffns = get_method(method), find_sites(self.model)
        scores = score_from(ffns, row.solver.name, self.statistics, seed=self.seed)
        for keep in keeps:
            model = copy.deepcopy(self.model)
            kept = select(scores, keep, scope=scope, seed=self.seed)  # type: ignore[arg-type]
            for ffn, indices, stats in zip(find_sites(model), kept, self.statistics, strict=True):
                repaired = bias_compensation(ffn, indices, stats.per_token("sum_h")) if row.refit == "bias" else None
                ffn.keep(indices)
                if repaired:
                    ffn.set_reader(*repaired)
            yield keep, model

    def _ends_spared(self, method: str, keeps: Sequence[float]) -> Iterator[tuple[float, Any]]:
        ffns = find_sites(self.model)
        scores = score_from(ffns, get_method(method).solver.name, self.statistics, seed=self.seed)
        middle = slice(SPARED[0], len(ffns) - SPARED[1])
        for keep in keeps:
            model = copy.deepcopy(self.model)
            left = 1 - (1 - keep) * len(ffns) / len(ffns[middle])
            for ffn, indices in zip(
                find_sites(model)[middle], select(scores[middle], left, scope="local", seed=self.seed), strict=True
            ):
                ffn.keep(indices)
            yield keep, model

    @torch.no_grad()
    def _wanda_in_turn(self, keep: float) -> Any:
        model = copy.deepcopy(self.model)
        for ffn, problem in layer_problems(model, find_sites(model), self.calibration, sequential=True, rel_damp=1e-12):
            powers = problem.gram_FF.diagonal()[: ffn.width] * self.calibration.numel()
            seen = SeamStatistics(self.calibration.numel(), len(self.calibration), sum_h2=powers.cpu())
            (scores,) = score_from([ffn], "wanda_sp", [seen], seed=self.seed)
            ffn.keep(select([scores], keep, scope="local", seed=self.seed)[0])
        return model

    def _obs_global(self, method: str, keeps: Sequence[float]) -> Iterator[tuple[float, Any]]:
        """One dense pass gives the error curves that set the widths at all ratios; they are kept on disk."""
        for keep in keeps:
            model = copy.deepcopy(self.model)
            obs_to_counts(model, find_sites(model), self.calibration, self._widths(method, keep), seed=self.seed)
            yield keep, model

    def _widths(self, method: str, keep: float) -> list[int]:
        """Under global scope."""
        settings, file = {"obs": ObsSettings(), "plain_obs": PLAIN}[method], RUNS / f"curves-{method}-{self.name}.pt"
        if not file.exists():
            torch.save(error_curves(self.model, find_sites(self.model), self.calibration, settings=settings), file)
        scores = torch.load(file, weights_only=True)
        return [len(kept) for kept in select(scores, keep, scope="global", seed=self.seed)]

    @torch.no_grad()
    def _plain_obs(self, scope: str, keeps: Sequence[float]) -> Iterator[tuple[float, Any]]:
        """One dense pass serves all ratios: the order of removal of each layer is cut at each."""
        widths = {keep: [num_kept(ffn.width, keep) for ffn in find_sites(self.model)] for keep in keeps}
        if scope == "global":
            widths = {keep: self._widths("plain_obs", keep) for keep in keeps}
        models = {keep: copy.deepcopy(self.model) for keep in keeps}
        dense = layer_problems(
            self.model, find_sites(self.model), self.calibration, sequential=False, rel_damp=PLAIN.rel_damp
        )
        for ffn, problem in dense:
            least = min(each[ffn.layer] for each in widths.values())
            found = eliminate(problem, until=least, seed=self.seed)
            for keep, model in models.items():
                gone = found.gone[: ffn.width - widths[keep][ffn.layer]]
                stays = torch.ones(ffn.width, dtype=torch.bool)
                stays[gone] = False
                cut(find_sites(model)[ffn.layer], stays.nonzero().flatten(), problem)
        yield from models.items()


class Results:
    """Records in a jsonl file, keyed by what was run."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((r for r in self.records if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def measure(
    bench: Bench, results: Results, method: str, scope: str, keeps: Sequence[float], texts: Sequence[tuple[str, int]]
) -> None:
    key = {"method": method, "scope": scope}
    missing = [k for k in keeps if any(results.find(**key, keep=k, text=t, max_tokens=n) is None for t, n in texts)]
    if not missing:
        return
    start = time.perf_counter()
    for keep, model in bench.pruned(method, scope, missing):
        seconds = time.perf_counter() - start
        for text, max_tokens in texts:
            if results.find(**key, keep=keep, text=text, max_tokens=max_tokens) is None:
                found = perplexity(model, bench.texts(text, max_tokens))
                results.add(
                    {
                        **key, "keep": keep, "text": text, "max_tokens": max_tokens,
                        "perplexity": found.perplexity, "perplexity_se": found.perplexity_se, "context": found.context,
                        "prune_seconds": round(seconds, 1), "widths": [f.width for f in find_sites(model)],
                        "date": time.strftime("%Y-%m-%d"),
                    }
                )  # fmt: skip
        start = time.perf_counter()


def table(results: Results, text: str, max_tokens: int) -> str:
    """Markdown: a row a method, perplexity and its ratio to the dense model's at each keep ratio."""
    rows = [r for r in results.records if r["text"] == text and r["max_tokens"] == max_tokens]
    dense = next((r["perplexity"] for r in rows if r["method"] == "dense"), None)
    if dense is None:
        return ""
    keeps = sorted(KEEPS, reverse=True)
    found: dict[tuple[str, str], dict[float, float]] = {}
    for r in rows:
        if r["method"] != "dense":
            found.setdefault((r["method"], r["scope"]), {})[r["keep"]] = r["perplexity"]
    lines = [f"| {text}, {max_tokens:,} tokens, dense {dense:.2f} | scope | {' | '.join(map(str, keeps))} |"]
    lines.append("| --- " * (len(keeps) + 2) + "|")
    for (method, scope), at in sorted(found.items(), key=lambda item: item[1].get(0.7, math.inf)):
        cells = [f"{at[keep]:,.2f} ({at[keep] / dense:.3f})" if keep in at else "" for keep in keeps]
        lines.append(f"| {method} | {scope} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="smollm2-135m", help="an lmprune model name, or a folder of ../shared/models"
    )
    parser.add_argument(
        "--stage", choices=["main", "short", "methods", "obs_global", "procedures", "table"], default="main"
    )
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", nargs="*", default=[*ONE_SHOT, *PROCEDURES], help="methods to run, of the stage's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.shared.is_dir():
        raise SystemExit(f"no shared models and data at {args.shared}; pass --shared")
    results = Results(RUNS / f"oneshot-{args.model}.jsonl")
    main_methods = [(name, get_method(name).scope) for name in ("obs", "plain_obs", *PEERS)]
    if args.stage == "table":
        for text, max_tokens in dict.fromkeys((r["text"], r["max_tokens"]) for r in results.records):
            print(table(results, text, max_tokens), end="\n\n")
        return
    bench = Bench(args.model, args.shared, args.seed)
    plans: dict[str, tuple[list[tuple[str, str]], list[tuple[str, int]]]] = {
        # models are cut once for all texts, so the main stage reads the others too
        "main": (main_methods, [("wikitext", LONG), ("wikitext", SHORT), ("python-docs", BRIEF), ("samsum", BRIEF)]),
        "short": (main_methods, [("wikitext", SHORT)]),
        "methods": (
            [(name, scope) for name in ONE_SHOT for scope in ("local", "global") if (name, scope) != ("obs", "global")],
            [("wikitext", SHORT)],
        ),
        "obs_global": ([("obs", "global")], [("wikitext", LONG), ("wikitext", SHORT)]),
        "procedures": (list(PROCEDURES.items()), [("wikitext", LONG), ("wikitext", SHORT)]),
    }
    methods, texts = plans[args.stage]
    measure(bench, results, "dense", "", [1.0], texts)
    for method, scope in (pair for pair in methods if pair[0] in args.only):
        measure(bench, results, method, scope, KEEPS, texts)


if __name__ == "__main__":
    main()
