"""`lmprune bench`: the ratios are right, models take turns, each engine answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_input import refused
from test_checkpoint import uniform_plan
from test_gguf import bpe, model_of
from tiny_checkpoints import documented, lmprune, tiny_checkpoint
from tiny_mixtures import tiny_mixture
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lmprune.checkpoints import checkpoint, models
from lmprune.checkpoints.shrinking import shrink
from lmprune.errors import UserError
from lmprune.evaluation import engines, workers
from lmprune.evaluation.engines import ENGINES, LlamaCpp, Torch
from lmprune.jobs import bench
from lmprune.plan import PrunePlan
from lmprune.sites.find import find_sites

pytestmark = pytest.mark.usefixtures("quick_workers")

SMALL = ("--threads", 1, "--prompt-tokens", 20, "--new-tokens", 4, "--repeats", 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense checkpoint and the same cut to a third."""
    room = tmp_path_factory.mktemp("pair")
    model = model_of("llama-tied", num_hidden_layers=2)
    dense = checkpoint.save(model, room / "dense", tokenizer=bpe())
    return dense, checkpoint.save(shrink(model, uniform_plan(model)), room / "third", tokenizer=bpe())


class FakeWorker:
    weight_bytes = 1

    def __init__(self, log: list[str], name: str, seconds: list[tuple[float, float]]):
        self.log, self.name, self.seconds = log, name, iter(seconds)

    def time(self, prompt_BT: Any, new_tokens: int) -> tuple[float, float]:
        self.log.append(self.name)
        return next(self.seconds)


def test_models_take_turns_and_the_first_turn_does_not_count() -> None:
    log: list[str] = []
    turns = {"a": [(99.0, 99.0), (4.0, 6.0), (8.0, 6.0)], "b": [(9.0, 9.0), (2.0, 2.0), (2.0, 3.0)]}
    fakes = [FakeWorker(log, name, seconds) for name, seconds in turns.items()]
    a, b = bench.interleaved(fakes, np.zeros((1, 4), np.int64), 2, 2, lambda *_: None)
    assert log == ["a", "b"] * 3 and a == turns["a"][1:] and b == turns["b"][1:]
    ratios = bench.compared(a, b)
    assert (ratios["speedup_prefill"], ratios["speedup_prefill_min"], ratios["speedup_prefill_max"]) == (3.0, 2.0, 4.0)
    assert (ratios["speedup_decode"], ratios["speedup_decode_min"], ratios["speedup_decode_max"]) == (2.5, 2.0, 3.0)


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("flag", [True, False])
def test_a_model_s_own_code_is_trusted_where_it_is_measured(
    flag: bool, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its layers are counted, and in the process that opens it."""
    asked: list[bool] = []
    load, skeleton = models.load, models.skeleton

    def seen(of: Any) -> Any:
        def opened(source: Any, **how: Any) -> Any:
            assert how["trust_remote_code"] is flag  # a failure in the other process comes back as its sentence
            asked.append(flag)
            return of(source, **how)

        return opened

    monkeypatch.setattr(models, "load", seen(load))
    monkeypatch.setattr(models, "skeleton", seen(skeleton))
    words = ["bench", str(pair[0]), "--prompt-tokens", "8", "--new-tokens", "2", "--repeats", "1", "--threads", "1"]
    assert lmprune(*words, *["--trust-remote-code"] * flag).code == 0 and asked


def test_all_are_measured_in_the_dtype_that_the_last_is_stored_in(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A dequantised dense model, in float32, was compared with a pruned one in bfloat16: twice the bytes, three times
    the time, and neither the pruning's doing."""
    half = checkpoint.save(models.load(pair[0]).bfloat16(), tmp_path / "half", tokenizer=bpe())
    for other, kind, size in ((half, "bfloat16", 2), (pair[0], "float32", 4)):
        record = lmprune("bench", pair[0] if other == half else half, other, *SMALL, "--json").record
        first, second = record["results"]
        assert record["dtype"] == kind and second["ideal_decode"] == 1
        assert first["weight_megabytes"] == second["weight_megabytes"]
        assert first["cache_bytes_per_token"] == second["cache_bytes_per_token"] == 2 * 2 * 4 * 8 * size / 2


def test_a_dequantised_one_is_measured_in_what_it_would_be_saved_in(tmp_path: Path) -> None:
    model = model_of("llama-tied", num_hidden_layers=2, intermediate_size=64).bfloat16()
    stored, quantised = checkpoint.save(model, tmp_path / "stored", tokenizer=bpe()), tmp_path / "q.gguf"
    assert lmprune("export", stored, "--to", "gguf", "--dtype", "q8_0", "--out", quantised, "--no-verify").code == 0
    for models_ in ((quantised, stored), (stored, quantised)):
        record = lmprune("bench", *models_, *SMALL, "--json").record
        first, second = record["results"]
        assert record["dtype"] == "bfloat16" and first["weight_megabytes"] == second["weight_megabytes"]


@pytest.mark.parametrize("kept", [{}, {"heads": [0]}, {"attentions": [1]}, {"ffns": [0], "layers": [0, 2]}], ids=str)
def test_operations_are_those_that_torch_counts(kept: dict[Any, list[int]]) -> None:
    """An independent count of a prefill's matrix products; torch counts the whole square of attention."""
    model = model_of("llama-tied", attn_implementation="eager")
    sites = find_sites(model, [*kept])
    units = [torch.tensor(kept[site.address.kind]) for site in sites]
    shrink(model, PrunePlan.of([s.address for s in sites], units, [s.count for s in sites]))
    assert torch_counts(model) == pytest.approx(bench.operations(shape_of(model), 24), rel=0.02)


def test_operations_of_a_mixture_are_those_of_the_experts_that_a_token_goes_to() -> None:
    model = tiny_mixture("mixtral", attn_implementation="eager", experts_implementation="eager")
    assert torch_counts(model) == pytest.approx(bench.operations(shape_of(model), 24), rel=0.02)


def shape_of(model: Any) -> dict[str, Any]:
    head = model.lm_head.weight.numel()
    return {"blocks": bench.used_weights(model), "head": head, "mixed": bench.mixed_numbers(model)}


def torch_counts(model: Any) -> float:
    """A prefill of 24 tokens, with half of attention's square."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, 24, dtype=torch.long), logits_to_keep=1)
    return counter.get_total_flops() - 2 * bench.mixed_numbers(model) * 24**2


def test_a_mixture_and_a_model_that_no_table_knows_are_measured(tmp_path: Path) -> None:
    """What a token reads of a mixture depends on the text, so that the bytes say nothing of its speed."""
    sizes = {"vocab_size": 300, "max_position_embeddings": 256}
    mixture = checkpoint.save(tiny_mixture("mixtral", **sizes), tmp_path / "mixture", tokenizer=bpe())
    strange = CONFIG_MAPPING["gpt_neox_japanese"](hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **sizes)
    AutoModelForCausalLM.from_config(strange).save_pretrained(tmp_path / "strange")
    record = lmprune("bench", mixture, mixture, tmp_path / "strange", *SMALL, "--json").record
    _, same, other = record["results"]
    assert same["ideal_prefill"] == 1 and same["ideal_decode"] is same["share_decode"] is None
    assert other["ideal_prefill"] is other["ideal_decode"] is None and other["decode"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=[pytest.mark.conformance] * (e == "onnxruntime")) for e in ENGINES]
)
def test_bench(engine: str, pair: tuple[Path, Path]) -> None:
    for package in {"onnxruntime": ["onnxruntime", "onnxscript"], "llamacpp": ["xllamacpp"]}.get(engine, []):
        pytest.importorskip(package)
    record = lmprune("bench", *pair, "--engine", engine, *SMALL, "--json").record
    dense, third = record["results"]
    keys = documented("bench")
    assert set(record) | set(third) == keys and set(dense) < keys
    cached = record["prompt_tokens"] + record["new_tokens"] / 2
    read = [r["weight_megabytes"] * 1e6 + cached * r["cache_bytes_per_token"] for r in (dense, third)]
    assert third["ideal_decode"] == pytest.approx(read[0] / read[1])
    assert dense["cache_bytes_per_token"] == third["cache_bytes_per_token"] > 0
    assert third["share_decode"] == pytest.approx(third["speedup_decode"] / third["ideal_decode"])
    assert 1 < third["ideal_prefill"] < 2 and third["first_token_ms"] > 0 and third["peak_memory_mb"] > 20


def test_bench_of_one_model_for_people(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(Torch):  # in this process
        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def peak_memory_mb(self) -> float:
            return 1.0

    monkeypatch.setattr(bench, "Worker", lambda engine, place, **how: Here(place, **how))
    shown = lmprune("bench", *pair, *SMALL, "--batch", 2)
    assert shown.code == 0, shown.err
    assert "torch float32, 1 threads, batch 2: 20 prompt tokens" in shown.out and "reached" in shown.out
    assert "reached" not in lmprune("bench", pair[0], *SMALL).out


def test_bad_requests(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean torch" in refused("bench", pair[0], "--engine", "troch")
    assert "exceed the 256 positions" in refused("bench", pair[0], "--prompt-tokens", 300)
    with pytest.raises(UserError, match="needs the package not_there: pip install 'lmprune\\[onnx\\]'"):
        engines._needed("not_there", "onnx")
    llama = object.__new__(LlamaCpp)
    with pytest.raises(UserError, match="one sequence at a time; drop --batch"):
        llama.time(np.zeros((2, 3), np.int64), 1)


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at"):
        workers.Worker("torch", str(tmp_path / "nothing"), threads=1, context=8)
    with workers.Worker("torch", str(tiny_checkpoint(tmp_path / "m")), threads=1, context=8) as worker:
        worker._process.kill()
        worker._process.join()
        with pytest.raises(UserError, match="ran out of memory, or crashed"):
            worker.time(np.ones((1, 4), dtype=np.int64), 2)
