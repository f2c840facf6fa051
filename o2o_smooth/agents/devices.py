"""Devices by name."""

from __future__ import annotations

import torch

from o2o_smooth.errors import ConfigError


def find_device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        ConfigError: There is none of that name, or it is not supported.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"there is no device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device
