from typing import Any

import pytest
import torch
from in_parts import few
from tiny_models import NAMES, tiny_model

from lmprune.data.pairs import Encoded
from lmprune.evaluation.decoding import DECODINGS, Decoding, decode, first_choices_right

EOS = 256
GREEDY = Decoding()


class Ids:
    """A tokenizer whose texts show the very tokens."""

    eos_token_id = EOS

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def model_of(name: str, **changes: Any) -> Any:
    """With weights that are large enough for it to write different things after different contexts."""
    model = tiny_model(name, vocab_size=257, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


class Unmasked:
    """A model that is not told which tokens are padding."""

    def __init__(self, model: Any):
        self.model, self.device, self.training, self.generation_config = model, model.device, False, None

    def generate(self, ids: Any, attention_mask: Any, **rest: Any) -> Any:
        return self.model.generate(ids, attention_mask=torch.ones_like(attention_mask), **rest)


def contexts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]


def outputs(model: Any, given: list[list[int]], decoding: Decoding = GREEDY, *, batch_size: int, new: int = 12) -> list:
    found: dict = {}
    for batch in decode(model, Ids(), given, decoding, max_new_tokens=new, batch_size=batch_size):
        assert len(batch) <= batch_size
        found |= batch
    return [found[i] for i in range(len(given))]


@torch.no_grad()
def greedy_by_hand(model: Any, context: list[int], new: int) -> list[int]:
    """One whole forward pass a token, no cache, no batch, no padding."""
    ids = list(context)
    while len(ids) < len(context) + new and (len(ids) == len(context) or ids[-1] != EOS):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context) :]


@pytest.mark.parametrize("name", few(NAMES))
def test_batched_greedy_is_unbatched_greedy_by_hand(name: str):
    model, tokenizer = model_of(name), Ids()
    given = contexts(3, 17, 1, 9, 30)
    expected = []
    for context in given:
        written = greedy_by_hand(model, context, 12)
        end = written.index(EOS) if EOS in written else None
        expected.append((tokenizer.decode(written[:end]), end is not None))
    for batch_size in (1, 5):
        found = outputs(model, given, batch_size=batch_size)
        assert [(each.text, each.finished) for each in found] == expected, batch_size
    assert outputs(Unmasked(model), given, batch_size=5) != found, (
        "the control: what is padded matters where it is seen"
    )


def ending_model() -> Any:
    """A model that ends some texts soon: the end token's row of its head is made longer."""
    model = model_of("llama-untied")
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 4
    return model


def test_what_ends_early_is_finished_and_the_rest_is_not():
    model, given = ending_model(), contexts(*range(2, 18))
    found = outputs(model, given, batch_size=16)
    assert {each.finished for each in found} == {True, False}
    for context, each in zip(given, found, strict=True):
        written = greedy_by_hand(model, context, 12)
        assert each.finished == (EOS in written)
        assert each.text == Ids().decode([i for i in written if i != EOS])


def test_beams_batched_are_beams_unbatched_and_differ_from_greedy():
    model, given = ending_model(), contexts(3, 17, 9, 12)
    beam = DECODINGS["beam"]
    alone = outputs(model, given, beam, batch_size=1)
    assert outputs(model, given, beam, batch_size=4) == alone
    assert outputs(model, given, batch_size=4) != alone
    assert (beam.num_beams, beam.length_penalty, beam.no_repeat_ngram) == (10, 0.9, 4)


@torch.no_grad()
def log_probability(model: Any, context: list[int], written: list[int]) -> float:
    logits = model(torch.tensor([context + written])).logits[0, len(context) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None]).sum().item()


def test_beams_find_what_is_likelier():
    """Without penalty and ban, and to a fixed length, ten beams are never worse than one here, and often better."""
    model, given = model_of("llama-untied"), contexts(*range(2, 12))
    likelihoods = []
    for decoding in (GREEDY, Decoding(num_beams=10)):
        found = outputs(model, given, decoding, batch_size=5, new=5)
        assert not any(each.finished for each in found)
        written = [[int(token) for token in each.text.split()] for each in found]
        likelihoods.append([log_probability(model, *both) for both in zip(given, written, strict=True)])
    gains = [many - one for one, many in zip(*likelihoods, strict=True)]
    assert min(gains) > -1e-4 and sum(gain > 0.01 for gain in gains) >= 3


def test_no_four_tokens_twice_prompt_included():
    """A model that says one thing over and over, after a prompt that says it once: with the ban it never does."""
    model = tiny_model("gpt2", vocab_size=257)
    (loop,) = set(greedy_by_hand(model, contexts(6)[0], 4))
    context = [7, *[loop] * 4, 9]
    for decoding, times in ((GREEDY, 27), (Decoding(no_repeat_ngram=4), 0)):
        (found,) = outputs(model, [context], decoding, batch_size=1, new=30)
        written = [int(token) for token in found.text.split()]
        assert len(written) == 30
        assert sum(written[i : i + 4] == [loop] * 4 for i in range(27)) == times


def test_a_checkpoints_own_taste_does_not_matter():
    model, given = model_of("gpt2"), contexts(5, 9)
    expected = outputs(model, given, batch_size=2)
    for name, value in {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
        "min_new_tokens": 9,
    }.items():
        setattr(model.generation_config, name, value)
    assert outputs(model, given, batch_size=2) == expected


def test_first_choices_against_greedy_by_hand():
    """What the model would write is right; with its last token changed it is not; what does not fit is wrong."""
    model = model_of("gpt_neo")
    encoded: list[Encoded | None] = []
    for context in contexts(3, 9, 5):
        written = greedy_by_hand(model, context, 6)
        encoded += [Encoded(context, written, 0), Encoded(context, [*written[:-1], (written[-1] + 1) % 256], 0)]
    encoded.insert(2, None)
    for batch_size in (1, 3, 7):
        assert first_choices_right(model, encoded, batch_size=batch_size) == [
            True, False, False, True, False, True, False
        ]  # fmt: skip
