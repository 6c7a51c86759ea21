"""Decoders of diffusers' autoencoders, from the folders in which its models are saved."""

import hashlib
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import first_line
from flexgen.files import file_sha256

_WEIGHTS = "diffusion_pytorch_model"


class Decoder(nn.Module):
    """x = D(z σ / s + μ): what an autoencoder's decoder D makes of codes z as a diffusion has them.

    s is the configuration's `scaling_factor`, μ its `shift_factor` or `latents_mean`, σ its
    `latents_std`, 1, 0 and 1 where it has none: so scaled the codes of data have a variance near 1.

    Args:
        vae: an autoencoder of diffusers'.

    Attributes:
        latent_shape: (latent_channels, height, width) of the images that it was trained on; None
            where it does not say their size. Other sizes are decoded as well.

    Source: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022,
        appendix G (the scale).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        config: Any = vae.config
        for name in {"encoder", "quant_conv"} & {name for name, _ in vae.named_children()}:
            setattr(vae, name, None)
        self.vae = vae
        channels, given = config.get("latent_channels"), config.get
        mean = given("latents_mean") or [given("shift_factor") or 0.0]
        std = torch.tensor(given("latents_std") or [1.0]) / (given("scaling_factor") or 1.0)
        self.register_buffer("shift", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("scale", std[:, None, None])
        size, blocks = given("sample_size"), given("block_out_channels")
        sizes = [size, size] if isinstance(size, int) else size
        self.latent_shape: tuple[int, ...] | None = None
        if channels and sizes and blocks:
            self.latent_shape = (channels, *(n // 2 ** (len(blocks) - 1) for n in sizes))
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.vae.decode(z * self.scale + self.shift).sample  # type: ignore[operator]
        return x


def read_decoder(folder: Path) -> tuple[Decoder, str]:
    """The decoder in a model's folder, or below `vae` in a pipeline's, and a hash of its files.

    The class is the one that config.json names, of diffusers' own, and its weights are a
    .safetensors file: nothing of the folder is run, and nothing is looked for elsewhere.

    Raises:
        ValueError: if diffusers is not installed or has no such class, or it is no autoencoder, or
            the folder lacks a file or holds a damaged one.
    """
    if (folder / "model_index.json").is_file():
        if not (folder / "vae" / "config.json").is_file():
            inside = ", ".join(sorted(one.name for one in folder.iterdir() if one.is_dir()))
            raise ValueError(
                f"{folder} is a pipeline of diffusers without vae/config.json, whose decoder is "
                f"reversed; it holds {inside or 'no folders'}; name the folder of an autoencoder"
            )
        folder = folder / "vae"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = str(config["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is no configuration of a model of diffusers "
            f"({first_line(error)}); it must name the class, _class_name"
        ) from error
    files = sorted(folder.glob(f"{_WEIGHTS}*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} has no {_WEIGHTS}.safetensors; copy it there, or save the model anew with "
            "vae.save_pretrained(FOLDER)"
        )
    plain = any(path.name.startswith((f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}-")) for path in files)
    variant = None if plain else files[0].name.split(".")[1]
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            f"{folder} is a model of diffusers, which cannot be imported ({first_line(error)}); "
            "install it: pip install diffusers"
        ) from error
    kind: Any = getattr(diffusers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.ModelMixin)):
        raise ValueError(
            f"{folder} holds a {name}, of which diffusers {diffusers.__version__} knows no model; "
            "install the version that wrote it, or name the folder of an autoencoder"
        )
    if not callable(getattr(kind, "decode", None)):
        raise ValueError(
            f"{folder} holds a {name}, which has no decoder; name the folder of an autoencoder, in "
            "a pipeline's folder vae"
        )
    try:
        vae: nn.Module = kind.from_pretrained(  # type: ignore[attr-defined]
            folder, local_files_only=True, use_safetensors=True, variant=variant,
            torch_dtype=torch.float32, low_cpu_mem_usage=False,
        )  # fmt: skip
    except Exception as error:  # whatever the other package may raise
        raise ValueError(
            f"diffusers {diffusers.__version__} cannot load the {name} in {folder} "
            f"({first_line(error)}); it is damaged, or of another version"
        ) from error
    digest = hashlib.sha256()
    for path in (folder / "config.json", *files):
        digest.update(file_sha256(path).encode())
    return Decoder(vae), digest.hexdigest()
