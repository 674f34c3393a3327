import json
import math
from types import SimpleNamespace

import pytest
import torch

from lmprune.errors import UserError
from lmprune.evaluation.perplexity import default_context, perplexity, ratio_estimate, windows
from lmprune.sites.limits import max_context


def tiny_model(seed=0, **kwargs):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64, "initializer_range": 0.5, "attention_dropout": 0.5,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **kwargs}))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(50, (203,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def next_token_logits(model, prefix):
    """(V,), float64: the plainest way to ask a model what comes next, one prefix at a time."""
    return model(input_ids=prefix[None]).logits[0, -1].double()


def scored_positions(num_tokens, context, stride):
    """[(first token of the window, token scored, number of the window)], by the definition, token by token."""
    found = []
    if stride is None:
        for t in range(num_tokens):
            if t % context:
                found.append((t // context * context, t, t // context))
        return found
    for t in range(1, num_tokens):
        window = 0 if t < context else math.ceil((t + 1 - context) / stride)
        if t > window * stride:  # else nothing stands before it
            found.append((window * stride, t, window))
    return found


def brute_force(model, ids, context, stride):
    """NLL of each scored token, and its window."""
    nll, window = [], []
    for start, t, number in scored_positions(len(ids), context, stride):
        nll.append(-next_token_logits(model, ids[start:t]).log_softmax(-1)[ids[t]].item())
        window.append(number)
    return torch.tensor(nll, dtype=torch.float64), torch.tensor(window)


CASES = [(16, None), (64, None), (50, None), (16, 4), (16, 16), (20, 7), (16, 15), (64, 60), (2, 1), (2, None)]


@pytest.mark.parametrize("context, stride", CASES)
def test_against_token_by_token(ids, context, stride):
    model = tiny_model().eval()
    result = perplexity(model, ids, context=context, stride=stride, num_bytes=1000, num_words=150)
    nll, window = brute_force(model, ids, context, stride)
    assert result.tokens == len(nll)
    assert result.nll == pytest.approx(nll.mean().item(), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nll.mean().item()), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(nll.mean().item() / math.log(2) * 203 / 1000, rel=1e-5)
    assert result.word_perplexity == pytest.approx(math.exp(nll.mean().item() * 203 / 150), rel=1e-4)
    # the ratio estimator's standard error, written out over windows
    mean, residuals = nll.mean(), []
    for number in window.unique():
        residuals.append((nll[window == number] - mean).sum())
    units = len(residuals)
    se = math.sqrt(units / (units - 1) * sum(r**2 for r in residuals)) / len(nll)
    assert result.nll_se == pytest.approx(se, rel=1e-4)
    assert result.perplexity_se == pytest.approx(result.perplexity * se, rel=1e-4)
    assert (result.context, result.stride) == (context, stride)


@pytest.mark.parametrize("context, stride", [(16, None), (20, 7)])
def test_against_the_baseline_by_hand(ids, context, stride):
    model, baseline = tiny_model(0).eval(), tiny_model(1, initializer_range=0.2).eval()
    result = perplexity(model, ids, context=context, stride=stride, baseline=baseline)
    kl, agree, difference, base = [], [], [], []
    for start, t, _ in scored_positions(len(ids), context, stride):
        p = next_token_logits(baseline, ids[start:t]).softmax(-1)
        q = next_token_logits(model, ids[start:t]).softmax(-1)
        kl.append(sum(p[v].item() * math.log(p[v].item() / q[v].item()) for v in range(50)))
        agree.append(p.argmax().item() == q.argmax().item())
        difference.append(math.log(p[ids[t]].item()) - math.log(q[ids[t]].item()))
        base.append(-math.log(p[ids[t]].item()))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert result.kl == pytest.approx(mean(kl), rel=1e-5)
    assert result.top1_agreement == pytest.approx(mean(agree), abs=1e-9)
    assert 0 < mean(agree) < 1
    assert result.nll_difference == pytest.approx(mean(difference), rel=1e-4)
    assert result.baseline_perplexity == pytest.approx(math.exp(mean(base)), rel=1e-4)
    assert result.perplexity_ratio == pytest.approx(math.exp(mean(difference)), rel=1e-4)
    reverse = perplexity(baseline, ids, context=context, stride=stride, baseline=model)
    assert reverse.kl != pytest.approx(mean(kl), rel=1e-2)
    assert reverse.nll_difference == pytest.approx(-mean(difference), rel=1e-4)
    assert reverse.nll_difference_se == pytest.approx(result.nll_difference_se, rel=1e-6)


def test_a_model_against_itself(ids):
    model = tiny_model()
    result = perplexity(model, ids, context=16, baseline=model)
    assert (result.kl, result.top1_agreement, result.nll_difference, result.perplexity_ratio) == (0, 1, 0, 1)
    assert result.nll_difference_se == 0 < result.nll_se
    assert result.baseline_perplexity == result.perplexity


def test_pairing_takes_out_what_both_models_find_hard(ids):
    model, near = tiny_model(), tiny_model()
    with torch.no_grad():
        near.lm_head.weight.add_(0.01 * torch.randn_like(near.lm_head.weight))
    result = perplexity(near, ids, context=16, baseline=model)
    assert result.nll_difference_se < 0.1 * result.nll_se


def test_standard_error_agrees_with_a_bootstrap_over_windows():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, 30, (60,), generator=generator).double()
    level = torch.randn(60, generator=generator).double()  # tokens of a window share it: they are correlated
    sums = counts * (3 + level)
    ratio, se = ratio_estimate(sums, counts)
    draws = torch.randint(60, (4000, 60), generator=generator)
    means = sums[draws].sum(1) / counts[draws].sum(1)
    assert ratio == pytest.approx((sums.sum() / counts.sum()).item())
    assert se == pytest.approx(means.std().item(), rel=0.08)
    independent = (counts * level.square()).sum().sqrt() / counts.sum()  # what taking tokens as independent would give
    assert se > 2 * independent


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(ids, batch_size):
    model = tiny_model()
    for stride in (None, 5):
        one = perplexity(model, ids, context=16, stride=stride, batch_size=1)
        many = perplexity(model, ids, context=16, stride=stride, batch_size=batch_size)
        assert many.nll == pytest.approx(one.nll, rel=1e-6) and many.nll_se == pytest.approx(one.nll_se, rel=1e-5)


def test_logits_stay_bounded(ids):
    """Never more than 2,048 tokens in a forward by default, both models together."""
    from unittest.mock import patch

    model, seen = tiny_model(), []
    forward = type(model).forward

    def spy(self, input_ids, **kwargs):
        assert kwargs == {"use_cache": False}
        seen.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **kwargs)

    long = ids.repeat(40)
    with patch.object(type(model), "forward", spy):
        perplexity(model, long, context=64)
        alone, seen = max(seen), []
        perplexity(model, long, context=64, baseline=tiny_model(1))
    assert (alone, max(seen)) == (2048, 1024)


def test_logits_that_a_family_caps_after_its_head(ids):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.5, final_logit_softcapping=1.0, sliding_window=8,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    nll, _ = brute_force(model, ids[:40], 20, None)
    assert perplexity(model, ids[:40], context=20).nll == pytest.approx(nll.mean().item(), rel=1e-5)


def test_training_mode_is_left_as_it_was_and_dropout_is_off(ids):
    model = tiny_model().train()
    first, second = (perplexity(model, ids, context=16).nll for _ in range(2))
    assert first == second and model.training
    assert perplexity(model.eval(), ids, context=16).nll == first and not model.training
    assert all(p.grad is None for p in model.parameters())


def test_bfloat16_is_scored_in_fp32(ids):
    model = tiny_model().bfloat16().eval()
    with torch.no_grad():
        logits = model(input_ids=ids[:64][None]).logits[0]
    assert logits.dtype == torch.bfloat16
    expected = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:64])
    assert perplexity(model, ids[:64], context=64).nll == pytest.approx(expected.item(), rel=1e-5)


def test_one_window_has_no_standard_error(ids):
    result = perplexity(tiny_model(), ids[:30], context=64)
    assert math.isnan(result.nll_se) and math.isnan(result.perplexity_se)
    assert result.tokens == 29 and result.to_dict()["perplexity_se"] is None


def test_json_keys(ids):
    always = [
        "perplexity",
        "perplexity_se",
        "nll",
        "nll_se",
        "bits_per_byte",
        "word_perplexity",
        "tokens",
        "context",
        "stride",
    ]
    with_baseline = [
        "baseline_perplexity", "perplexity_ratio", "nll_difference", "nll_difference_se", "kl", "top1_agreement",
        "kl_se", "top1_agreement_se",
    ]  # fmt: skip
    model = tiny_model()
    assert list(perplexity(model, ids, context=16).to_dict()) == always
    paired = perplexity(model, ids, context=16, baseline=model).to_dict()
    assert list(paired) == always + with_baseline
    json.dumps(paired, allow_nan=False)


def test_progress(ids):
    calls = []
    perplexity(tiny_model(), ids, context=16, batch_size=5, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(5, 13), (10, 13), (12, 13), (13, 13)]


def test_windows_score_every_token_but_the_unpredictable():
    for context, stride in [(16, 5), (16, 15), (3, 1), (100, 30)]:
        scored = [t for w in windows(57, context, stride) for t in range(w.scored, w.stop)]
        assert scored == list(range(1, 57))
        assert all(w.stop - w.start <= context for w in windows(57, context, stride))
    disjoint = windows(57, 16, 16)
    assert [t for w in disjoint for t in range(w.scored, w.stop)] == [t for t in range(57) if t % 16]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"context": 65}, "context 65 is more than the model's 64 positions"),
        ({"context": 1}, "at least 2 tokens"),
        ({"context": 16, "stride": 17}, r"stride must be from 1 to the context \(16\), got 17"),
        ({"context": 16, "stride": 0}, "stride must be"),
    ],
)
def test_bad_settings(ids, kwargs, message):
    with pytest.raises(UserError, match=message):
        perplexity(tiny_model(), ids, **kwargs)


def test_bad_input(ids):
    model = tiny_model()
    with pytest.raises(UserError, match="token 50 is outside the model's vocabulary of 50"):
        perplexity(model, torch.tensor([1, 50]))
    with pytest.raises(UserError, match="at least 2 tokens"):
        perplexity(model, ids[:1])
    with pytest.raises(UserError, match="must be the same model before pruning"):
        perplexity(model, ids, baseline=tiny_model(vocab_size=60))
    with pytest.raises(UserError, match="context 50 is more than the model's 32"):
        perplexity(model, ids, context=50, baseline=tiny_model(max_position_embeddings=32))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(UserError, match="not a finite number"):
        perplexity(model, ids)


def test_max_context_over_names():
    from transformers import BloomConfig, GPT2Config, MptConfig, OPTConfig

    assert max_context(tiny_model().config) == 64
    assert max_context(GPT2Config(n_positions=300)) == 300
    assert max_context(OPTConfig(max_position_embeddings=99)) == 99
    assert max_context(MptConfig(max_seq_len=77)) == 77
    assert max_context(BloomConfig()) is None
    assert max_context(SimpleNamespace(n_ctx=12)) == 12
    assert [default_context(c) for c in (BloomConfig(), MptConfig(max_seq_len=77), GPT2Config(n_positions=5000))] == [
        1024, 77, 1024,
    ]  # fmt: skip


@pytest.mark.parametrize("name, stride", [("stories260k", None), ("stories260k", 100), ("gpt2-mini", None)])
def test_real_models_against_transformers_own_loss(shared, name, stride):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lmprune.data import load
    from lmprune.data.tokens import stream

    path = shared / "models" / name
    model = AutoModelForCausalLM.from_pretrained(path)
    ids, num_bytes = stream(
        AutoTokenizer.from_pretrained(path), load("wikitext", data_dir=shared / "data" / "wikitext"), 1000
    )
    result = perplexity(model, ids, context=256, stride=stride, num_bytes=num_bytes)
    total = count = done = 0
    for start in range(0, 1000, stride or 256):  # the loop of transformers' perplexity guide
        stop = min(start + 256, 1000)
        labels = ids[start:stop].clone()[None]
        labels[:, : done - start] = -100
        tokens = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(input_ids=ids[start:stop][None], labels=labels).loss.item() * tokens
        count, done = count + tokens, stop
        if stop == 1000:
            break
    assert result.tokens == count
    assert result.nll == pytest.approx(total / count, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(total / count / math.log(2) * 1000 / num_bytes, rel=1e-5)
    assert 20 < result.perplexity < 5000
