"""The machine that figures of speed belong to."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from o2o_smooth.kernels.cpu import unavailable
from o2o_smooth.training.manifest import versions


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    model, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {
        "cpu": model,
        "cores": cores(),
        "features": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "no_kernels": unavailable(),  # why the native kernels cannot be had; None where they can
        "versions": versions(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
