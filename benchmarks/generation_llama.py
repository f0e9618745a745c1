"""The llama.cpp side of generation.py: standard library and xllamacpp, in an environment of its own.

    PYTHON benchmarks/generation_llama.py MODEL.gguf THREADS ROWS TOKENS      # started by generation.py

A line {"prompts": [[id, …], …], "tokens": n} in, a line {"seconds": s} out; the first line out is {"version": …}.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time

import xllamacpp


def main() -> None:
    model, threads, rows, length = sys.argv[1], *map(int, sys.argv[2:5])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints goes elsewhere
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel, params.n_ctx, params.cache_prompt, params.ui = rows, rows * length, False, False
    server = xllamacpp.Server(params)
    print(json.dumps({"version": importlib.metadata.version("xllamacpp")}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begun = time.perf_counter()
        said = server.handle_completions(
            {"prompt": asked["prompts"], "n_predict": asked["tokens"], "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        )
        seconds = time.perf_counter() - begun
        assert len(said["choices"]) == len(asked["prompts"]) and said["usage"]["completion_tokens"] in (asked["tokens"], asked["tokens"] * len(asked["prompts"])), said
        print(json.dumps({"seconds": seconds}), file=out, flush=True)


if __name__ == "__main__":
    main()
