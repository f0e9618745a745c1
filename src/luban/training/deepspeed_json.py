"""DeepSpeed's settings, made of Luban's config: there is no second place where a training is described. They are written to ``training/deepspeed.json``, to be looked at."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import write_json
from luban.foundation.console import say
from luban.foundation.errors import missing_extra
from luban.models.base import Model
from luban.parallel.zero import WEIGHTS, Zero
from luban.training.config import TrainConfig

FILE = "deepspeed.json"
SWAP = "offload"  # beside it: what DeepSpeed keeps on disk, where the recipe names no folder
ALIGNED = 1024  # numbers that a bucket is rounded up to
BUCKET = 48 * 1024 * ALIGNED  # numbers that are summed, or gathered, in one operation


def require_deepspeed() -> None:
    """LubanError where the package is not installed; it is not imported."""
    if find_spec("deepspeed") is None:
        raise missing_extra("deepspeed", "deepspeed")


def deepspeed_settings(config: TrainConfig, model: Model, layout: Zero, micro_batch_rows: int, folder: Path) -> dict[str, Any]:
    """What DeepSpeed is told. Accumulation is counted by the engine, which says which pass is a step's last, so DeepSpeed's own count is 1."""
    bucket = min(BUCKET, -(-sum(parameter.numel() for parameter in model.parameters()) // ALIGNED) * ALIGNED)
    accelerated = model.device.type != "cpu"
    zero: dict[str, Any] = {"stage": layout.stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": accelerated, "contiguous_gradients": True}
    offload = config.layout.offload
    place = {"nvme_path": str(Path(offload.folder) if offload.folder else folder / SWAP)}
    if offload.optimizer != "none":
        zero["offload_optimizer"] = {"device": offload.optimizer, "pin_memory": accelerated, **(place if offload.optimizer == "nvme" else {})}
    if layout.stage == WEIGHTS:
        vectors = max((parameter.numel() for parameter in model.parameters() if parameter.ndim < 2), default=0)
        zero |= {"stage3_param_persistence_threshold": vectors + 1, "stage3_prefetch_bucket_size": bucket, "memory_efficient_linear": False}  # norms and biases stay whole
        if offload.weights != "none":
            zero["offload_param"] = {"device": offload.weights, "pin_memory": accelerated, **({**place, "max_in_cpu": 0, **_buffers(model)} if offload.weights == "nvme" else {})}
    return {
        "train_micro_batch_size_per_gpu": max(1, micro_batch_rows), "gradient_accumulation_steps": 1, "gradient_clipping": config.gradient_clip, "zero_optimization": zero,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "wall_clock_breakdown": False,
    }  # fmt: skip


def _buffers(model: Model) -> dict[str, int]:
    """Room for the matrices that are gathered together: those of two blocks, and what stands outside the blocks."""
    matrices = [sum(parameter.ndim > 1 for parameter in block.parameters()) for block in model.blocks()]
    outside = sum(parameter.ndim > 1 for parameter in model.parameters()) - sum(matrices)
    return {"buffer_count": 2 * max(matrices, default=0) + outside, "buffer_size": max(parameter.numel() for parameter in model.parameters())}


def show_settings(settings: dict[str, Any], layout: Zero, folder: Path) -> None:
    """Write them into the run's folder, and say where they are."""
    if layout.ranks.leads:
        write_json(folder / FILE, settings)
        say("DeepSpeed {version}, ZeRO {stage}: its settings, made of the recipe's, are in {file}", version=version("deepspeed"), stage=layout.stage, file=folder / FILE)
