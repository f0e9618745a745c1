"""What the layers of each family are called: where attention and the feed-forward part end, and which matrices make keys and values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from luban.models.base import Model

ATTENTIONS = "(self_attn|encoder_attn)"


@dataclass(frozen=True)
class Places:
    """Patterns of the ends of names; "" where the family has none such.

    ``attention`` and ``feed_forward``: the module whose output a block adds to the stream. ``keys_values``: matrices of attention.
    ``inner``: the last matrix of a feed-forward part, whose input is the part's inside.
    """

    attention: str = ""
    feed_forward: str = ""
    keys_values: str = ""
    inner: str = ""


DECODER = Places(r"self_attn\.o_proj", r"mlp\.down_proj", r"self_attn\.[kv]_proj", r"mlp\.down_proj")
QWEN_MIXTURE = Places(r"self_attn\.o_proj", r"layers\.\d+\.mlp", r"self_attn\.[kv]_proj", r"down_proj")
BERT = Places(r"attention\.output\.dense", r"layer\.\d+\.output\.dense", r"attention\.self\.(key|value)", r"layer\.\d+\.output\.dense")
BART = Places(rf"{ATTENTIONS}\.out_proj", "fc2", rf"{ATTENTIONS}\.[kv]_proj", "fc2")
T5 = Places(r"(SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo", r"(SelfAttention|EncDecAttention)\.[kv]", r"DenseReluDense\.wo")
RECURRENT = Places("", r"model\.layers\.\d+")
FAMILIES = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral"), DECODER),
    "gpt2": Places(r"attn\.c_proj", r"mlp\.c_proj", r"attn\.c_attn", r"mlp\.c_proj"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), BERT),
    "mixtral": Places(r"self_attn\.o_proj", "block_sparse_moe", r"self_attn\.[kv]_proj", r"experts\.\d+\.w2"),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), QWEN_MIXTURE),
    **dict.fromkeys(("t5", "mt5"), T5),
    **dict.fromkeys(("bart", "mbart", "marian"), BART),
    **dict.fromkeys(("luban-lstm", "luban-bilstm"), RECURRENT),
    # The decoder's cells hand their state on, which nothing beside them changes: its readout is what they say.
    "luban-recurrent": Places("", r"encoder\.layers\.\d+|decoder\.readout"),
}
# Of what else transformers has: the usual names.
ENDS = r"(mlp|ffn|feed_forward|feedforward)\.(down_proj|c_proj|fc2|w2|lin2|dense_4h_to_h|fc_out|wo|Wo)|(?<!attention\.)output\.dense|DenseReluDense\.wo|fc2|ffn_output"
USUAL = Places(
    r"(attn|attention|self_attn|self_attention|encoder_attn)\.(o_proj|out_proj|c_proj|dense|out_lin|wo|Wo|o)|attention\.output\.dense|(SelfAttention|EncDecAttention)\.o",
    ENDS,
    "(k|v|k_proj|v_proj|key|value|key_proj|value_proj|k_lin|v_lin|query_key_value|c_attn|qkv_proj|Wqkv)",
    ENDS,
)


def places_of(model: Model) -> Places:
    """The patterns of a model's family."""
    return FAMILIES.get(model.shape.architecture, USUAL)


def named(model: Model, pattern: str) -> Iterator[tuple[str, nn.Module]]:
    """(place, module) of the trunk's modules whose name ends as ``pattern`` says, in the model's order."""
    wanted = re.compile(rf"(^|.*\.)({pattern})") if pattern else None
    for place, module in model.named_modules():
        if wanted and wanted.fullmatch(place) and not model.is_output(f"{place}."):
            yield place, module
