"""Devices as their makers state them, one line each, and clusters of them: ``8xA100-80GB``, ``64xH100``, ``2xcpu-24GB``, ``this``.

Rates are of dense products without sparsity. ``link`` and ``network`` are bytes a second that one device sends (half of what makers state for both directions together); a device without
a link of its own has half of its PCIe bus. A line of one's own: a Device added to DEVICES; nothing else knows the names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from luban.foundation.errors import ConfigError, nearest
from luban.parallel.launchers.job import Devices

T, G, GIB = 1e12, 1e9, 2**30
MOST = 1_000_000  # devices of a cluster
MEASURED = "measured here"  # the source of what is known of the machine at hand


@dataclass(frozen=True)
class Device:
    """Bytes of memory that the driver shows, operations a second in a precision, bytes a second of memory, of the link inside a node and of the network between nodes; watts at the most."""

    name: str
    memory: float
    bfloat16: float  # 0: it has no such units
    float16: float
    float32: float
    bandwidth: float
    link: float
    node: int
    network: float
    watts: float
    source: str
    kind: str = "gpu"
    products: float = 0.55  # share of the rate that large products reach in training (benchmarks/planner/published.py says what published figures come to)
    attention: float = 0.40  # and fused attention, forward and backward (A100, H100: Dao 2023, arXiv:2307.08691, figures 4 to 7)
    year: int = 2020
    dies: int = 1  # devices that torch counts in it

    def rate(self, precision: str) -> float:
        """Operations a second; where a device lacks the units, float32's, and of a TPU, which multiplies all in bfloat16, those."""
        return getattr(self, precision) or self.float32 or self.bfloat16

    @property
    def trains(self) -> bool:
        """Whether Luban trains on such devices (docs/devices.md)."""
        return self.kind in ("cpu", "gpu")

    @property
    def die(self) -> Device:
        """What torch counts as one device."""
        parts = {name: getattr(self, name) / self.dies for name in ("memory", "bfloat16", "float16", "float32", "bandwidth", "link", "network", "watts")}
        return replace(self, **parts, node=self.node * self.dies, dies=1)


def _device(name: str, gib: float, bfloat16: float, float16: float, float32: float, bandwidth: float, link: float, node: int, network: float, watts: float, source: str, **more: object) -> Device:
    return Device(name, gib * GIB, bfloat16 * T, float16 * T, float32 * T, bandwidth * G, link * G, node, network * G, watts, source, **more)


NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions"
# name, GiB, TFLOP/s in bfloat16, float16, float32, then GB/s of memory, link, devices a node, network, watts. Networks are what clouds usually give a device: 25 GB/s is one 200 Gbit/s card. A TPU's node is a slice,
# all of whose chips are linked; its memory is what XLA may use of it, its network what joins slices (https://jax-ml.github.io/scaling-book/tpus), and of all but v4 the watts are assumed.
DEVICES: dict[str, Device] = {device.name.lower(): device for device in (
    _device("V100-16GB", 15.8, 0, 125, 15.7, 900, 150, 8, 3, 300, "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf", products=0.55, year=2017),
    _device("V100-32GB", 31.7, 0, 125, 15.7, 900, 150, 8, 3, 300, "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf", products=0.55, year=2017),
    _device("T4", 14.6, 0, 65, 8.1, 320, 16, 4, 1.5, 70, f"{NVIDIA}/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf", products=0.40, year=2018),
    _device("A10", 22.0, 125, 125, 31.2, 600, 32, 4, 3, 150, f"{NVIDIA}/Data-Center/a10/pdf/a10-datasheet.pdf", products=0.50, year=2021),
    _device("A10G", 22.0, 70, 70, 35, 600, 32, 4, 3, 300, "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf", year=2021),
    _device("A30", 23.6, 165, 165, 10.3, 933, 32, 4, 6, 165, f"{NVIDIA}/data-center/products/a30-gpu/pdf/a30-datasheet.pdf", year=2021),
    _device("A100-40GB", 39.4, 312, 312, 19.5, 1555, 300, 8, 12.5, 400, "https://www.techpowerup.com/gpu-specs/a100-sxm4-40-gb.c3506", products=0.65, attention=0.55, year=2020),
    _device("A100-80GB", 79.2, 312, 312, 19.5, 2039, 300, 8, 25, 400, f"{NVIDIA}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf", products=0.65, attention=0.55, year=2020),
    _device("A800-80GB", 79.2, 312, 312, 19.5, 2039, 200, 8, 25, 400, "A100's, but for NVLink at 400 GB/s (that of https://lenovopress.lenovo.com/lp1813)", products=0.65, attention=0.55, year=2022),
    _device("L4", 22.0, 121, 121, 30.3, 300, 32, 4, 3, 72, "https://www.nvidia.com/en-us/data-center/l4/", products=0.45, year=2023),
    _device("L40", 44.5, 181, 181, 90.5, 864, 32, 8, 3, 300, "https://www.nvidia.com/en-us/data-center/l40/", products=0.50, year=2022),
    _device("L40S", 44.5, 362, 362, 91.6, 864, 32, 8, 12.5, 350, "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413", products=0.50, year=2023),
    _device("RTX3060", 11.8, 25.5, 25.5, 12.7, 360, 32, 1, 1.2, 170, "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf (GA106 by its units)", year=2021),
    _device("RTX3090", 23.7, 71, 71, 35.6, 936, 32, 2, 1.2, 350, "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf (sums in float32)", products=0.80, year=2020),
    _device("RTX4070", 11.7, 58.3, 58.3, 29.1, 504, 32, 1, 1.2, 200, "https://www.techpowerup.com/gpu-specs/geforce-rtx-4070.c3924 (twice its float32, as of its kin with sums in float32)", year=2023),
    _device("RTX4090", 23.6, 165.2, 165.2, 82.6, 1008, 32, 2, 1.2, 450, "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf (sums in float32)", products=0.80, year=2022),
    _device("RTX5090", 31.4, 209.5, 209.5, 104.8, 1792, 64, 2, 1.2, 575, "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf (sums in float32)", year=2025),
    _device("H100", 79.2, 989, 989, 67, 3350, 450, 8, 50, 700, "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (SXM)", products=0.45, attention=0.34, year=2022),
    _device("H100-PCIe", 79.2, 756, 756, 51, 2000, 64, 8, 25, 350, "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (PCIe)", products=0.40, year=2022),
    _device("H100-NVL", 93.1, 835, 835, 60, 3938, 300, 2, 25, 400, "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (NVL)", products=0.40, year=2023),
    _device("H800", 79.2, 989, 989, 67, 3350, 200, 8, 50, 700, "H100's, but for NVLink at 400 GB/s (that of https://lenovopress.lenovo.com/lp1814)", products=0.45, attention=0.34, year=2023),
    _device("H200", 139.8, 989, 989, 67, 4800, 450, 8, 50, 700, "https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446", products=0.47, attention=0.34, year=2023),
    _device("H20", 95.1, 148, 148, 44, 4000, 450, 8, 50, 400, "https://viperatech.com/product/nvidia-hgx-h20 (a seller's sheet)", products=0.85, year=2023),
    _device("B200", 178.0, 2250, 2250, 75, 7700, 900, 8, 50, 1000, "https://resources.nvidia.com/en-us-blackwell-architecture/datasheet", products=0.40, year=2024),
    _device("GB200", 184.0, 2500, 2500, 80, 8000, 900, 72, 50, 1200, "https://www.nvidia.com/en-us/data-center/gb200-nvl72/", products=0.40, year=2024),
    _device("MI250X", 127.6, 383, 383, 47.9, 3277, 100, 4, 50, 560, "https://www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html (a package of two devices of torch's); link: https://docs.olcf.ornl.gov/systems/frontier_user_guide.html", products=0.40, year=2021, dies=2),
    _device("MI300X", 191.0, 1307, 1307, 163.4, 5300, 448, 8, 50, 750, "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf", products=0.35, year=2023),
    _device("Ascend-910B", 60.9, 313, 313, 78, 1600, 196, 8, 25, 400, "no sheet is public, and reports of its kinds go from 256 to 376; this is what is reported of the 910B3", kind="npu", products=0.50, year=2022),
    _device("TPU-v4", 30.75, 275, 0, 0, 1200, 300, 4096, 6.25, 192, "https://cloud.google.com/tpu/docs/v4", kind="tpu", year=2021),
    _device("TPU-v5e", 15.75, 197, 0, 0, 819, 200, 256, 3.125, 200, "https://cloud.google.com/tpu/docs/v5e", kind="tpu", year=2023),
    _device("TPU-v5p", 95, 459, 0, 0, 2765, 600, 6144, 6.25, 350, "https://cloud.google.com/tpu/docs/v5p", kind="tpu", year=2023),
    _device("TPU-v6e", 31.25, 918, 0, 0, 1638, 400, 256, 12.5, 300, "https://cloud.google.com/tpu/docs/v6e", kind="tpu", year=2024),
)}  # fmt: skip
SHORT = {"a100": "a100-80gb", "v100": "v100-16gb", "a800": "a800-80gb", "h100-sxm": "h100", "4090": "rtx4090", "3090": "rtx3090", "5090": "rtx5090", "910b": "ascend-910b"}
# Of a processor nothing is known but its memory: eight cores that multiply 50 G float32 numbers a second each, and two channels of memory. `this` measures.
PROCESSOR = Device("cpu", 16 * GIB, 0, 0, 0.4 * T, 40 * G, 5 * G, 1, 1.2 * G, 100, "assumed: eight cores at 50 GFLOP/s", "cpu", 0.6, 0.4)


@dataclass(frozen=True)
class Cluster:
    """So many devices, some of them in each node."""

    device: Device
    count: int
    node: int

    @property
    def text(self) -> str:
        return f"{self.count}x{self.device.name}"


def cluster(text: str, node: int | None = None, network: float | None = None) -> Cluster:
    """What ``8xA100-80GB`` means; ``this`` and ``auto`` are the machine at hand. ``node`` and ``network`` (bytes a second a device) take the place of the table's. ConfigError, with the nearest
    name, for a device that is not known, and for nodes that the devices do not fill."""
    if text.strip().lower() in ("this", "auto"):
        return here()
    if re.search(r"-0+(\.0*)?\s*GB\s*$", text, re.IGNORECASE):
        raise ConfigError("cluster: {text!r} has no memory", "", "say how much each device has, such as 2xcpu-24GB", text=text)
    alone = re.fullmatch(r"\s*\w[\w.-]*\s*", text) and not re.match(r"\s*\d+\s*x", text, re.IGNORECASE)  # one device, whose number is left out
    asked = Devices.parse(f"1x{text.strip()}" if alone else text)
    count, device = asked.count, _named(asked.kind)
    if count > MOST:
        raise ConfigError("cluster: {count} devices are more than the {most} that are planned for", "", "name fewer", count=f"{count:,}", most=f"{MOST:,}")
    if node and node < count and count % node:
        raise ConfigError("cluster: {count} devices in nodes of {node}", "each node has as many", "change --node or --cluster", count=count, node=node)
    if network:
        device = replace(device, network=network)
    return Cluster(device, count, min(count, node or device.node))


def _named(name: str) -> Device:
    plain = name.lower().replace("_", "-")
    if processor := re.fullmatch(r"cpu(?:-(\d+(?:\.\d+)?)gb)?", plain):
        return replace(PROCESSOR, name=name, memory=float(processor[1] or 16) * GIB)
    plain = SHORT.get(plain, plain)
    if plain in DEVICES:
        return DEVICES[plain]
    if re.match(r"cpu(?![a-z])", plain):
        size = re.search(r"\d+(\.\d+)?", plain)
        guess = f"cpu-{size[0] if size else 16}GB"
    elif guess := nearest(plain, [*DEVICES, *SHORT]):
        guess = DEVICES[SHORT.get(guess, guess)].name
    raise ConfigError(
        "cluster: no device is called {name!r}", "", "did you mean {guess}?" if guess else "there are: {known}, cpu-16GB and this",
        name=name, guess=guess, known=", ".join(device.name for device in DEVICES.values()),
    )  # fmt: skip


def like(seen: str, memory: float) -> Device | None:
    """The device of the table that a driver means by a name such as ``NVIDIA A100-SXM4-80GB``: of those whose words are all in it the one with the most, and then with the nearest memory. None
    where there is none, or the driver's is another form of it (a laptop's, a part of one)."""
    there = _words(seen)
    found = [device for device in DEVICES.values() if _words(device.name) <= there and not (there & FORMS) - _words(device.name)]
    return min(found, key=lambda device: (-len(_words(device.name)), abs(device.memory - memory)), default=None)


FORMS = {"ti", "super", "laptop", "mobile", "max", "d", "nvl", "mig"}  # words that make another device of a name


def _words(name: str) -> set[str]:
    """The words of a device's name, without its memory: ``RTX4090`` and ``GeForce RTX 4090`` have rtx and 4090."""
    plain = re.sub(r"\brtx(?=\d)", "rtx ", name.lower())
    return {word for word in re.findall(r"[a-z0-9]+", plain) if not re.fullmatch(r"\d+gb", word)}


def here() -> Cluster:
    """The machine that this runs on: its accelerators if torch sees some, else its processor, measured."""
    import torch

    from luban.foundation.hardware import cores, memory_bytes
    from luban.training.precision import choose_device, measured_peak_flops, prepare_machine

    place = choose_device()
    if place.type == "cuda":
        seen = torch.cuda.get_device_properties(0)
        known = like(seen.name, seen.total_memory)
        if known is None:
            rates = {name: measured_peak_flops(place, getattr(torch, name)) for name in ("bfloat16", "float16", "float32")}
            known = replace(DEVICES["l4"], name=seen.name, bandwidth=_copied(place), **rates)
        count = torch.cuda.device_count()
        return Cluster(replace(known.die, memory=float(seen.total_memory), source=MEASURED), count, count)
    prepare_machine("auto", False)
    rate = measured_peak_flops(torch.device("cpu"), torch.float32)
    return Cluster(replace(PROCESSOR, name="cpu", memory=float(memory_bytes()), float32=rate, bandwidth=_copied(place), watts=12.0 * cores(), products=0.8, source=MEASURED), 1, 1)


def _copied(place: Any) -> float:
    """Bytes a second that a copy reads and writes, the best of three: of 64 MiB on a processor, of 1 GiB on a device."""
    import time

    import torch

    numbers, best = 1 << (24 if place.type == "cpu" else 28), float("inf")
    source, target = torch.ones(numbers, device=place), torch.empty(numbers, device=place)
    for _ in range(3):
        if place.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        if place.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best
