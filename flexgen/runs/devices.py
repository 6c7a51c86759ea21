"""Which devices a cell of a sweep trains on."""

import os
import tempfile
from pathlib import Path
from typing import IO, Any

from flexgen.files import open_lock, try_lock

_devices: list[IO[bytes]] = []  # the lock on this process's device, held for its life


def wants_several(trainer: dict[str, Any]) -> bool:
    """Whether Lightning starts processes for a trainer: by its strategy, or for several `devices`:
    a number, a list, either as text, or -1 or auto, which is all there are: one, of CPUs."""
    if str(trainer["strategy"]).startswith("ddp"):
        return True
    devices = trainer["devices"]
    if str(devices) in ("-1", "auto"):
        if trainer["accelerator"] == "cpu":
            return False
        import torch

        return torch.cuda.device_count() > 1
    if isinstance(devices, str) and "," in devices:
        devices = [name for name in devices.split(",") if name.strip()]
    if isinstance(devices, list):
        return len(devices) > 1
    return str(devices).isdigit() and int(devices) > 1


def keep_to_one_device(trainer: dict[str, Any], number: int) -> None:
    """Of several GPUs, show this process, a cell, one that no other cell on this machine has; a
    trainer that wants no GPU, or several, is left alone."""
    if trainer["accelerator"] == "cpu" or str(trainer["devices"]) != "1":
        return
    import torch

    if torch.cuda.device_count() > 1:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = shown.split(",") if shown else [str(i) for i in range(torch.cuda.device_count())]
        folder = Path(tempfile.gettempdir()) / f"flexgen-devices-{getattr(os, 'getuid', int)()}"
        os.environ["CUDA_VISIBLE_DEVICES"] = claim_device(names, folder, number)


def claim_device(names: list[str], folder: Path, number: int) -> str:
    """The first of `names` that no living process has claimed; ours until this process ends.

    If all are, cells share: number modulo their count. The number alone would put two cells on one
    device: a launcher's worker outlives a cell, and its CUDA cannot change devices.
    """
    folder.mkdir(exist_ok=True)
    for name in names:
        lock = open_lock(folder / name)
        if try_lock(lock):
            _devices.append(lock)
            return name
        lock.close()
    return names[number % len(names)]
