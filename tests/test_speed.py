import pytest
import torch

from lmprune.errors import UserError
from lmprune.evaluation import speed
from lmprune.evaluation.speed import measure_speed


def tiny_model(**kwargs):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, bos_token_id=0, **kwargs,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def forwards(monkeypatch):
    """(model, tokens in, kept logits) of every forward, in order."""
    from transformers import LlamaForCausalLM

    seen = []
    forward = LlamaForCausalLM.forward

    def spy(self, input_ids=None, logits_to_keep=0, **kwargs):
        output = forward(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **kwargs)
        seen.append((self, input_ids.shape[1], output.logits.shape[1]))
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    return seen


def test_models_take_turns_and_decode_runs_one_token_at_a_time(forwards):
    a, b = tiny_model(), tiny_model()
    results = measure_speed({"a": a, "b": b}, None, prompt_tokens=20, new_tokens=6, repeats=3)
    turn = [20] + [1] * 6
    assert [tokens for _, tokens, _ in forwards] == turn * 8  # two models, a warm-up and three repeats
    assert [model is a for model, _, _ in forwards] == ([True] * 7 + [False] * 7) * 4
    assert all(kept == 1 for _, _, kept in forwards)
    assert list(results) == ["a", "b"]
    assert results["a"].to_dict().keys() == {"prefill", "decode", "prompt_tokens", "new_tokens", "repeats"}


def test_rates_are_tokens_over_seconds_without_the_warm_up(monkeypatch):
    seconds = iter([(100.0, 100.0), (2.0, 1.0), (4.0, 0.5), (1.0, 2.0)])
    monkeypatch.setattr(speed, "time_once", lambda *args: next(seconds))
    result = measure_speed({"a": tiny_model()}, None, prompt_tokens=20, new_tokens=6, repeats=3)["a"]
    assert (result.prefill.median, result.prefill.min, result.prefill.max) == (10, 5, 20)
    assert (result.decode.median, result.decode.min, result.decode.max) == (6, 3, 12)


def test_what_is_timed_is_greedy_decoding_and_an_end_token_does_not_stop_it(monkeypatch):
    model = tiny_model()
    prompt = torch.arange(10)
    plain = prompt[None]
    for _ in range(8):  # greedy by hand, without a cache
        with torch.no_grad():
            plain = torch.cat([plain, model(plain).logits[:, -1:].argmax(-1)], 1)
    outputs = []
    generate = model.generate

    def spy(*args, **kwargs):
        outputs.append(generate(*args, **kwargs))
        return outputs[-1]

    monkeypatch.setattr(model, "generate", spy)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        speed.time_once(model, prompt, 7)
        model.generation_config.eos_token_id = int(plain[0, 12])
        speed.time_once(model, prompt, 7)
    assert torch.equal(outputs[0], plain)
    assert torch.equal(outputs[1], plain)  # the checkpoint's end token does not count


def test_prompt_from_text(forwards):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "is": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    measure_speed({"a": tiny_model()}, tokenizer, prompt_tokens=40, new_tokens=2, repeats=1)
    assert forwards[0][1] == 40


def test_a_slow_layer_shows():
    narrow, wide = tiny_model(), tiny_model()
    wide.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: _spin())
    results = measure_speed({"narrow": narrow, "wide": wide}, None, prompt_tokens=16, new_tokens=4, repeats=3)
    assert results["wide"].decode.median < results["narrow"].decode.median
    assert results["wide"].decode.median < 50  # 20 ms a step
    assert results["wide"].prefill.median < 16 / 0.02


def _spin():
    import time

    time.sleep(0.02)


def test_bad_requests():
    models = {"small": tiny_model()}
    with pytest.raises(UserError, match="60 prompt tokens and 5 new ones exceed the 64 positions of small"):
        measure_speed(models, None, prompt_tokens=60, new_tokens=5)
    with pytest.raises(UserError, match="at least 1"):
        measure_speed(models, None, prompt_tokens=10, new_tokens=5, repeats=0)
