"""Archives of `torch.export.save` as a function of any batch size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen.checks import first_line


def load_exported(
    path: Path, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...], torch.dtype, tuple[str, ...]]:
    """The program of an archive, which runs whatever Python its writer put there.

    Returns:
        A function from codes to data; the shape of one code and the type of the example input that
        the program was exported with; and what a person should know, a line each.

    Raises:
        ValueError: if the archive is damaged, or its program does not map one tensor.
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
    shape, dtype = tuple(args[0].shape[1:]), args[0].dtype
    if not isinstance(batch, int):
        return _in_pieces(module, None), shape, dtype, ()
    note = (
        f"the program was exported for batches of exactly {batch}: it runs in such pieces; for "
        "any batch export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
    )
    return _in_pieces(module, batch), shape, dtype, (note,)


def _in_pieces(module: Any, size: int | None) -> Callable[[Tensor], Tensor]:
    # A plain function: an exported module knows no eval mode, and would refuse to be put there.
    def generate(z: Tensor) -> Tensor:
        if size is None:
            x: Tensor = module(z)
            return x
        padded = torch.cat([z, z[:1].expand(-len(z) % size, *z.shape[1:])])
        return torch.cat([module(piece) for piece in padded.split(size)])[: len(z)]

    return generate
