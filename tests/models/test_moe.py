"""Mixtures of experts against transformers in both directions, and against computing every expert for every token."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from luban.foundation.errors import ConfigError
from luban.models.counts import activation_elements, flops_per_token, parameters
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model
from luban.models.moe import Mixture
from luban.models.moe_shape import MixtureShapeConfig

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
QWEN = {**SIZES, "num_experts": 6, "moe_intermediate_size": 24, "num_experts_per_tok": 3}
THEIRS = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "mixtral, sliding, head_dim": MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=1, sliding_window=5, head_dim=16, tie_word_embeddings=True),
    "qwen2_moe": Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=40),
    "qwen2_moe, some dense, some slide": Qwen2MoeConfig(
        **QWEN, shared_expert_intermediate_size=40, norm_topk_prob=True, mlp_only_layers=[1], use_sliding_window=True, sliding_window=6, max_window_layers=3,
    ),
    "qwen3_moe": Qwen3MoeConfig(**QWEN, head_dim=16, norm_topk_prob=True),
    "qwen3_moe, every second layer": Qwen3MoeConfig(**QWEN, decoder_sparse_step=2, attention_bias=True, use_sliding_window=True, sliding_window=7),
}  # fmt: skip
PLAIN = {"vocabulary_size": 97, "layers": 3, "hidden_size": 32, "heads": 4, "key_value_heads": 2, "feed_forward_size": 64, "maximum_positions": 64}
OURS = {
    "mixtral": MixtureShapeConfig(**PLAIN, experts=4),
    "mixtral, untied": MixtureShapeConfig(**PLAIN, experts=5, sliding_window=6, tied_embeddings=False, router_jitter=0.1, rope_theta=1e6),
    "qwen2_moe": MixtureShapeConfig(**PLAIN, architecture="qwen2_moe", experts=6, experts_per_token=3, expert_size=24, dense_layers=[0]),
    "qwen2_moe, slides": MixtureShapeConfig(
        **PLAIN, architecture="qwen2_moe", sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "qwen3_moe": MixtureShapeConfig(**PLAIN, architecture="qwen3_moe", experts=8, experts_per_token=3, expert_size=16, sparse_step=2),
    "qwen3_moe, biases": MixtureShapeConfig(**PLAIN, architecture="qwen3_moe", head_dim=16, attention_bias=True, normalize_weights=False),
}
SHAPES = [shape.updated(initializer_deviation=0.3) for shape in OURS.values()]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere, in biases and norms too, so that nothing can be forgotten unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


def tokens(rows: int = 2, seq: int = 30) -> torch.Tensor:
    return torch.randint(0, 97, (rows, seq), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def compare(ours: Mixture, theirs: torch.nn.Module) -> None:
    """Logits and balance loss, without padding and with it."""
    expected = theirs(tokens(), output_router_logits=True)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(ours.logits(ours(tokens())), expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.auxiliary()["load_balance"], expected.aux_loss, atol=1e-5, rtol=1e-5)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, 20:] = 0
    expected = theirs(tokens(), attention_mask=mask, output_router_logits=True)
    found = ours.logits(ours(tokens(), segments=mask - 1))
    torch.testing.assert_close(found[mask > 0], expected.logits[mask > 0], atol=1e-5, rtol=1e-5)
    # A row's padding sees other padding here and the row there: only the tokens that count can be the same.
    mine = ours.auxiliary()["load_balance"]
    torch.testing.assert_close(mine, expected.aux_loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", THEIRS)
def test_a_directory_of_transformers_opens_in_luban(name, tmp_path):
    torch.manual_seed(0)
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS[name], attn_implementation="eager"))
    theirs.save_pretrained(tmp_path)
    compare(load_model(tmp_path), theirs)


@pytest.mark.parametrize("name", OURS)
def test_a_directory_of_luban_opens_in_transformers(name, tmp_path):
    ours = shaken(Mixture(OURS[name]).initialize(3))
    save_model(ours, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    compare(ours, theirs.eval())
    again = load_model(tmp_path)
    assert again.shape.model_dump() == ours.shape.updated(initializer="depth_scaled").model_dump() | {"layer_types": again.shape.layer_types}
    torch.testing.assert_close(again(tokens()), ours(tokens()), atol=0, rtol=0)


@pytest.mark.parametrize(("structure", "factory"), [("sequence", AutoModelForSequenceClassification), ("token", AutoModelForTokenClassification)])
@torch.inference_mode()
def test_heads_are_those_of_transformers(structure, factory, tmp_path):
    head = Head(structure, "classification", ("a", "b", "c"), "single_label" if structure == "sequence" else "")
    ours = shaken(Mixture(OURS["qwen2_moe"]).initialize(0).with_head(head))
    save_model(ours, tmp_path, pad_id=0)
    theirs, report = factory.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    text = tokens().clamp(min=1)
    torch.testing.assert_close(ours.scores(ours(text), text), theirs.eval()(text).logits, atol=1e-5, rtol=1e-5)
    assert load_model(tmp_path).head == head


@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[2:3] + SHAPES[5:], ids=lambda shape: shape.architecture)
def test_a_mixture_is_every_expert_for_every_token_weighted(shape):
    """The sparse sum against the dense one; forward and gradients."""
    block = next(block for block, sparse in zip(build_model(shape).initialize(0).double().blocks(), shape.sparse, strict=True) if sparse)
    mixture = getattr(block, block.place)
    states = torch.randn(2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    chances = (states @ mixture.gate.weight.T).softmax(-1)
    threshold = chances.sort(descending=True).values[..., shape.experts_per_token - 1 : shape.experts_per_token]
    weights = torch.where(chances >= threshold, chances, 0.0)
    if shape.normalize_weights:
        weights = weights / weights.sum(-1, keepdim=True)
    expected = sum(weights[..., index : index + 1] * expert(states) for index, expert in enumerate(mixture.experts))
    if shape.shared_expert_size:
        expected = expected + torch.sigmoid(mixture.shared_expert_gate(states)) * mixture.shared_expert(states)
    found, _ = mixture(states)
    torch.testing.assert_close(found, expected)
    wanted = [states, *mixture.parameters()]
    given = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(torch.autograd.grad(found, wanted, given), torch.autograd.grad(expected, wanted, given), strict=True):
        torch.testing.assert_close(mine, theirs)


def packed() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Documents of 5, 1 and 7 tokens, and one row with them and 3 places of padding."""
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(0, 97, (1, length), generator=generator) for length in (5, 1, 7)]
    row = torch.cat([*documents, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    positions = torch.tensor([[*range(5), 0, *range(7), 0, 0, 0]])
    return documents, {"tokens": row, "positions": positions, "segments": torch.tensor([[0] * 5 + [1] + [2] * 7 + [-1] * 3])}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_packed_is_the_same_as_each_document_alone(shape):
    model = build_model(shape).initialize(0).double().eval()
    documents, row = packed()
    whole = model(**row)[:, :13]
    balance = model.auxiliary()["load_balance"]
    torch.testing.assert_close(whole, torch.cat([model(document) for document in documents], 1), atol=1e-11, rtol=1e-9)
    # The same documents below each other, padded: the loss knows neither the places nor the padding.
    below = torch.zeros(3, 7, dtype=torch.long)
    segments = torch.full((3, 7), -1)
    for index, document in enumerate(documents):
        below[index, : document.shape[1]], segments[index, : document.shape[1]] = document[0], 0
    model(below, segments=segments)
    torch.testing.assert_close(model.auxiliary()["load_balance"], balance)


def test_losses_of_the_router_against_their_formulas():
    shape = SHAPES[3].updated(router_z_weight=0.001)
    model = build_model(shape).initialize(0).double()
    documents, row = packed()
    model(**row)
    kept = row["segments"].flatten() >= 0
    logits = tuple(routing.logits[kept] for routing in model.routings)
    found = model.auxiliary()
    torch.testing.assert_close(found["load_balance"], load_balancing_loss_func(logits, 8, 2).double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["router_z"], torch.stack([layer.exp().sum(-1).log().square().mean() for layer in logits]).mean())
    busiest = max(torch.bincount(routing.chosen[kept].flatten()).max().item() for routing in model.routings)
    assert found["expert_share_max"].item() == pytest.approx(busiest / (13 * 2)) and not found["expert_share_max"].requires_grad
    assert shape.auxiliary_weights == {"load_balance": 0.01, "router_z": 0.001}
    assert torch.autograd.grad(found["load_balance"], model.model.layers[0].mlp.gate.weight)[0].any()
    assert build_model(SHAPES[0]).auxiliary() == {}


def test_gradients_are_those_of_transformers_and_of_layers_computed_again(tmp_path):
    """With the balance loss in; an expert without tokens has a gradient of zeros, as in transformers' fused tensor."""
    torch.manual_seed(0)
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS["qwen3_moe"], attn_implementation="eager"))
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    text = tokens(1, 4)
    said = theirs(text, labels=text, output_router_logits=True)
    said.loss.backward()
    stacked = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for again in (False, True):
        ours.zero_grad()
        ours.recompute = again
        logits = ours.logits(ours(text))
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], text[0, 1:]) + 0.001 * ours.auxiliary()["load_balance"]
        assert loss.item() == pytest.approx(said.loss.item(), abs=1e-5)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
        torch.testing.assert_close(gradients["model.layers.1.mlp.gate.weight"], stacked["model.layers.1.mlp.gate.weight"], atol=1e-5, rtol=1e-4)
        for expert in range(6):
            place = f"model.layers.1.mlp.experts.{expert}"
            torch.testing.assert_close(gradients[f"{place}.down_proj.weight"], stacked["model.layers.1.mlp.experts.down_proj"][expert], atol=1e-5, rtol=1e-4)
            both = torch.cat([gradients[f"{place}.gate_proj.weight"], gradients[f"{place}.up_proj.weight"]])
            torch.testing.assert_close(both, stacked["model.layers.1.mlp.experts.gate_up_proj"][expert], atol=1e-5, rtol=1e-4)


def test_the_jitter_is_there_in_training_only():
    model = build_model(SHAPES[1]).initialize(0)
    text = tokens()
    assert torch.equal(model.eval()(text), model(text))
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(text), model(text))


def test_the_router_stays_in_float32_under_autocast_and_in_half_precision():
    model = build_model(SHAPES[0]).initialize(0)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens())
    assert model.routings[0].logits.dtype == torch.float32
    half = build_model(SHAPES[0]).initialize(0).to(torch.bfloat16)
    assert half(tokens()).dtype == torch.bfloat16 and half.routings[0].logits.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_closed_forms_are_those_of_the_model(shape):
    with torch.device("meta"):
        model = build_model(shape)
    found = parameters(shape)
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found["total"] == sum(numel.values())
    assert found["attention"] == sum(n for name, n in numel.items() if "_proj" in name and "self_attn" in name)
    assert found["norms"] == sum(n for name, n in numel.items() if "norm" in name)
    unused = sum(n for name, n in numel.items() if ".experts." in name) * (1 - shape.experts_per_token / shape.experts)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)) + found["embedding"] * shape.tied_embeddings
    assert found["matrices"] == pytest.approx(matrices - unused)
    model = build_model(shape).initialize(0)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(tokens(2, 4)))
    assert counter.get_total_flops() == pytest.approx(8 * flops_per_token(shape, 4, backward=False))  # no window is shorter


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]], ids=lambda shape: shape.architecture)
def test_activations_are_what_autograd_keeps(shape):
    from torch.autograd.graph import saved_tensors_hooks

    model = build_model(shape.updated(router_jitter=0.0)).initialize(0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(tokens(2, 60))
    assert states.requires_grad
    assert sum(kept.values()) / 4 / 120 == pytest.approx(activation_elements(shape), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts": 1}, "experts_per_token 2 is more than experts 1"),
        ({"attention_bias": True}, "no attention_bias"),
        ({"expert_size": 7}, "no expert_size of its own"),
        ({"architecture": "qwen3_moe", "shared_expert_size": 8}, "no shared expert"),
        ({"sparse_step": 2}, "every layer is a mixture"),
        ({"num_experts": 2}, "written experts here"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said):
    from luban.foundation.config import build

    with pytest.raises(ConfigError, match=said):
        build(MixtureShapeConfig, {**PLAIN, **changes})


def test_the_balance_loss_brings_experts_to_even_use():
    """Descending it alone: from uneven choices to even ones, where the loss is experts_per_token."""
    shape = MixtureShapeConfig(**{**PLAIN, "layers": 1}, experts=6, initializer_deviation=0.3)
    model = build_model(shape).initialize(0).train()
    gate = model.model.layers[0].block_sparse_moe.gate.weight
    optimizer = torch.optim.Adam([gate], lr=0.02)
    found = []
    for _ in range(60):
        model(tokens(4, 60))
        said = model.auxiliary()
        found.append((said["load_balance"].item(), said["expert_share_max"].item()))
        optimizer.zero_grad()
        said["load_balance"].backward()
        optimizer.step()
    assert found[0][0] > 2.1 and found[-1][0] == pytest.approx(2.0, abs=0.02)
    assert found[-1][1] < 0.2 < found[0][1]
