"""Other tools' ways to name datasets: LLaMA-Factory's ``dataset_info.json``, Axolotl's ``datasets``.

Turns them into ours. Reads no data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, object]

_COLUMNS = {  # LLaMA-Factory's name of a column -> ours
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
    "sharegpt": {"messages": "conversations", "system": "system"},
}
_COLUMNS["openai"] = _COLUMNS["sharegpt"]
_KEY_TAGS = {"role_tag": "from", "content_tag": "value"}
_ROLE_TAGS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "system_tag": ("system", "system"),
}
_NOT_TEXT = ("tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag")
_HUBS = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")

_FILE_KINDS = (".json", ".jsonl", ".csv", ".parquet", ".txt")


def read_dataset(value: object, folder: object, max_samples: object = None) -> dict[str, object]:
    """Return the options for what LLaMA-Factory's ``dataset`` names.

    Args:
        value: Names, separated by commas or in a list.
        folder: Its ``dataset_dir``, or ONLINE for names of the hub.
        max_samples: Its limit, which is for each of several datasets.

    Raises:
        ValueError: A name is not in the file, or stands for what is not done here.
    """
    entries = _entries("dataset", value, folder)
    if len(entries) == 1:
        (entry,) = entries.values()
        return {"train_file": entry["path"]} if _is_file(entry) else {"datasets": [entry]}
    if max_samples is not None:
        return {"datasets": [{**e, "max_samples": max_samples} for e in entries.values()]}
    return {"datasets": [*entries.values()]}


def read_eval_dataset(value: object, folder: object) -> dict[str, object]:
    """Return the option for ``eval_dataset``: names as in ``dataset``, or files as in ours."""
    parts = _names(value) if isinstance(value, str | list) else []
    if not parts or any(_looks_like_a_path(part) for part in parts):
        return {"validation_file": value}
    entries = _entries("eval_dataset", value, folder)
    sets = {name: e["path"] if _is_file(e) else e for name, e in entries.items()}
    (first, *others) = sets.values()
    return {"validation_file": sets if others or isinstance(first, dict) else first}


def _entries(option: str, value: object, folder: object) -> dict[str, Entry]:
    names = _names(value)
    if not names:
        raise ValueError(
            f"{option}: {value!r} must name datasets of dataset_info.json, as in 'a,b'."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{option}: {value!r} names a dataset twice. Name it once.")
    if folder == "ONLINE":
        return {name: {"path": name} for name in names}
    info_file = Path(str(folder)) / "dataset_info.json"
    advice = "Name the file itself instead: 'train_file: path/to/data.jsonl'."
    if option == "eval_dataset":
        advice = advice.replace("train", "validation", 1)
    try:
        if info_file.exists() and not info_file.is_file():
            raise ValueError(f"{info_file} is no file. {advice}")
        infos = json.loads(info_file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(
            f"{option}: {value!r} is looked up in {info_file}, which does not exist. Set "
            f"dataset_dir to the folder that holds it. {advice}"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{info_file}:{error.lineno}: not JSON: {error.msg}. {advice}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{info_file} cannot be read as JSON: {error}. {advice}") from None
    entries = {}
    for name in names:
        info = infos.get(name) if isinstance(infos, Mapping) else None
        if not isinstance(info, Mapping):
            known = ", ".join(sorted(infos)[:20]) if isinstance(infos, Mapping) else "nothing"
            raise ValueError(f"{option}: {name!r} is not in {info_file}. There: {known}. {advice}")
        entries[name] = _entry(f"{info_file}: {name!r}", info, Path(str(folder)), advice)
    return entries


def _entry(place: str, info: Mapping[str, object], folder: Path, advice: str) -> Entry:
    """Turn one entry of ``dataset_info.json`` into one of ours."""
    layout = str(info.get("formatting", "alpaca"))
    if layout not in _COLUMNS:
        raise ValueError(
            f"{place}: formatting {layout!r} is not known. Known: {', '.join(_COLUMNS)}. {advice}"
        )
    ranking = "ranking" if info.get("ranking") else None
    named = _mapping(place, info, "columns")
    if refused := ranking or next((name for name in _NOT_TEXT if named.get(name)), None):
        raise ValueError(
            f"{place} has {refused}, which is not trained here: only text is. {advice}"
        )
    given = {name: value for name, value in named.items() if value is not None}
    columns, tags = _texts(place, {"columns": given}, "columns"), _texts(place, info, "tags")
    entry: Entry = {}
    if "hf_hub_url" in info:
        entry["path"] = info["hf_hub_url"]
        entry |= {"name": info["subset"]} if info.get("subset") else {}
        entry["split"] = info.get("split", "train")
    elif "file_name" in info:
        entry["path"] = os.path.abspath(folder / str(info["file_name"]))
    else:
        where = next((name for name in _HUBS if name in info), "nothing")
        raise ValueError(
            f"{place} has {where}, but no local file (file_name) and no hf_hub_url. {advice}"
        )
    if info.get("num_samples") is not None:
        entry["num_samples"] = info["num_samples"]
    ours = {_COLUMNS[layout][name]: to for name, to in columns.items() if name in _COLUMNS[layout]}
    default_keys = {"role_tag": "role", "content_tag": "content"} if layout == "openai" else {}
    if layout != "alpaca":
        keys = {**default_keys, **tags}
        ours |= {key: keys[tag] for tag, key in _KEY_TAGS.items() if tag in keys}
    renamed = {name: to for name, to in ours.items() if name != to}
    roles = {tags.get(tag, usual): role for tag, (role, usual) in _ROLE_TAGS.items()}
    if layout == "openai":
        roles = {tags.get(tag, role): role for tag, (role, _) in _ROLE_TAGS.items()}
        renamed.setdefault("conversations", "messages")
    usual_roles = {usual: role for role, usual in _ROLE_TAGS.values()}
    if renamed or (layout != "alpaca" and roles != usual_roles):
        entry["data_format"] = "alpaca" if layout == "alpaca" else "sharegpt"
        entry["columns"] = renamed
        if layout != "alpaca":
            entry["roles"] = roles
    return entry


_AXOLOTL_TYPES: Mapping[str, Entry] = {
    "alpaca": {"data_format": "alpaca"},
    "alpaca_chat.load_qa": {
        "data_format": "alpaca",
        "columns": {"instruction": "question", "output": "answer"},
    },
    "sharegpt": {"data_format": "sharegpt"},
    "chat_template": {"data_format": "messages"},
    "completion": {"data_format": "text"},
}
_AXOLOTL_ROLES = {"human": "user", "gpt": "assistant"}
_AXOLOTL_LOADERS = ("json", "csv", "parquet", "text")


def read_axolotl(option: str, value: object) -> object:
    """Return Axolotl's list of datasets as ours; what is ours already stays as it is.

    Raises:
        ValueError: A dataset's type, or a part of it, has no meaning here.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    entries: list[object] = []
    for entry in value:
        foreign = isinstance(entry, Mapping) and {"type", "data_files", "ds_type"} & entry.keys()
        entries += _from_axolotl(option, dict(entry)) if foreign else [entry]
    return entries


def _from_axolotl(option: str, entry: Entry) -> list[Entry]:
    place = f"{option}: {entry.get('path')!r}"
    kind = entry.pop("type", None)
    ds_type = entry.pop("ds_type", None)
    columns: dict[str, object] = {}
    if isinstance(kind, Mapping):  # fields named by the user
        ours = {f"field_{name}": name for name in ("system", "instruction", "input", "output")}
        if unknown := sorted(kind.keys() - ours.keys()):
            raise ValueError(f"{place}: a type with {unknown[0]!r} is not supported.")
        columns = {ours[name]: to for name, to in kind.items() if to != ours[name]}
        entry["data_format"] = "alpaca"
    elif kind is not None:
        if not isinstance(kind, str) or kind not in _AXOLOTL_TYPES:
            raise ValueError(
                f"{place}: the type {kind!r} is not supported. Known: {', '.join(_AXOLOTL_TYPES)}."
            )
        known = _AXOLOTL_TYPES[kind]
        entry["data_format"] = known["data_format"]
        columns = {**_mapping(place, known, "columns")}
    if kind == "chat_template":
        columns |= _message_columns(place, entry)
    if kind == "completion":
        columns["text"] = entry.pop("field", None) or "text"
    trained = entry.pop("roles_to_train", None) or ["assistant"]
    if trained not in (["assistant"], ["gpt"], ["gpt", "assistant"]):
        raise ValueError(f"{place}: roles_to_train {trained!r}: only answers are learned.")
    if columns:
        entry["columns"] = columns
    return _with_files(place, entry, ds_type)


def _message_columns(place: str, entry: Entry) -> dict[str, object]:
    columns: dict[str, object] = {}
    keys = _mapping(place, entry, "message_property_mappings")
    entry.pop("message_property_mappings", None)
    for name in ("role", "content"):
        if to := entry.pop(f"message_field_{name}", keys.get(name)):
            columns[name] = to
    if messages := entry.pop("field_messages", None):
        columns["messages"] = messages
    given = _mapping(place, entry, "roles")
    if all(isinstance(names, list) for names in given.values()):  # role -> its names in the data
        roles = {str(name): role for role, names in given.items() for name in names}
        entry["roles"] = roles or _AXOLOTL_ROLES
    return columns


def _with_files(place: str, entry: Entry, ds_type: object) -> list[Entry]:
    """Return one entry for each of ``data_files``, whose path is the files' kind."""
    files = entry.pop("data_files", None)
    if files is None:
        return [entry]
    if entry.get("path") not in (*_AXOLOTL_LOADERS, ds_type):
        raise ValueError(
            f"{place} with data_files is not supported. Give each file as a dataset of its own, "
            f"by its path."
        )
    listed = files if isinstance(files, list) else [files]
    return [{**entry, "path": file} for file in listed]


def _mapping(place: str, info: Mapping[str, object], name: str) -> dict[str, Any]:
    value = info.get(name) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: {name} must be a mapping, got {value!r}.")
    return dict(value)


def _texts(place: str, info: Mapping[str, object], name: str) -> dict[str, str]:
    value = _mapping(place, info, name)
    for key, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"{place}: {name}.{key} must be a text, got {text!r}.")
    return dict(value)


def _names(value: object) -> list[str]:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    return []


def _is_file(entry: Entry) -> bool:
    return entry.keys() == {"path"} and _looks_like_a_path(str(entry["path"]))


def _looks_like_a_path(text: str) -> bool:
    path = Path(text).expanduser()
    return path.suffix.lower() in _FILE_KINDS or path.is_absolute() or path.exists()
