"""The devices and processes of a Trainer with given options."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch


def devices_of(trainer: Mapping[str, Any]) -> int:
    """The number of processes of a Trainer with these options."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices).isdigit():
        count = int(devices)
    else:  # "auto" or -1: all
        count = torch.cuda.device_count() if trainer.get("accelerator") in ("auto", "gpu", "cuda") else 1
    return max(count, 1) * int(trainer.get("num_nodes") or 1)


def device_type(trainer: Mapping[str, Any]) -> str:
    """The type of device that a Trainer with these options computes on: ``cpu``, ``cuda`` …."""
    accelerator = trainer.get("accelerator", "auto")
    # without check_available, torch built for GPUs returns one even if the machine has none
    found = torch.accelerator.current_accelerator(check_available=True) if accelerator != "cpu" else None
    return found.type if found is not None else "cpu"


def gpus_of(trainer: Mapping[str, Any]) -> list[str]:
    """The GPUs that a Trainer with one device may choose from, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if device_type(trainer) != "cuda" or isinstance(trainer.get("devices"), list):
        return []
    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return names[:count] or [str(index) for index in range(count)]


def by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: device memory on a GPU, main memory otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
