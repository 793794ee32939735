"""A tiny random Llama with a tokenizer of its own, and rows to train it on. No network."""

from __future__ import annotations

from pathlib import Path

NUM_ROWS = 24

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Rows = list[dict[str, object]]


def alpaca_rows() -> Rows:
    numbers = ["one", "two", "three", "four", "five", "six"]
    numbers += ["seven", "eight", "nine", "ten", "eleven", "twelve"]
    return [
        {
            "instruction": f"say {numbers[i % 12]} and {numbers[(5 * i + 1) % 12]}",
            "input": "",
            "output": " ".join(numbers[i % 12 : i % 12 + 1 + i % 4]) + f" number {i}",
        }
        for i in range(NUM_ROWS)
    ]


def save_tokenizer(folder: Path, chat_template: str | None) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [" ".join(map(str, row.values())) for row in alpaca_rows()]
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        [*texts, "system\nuser\nassistant\n"],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=special
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder: Path, vocab_size: int, max_position_embeddings: int = 256) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
