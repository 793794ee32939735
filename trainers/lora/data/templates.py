"""Chat templates by name, as Jinja that transformers renders.

Written from the formats' public descriptions. None writes the token that begins every text: that
is the tokenizer's matter, and the encoder puts it there where the tokenizer would. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class ChatTemplate:
    """A way to write conversations.

    Attributes:
        jinja: Takes ``messages``, ``add_generation_prompt``, ``bos_token`` and ``eos_token``.
        markers: What the format writes as tokens of their own; a tokenizer without them spells
            them out.
    """

    jinja: str
    markers: tuple[str, ...] = ()


def _template(
    user: str,
    assistant: str,
    system: str,
    prompt: str = "",
    default_system: str = "",
    markers: tuple[str, ...] = (),
) -> ChatTemplate:
    """Put together a template that writes one turn after the other. ``TEXT`` is a turn's text."""
    text = "{{ message.content }}"
    opening = ""
    if default_system:
        written = system.replace("TEXT", default_system)
        opening = f"{{% if messages[0].role != 'system' %}}{written}{{% endif %}}"
    return ChatTemplate(
        f"{opening}{{% for message in messages %}}"
        f"{{% if message.role == 'system' %}}{system.replace('TEXT', text)}"
        f"{{% elif message.role == 'user' %}}{user.replace('TEXT', text)}"
        f"{{% else %}}{assistant.replace('TEXT', text)}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}",
        markers,
    )


def _folding_template(
    user: str, assistant: str, system: str, prompt: str = "", markers: tuple[str, ...] = ()
) -> ChatTemplate:
    """As ``_template``, for formats that write the system message into the first user turn."""
    text = "{{ message.content }}"
    folded = "{% if loop.first %}{{ ns.system }}{% endif %}" + text
    return ChatTemplate(
        "{% set ns = namespace(system='', turns=messages) %}"
        "{% if messages[0].role == 'system' %}"
        f"{{% set ns.system %}}{system.replace('TEXT', '{{ messages[0].content }}')}{{% endset %}}"
        "{% set ns.turns = messages[1:] %}"
        "{% if ns.turns and ns.turns[0].role == 'assistant' %}"
        "{{ raise_exception('the system message has no user turn to be written into') }}"
        "{% endif %}{% endif %}"
        "{% for message in ns.turns %}"
        f"{{% if message.role == 'assistant' %}}{assistant.replace('TEXT', text)}"
        f"{{% else %}}{user.replace('TEXT', folded)}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}",
        markers,
    )


def _chatml(default_system: str = "") -> ChatTemplate:
    return _template(
        user="<|im_start|>user\nTEXT<|im_end|>\n",
        assistant="<|im_start|>assistant\nTEXT<|im_end|>\n",
        system="<|im_start|>system\nTEXT<|im_end|>\n",
        prompt="<|im_start|>assistant\n",
        default_system=default_system,
        markers=("<|im_start|>", "<|im_end|>"),
    )


# A newline right after a block tag is trimmed by transformers' Jinja: no piece begins with one.
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

TEMPLATES: Mapping[str, ChatTemplate] = {
    "chatml": _chatml(),
    "qwen": _chatml(_QWEN_SYSTEM),
    "llama3": _template(
        user=_HEADER.format("user") + "TEXT<|eot_id|>",
        assistant=_HEADER.format("assistant") + "TEXT<|eot_id|>",
        system=_HEADER.format("system") + "TEXT<|eot_id|>",
        prompt=_HEADER.format("assistant"),
        markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "llama2": _folding_template(
        user="{% if not loop.first %}{{ bos_token }}{% endif %}[INST] TEXT [/INST]",
        assistant=" TEXT {{ eos_token }}",
        system="<<SYS>>\nTEXT\n<</SYS>>\n\n",
    ),
    "mistral": _folding_template(
        user="[INST] TEXT[/INST]", assistant=" TEXT{{ eos_token }}", system="TEXT\n\n"
    ),
    "gemma": _folding_template(
        user="<start_of_turn>user\nTEXT<end_of_turn>\n",
        assistant="<start_of_turn>model\nTEXT<end_of_turn>\n",
        system="TEXT\n\n",
        prompt="<start_of_turn>model\n",
        markers=("<start_of_turn>", "<end_of_turn>"),
    ),
    "phi3": _template(
        user="<|user|>\nTEXT<|end|>\n",
        assistant="<|assistant|>\nTEXT<|end|>\n",
        system="<|system|>\nTEXT<|end|>\n",
        prompt="<|assistant|>\n",
        markers=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "phi4": _template(
        user="<|im_start|>user<|im_sep|>TEXT<|im_end|>",
        assistant="<|im_start|>assistant<|im_sep|>TEXT<|im_end|>",
        system="<|im_start|>system<|im_sep|>TEXT<|im_end|>",
        prompt="<|im_start|>assistant<|im_sep|>",
        markers=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "zephyr": _template(
        user="<|user|>\nTEXT{{ eos_token }}\n",
        assistant="<|assistant|>\nTEXT{{ eos_token }}\n",
        system="<|system|>\nTEXT{{ eos_token }}\n",
        prompt="<|assistant|>\n",
    ),
    "vicuna": _template(
        user="USER: TEXT ASSISTANT:",
        assistant=" TEXT{{ eos_token }}",
        system="TEXT ",
        default_system=_VICUNA_SYSTEM,
    ),
    "alpaca": _template(
        user="### Instruction:\nTEXT\n\n### Response:\n",
        assistant="TEXT{{ eos_token }}\n\n",
        system="TEXT\n\n",
        default_system=_ALPACA_SYSTEM,
    ),
    "deepseek": _template(
        user="User: TEXT\n\nAssistant:", assistant=" TEXT{{ eos_token }}", system="TEXT\n\n"
    ),
    "deepseek3": _template(
        user="<｜User｜>TEXT<｜Assistant｜>",
        assistant="TEXT{{ eos_token }}",
        system="TEXT",
        markers=("<｜User｜>", "<｜Assistant｜>"),
    ),
    "human_assistant": _template(
        user="Human: TEXT{{ eos_token }}\nAssistant:",
        assistant="TEXT{{ eos_token }}\n",
        system="System: TEXT{{ eos_token }}\n",
    ),
    "bare": _template(user="TEXT", assistant="TEXT{{ eos_token }}", system="TEXT"),
}
"""``bare`` writes the texts alone, one after the other."""

MODELS_OWN = None
"""The template that comes with the model."""

# fmt: off
_SAME_NAME = (
    "alpaca", "chatml", "deepseek", "deepseek3", "gemma", "llama2", "llama3", "mistral",
    "phi4", "qwen", "vicuna", "zephyr",
)
_OWN_FORMAT = (
    "bailing", "bailing_v2", "cohere", "deepseekcoder", "deepseekr1", "ernie", "ernie_nothink",
    "exaone", "glm4", "glm4_moe", "glmz1", "gpt_oss", "granite3", "granite4", "hunyuan",
    "intern2", "llama4", "marco", "mimo", "mimo_v2", "ministral", "ministral3",
    "mistral_small", "moonlight", "olmo", "openchat", "phi4_mini", "phi_small", "qwen2_vl",
    "qwen2_audio", "qwen2_omni", "qwen3", "qwen3_5", "qwen3_vl", "qwen3_omni", "seed_coder",
    "seed_oss", "smollm", "smollm2", "solar", "yi_vl",
)
# fmt: on

LLAMA_FACTORY: Mapping[str, str | None] = {
    **{name: name for name in _SAME_NAME},
    **dict.fromkeys(_OWN_FORMAT, MODELS_OWN),
    "default": "human_assistant",
    "empty": "bare",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gemma3n": "gemma",
    "phi": "phi3",
    "cpm3": "chatml",
    "cpm4": "chatml",
    "falcon_h1": "chatml",
    "intern_s1": "chatml",
    "qwen3_nothink": "chatml",
    "qwen3_5_nothink": "chatml",
    "qwen3_vl_nothink": "chatml",
    "yi": "chatml",
}
"""LLaMA-Factory's ``template`` -> ours. Families whose models bring the same format with them get
the model's own."""

AXOLOTL: Mapping[str, str | None] = {
    "tokenizer_default": MODELS_OWN,
    "inst": "mistral",
    "mistral_v1": "mistral",
    "mistral_v2v3": "mistral",
    "phi_3": "phi3",
    "phi_35": "phi3",
    "phi_4": "phi4",
    "qwen_25": "qwen",
    "qwen3": MODELS_OWN,
    "gemma3": "gemma",
    "deepseek_v3": "deepseek3",
}
"""Axolotl's values of ``chat_template`` that are not ours already."""
