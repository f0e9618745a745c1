"""What a training is given may be damaged: each damage ends in an error that names the file, or in a run that lost nothing."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from guard_lab import FIXED, bits, train

from luban.foundation.errors import LubanError
from luban.tokens import store


def overwrite(file: Path, start: int, count: int, value: int = 0xFF) -> None:
    content = bytearray(file.read_bytes())
    content[start : start + count] = bytes([value]) * count
    file.write_bytes(bytes(content))


def flip(file: Path, place: int) -> None:
    """Another token of the vocabulary in the place of one."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


def other_words(folder: Path) -> None:
    """Two tokens change places: the file has the same size, and means other words."""
    file = folder / "tokenizer" / "tokenizer.json"
    plain = json.loads(file.read_bytes())
    known = plain["model"]["vocab"]
    first, second = [token for token in known if len(token) == 1 and token.isalpha()][:2]
    known[first], known[second] = known[second], known[first]
    kept = file.stat().st_size
    file.write_text(json.dumps(plain, ensure_ascii=False))
    file.write_bytes(file.read_bytes().ljust(kept)[: max(kept, file.stat().st_size)])
    manifest = folder / "manifest.json"
    told = json.loads(manifest.read_bytes())
    told["files"]["tokenizer/tokenizer.json"] = file.stat().st_size
    manifest.write_text(json.dumps(told))


DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (lambda folder: flip(folder / "train/00000.bin", 1000), r"00000\.bin is damaged: its checksum is not the one that was written"),
    "a shard cut short": (lambda folder: (folder / "train/00000.bin").write_bytes(b"x" * 10), r"00000\.bin is damaged"),
    "a shard that is gone": (lambda folder: (folder / "train/00000.bin").unlink(), r"00000\.bin is damaged.*nothing is there"),
    "offsets that fall": (lambda folder: overwrite(folder / "train/00000.offsets.npy", 200, 16), r"offsets\.npy is damaged"),
    "a table that is a pickle": (lambda folder: overwrite(folder / "train/00000.offsets.npy", 0, 30, 0), r"offsets\.npy is damaged"),
    "names that are no table": (lambda folder: overwrite(folder / "train/00000.ids.npy", 0, 30, 0), r"ids\.npy is damaged"),
    "another tokenizer": (other_words, r"tokenizer.* was changed after .* was encoded"),
}


@pytest.mark.parametrize("damage", DATA)
def test_damaged_data_is_named(tmp_path, tokens, damage):
    shutil.copytree(tokens, tmp_path / "tokens")
    does, message = DATA[damage]
    does(tmp_path / "tokens")
    with pytest.raises(LubanError, match=message):
        train(tmp_path, tmp_path / "tokens", length="12 steps")


def test_damage_in_data_too_large_to_look_over_is_found_when_it_is_read_and_nothing_is_lost(tmp_path, tokens, monkeypatch):
    """The step that comes to the flipped bit ends the run; with the shard restored the same command goes on to the bits of an undisturbed run."""
    monkeypatch.setattr(store, "SMALL_BYTES", 0)
    fields = {"length": "12 steps", "checkpoint": {"every": "1 steps"}}
    whole = train(tmp_path, tokens, "whole/model", **fields)
    shutil.copytree(tokens, tmp_path / "tokens")
    shard = tmp_path / "tokens/train/00000.bin"
    flip(shard, 1000)
    with pytest.raises(LubanError, match=r"00000\.bin is damaged: bytes 0 to \d+ are not those that were written"):
        train(tmp_path, tmp_path / "tokens", "parts/model", **fields)
    flip(shard, 1000)
    assert bits(train(tmp_path, tmp_path / "tokens", "parts/model", **fields)) == bits(whole)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokens) -> Path:
    folder = train(tmp_path_factory.mktemp("base"), tokens, length="2 steps").path
    (folder / "manifest.json").unlink()  # a directory from elsewhere
    return folder


def header(folder: Path, change: Callable[[dict], None]) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    told = json.loads(content[8 : 8 + size])
    change(next(value for name, value in told.items() if name != "__metadata__"))
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "values that are no numbers": (not_finite, r"32 values of model\.embed_tokens\.weight are not finite"),
    "a header longer than the file": (lambda folder: overwrite(folder / "model.safetensors", 0, 8), r"model\.safetensors is damaged"),
    "a shape that lies": (lambda folder: header(folder, lambda tensor: tensor.update(shape=[1, 1])), r"model\.safetensors is damaged"),
    "offsets behind the end": (lambda folder: header(folder, lambda tensor: tensor.update(data_offsets=[0, 10**12])), r"model\.safetensors is damaged"),
    "a type that is none": (lambda folder: header(folder, lambda tensor: tensor.update(dtype="F99")), r"model\.safetensors is damaged"),
    "a pickle in its place": (lambda folder: torch.save({"a": torch.ones(2)}, folder / "model.safetensors"), r"model\.safetensors is damaged"),
}


@pytest.mark.parametrize("damage", MODELS)
def test_damaged_weights_are_named(tmp_path, tokens, model, damage):
    shutil.copytree(model, tmp_path / "base")
    does, message = MODELS[damage]
    does(tmp_path / "base")
    fields = {**FIXED, "model": str(tmp_path / "base"), "length": "2 steps"}
    fields.pop("shape")
    import luban

    with pytest.raises(LubanError, match=message):
        luban.train(tokens, out=tmp_path / "out", **fields)


def test_damage_beside_the_checkpoints_loses_nothing(tmp_path, tokens):
    """Log, events, choices and clock of a run that was killed are garbage: it goes on from its checkpoint to the same bits."""
    (tmp_path / "dies.py").write_text("import pathlib\ndef dies(run):\n    if run.step == 6 and pathlib.Path(__file__).with_name('die').exists():\n        raise SystemError('killed')\n")
    fields = {"length": "8 steps", "checkpoint": {"every": "2 steps"}, "callbacks": [f"{tmp_path / 'dies.py'}:dies"]}
    whole = train(tmp_path, tokens, "whole/model", **fields)
    (tmp_path / "die").touch()
    with pytest.raises(SystemError):
        train(tmp_path, tokens, "parts/model", **fields)
    (tmp_path / "die").unlink()
    folder = tmp_path / "parts" / "model.partial" / "training"
    for name in ("log.jsonl", "guard.jsonl", "choices.json", "time.json", "about.json"):
        (folder / name).write_bytes(b'\xff\n[]\n{"step": "x"}\n{"step": null, "event": "rollback"}\n{')
    assert bits(train(tmp_path, tokens, "parts/model", **fields)) == bits(whole)
