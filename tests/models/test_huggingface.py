"""Model directories on disk: sharded, cast, damaged, lying, half written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luban.foundation.errors import DataError, LubanError
from luban.models.decoder import Decoder
from luban.models.huggingface import load_model, read_shape, save_model, stored_dtype
from luban.models.shape import ShapeConfig
from luban.models.tensor_files import write_tensors

SHAPE = ShapeConfig(vocabulary_size=61, layers=2, hidden_size=32, heads=4, key_value_heads=2, maximum_positions=64)
TOKENS = torch.arange(20)[None]


@pytest.fixture
def model() -> Decoder:
    return Decoder(SHAPE).initialize(0)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save_model(model, tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    plain = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in plain.items() if value is not ...}))


def test_a_tied_output_matrix_is_written_once(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_shards_with_an_index_open_in_luban_and_in_transformers(model, tmp_path):
    save_model(model, tmp_path)
    save_model(model, tmp_path, shard_bytes=15_000)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors", "and no model.safetensors is left behind"
    largest = max(parameter.numel() * 4 for parameter in model.parameters())
    assert all((tmp_path / file).stat().st_size < max(15_000, largest) + 4_000 for file in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model.logits(model(TOKENS))
        torch.testing.assert_close(theirs(TOKENS).logits, expected, atol=1e-5, rtol=1e-5)
        again = load_model(tmp_path)
        assert torch.equal(again.logits(again(TOKENS)), expected)
    save_model(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"], "nor are shards left behind"


def test_types_on_disk_and_in_memory(model, tmp_path):
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert stored_dtype(tmp_path) == torch.bfloat16
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    wide = load_model(tmp_path)
    assert wide.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(wide.state_dict()[name], value.bfloat16().float())
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_loaded_model_does_not_hang_on_the_file(folder):
    """Training changes weights in place, and the directory may be overwritten meanwhile."""
    before = (folder / "model.safetensors").read_bytes()
    loaded = load_model(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.fill_(1.5)
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "model.safetensors").write_bytes(b"")
    assert all(bool((parameter == 1.5).all()) for parameter in loaded.parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())


def test_old_buffers_and_a_second_tied_matrix_are_passed_over(folder, model):
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": torch.zeros(61, 32)}
        ),
    )
    loaded = load_model(folder)
    assert torch.equal(loaded(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "1 tensors are missing: model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(2)}), "model.layers.2.mlp.up_proj.weight has no place"),
        (lambda t: t.update({"model.norm.weight": torch.ones(33)}), r"model.norm.weight is \[33\], config.json makes it \[32\]"),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "is of type torch.int8"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(DataError, match=message):
        load_model(folder)


def test_numbers_that_are_none_are_found_when_asked(folder):
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, float("nan")))
    load_model(folder)
    with pytest.raises(DataError, match="model.norm.weight holds NaN"):
        load_model(folder, check_finite=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma-to-come"}, "model_type 'gemma-to-come' is not known(.|\n)*llama, qwen2, qwen3, mistral"),
        ({"model_type": ...}, "model_type None is not known"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"vocab_size": "many"}, "config.json: vocabulary_size"),
        ({"num_hidden_layers": 2**40}, "layers: must be a number of at most 10000"),
        ({"num_hidden_layers": 2**40, "model_type": "qwen2", "use_sliding_window": True}, "layers"),
        ({"num_hidden_layers": "two", "model_type": "qwen2", "use_sliding_window": True}, "num_hidden_layers is no whole number"),
        ({"max_window_layers": "two", "model_type": "qwen2", "use_sliding_window": True}, "max_window_layers"),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, "no multiple of key_value_heads"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}, "rope_scaling": ...}, "rope_type 'longrope' is not known"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}, "rope_scaling": ...}, "partial rotary"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ between layers"),
    ],
)
def test_configurations_without_a_decoder_are_refused(folder, changes, message):
    configure(folder, **changes)
    with pytest.raises(LubanError, match=message):
        load_model(folder)


def test_what_is_no_model_directory_says_so(tmp_path):
    with pytest.raises(DataError, match="no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        load_model(tmp_path)
    save_model(Decoder(SHAPE), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match="holds no weights"):
        load_model(tmp_path)


def test_pickled_weights_are_refused_and_never_run(folder):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'sprung'}",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="only pickled weights: pytorch_model.bin(.|\n)*runs whatever code"):
        load_model(folder)
    assert not (folder / "sprung").exists()


def test_cut_and_lying_files_are_data_errors(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])

    def with_header(change) -> bytes:
        changed = {name: dict(value) for name, value in header.items()}
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    damaged = {
        "empty": b"",
        "cut in the header": whole[: size // 2],
        "cut in the data": whole[:-100],
        "header longer than the file": struct.pack("<Q", 2**62) + whole[8:],
        "no JSON": whole[:8] + b"x" * size + whole[8 + size :],
        "offsets beyond the end": with_header(lambda h: h["model.norm.weight"].update(data_offsets=[0, 2**40])),
        "shape that is not there": with_header(lambda h: h["model.norm.weight"].update(shape=[2**30])),
        "something at the end": whole + b"\0" * 64,
    }
    for what, content in damaged.items():
        file.write_bytes(content)
        with pytest.raises(DataError, match="is damaged"):
            load_model(folder)
            pytest.fail(what)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_byte_of_the_header_is_never_a_crash(folder, data):
    """Whatever a flipped byte does, the answer is a model of the right shapes or a LubanError."""
    file = folder / "model.safetensors"
    if not (folder / "whole").exists():
        (folder / "whole").write_bytes(file.read_bytes())
    whole = bytearray((folder / "whole").read_bytes())
    size = struct.unpack("<Q", whole[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 8 + size - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    try:
        loaded = load_model(folder)
    except LubanError:
        return
    assert loaded(TOKENS).shape == (1, 20, 32)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_fuzzed_config_json_is_read_or_refused(folder, data):
    if not (folder / "plain").exists():
        (folder / "plain").write_bytes((folder / "config.json").read_bytes())
    plain = json.loads((folder / "plain").read_text())
    values = (
        st.none()
        | st.booleans()
        | st.integers(-3, 2**40)
        | st.floats(allow_nan=True)
        | st.text(max_size=4)
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    )
    for key in data.draw(st.lists(st.sampled_from(sorted(plain)), min_size=1, max_size=3)):
        plain[key] = data.draw(values)
    (folder / "config.json").write_text(json.dumps(plain))
    with contextlib.suppress(LubanError):
        assert isinstance(read_shape(folder), ShapeConfig)


def test_a_bad_index_is_a_data_error(model, tmp_path):
    save_model(model, tmp_path, shard_bytes=15_000)
    index = tmp_path / "model.safetensors.index.json"
    plain = json.loads(index.read_text())
    first = next(iter(plain["weight_map"]))
    for content, message in [
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"weight_map": {**plain["weight_map"], first: "../model-00001.safetensors"}}), "no file name"),
        (json.dumps({"weight_map": {**plain["weight_map"], first: "model-9.safetensors"}}), "is missing"),
        (json.dumps({"weight_map": {**plain["weight_map"], "model.more": plain["weight_map"][first]}}), "tensor model.more is missing"),
        (json.dumps({"weight_map": {name: file for name, file in plain["weight_map"].items() if name != first}}), "1 tensors are missing"),
    ]:
        index.write_text(content)
        with pytest.raises(DataError, match=message):
            load_model(tmp_path)


def test_a_failed_write_leaves_the_old_directory_whole(model, folder):
    """A file system that refuses in the midst of a file: here by the largest size of one."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["model.safetensors"]) // 2, limits[1]))
    try:
        with pytest.raises(LubanError, match=r"model\.safetensors: File too large"):
            save_model(Decoder(SHAPE).initialize(9), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_file_of_many_types_is_read_by_safetensors_and_each_tensor_is_aligned(tmp_path):
    kinds = [torch.uint8, torch.float64, torch.bfloat16, torch.bool, torch.float32, torch.int64]
    tensors = {f"{number}": torch.arange(3 + number).to(kind) for number, kind in enumerate(kinds)} | {"turned": torch.randn(3, 5).t(), "none": torch.zeros(0, 4), "one": torch.tensor(2.5)}
    assert write_tensors(tmp_path / "file", tensors, {"a": "b"}) == (tmp_path / "file").stat().st_size
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys() and all(found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items())
    content = (tmp_path / "file").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt", "a": "b"}
    assert all((8 + size + told["data_offsets"][0]) % tensors[name].element_size() == 0 for name, told in header.items())


@pytest.mark.slow
def test_loading_holds_the_weights_once(tmp_path):
    """Peak memory while loading stays below 1.6 times the weights, in shards and with a cast."""
    shape = ShapeConfig(vocabulary_size=20000, layers=4, hidden_size=640, heads=10, maximum_positions=64)
    model = Decoder(shape)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    save_model(model, tmp_path, dtype=torch.bfloat16, shard_bytes=30_000_000)
    code = (
        "import sys; from pathlib import Path; from luban.models.huggingface import load_model\n"
        "peak = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) * 1024\n"
        "before = peak(); load_model(Path(sys.argv[1])); print(peak() - before)"
    )
    taken = int(subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout)
    assert size * 0.9 < taken < size * 1.6
