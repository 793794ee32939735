"""Other tools' values for the options of the data. Called by ``aliases``, which has their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainers.lora.data.dataset_info import read_axolotl, read_dataset, read_eval_dataset
from trainers.lora.data.templates import AXOLOTL, LLAMA_FACTORY, TEMPLATES

Given = Mapping[str, object]
Options = dict[str, object]
Translator = Callable[[object, Given], Options]
"""From an option's value, and all that is given with it, to options of ours."""


def _dataset(value: object, given: Given) -> Options:
    limit = given.get("max_samples") if _names_several(value) else None
    return read_dataset(value, _folder(given), limit)


def _max_samples(value: object, given: Given) -> Options:
    """LLaMA-Factory's limit is for each dataset: of several, ``_dataset`` gives it to each."""
    return {} if _names_several(given.get("dataset")) else {"max_samples": value}


def _eval_dataset(value: object, given: Given) -> Options:
    return read_eval_dataset(value, _folder(given))


def _folder(given: Given) -> object:
    return given.get("dataset_dir") or "data"


def _names_several(dataset: object) -> bool:
    return (isinstance(dataset, str) and "," in dataset) or (
        isinstance(dataset, list) and len(dataset) > 1
    )


def _packing(value: object, given: Given) -> Options:
    if value is None or "neat_packing" in given:
        return {}
    return {"packing": value}


def _neat_packing(value: object, given: Given) -> Options:
    """LLaMA-Factory's second switch; here examples of a row never see each other."""
    plain = given.get("packing")
    if plain is False and value is True:
        raise ValueError("packing: False and neat_packing: True contradict. Give one of them.")
    return {"packing": True if plain is True else value}


def _template(value: object, _given: Given) -> Options:
    """LLaMA-Factory's template; null is the model's own there too."""
    if value is None or not isinstance(value, str):
        return {"chat_template": value}
    if value not in LLAMA_FACTORY:
        raise ValueError(
            f"template: {value!r} is not known here. Known: {', '.join(sorted(LLAMA_FACTORY))}. Or "
            f"give chat_template: a .jinja file, or null for the model's own."
        )
    return {"chat_template": LLAMA_FACTORY[value]}


def _chat_template(value: object, _given: Given) -> Options:
    if isinstance(value, str) and value not in TEMPLATES:
        return {"chat_template": AXOLOTL.get(value, value)}
    return {"chat_template": value}


def _strategy_if(name: str, strategy: str) -> Translator:
    def translate(value: object, _given: Given) -> Options:
        if value not in (True, False, None):
            raise ValueError(f"{name} must be true or false, got {value!r}.")
        return {"train_sampling_strategy": strategy} if value is True else {}

    return translate


def _loss_on_answers(name: str) -> Translator:
    def translate(value: object, _given: Given) -> Options:
        if value not in (True, False, None):
            raise ValueError(f"{name} must be true or false, got {value!r}.")
        return {"train_on_prompt": True} if value is False else {}

    return translate


def _val_size(name: str) -> Translator:
    def translate(value: object, _given: Given) -> Options:
        return {} if value in (0, None) else {name: value}  # 0: no part of the training data

    return translate


def _datasets(value: object, _given: Given) -> Options:
    return {"datasets": read_axolotl("datasets", value)}


def _test_datasets(value: object, _given: Given) -> Options:
    return {"validation_file": read_axolotl("test_datasets", value)}


DATA_TRANSLATORS: Mapping[str, Translator] = {
    "dataset": _dataset,
    "eval_dataset": _eval_dataset,
    "max_samples": _max_samples,
    "datasets": _datasets,
    "test_datasets": _test_datasets,
    "val_size": _val_size("val_size"),
    "val_set_size": _val_size("val_set_size"),
    "template": _template,
    "chat_template": _chat_template,
    "packing": _packing,
    "neat_packing": _neat_packing,
    "group_by_length": _strategy_if("group_by_length", "group_by_length"),
    "disable_shuffling": _strategy_if("disable_shuffling", "sequential"),
    "curriculum_sampling": _strategy_if("curriculum_sampling", "sequential"),
    "completion_only_loss": _loss_on_answers("completion_only_loss"),
    "assistant_only_loss": _loss_on_answers("assistant_only_loss"),
}
