"""Options of the base model: what is loaded, in which form, and where to."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, Field, NonNegativeInt, model_validator

SHARED = frozenset(
    {
        "model_name_or_path",
        "model_revision",
        "trust_remote_code",
        "dtype",
        "quantization_bit",
        "quantization_type",
        "double_quantization",
        "device_map",
        "attn_implementation",
        "gradient_checkpointing",
    }
)
PATHS = frozenset({"model_name_or_path"})

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]

_Options = TypeVar("_Options", bound="ModelOptions")


class ModelOptions(BaseModel):
    """The base model."""

    model_name_or_path: str = Field(
        min_length=1, description="The base model: a folder, a hub id, or a GGUF file."
    )
    model_revision: str | None = Field(
        None, description="Branch, tag or commit of a model on the hub."
    )
    trust_remote_code: bool = Field(
        False, description="Whether to run Python code that comes with the model."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type that the base model computes in. auto: bfloat16 where the device "
        "computes in it, else float16 on a GPU and float32 on a CPU. Trained weights are always "
        "float32.",
    )
    quantization_bit: Literal[4, 8] | None = Field(
        None,
        description="4 loads the base model in 4 bits (QLoRA), 8 in LLM.int8, both by "
        "bitsandbytes; null leaves it as it is.",
    )
    quantization_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="The 4-bit numbers: NormalFloat or floating point."
    )
    double_quantization: bool = Field(
        True, description="Whether the scales of 4-bit weights are quantized too."
    )
    device_map: DeviceMap | dict[str, NonNegativeInt | str] | None = Field(
        None,
        description="How the model is spread over GPUs, as transformers takes it: auto, balanced, "
        "sequential, or module -> device. null: over all GPUs that the process sees.",
    )
    attn_implementation: str | None = Field(
        None, description="Attention as transformers names it: sdpa, eager, flash_attention_2."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, slower."
    )

    @model_validator(mode="after")
    def _fp4_is_of_four_bits(self: _Options) -> _Options:
        if self.quantization_type != "nf4" and self.quantization_bit != 4:
            raise ValueError(
                f"quantization_type: {self.quantization_type!r} needs quantization_bit: 4, got "
                f"quantization_bit: {self.quantization_bit}. Set it to 4, or leave out "
                f"quantization_type."
            )
        return self

    @model_validator(mode="after")
    def _layers_stay_in_memory(self: _Options) -> _Options:
        placed = self.device_map.items() if isinstance(self.device_map, dict) else ()
        for module, device in placed:
            if device in ("disk", "meta"):
                raise ValueError(
                    f"device_map: {module!r} is placed on {device!r}, where it cannot be trained "
                    f"on. Give a GPU's number, or cpu."
                )
        return self
