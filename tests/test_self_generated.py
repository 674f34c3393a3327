"""What a model with a chat template writes itself: conversations, of which each side is sampled in its place."""

import pytest
import torch
from tiny_checkpoints import byte_tokenizer
from tiny_models import tiny_model

from lmprune.checkpoints import generation
from lmprune.data import load
from lmprune.data.tokens import encode
from lmprune.errors import UserError

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
END = 10  # the line's end, which the template writes after each message


@pytest.fixture(scope="module")
def model():
    made = tiny_model("llama", vocab_size=257, max_position_embeddings=96)
    with torch.no_grad():  # it has learned nothing: let it end what it writes now and then
        made.lm_head.weight.mul_(4)
    made.generation_config.eos_token_id = [END]
    return made


def written(model, template=TEMPLATE, num_tokens=600, seed=0):
    return load(
        "self", "train", model=model, tokenizer=byte_tokenizer(chat_template=template), num_tokens=num_tokens, seed=seed
    )


def test_conversations_are_as_the_template_writes_them(model):
    found = written(model)
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    lengths = [len(encode(tokenizer, text).input_ids) for text in found.documents]
    assert sum(lengths[:-1]) < 600 <= sum(lengths) == found.provenance["tokens"]
    assert max(map(len, found.documents)) <= 96 + 1  # and the end of the line that the template writes
    assert "conversations the model wrote" in found.name
    for text in found.documents:
        assert text.startswith("<u>") and "\n<a>" in text and text.endswith("\n")
    assert written(model).documents == found.documents != written(model, seed=1).documents


def test_the_answer_is_sampled_behind_its_own_message(model, monkeypatch):
    """The model reads each conversation as far as the answer, padded on the left, whatever the others are."""
    tokenizer, seen = byte_tokenizer(chat_template=TEMPLATE), []

    def spy(model, contexts, **how):
        seen.append(([tokenizer.decode(ids) for ids in contexts], how["ends"]))
        return generation.continued(model, contexts, **how)

    monkeypatch.setattr("lmprune.data.self_generated.continued", spy)
    documents = written(model, num_tokens=100).documents
    (first, ends), (second, _) = seen[:2]
    assert set(first) == {"<u>"} and END in ends
    assert any(text.startswith(asked) for text in documents for asked in second)
    assert all(asked.startswith("<u>") and asked.endswith("\n<a>") for asked in second)


def test_a_message_is_no_more_than_half_of_the_room(model):
    for text in written(model).documents:
        assert len(text.partition("\n<a>")[0]) <= 3 + (96 - 3 - 4) // 2


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0]['content'] | upper }}", "changes what a user says"),
        ("{{ 'word ' * 40 }}{{ messages[0]['content'] }}", "leaves no room for a conversation in 96 tokens"),
    ],
)
def test_templates_that_leave_a_model_without_words(model, template: str, why: str):
    with pytest.raises(UserError, match=why) as error:
        written(model, template)
    assert "--data python-docs" in str(error.value)


def test_a_model_that_never_says_anything(model):
    silent = tiny_model("llama", vocab_size=257, max_position_embeddings=96)
    silent.generation_config.eos_token_id = list(range(257))
    with pytest.raises(UserError, match="before its first word"):
        written(silent)
