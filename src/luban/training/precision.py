"""Device, arithmetic and threads: chosen by the hardware, said with the reason."""

from __future__ import annotations

import time

import torch

from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.foundation.hardware import cores, keep_freed_memory, resident_bytes
from luban.models import attention, own_layers
from luban.training.config import TrainConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(local_rank: int = 0) -> torch.device:
    """A CUDA (or ROCm) GPU if there is one, of several that of this process; then Apple's, then the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count()) if torch.cuda.device_count() > 1 else torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The arithmetic of the forward pass; the reason is printed."""
    if wanted != "auto":
        if wanted == "float16" and device.type == "cpu":
            raise ConfigError("precision: float16 cannot be trained on a processor", "", "use auto or float32")
        return DTYPES[wanted]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        say("precision: bfloat16 (this GPU has bfloat16 units)")
        return torch.bfloat16
    if device.type == "cuda":
        say("precision: float16 with loss scaling (this GPU has no bfloat16 units)")
        return torch.float16
    say("precision: float32 (processors multiply float32 fastest in training)")
    return torch.float32


def choose_attention(wanted: str, device: torch.device, precision: torch.dtype) -> str:
    """Whose code attends: own or torch. Wanted own and no compiler is a ConfigError."""
    if wanted == "torch" or device.type != "cpu" or precision != torch.float32:
        return "torch"
    if attention.load() is not None:
        return "own"
    if wanted == "own":
        raise ConfigError("attention: own needs a compiler, and g++ was not found or could not compile it", "", "install g++, set the variable CXX, or choose attention: torch")
    say("attention: torch (without g++ Luban's own cannot be compiled)")
    return "torch"


def choose_layers(config: TrainConfig, attends: str) -> str:
    """Whose code runs a decoder's layers: own or torch. ``attends`` is what :func:`choose_attention` chose. Wanted own and impossible is a ConfigError."""
    compiles, recomputes = config.compile is True, config.recompute not in ("none", "full")
    able = attends == "own" and not compiles and not recomputes and config.engine == "torch" and own_layers.load() is not None
    if config.layers == "own" and not able:
        raise ConfigError(
            "layers: own needs attention: own, engine: torch, compile: false or auto, and recompute: none or full", "its backward pass is written out, so nothing is left for the compiler, or to be kept by selective recompute",
            "change these, or leave layers at auto",
        )  # fmt: skip
    return "own" if able and config.layers != "torch" else "torch"


def prepare_machine(threads: int | str, strict: bool, processes: int = 1) -> int:
    """Set threads and determinism for this process, one of so many on the machine; returns the threads used."""
    count = max(1, cores() // processes) if threads == "auto" else threads
    torch.set_num_threads(count)
    keep_freed_memory()
    if strict != torch.are_deterministic_algorithms_enabled():  # asking loads the compiler: 1.6 s
        torch.use_deterministic_algorithms(strict)
    if strict:
        torch.backends.cudnn.benchmark = False
    return count


def held_bytes() -> int:
    """Memory in use now: what torch has reserved on a GPU, else what this process holds."""
    return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else resident_bytes()


PROCESSOR_PRODUCT = 1024  # rows and columns of the product that a processor is measured with


def measured_peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Floating-point operations a second of the best of three to ten large matrix products, now: about a tenth of a second on a processor."""
    size = PROCESSOR_PRODUCT if device.type == "cpu" else 8192
    a = b = torch.full((size, size), 0.5, device=device, dtype=precision)  # nothing is drawn: the run's random numbers are its own
    best, started = float("inf"), time.perf_counter()
    for number in range(10):
        begun = time.perf_counter()
        if number >= 3 and begun - started > 0.1:
            break
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
