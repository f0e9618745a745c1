"""Recurrent models against their formulas step by step, each document alone, and their own full passes."""

from __future__ import annotations

import pytest
import torch

from luban.foundation.errors import ConfigError
from luban.models.counts import activation_elements, flops_per_token, key_value_bytes, parameters
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model
from luban.models.lstm_shape import BilstmShapeConfig, LstmShapeConfig
from luban.models.recurrent_shape import RecurrentShapeConfig
from luban.models.states import Documents

PLAIN = {"vocabulary_size": 61, "layers": 2, "hidden_size": 12, "maximum_positions": 64, "dropout": 0.0}
LSTMS = {
    "lstm": LstmShapeConfig(**PLAIN),
    "lstm, wider inside, untied": LstmShapeConfig(**PLAIN, cell_size=20, tied_embeddings=False),
    "gru": LstmShapeConfig(**PLAIN, cell="gru", cell_size=10),
    "both directions": BilstmShapeConfig(**PLAIN, cell_size=14),
    "both directions, gru": BilstmShapeConfig(**PLAIN, cell="gru"),
}
PAIRS = {
    "additive": RecurrentShapeConfig(**PLAIN),
    "additive, deep decoder, untied": RecurrentShapeConfig(**PLAIN, decoder_layers=3, tied_embeddings=False),
    "dot": RecurrentShapeConfig(**PLAIN, attention="dot", decoder_layers=1),
}


def made(shape, dtype: torch.dtype = torch.float64):
    """Large values everywhere, in biases too."""
    model = build_model(shape.updated(initializer="normal", initializer_deviation=0.5)).initialize(0).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def text(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 61, size, generator=torch.Generator().manual_seed(seed))


def gru_step(weights: dict[str, torch.Tensor], entering: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Cho et al. 2014 with the reset gate after the product, as a formula over one vector."""
    mine, own = weights["ih"] @ entering + weights["bih"], weights["hh"] @ state + weights["bhh"]
    reset, update = (torch.sigmoid(a + b) for a, b in zip(mine.chunk(3)[:2], own.chunk(3)[:2], strict=True))
    proposed = torch.tanh(mine.chunk(3)[2] + reset * own.chunk(3)[2])
    return (1 - update) * proposed + update * state


def lstm_step(weights: dict[str, torch.Tensor], entering: torch.Tensor, state: tuple) -> tuple:
    gates = weights["ih"] @ entering + weights["bih"] + weights["hh"] @ state[0] + weights["bhh"]
    into, forget, proposed, out = gates.chunk(4)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(into) * torch.tanh(proposed)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def weights_of(layer: torch.nn.Module, ending: str = "") -> dict[str, torch.Tensor]:
    names = {"ih": "weight_ih_l0", "hh": "weight_hh_l0", "bih": "bias_ih_l0", "bhh": "bias_hh_l0"}
    return {ours: getattr(layer, theirs + ending) for ours, theirs in names.items()}


def run_layer(layer: torch.nn.Module, entering: list[torch.Tensor], ending: str = "") -> list[torch.Tensor]:
    weights = weights_of(layer, ending)
    lstm = isinstance(layer, torch.nn.LSTM)
    zero = torch.zeros(weights["hh"].shape[1], dtype=torch.float64)
    state = (zero, zero) if lstm else zero
    outputs = []
    for vector in entering[::-1] if ending else entering:
        state = lstm_step(weights, vector, state) if lstm else gru_step(weights, vector, state)
        outputs.append(state[0] if lstm else state)
    return outputs[::-1] if ending else outputs


@pytest.mark.parametrize("name", LSTMS)
@torch.no_grad()
def test_hidden_states_are_those_of_the_formulas(name):
    model = made(LSTMS[name])
    tokens = text(1, 9)
    states = list(model.embedding.weight[tokens[0]])
    for layer in model.blocks():
        forward = run_layer(layer, states)
        states = [torch.cat(pair) for pair in zip(forward, run_layer(layer, states, "_reverse"), strict=True)] if layer.bidirectional else forward
    expected = torch.stack(states)
    if model.model.projection is not None:
        expected = expected @ model.model.projection.weight.T
    torch.testing.assert_close(model(tokens)[0], expected)
    output = model.lm_head.weight if hasattr(model, "lm_head") else model.embedding.weight
    torch.testing.assert_close(model.logits(model(tokens))[0], expected @ output.T)


def attention_by_formula(model, query: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    decoder = model.model.decoder
    if model.shape.attention == "dot":
        scores = torch.stack([query @ state for state in memory])
    else:
        scores = torch.stack(
            [decoder.energy.weight[0] @ torch.tanh(decoder.query.weight @ query + decoder.query.bias + decoder.keys.weight @ state) for state in memory]
        )
    weights = scores.exp() / scores.exp().sum()
    return weights, sum(weight * state for weight, state in zip(weights, memory, strict=True))


@torch.no_grad()
def pair_by_formula(model, tokens: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [seq, dim] and attention [seq, source_seq] of one pair, a vector at a time."""
    decoder, shape = model.model.decoder, model.shape
    states = list(model.embedding.weight[source])
    for layer in model.model.encoder.layers:
        states = [torch.cat(pair) for pair in zip(run_layer(layer, states), run_layer(layer, states, "_reverse"), strict=True)]
    memory = torch.stack(states)
    state = list(torch.tanh(decoder.initial.weight @ memory[0, shape.hidden_size // 2 :] + decoder.initial.bias).chunk(shape.decoder_layers))
    outputs, pictures = [], []
    for token in tokens:
        embedded = model.embedding.weight[token]
        entering = embedded
        if shape.attention == "additive":
            weights, context = attention_by_formula(model, state[-1], memory)
            entering = torch.cat([embedded, context])
        for index, layer in enumerate(decoder.layers):
            entering = state[index] = gru_step(weights_of(layer), entering, state[index])
        if shape.attention == "additive":
            joined = decoder.readout.weight @ torch.cat([state[-1], context, embedded]) + decoder.readout.bias
            outputs.append(torch.maximum(joined[0::2], joined[1::2]))
        else:
            weights, context = attention_by_formula(model, state[-1], memory)
            outputs.append(torch.tanh(decoder.readout.weight @ torch.cat([context, state[-1]]) + decoder.readout.bias))
        pictures.append(weights)
    return torch.stack(outputs), torch.stack(pictures)


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_pairs_are_those_of_the_formulas_with_their_alignment(name):
    """Rows of different lengths, padded on both sides."""
    model = made(PAIRS[name])
    model.keep_attention = True
    tokens, source = text(2, 6), text(2, 8, seed=2)
    segments, source_segments = torch.zeros(2, 6), torch.zeros(2, 8)
    segments[0, 4:], source_segments[1, 5:] = -1, -1
    hidden = model(tokens, source=source, source_segments=source_segments, segments=segments)
    pictures = model.attention
    for row, (length, source_length) in enumerate([(4, 8), (6, 5)]):
        expected, weights = pair_by_formula(model, tokens[row, :length], source[row, :source_length])
        torch.testing.assert_close(hidden[row, :length], expected)
        torch.testing.assert_close(pictures[row, :length, :source_length], weights)
        assert not pictures[row, :, source_length:].any() and not pictures[row, length:].any()
    memory = model.encode(source, source_segments)
    torch.testing.assert_close(model(tokens, memory=memory, source_segments=source_segments, segments=segments), hidden)


LENGTHS = (5, 1, 7)
SEGMENTS = torch.tensor([[0] * 5 + [1] + [2] * 7 + [-1] * 3, [4] * 5 + [-1] + [7] * 7 + [-1] * 3])


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", LSTMS)
def test_packed_is_the_same_as_each_document_alone(name, recompute):
    model = made(LSTMS[name]).train()
    documents = [text(1, length, seed=length) for length in LENGTHS]
    row = torch.cat([*documents, torch.zeros(1, 3, dtype=torch.long)], 1)
    model.recompute = recompute
    packed = model(row.repeat(2, 1), segments=SEGMENTS)
    assert not packed[SEGMENTS < 0].any()
    packed[0].square().sum().backward()
    together = gradients(model)
    model.recompute = False
    alone = torch.cat([model(document) for document in documents], 1)[0]
    torch.testing.assert_close(packed[0, :13], alone)
    torch.testing.assert_close(packed[1][SEGMENTS[1] >= 0], torch.cat([alone[:5], alone[6:]]))
    alone.square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(together[name], gradient)


@pytest.mark.parametrize("name", PAIRS)
def test_packed_pairs_are_the_same_as_each_pair_alone(name):
    """The target's documents find their own sources, in whatever order and of whatever length these are."""
    model = made(PAIRS[name]).train()
    documents = [text(1, length, seed=length) for length in LENGTHS]
    sources = {0: text(1, 4, seed=20), 1: text(1, 6, seed=21), 2: text(1, 2, seed=22)}
    row = torch.cat([*documents, torch.zeros(1, 3, dtype=torch.long)], 1)
    source = torch.cat([sources[1], sources[0], sources[2], torch.zeros(1, 2, dtype=torch.long)], 1)
    packed = model(row, source=source, source_segments=torch.tensor([[1] * 6 + [0] * 4 + [2] * 2 + [-1] * 2]), segments=SEGMENTS[:1])
    packed.square().sum().backward()
    together = gradients(model)
    alone = torch.cat([model(document, source=sources[index]) for index, document in enumerate(documents)], 1)
    torch.testing.assert_close(packed[:, :13], alone)
    alone.square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(together[name], gradient)


def test_documents_of_hostile_segments():
    """All padding, padding between and in front, numbers that come again: runs are what counts."""
    segments = torch.tensor([[-1, -1, -1, -1], [-1, 3, -1, 3], [0, 0, 1, 0]])
    documents = Documents.of(segments)
    found = sorted(zip(documents.rows.tolist(), documents.starts.tolist(), documents.lengths.tolist(), strict=True))
    assert found == [(1, 1, 1), (1, 3, 1), (2, 0, 2), (2, 2, 1), (2, 3, 1)]
    assert documents.lengths[0] == 2 and documents.sizes.tolist() == [5, 1]
    states = torch.arange(12.0).view(3, 4, 1)
    back = documents.unpack(documents.pack(states).data, 3, 4)
    assert torch.equal(back, torch.where(segments[..., None] >= 0, states, 0.0))
    for shape in (LSTMS["lstm"], LSTMS["both directions"]):
        model = made(shape)
        assert not model(text(2, 4), segments=torch.full((2, 4), -1)).any()
    pairs = made(PAIRS["additive"])
    nothing = torch.full((1, 4), -1)
    assert pairs(text(1, 5), source=text(1, 4), source_segments=nothing).isfinite().all()
    assert not pairs(text(1, 4), source=text(1, 4), segments=nothing).any()


@pytest.mark.parametrize("name", ["lstm", "lstm, wider inside, untied", "gru", *PAIRS])
@torch.inference_mode()
def test_continuing_from_a_state_is_the_full_pass(name):
    """Rows of different lengths in some of the slots, stale states before, pieces of several tokens, moved and chosen slots."""
    pair = name in PAIRS
    model = made(PAIRS[name] if pair else LSTMS[name])
    texts = [text(1, length, seed=length) for length in (12, 7, 10)]
    source = text(3, 6, seed=9)
    source_segments = torch.zeros(3, 6)
    source_segments[1, 4:] = -1
    extra = [{"source": source[row : row + 1], "source_segments": source_segments[row : row + 1]} if pair else {} for row in range(3)]
    full = [model(one, **more)[0] for one, more in zip(texts, extra, strict=True)]
    held = {"memory": model.encode(source, source_segments), "source_segments": source_segments} if pair else {}

    cache = model.new_cache(5, 24)
    for tensor in cache.tensors:
        tensor.uniform_(-9, 9)
    cache.begin(1, 3)
    prompts = [6, 2, 5]
    padded = torch.zeros(3, 6, dtype=torch.long)
    for row, size in enumerate(prompts):
        padded[row, :size] = texts[row][0, :size]
    hidden = model(padded, cache=cache.rows(1, 3, prompts), **held)
    for row, size in enumerate(prompts):
        cache.advance(1 + row, size)
        torch.testing.assert_close(hidden[row, :size], full[row][:size])
    piece = torch.cat([one[:, size : size + 3] for one, size in zip(texts, prompts, strict=True)])
    hidden = model(piece, cache=cache.rows(1, 3), **held)
    for row, size in enumerate(prompts):
        cache.advance(1 + row, 3)
        torch.testing.assert_close(hidden[row], full[row][size : size + 3])
    cache.move(3, 0)
    assert cache.lengths == [8, 9, 5, 0, 0]
    last = {key: value[2:] for key, value in held.items()}
    hidden = model(texts[2][:, 8:9], cache=cache.rows(0, 1), **last)
    cache.advance(0, 1)
    torch.testing.assert_close(hidden[0, 0], full[2][8])
    cache.select([1, 0, 0])
    assert cache.lengths == [9, 9, 9, 0, 0]
    hidden = model(torch.cat([texts[0][:, 9:10], texts[2][:, 9:10], texts[2][:, 9:10]]), cache=cache.rows(0, 3), **{key: value[[0, 2, 2]] for key, value in held.items()})
    torch.testing.assert_close(hidden[:, 0], torch.stack([full[0][9], full[2][9], full[2][9]]))
    with pytest.raises(AssertionError):
        cache.advance(0, 2)  # one token was read


@pytest.mark.parametrize("name", [*LSTMS, *PAIRS])
def test_a_directory_gives_the_same_model(name, tmp_path):
    model = made((LSTMS | PAIRS)[name], torch.float32)
    save_model(model, tmp_path, end_ids=[3])
    again = load_model(tmp_path)
    pair = {"source": text(2, 4)} if name in PAIRS else {}
    torch.testing.assert_close(again.logits(again(text(2, 9), **pair)), model.logits(model(text(2, 9), **pair)), atol=0, rtol=0)
    expected = model.shape.model_dump() | ({"end_ids": [3]} if name in PAIRS else {})
    assert again.shape.model_dump() == expected


@pytest.mark.parametrize("structure", ["sequence", "token", "span", "choice", "vector"])
@pytest.mark.parametrize("name", ["lstm", "both directions"])
@torch.inference_mode()
def test_heads_read_tokens_and_not_padding(name, structure, tmp_path):
    head = Head(structure, "some", ("a", "b", "c") if structure in ("sequence", "token") else ())
    model = made(LSTMS[name], torch.float32).with_head(head)
    assert not hasattr(model, "lm_head")
    tokens = text(2, 7)
    segments = torch.zeros(2, 7)
    segments[1, 4:] = -1
    scores = model.scores(model(tokens, segments=segments), tokens, segments)
    alone = model.scores(model(tokens[1:, :4]), tokens[1:, :4])
    sizes = {"sequence": (2, 3), "token": (2, 7, 3), "span": (2, 7, 2), "choice": (2, 1), "vector": (2, 12)}
    assert tuple(scores.shape) == sizes[structure]
    torch.testing.assert_close(scores[1:, :4] if structure in ("token", "span") else scores[1:], alone)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.head == head
    torch.testing.assert_close(again.scores(again(tokens), tokens), model.scores(model(tokens), tokens), atol=0, rtol=0)


def test_first_values_and_a_grown_vocabulary():
    model = build_model(LSTMS["lstm, wider inside, untied"]).initialize(3)
    layer = model.blocks()[0]
    assert torch.equal(layer.bias_ih_l0.chunk(4)[1], torch.ones(20)) and layer.bias_ih_l0.sum() == 20 and not layer.bias_hh_l0.any()
    assert layer.weight_hh_l0.abs().max() <= (6 / 40) ** 0.5 and layer.weight_hh_l0.std().item() == pytest.approx((2 / 40) ** 0.5, rel=0.05)
    tokens = text(1, 9)
    before = model.logits(model(tokens))
    model.resize_vocabulary(64, {61: [3]})
    torch.testing.assert_close(model.logits(model(tokens))[..., :61], before)
    assert tuple(model.lm_head.weight.shape) == (64, 12)


def test_dropout_is_there_in_training_only():
    for shape, pair in ((LSTMS["lstm"], {}), (PAIRS["dot"], {"source": text(1, 5)}), (PAIRS["additive"], {"source": text(1, 5)})):
        model = build_model(shape.updated(dropout=0.5)).initialize(0)
        assert torch.equal(model.eval()(text(1, 6), **pair), model(text(1, 6), **pair))
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(text(1, 6), **pair), model(text(1, 6), **pair))


@pytest.mark.parametrize("name", [*LSTMS, *PAIRS])
def test_closed_forms_are_those_of_the_model(name):
    shape = (LSTMS | PAIRS)[name]
    with torch.device("meta"):
        model = build_model(shape)
    found = parameters(shape)
    assert found["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["embedding"] == model.embedding.weight.numel()
    if name not in PAIRS:
        matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
        assert found["matrices"] == matrices - (0 if shape.tied_embeddings else found["embedding"])
        assert flops_per_token(shape, 7) == 6 * found["matrices"]
    if name not in PAIRS and shape.directions == 1:
        assert key_value_bytes(shape, 1000) == sum(tensor.nbytes for tensor in build_model(shape).new_cache(1, 1000).tensors)


@pytest.mark.parametrize("name", PAIRS)
def test_operations_of_a_pair_by_hand(name):
    """A product [m, k] by [k, n] is 2 m k n; counted from the modules, for a source of 5 and a target of 3 tokens."""
    shape = PAIRS[name]
    model = build_model(shape)
    decoder, wide = model.model.decoder, shape.hidden_size
    encoder = sum(p.numel() for p in model.model.encoder.parameters() if p.dim() == 2)
    layers = sum(p.numel() for p in decoder.layers.parameters() if p.dim() == 2)
    total = 5 * encoder + 3 * (layers + decoder.readout.weight.numel() + 61 * wide) + decoder.initial.weight.numel() + 2 * 3 * 5 * wide
    if shape.attention == "additive":
        total += 5 * decoder.keys.weight.numel() + 3 * decoder.query.weight.numel()
    assert flops_per_token(shape, 3, backward=False, source_length=5) == pytest.approx(2 * total / 3)


@pytest.mark.parametrize("name", [*LSTMS, *PAIRS])
def test_activations_are_about_what_autograd_keeps(name):
    """Of widths that the kernels for processors need not round up."""
    from torch.autograd.graph import saved_tensors_hooks

    wide = {} if name in PAIRS else {"cell_size": 64}
    shape = (LSTMS | PAIRS)[name].updated(hidden_size=32, dropout=0.2, **wide)
    model = build_model(shape).initialize(0).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no place is used a second time
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(text(3, 50), **({"source": text(3, 50)} if name in PAIRS else {}))
    assert states.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4 / 150
    assert found == pytest.approx(activation_elements(shape), rel=0.2)


def test_what_does_not_fit_is_refused_by_name():
    from luban.foundation.config import build

    with pytest.raises(ConfigError, match="two directions share it"):
        build(BilstmShapeConfig, {**PLAIN, "cell_size": 7})
    with pytest.raises(ConfigError, match="hidden_size 7 is odd"):
        build(RecurrentShapeConfig, {**PLAIN, "hidden_size": 7})
    with pytest.raises(ConfigError, match="has no head for sequence"):
        build_model(PAIRS["dot"]).attach(Head("sequence", "classification", ("a", "b")))


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_an_alignment_is_learned_and_can_be_seen(attention):
    """Texts of four words are turned around; the words and the picture of who looks at whom both say so."""
    shape = RecurrentShapeConfig(vocabulary_size=9, layers=1, hidden_size=32, maximum_positions=8, dropout=0.0, attention=attention)
    model = build_model(shape).initialize(1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(160):
        source = torch.randint(1, 9, (32, 4), generator=generator)
        wanted = source.flip(1)
        hidden = model(torch.cat([torch.zeros(32, 1, dtype=torch.long), wanted[:, :-1]], 1), source=source)
        loss = torch.nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    model.keep_attention = True
    source = torch.randint(1, 9, (50, 4), generator=generator)
    with torch.inference_mode():
        found = model.logits(model(torch.cat([torch.zeros(50, 1, dtype=torch.long), source.flip(1)[:, :-1]], 1), source=source)).argmax(-1)
    assert (found == source.flip(1)).float().mean() > 0.97
    assert model.attention.mean(0).argmax(1).tolist() == [3, 2, 1, 0]
