"""How each family's matrices are cut over the ranks of a tensor group: one short table a family.

Of two matrices that follow each other the first gives each rank some of its outputs ("column"), the second takes them as inputs ("row"), and only then are the ranks' sums added
(Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053). Between such pairs, where a stream is only normalised and added to, each rank holds a part of the sequence (Korthikanti et
al. 2022, arXiv:2205.05198). Names are the ends of modules' names inside of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """What stands in no list is held by all, and of what the stream passes through the gradients are added up."""

    vocabulary: str  # the table of tokens, its rows shared out; and the output, where it is a matrix of its own
    stacks: tuple[str, ...]  # the lists of blocks: the stream is cut before the first of a list, and put together after its last
    reads: tuple[str, ...]  # modules that need the whole sequence: it is put together before them
    column: tuple[str, ...]
    row: tuple[str, ...]
    heads: dict[str, tuple[str, ...]] = field(default_factory=dict)  # modules that count heads, and the attributes in which they do: divided
    local: tuple[str, ...] = ()  # modules with weights that each rank uses on its own heads: the gradients are added up
    columns_of_table: tuple[str, ...] = ()  # tables that have a column for each head
    source: tuple[str, ...] = ()  # modules that also take a source's states as their fifth argument
    vocabulary_bias: tuple[str, ...] = ()  # parameters with a place for each token, shared out as the table is
    mixture: tuple[str, ...] = ()  # mixtures of experts: the experts' sums are added up once, where they are mixed
    output: str = "lm_head"
    divided: tuple[str, ...] = ("heads", "key_value_heads", "feed_forward_size")  # of the shape: what the ranks must divide


LLAMA = Plan(
    vocabulary="model.embed_tokens",
    stacks=("model.layers",),
    reads=("self_attn", "mlp"),
    column=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    row=("self_attn.o_proj", "mlp.down_proj"),
    heads={"self_attn": ("heads", "key_value_heads")},
    local=("q_norm", "k_norm"),
)
MIXTURE = Plan(
    vocabulary="model.embed_tokens",
    stacks=("model.layers",),
    reads=("self_attn", "mlp", "block_sparse_moe"),
    column=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "gate_proj", "up_proj", "w1", "w3"),
    row=("self_attn.o_proj", "down_proj", "w2"),
    heads={"self_attn": ("heads", "key_value_heads")},
    local=("q_norm", "k_norm"),
    mixture=("mlp", "block_sparse_moe"),
    divided=("heads", "key_value_heads", "feed_forward_size", "expert_size", "shared_expert_size"),
)
BERT = Plan(
    vocabulary="embeddings.word_embeddings",
    stacks=("encoder.layer",),
    reads=("attention.read", "intermediate.dense"),
    column=("self.query", "self.key", "self.value", "intermediate.dense"),
    row=("output.dense",),
    heads={"attention": ("heads",)},
    vocabulary_bias=("cls.predictions.bias", "lm_head.bias"),
    output="",
    divided=("heads", "feed_forward_size"),
)
T5 = Plan(
    vocabulary="shared",
    stacks=("encoder.block", "decoder.block"),
    reads=("SelfAttention", "EncDecAttention", "DenseReluDense"),
    column=("Attention.q", "Attention.k", "Attention.v", "DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1"),
    row=("Attention.o", "DenseReluDense.wo"),
    heads={"Attention": ("heads",)},
    columns_of_table=("relative_attention_bias",),
    source=("EncDecAttention",),
    divided=("heads", "feed_forward_size"),
)
BART = Plan(
    vocabulary="model.shared",
    stacks=("encoder.layers", "decoder.layers"),
    reads=("self_attn", "encoder_attn", "fc1"),
    column=("attn.q_proj", "attn.k_proj", "attn.v_proj", "fc1"),
    row=("attn.out_proj", "fc2"),
    heads={"attn": ("heads",)},
    source=("encoder_attn",),
    output="",
    divided=("heads", "decoder_heads", "inner_sizes"),
)
PLANS: dict[str, Plan] = (
    dict.fromkeys(("llama", "qwen2", "qwen3", "mistral"), LLAMA)
    | dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), MIXTURE)
    | dict.fromkeys(("bert", "roberta", "xlm-roberta"), BERT)
    | dict.fromkeys(("t5", "mt5"), T5)
    | dict.fromkeys(("bart", "mbart", "marian"), BART)
)


@dataclass(frozen=True)
class StackPlan:
    """A list of blocks that is cut into stages, and what belongs to it."""

    layers: str  # the list
    first: tuple[str, ...] = ()  # what is used before its first block, beside the table of tokens
    last: tuple[str, ...] = ()  # and behind its last
    all: tuple[str, ...] = ()  # what every stage uses that has some of the blocks, wherever it stands


@dataclass(frozen=True)
class StagePlan:
    """Where a family's trunk is cut into stages. Names are those of modules in the trunk; what stands beside it (an output, a head) belongs to the last stage."""

    table: str  # of tokens, used before the first block of each list; the last stage has it too where it is the output
    stacks: tuple[StackPlan, ...]  # in the order in which they are passed


def _t5(side: str) -> StackPlan:
    return StackPlan(f"{side}.block", last=(f"{side}.final_layer_norm",), all=(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",))


def _bart(side: str) -> StackPlan:
    return StackPlan(f"{side}.layers", (f"{side}.embed_positions", f"{side}.layernorm_embedding"), (f"{side}.layer_norm",))


BELOW_BERT = tuple(f"embeddings.{name}" for name in ("position_embeddings", "token_type_embeddings", "LayerNorm"))
STAGES: dict[str, StagePlan] = (
    dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen2_moe", "qwen3_moe"), StagePlan("embed_tokens", (StackPlan("layers", last=("norm",)),)))
    | {"gpt2": StagePlan("wte", (StackPlan("h", ("wpe",), ("ln_f",)),))}
    | dict.fromkeys(("bert", "roberta", "xlm-roberta"), StagePlan("embeddings.word_embeddings", (StackPlan("encoder.layer", BELOW_BERT, ("pooler",)),)))
    | dict.fromkeys(("t5", "mt5"), StagePlan("shared", (_t5("encoder"), _t5("decoder"))))
    | dict.fromkeys(("bart", "mbart", "marian"), StagePlan("shared", (_bart("encoder"), _bart("decoder"))))
)
# Why a family has no plan: what a tensor group cannot do with it.
WITHOUT = {"gpt2": "its queries, keys and values are columns of one matrix"}
CONTEXT = (*PLANS, "gpt2")  # families whose attention can gather the keys and values of the other ranks


def ends(name: str, wanted: tuple[str, ...] | dict[str, tuple[str, ...]]) -> str | None:
    """The one of ``wanted`` that a module's name ends with."""
    return next((end for end in wanted if name.endswith(end)), None)
