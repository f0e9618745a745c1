"""The typed config of `quantization`: in how many bits the frozen weights of a base model are held."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from luban.foundation.config import Auto, Config, field

SCALES_A_BLOCK = 256  # of those that are quantised themselves
GroupSize = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]


class QuantizationConfig(Config):
    """Frozen weights in 4 or 8 bits; what is trained stands on top of them in floating point (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

    format: Literal["nf4", "int4", "int8"] = field(
        "nf4", "nf4: 16 levels at the quantiles of a normal distribution; int4: 16 equal steps between a group's least and greatest value; int8: 255 equal steps."
    )
    group_size: GroupSize | Auto = field("auto", "Neighbouring weights of a row that share a scale; auto: 64, and of int8 the whole row.", unit="weights")
    symmetric: bool = field(False, "The steps of int4 lie evenly about zero: no zero point is stored, and the error is larger. (nf4 and int8 have none.)")
    double_quantization: bool = field(True, "Hold the scales themselves in 8 bits, wherever a row has enough of them to gain by it.")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        "auto", "Type in which the weights are multiplied; auto: that of what they are multiplied with.", role="machine"
    )
    skip: list[str] = field([], "Layers that stay in floating point, each by a part of its name, such as layers.0. or down_proj.")
    backend: Literal["auto", "own", "bitsandbytes"] = field(
        "auto", "Who turns nf4 back into numbers: own code, or bitsandbytes; auto: bitsandbytes on a GPU where it is installed.", role="machine"
    )

    foreign: ClassVar[dict[str, str]] = {
        "load_in_4bit": "format: nf4", "load_in_8bit": "format: int8", "quantization_bit": "format", "bits": "format", "quant_type": "format",
        "bnb_4bit_quant_type": "format", "bnb_4bit_use_double_quant": "double_quantization", "quantization_type": "format",
        "bnb_4bit_compute_dtype": "compute_dtype", "block_size": "group_size", "blocksize": "group_size", "q_group_size": "group_size",
        "llm_int8_skip_modules": "skip", "modules_to_not_convert": "skip", "sym": "symmetric",
    }  # fmt: skip

    def group_of(self, inputs: int) -> int:
        """Weights that share a scale in a row of ``inputs``: never more than the row has, and even where two share a byte."""
        wanted = (inputs if self.format == "int8" else 64) if self.group_size == "auto" else self.group_size
        return min(wanted, inputs + inputs % 2 if self.format != "int8" else inputs)

    def divides(self, inputs: int, parts: int) -> bool:
        """Whether rows of ``inputs`` weights can be cut into so many even parts that no byte is cut, and no group that shares a scale nor block of scales, but where a row is one."""
        group = self.group_of(inputs)
        groups = -(-inputs // group)
        if parts == 1:
            return True
        if inputs % parts or (self.format != "int8" and inputs // parts % 2):
            return False
        whole = groups * group == inputs and groups % parts == 0
        return groups == 1 or (whole and (groups <= SCALES_A_BLOCK or not self.double_quantization or groups // parts % SCALES_A_BLOCK == 0))


def _from_name(value: Any) -> Any:
    """``quantization: nf4`` is short for ``quantization: {format: nf4}``; "none" for none."""
    if value == "none":
        return None
    return {"format": value} if isinstance(value, str) else value


AnyQuantization = Annotated[QuantizationConfig | None, BeforeValidator(_from_name)]
