"""Options of the base model: what is loaded, and in which form."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

SHARED = frozenset(
    {
        "model_name_or_path",
        "model_revision",
        "trust_remote_code",
        "dtype",
        "quantization_bit",
        "attn_implementation",
        "gradient_checkpointing",
    }
)
PATHS = frozenset({"model_name_or_path"})


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
        description="Data type of the base model. auto: bfloat16 where the device computes in it, "
        "else float16 on a GPU and float32 on a CPU. Adapter weights are always float32.",
    )
    quantization_bit: Literal[4] | None = Field(
        None, description="4 loads the base model in 4-bit NF4 (QLoRA); null leaves it as it is."
    )
    attn_implementation: str | None = Field(
        None, description="Attention as transformers names it: sdpa, eager, flash_attention_2."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, slower."
    )

    @field_validator("quantization_bit", mode="before")
    @classmethod
    def _four_bits_only(cls, value: object) -> object:
        if value not in (None, 4):
            raise ValueError(
                f"{value!r} is not supported: give 4 (NF4), or leave it out. 8 bits train "
                f"several times slower than 4."
            )
        return value
