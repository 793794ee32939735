"""Chat templates by name: what is learned under each, and what they write."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.test_lora_data import learned
from trainers.lora.data.encoding import IGNORE_INDEX, Encoder
from trainers.lora.data.samples import Conversation, Message
from trainers.lora.data.templates import AXOLOTL, LLAMA_FACTORY, TEMPLATES

TURNS = (
    Message("system", "be brief"),
    Message("user", "say one"),
    Message("assistant", "one  {x}"),
    Message("user", "say two"),
    Message("assistant", "\n two 🙂"),
)
END = "<|im_end|>"  # the tests' tokenizer ends a text with it

LEARNED = {  # an answer with what ends its turn
    "chatml": "{}<|im_end|>\n",
    "qwen": "{}<|im_end|>\n",
    "llama3": "{}<|eot_id|>",
    "llama2": " {} <|im_end|>",
    "mistral": " {}<|im_end|>",
    "gemma": "{}<end_of_turn>\n",
    "phi3": "{}<|end|>\n",
    "phi4": "{}<|im_end|>",
    "zephyr": "{}<|im_end|>\n",
    "vicuna": " {}<|im_end|>",
    "alpaca": "{}<|im_end|>\n\n",
    "deepseek": " {}<|im_end|>",
    "deepseek3": "{}<|im_end|>",
    "human_assistant": "{}<|im_end|>\n",
    "bare": "{}<|im_end|>",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [TURNS, TURNS[1:]], ids=["system", "no system"])
def test_answers_and_the_ends_of_their_turns_are_learned(
    tokenizer: Any, name: str, turns: tuple[Message, ...]
) -> None:
    example = Encoder(tokenizer, 1000, None, name).encode(Conversation("here", turns))
    answers = [message.content for message in turns if message.role == "assistant"]
    assert learned(tokenizer, example) == "".join(LEARNED[name].format("%s") % a for a in answers)
    assert example.num_skipped_answers == 0
    prompt = tokenizer.decode(example.input_ids[: example.prompt_length])
    text = tokenizer.decode(example.input_ids)
    assert text == prompt + LEARNED[name].format("%s") % answers[-1]
    for message in turns:
        assert text.count(message.content) == 1


def test_only_the_last_answer_is_learned_when_the_history_is_masked(tokenizer: Any) -> None:
    example = Encoder(tokenizer, 1000, None, mask_history=True).encode(Conversation("x", TURNS))
    assert learned(tokenizer, example) == "\n two 🙂<|im_end|>\n"
    assert (example.labels[: example.prompt_length] == IGNORE_INDEX).all()


def test_everything_is_learned_when_prompts_are(tokenizer: Any) -> None:
    whole = Encoder(tokenizer, 1000, None, train_on_prompt=True).encode(Conversation("x", TURNS))
    usual = Encoder(tokenizer, 1000, None).encode(Conversation("x", TURNS))
    assert whole.labels.tolist() == usual.input_ids.tolist()
    assert whole.prompt_length == usual.prompt_length
    assert whole.num_targets == len(whole.input_ids) - 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_begins_as_the_tokenizer_begins_it(tokenizer: Any, name: str) -> None:
    from tokenizers.processors import TemplateProcessing

    with_bos = copy.deepcopy(tokenizer)
    with_bos.bos_token = "<|im_start|>"
    conversation = Conversation("here", TURNS[3:])
    bare = Encoder(with_bos, 1000, None, name).encode(conversation).input_ids.tolist()
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $0", special_tokens=[("<|im_start|>", with_bos.bos_token_id)]
    )
    encoder = Encoder(with_bos, 1000, None, name)
    begun = encoder.encode(conversation).input_ids.tolist()
    assert begun == [with_bos.bos_token_id, *bare]
    # As a tokenizer would keep it, the template writes the same text.
    turns = [{"role": m.role, "content": m.content} for m in TURNS[3:]]
    kept = with_bos.apply_chat_template(turns, tokenize=False, chat_template=encoder.chat_template)
    assert kept == with_bos.decode(begun)


def test_markers_that_the_tokenizer_lacks_are_said(tokenizer: Any) -> None:
    assert Encoder(tokenizer, 9, None, "chatml").notes == ()
    (note,) = Encoder(tokenizer, 9, None, "gemma").notes
    assert "<start_of_turn>, <end_of_turn> are no token" in note


def test_a_template_may_be_a_file(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}#{% endgeneration %}"
        "{% else %}{{ m.content }}:{% endif %}{% endfor %}"
    )
    example = Encoder(tokenizer, 1000, None, str(path)).encode(Conversation("x", TURNS[3:]))
    assert tokenizer.decode(example.input_ids) == "say two:\n two 🙂#"
    assert learned(tokenizer, example) == "\n two 🙂#"


def test_a_template_that_cannot_be_used_is_refused_at_once(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jinja' cannot be read.*chatml"):
        Encoder(tokenizer, 9, None, str(tmp_path / "none.jinja"))
    torn = tmp_path / "torn.jinja"
    torn.write_text("a\n{% for m in messages %}")
    with pytest.raises(ValueError, match=r"torn\.jinja:2: "):
        Encoder(tokenizer, 9, None, str(torn))


def test_a_system_message_without_a_place_is_refused(tokenizer: Any) -> None:
    turns = (Message("system", "be brief"), Message("assistant", "one"))
    with pytest.raises(ValueError, match=r"here: the gemma chat template refuses.*no user turn"):
        Encoder(tokenizer, 99, None, "gemma").encode(Conversation("here", turns))


def test_another_day_makes_no_other_data(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "dated.jinja"
    path.write_text(
        "Today is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    encoder = Encoder(tokenizer, 99, None, str(path))
    example = encoder.encode(Conversation("x", TURNS[3:]))
    assert tokenizer.decode(example.input_ids).startswith("Today is 26 Jul 2024.say two;")
    (note,) = encoder.notes
    assert "writes today's date: here it is always 26 Jul 2024" in note


def test_other_tools_names_stand_for_ours_or_the_models_own() -> None:
    assert {*LLAMA_FACTORY.values(), *AXOLOTL.values()} - {None} <= set(TEMPLATES)
    assert LEARNED.keys() == TEMPLATES.keys()
