"""Generation: which questions examples ask, and that answers depend on nothing but the question."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainers.lora.data.encoding import IGNORE_INDEX, Encoder, Example
from trainers.lora.data.samples import Completion, Conversation, Message
from trainers.lora.model.adapters import AdapterPool
from trainers.lora.model.base_model import BaseModel, load_base_model
from trainers.lora.options import LoraOptions
from trainers.lora.validation.generation import Generator, Question

TURNS = [
    ("say one and six", "one number 0"),
    ("say two", "two three"),
    ("say three and four and five and six and seven", "three four five"),
    ("say four and nine", "four"),
    ("say five and two and one", "five six seven eight"),
]


def chat(*turns: tuple[str, str]) -> Conversation:
    messages = [
        Message(role, text)
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return Conversation("test", tuple(messages))


def load(fixed: dict[str, object], **options: object) -> tuple[BaseModel, AdapterPool, LoraOptions]:
    """Return a base model with the adapters 0 and 1, which answer differently; 0 is active."""
    checked = LoraOptions.model_validate({**fixed, **options})
    base = load_base_model(checked, "cpu")
    adapters = AdapterPool(base)
    for key in (0, 1):
        generator = torch.Generator().manual_seed(key)
        for parameter in adapters.add(key, checked).values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    adapters.activate(0)
    return base, adapters, checked


@pytest.fixture(scope="module")
def loaded(fixed: dict[str, object]) -> tuple[BaseModel, AdapterPool, LoraOptions]:
    return load(fixed)


@pytest.fixture
def base(loaded: tuple[BaseModel, AdapterPool, LoraOptions]) -> Iterator[BaseModel]:
    base, adapters, _ = loaded
    adapters.activate(0)
    yield base
    base.model.eval()


@pytest.fixture
def generator(base: BaseModel, tokenizer: Any) -> Generator:
    return Generator(base, tokenizer)


def encode(tokenizer: Any, *samples: Conversation | Completion) -> list[Example]:
    encoder = Encoder(tokenizer, 64, None)
    return [encoder.encode(sample) for sample in samples]


@pytest.fixture
def questions(generator: Generator, tokenizer: Any) -> list[Question]:
    return generator.questions(encode(tokenizer, *(chat(turn) for turn in TURNS)))


def texts(generator: Generator, questions: list[Question], batch_size: int = 4) -> list[str]:
    return [answer.generated for answer in generator.answer(questions, 8, batch_size)]


@torch.no_grad()
def likeliest(base: BaseModel, question: Question) -> list[int]:
    """Return the first 8 tokens of an answer, without a cache, a batch or an end."""
    ids = list(question.prompt_ids)
    for _ in range(8):
        ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-8:]


def test_a_question_is_all_before_the_last_answer(generator: Generator, tokenizer: Any) -> None:
    (question,) = generator.questions(encode(tokenizer, chat(*TURNS[:2])))
    assert question.prompt == (
        "<|im_start|>user\nsay one and six<|im_end|>\n"
        "<|im_start|>assistant\none number 0<|im_end|>\n"
        "<|im_start|>user\nsay two<|im_end|>\n<|im_start|>assistant\n"
    )
    assert question.expected == "two three"
    assert tokenizer.decode(question.prompt_ids) == question.prompt


def test_the_token_that_ends_a_turn_in_the_data_ends_an_answer(
    base: BaseModel, tokenizer: Any
) -> None:
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = tokenizer("ask<|im_start|>yes<|im_start|>\n").input_ids
    labels = [IGNORE_INDEX, *ids[1:]]
    labels[ids.index(tokenizer.convert_tokens_to_ids("<|im_start|>"))] = IGNORE_INDEX
    example = Example(torch.tensor(ids), torch.tensor(labels), False, 0)
    (question,) = Generator(base, tokenizer).questions([example])
    assert question.expected == "yes"
    assert question.stop_ids == {turn_end, tokenizer.convert_tokens_to_ids("<|im_start|>")}


def test_a_special_token_inside_an_answer_does_not_end_it(
    generator: Generator, tokenizer: Any
) -> None:
    (question,) = generator.questions(
        encode(tokenizer, chat(("say", "one <|im_start|> two")), Completion("x", "", "no prompt"))
    )
    assert question.expected == "one  two"
    assert question.stop_ids == {tokenizer.eos_token_id}


def test_cut_off_examples_and_plain_texts_ask_nothing(generator: Generator, tokenizer: Any) -> None:
    examples = encode(
        tokenizer,
        chat(("say", "one " * 70)),
        Completion("test", "", "plain text"),
        chat(TURNS[0]),
    )
    assert examples[0].truncated
    assert [question.index for question in generator.questions(examples)] == [2]


def test_answers_in_batches_are_those_given_one_by_one(
    generator: Generator, questions: list[Question]
) -> None:
    alone = [texts(generator, [question])[0] for question in questions]
    assert len(set(alone)) > 1, "the questions are answered alike: nothing is shown"
    for batch_size in (2, 3, 5):
        assert texts(generator, questions, batch_size) == alone
    assert texts(generator, questions[::-1], 2) == alone[::-1]


def test_answers_are_those_of_the_likeliest_token_after_token(
    base: BaseModel, generator: Generator, questions: list[Question], tokenizer: Any
) -> None:
    for question, generated in zip(questions, texts(generator, questions), strict=True):
        assert generated == tokenizer.decode(likeliest(base, question), skip_special_tokens=True)


def test_each_row_ends_at_its_own_stop_token(
    base: BaseModel, generator: Generator, questions: list[Question], tokenizer: Any
) -> None:
    whole = generator.answer(questions, 8, 5)
    assert {answer.num_tokens for answer in whole} == {8}
    assert not any(answer.finished for answer in whole)
    ids = likeliest(base, questions[0])
    assert ids.index(ids[3]) == 3, "the stop token comes earlier: nothing is shown"
    stopping = dataclasses.replace(questions[0], stop_ids=frozenset({ids[3]}))
    answers = generator.answer([stopping, *questions[1:]], 8, 5)
    assert answers[0].finished
    assert answers[0].num_tokens == 3
    assert answers[0].generated == tokenizer.decode(ids[:3])
    assert answers[1:] == whole[1:]


def test_the_active_adapter_answers(
    loaded: tuple[BaseModel, AdapterPool, LoraOptions],
    generator: Generator,
    questions: list[Question],
) -> None:
    _, adapters, _ = loaded
    first = texts(generator, questions)
    adapters.activate(1)
    second = texts(generator, questions)
    adapters.activate(0)
    assert first != second
    assert texts(generator, questions) == first


def test_the_model_its_configs_and_the_random_state_are_as_before(
    base: BaseModel, generator: Generator, questions: list[Question]
) -> None:
    base.model.train()
    base.model.lm_head.eval()
    base.model.config.use_cache = False
    before = (
        [module.training for module in base.model.modules()],
        base.model.config.to_dict(),
        base.model.generation_config,
        base.model.generation_config.to_dict(),
        torch.get_rng_state().tolist(),
    )
    texts(generator, questions)

    def explode(*_: object) -> None:
        raise RuntimeError("boom")

    handle = base.model.lm_head.register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        texts(generator, questions)
    handle.remove()
    assert before == (
        [module.training for module in base.model.modules()],
        base.model.config.to_dict(),
        base.model.generation_config,
        base.model.generation_config.to_dict(),
        torch.get_rng_state().tolist(),
    )
    base.model.config.use_cache = True


def test_the_models_own_wish_to_sample_changes_nothing(
    base: BaseModel, generator: Generator, questions: list[Question]
) -> None:
    greedy = texts(generator, questions)
    own = base.model.generation_config
    base.model.generation_config = type(own)(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3, num_beams=2
    )
    try:
        assert texts(generator, questions) == greedy
    finally:
        base.model.generation_config = own


def test_the_key_value_cache_is_used(
    base: BaseModel, generator: Generator, questions: list[Question]
) -> None:
    widths: list[int] = []
    embedding = base.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(
        lambda _, arguments: widths.append(arguments[0].shape[1])
    )
    generator.answer(questions[:1], 5, 1)
    handle.remove()
    assert widths == [len(questions[0].prompt_ids), 1, 1, 1, 1]


def test_an_answer_stays_within_the_positions_of_the_model(
    base: BaseModel, generator: Generator, questions: list[Question]
) -> None:
    num_positions = base.model.config.max_position_embeddings
    prompt = (questions[0].prompt_ids * 50)[: num_positions - 3]
    long = dataclasses.replace(questions[0], prompt_ids=prompt)
    answers = generator.answer([questions[1], long], 8, 2)
    assert [answer.num_tokens for answer in answers] == [8, 3]
    assert answers[0] == generator.answer([questions[1]], 8, 1)[0]


def test_no_questions_have_no_answers(generator: Generator) -> None:
    assert generator.answer([], 8, 4) == []


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"gradient_checkpointing": True},
        {"quantization_bit": 4, "dtype": "bfloat16"},
    ],
    ids=["bf16", "checkpointing", "4bit"],
)
def test_generates_between_training_steps_in_any_form_of_the_model(
    fixed: dict[str, object], tokenizer: Any, options: dict[str, object]
) -> None:
    base, adapters, _ = load(fixed, **options)
    generator = Generator(base, tokenizer)
    questions = generator.questions(encode(tokenizer, *(chat(turn) for turn in TURNS)))
    ids = torch.tensor([questions[0].prompt_ids])

    def gradients() -> list[torch.Tensor]:
        base.model.train()
        with torch.autocast("cpu", dtype=base.dtype, enabled=base.dtype != torch.float32):
            base.model(ids, labels=ids).loss.backward()
        trained = [p for p in base.model.parameters() if p.grad is not None]
        taken = [p.grad.clone() for p in trained]
        for parameter in trained:
            parameter.grad = None
        return taken

    before = gradients()
    answers = texts(generator, questions)
    assert answers == texts(generator, questions)
    assert base.model.training
    assert all(map(torch.equal, before, gradients()))
    adapters.activate(1)
    assert texts(generator, questions) != answers
