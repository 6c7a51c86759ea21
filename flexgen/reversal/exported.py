"""Programs of torch.export as generators."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import first_line


@dataclass(frozen=True)
class Exported:
    """An exported program as a function: no module, as it knows no eval mode, and would refuse it.

    Attributes:
        module: from codes to data.
        dtype: of its codes.
        batch_size: so many codes it takes, and no other number; None: any.
    """

    module: Any
    dtype: torch.dtype
    batch_size: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        z = z.to(self.dtype)
        if self.batch_size in (None, len(z)):
            x: Tensor = self.module(z)
            return x
        padded = torch.cat([z, z[:1].expand(-len(z) % self.batch_size, *z.shape[1:])])
        return torch.cat([self.module(piece) for piece in padded.split(self.batch_size)])[: len(z)]


def read_exported(
    path: Path, device: torch.device
) -> tuple[Exported, tuple[int, ...], tuple[str, ...]]:
    """The program of an archive of `torch.export.save`, the shape of its codes, and notes.

    Raises:
        ValueError: if it is damaged, or takes anything but codes.
    """
    from torch.export.passes import move_to_device_pass

    try:
        with open(path, "rb") as file:
            # A file, not a path: torch then does not mind what it is called.
            program: Any = torch.export.load(file)
        inputs: Any = program.example_inputs or ((), {})
        args, kwargs = inputs
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:
        raise ValueError(
            f"cannot load {path} ({first_line(error)}); it is damaged, or of a torch.export "
            "that this torch cannot read: export it again"
        ) from error
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        raise ValueError(
            f"the program in {path} must take one tensor of codes, (n, *latent_shape), got "
            f"{len(args) + len(kwargs)} inputs; export a module that takes codes alone"
        )
    module.requires_grad_(False)
    codes = next(
        node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    batch = codes.meta["val"].shape[0]
    notes: tuple[str, ...] = ()
    if isinstance(batch, int):
        notes = (
            f"the program was exported for batches of exactly {batch}: where it is not rewritten "
            "for any, it runs in such pieces; export it with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)",
        )
    else:
        batch = None
    return Exported(module, args[0].dtype, batch), tuple(args[0].shape[1:]), notes
