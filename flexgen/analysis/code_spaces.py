"""The codes that `flexgen reverse generator=…` searches: the generator's, W, W+, or with noise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flexgen.checks import check_one_of, first_line
from flexgen.reversal.loading import Loaded
from flexgen.reversal.spaces import NoiseMaps, Structured, WSpace, is_structure
from flexgen.reversal.starts import normal_codes

SPACES = ("z", "w", "w+")


def flat(loaded: Loaded, asked: dict[str, Any]) -> tuple[Loaded, dict[str, Any]]:
    """A generator whose codes are lists or dicts of tensors as one of flat codes; others as is."""
    shapes = asked["latent_shape"]
    if not is_structure(shapes):
        return loaded, asked
    space = Structured(loaded.generator, shapes)
    return replace(loaded, generator=space, latent_shape=None), {
        **asked, "latent_shape": None, "latent_dim": space.latent_dim,
    }  # fmt: skip


def in_space(
    loaded: Loaded, latent_shape: tuple[int, ...], asked: dict[str, Any], options: dict[str, Any],
    context: Tensor | None, device: torch.device,
) -> tuple[Loaded, tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """The generator in the space of codes that is asked for, the shape of these, and options for
    `reverse` whose bank are draws from the generator's own prior there.

    Raises:
        ValueError: if the generator has no such space.
    """
    space = asked["space"]
    check_one_of("space", space, SPACES)
    if space == "z" and not asked["noise"]:
        return loaded, latent_shape, options
    generator = loaded.generator
    if not isinstance(generator, nn.Module):
        raise ValueError(
            f"space=w and noise= go into a module's parts, got a {loaded.kind}; give the module as "
            "a pickle, as package.module:attribute or as TorchScript, scripted, not traced"
        )
    seed, size = options.get("seed", 0), options.get("bank", 2048)
    size = len(size) if isinstance(size, Tensor) else size
    z = normal_codes(torch.arange(size), latent_shape, seed).to(device, loaded.dtype)
    if space != "z":
        if len(latent_shape) != 1:
            raise ValueError(
                f"space={space} is for a mapping network of vectors, got codes {latent_shape}"
            )
        mapping, synthesis = (
            _Part(generator, asked[name], name, given)
            for name, given in (("mapping", context), ("synthesis", None))
        )
        generator = w_space = WSpace(
            mapping, synthesis, latent_shape[0], plus=space == "w+", layers=asked["layers"],
            slope=asked["slope"], seed=seed, like=z,
        ).to(device)  # fmt: skip
        z, latent_shape = w_space.of_z(z), (w_space.latent_dim,)
        w = w_space.to_w(z[:2])
        try:
            synthesis(w)
        except Exception as error:  # whatever a stranger's code may raise
            remedy = "give layers=NUMBER where it takes one for each layer"
            if w_space.layers is not None:
                remedy = "a part of a traced program cannot be called: give the module as a pickle"
            raise ValueError(
                f"the synthesis network does not take w of shape {tuple(w.shape)} "
                f"({first_line(error)}); {remedy}"
            ) from error
    if asked["noise"]:
        if options.get("constraint") != "map" and asked["posterior"]["sigma"] is None:
            raise ValueError(
                "noise maps need a penalty, or they take on the image themselves; give "
                "reverse.constraint=map reverse.constraint_weight=0.01, the variance of the noise "
                "on the data, or posterior.sigma=0.1"
            )
        noisy = NoiseMaps(generator, latent_shape, asked["noise"])
        z, latent_shape = noisy.with_noise(z, seed + 1), (noisy.latent_dim,)
        generator = noisy
    found = replace(loaded, generator=generator, latent_shape=latent_shape)
    return found, latent_shape, {**options, "bank": z}


class _Part(nn.Module):
    """One of a generator's networks, called as NVIDIA's are where that is how it is called.

    Args:
        generator: whose part.
        attribute: its name there, a module or a method.
        key: of the configuration, for messages.
        context: what the part is called with beside the codes, in turn for these.
    """

    def __init__(
        self, generator: nn.Module, attribute: str, key: str, context: Tensor | None
    ) -> None:
        super().__init__()
        self.generator, self.attribute, self.context = generator, attribute, context
        if not callable(getattr(generator, attribute, None)):
            children = ", ".join(name for name, _ in generator.named_children())
            raise ValueError(
                f"space=w needs the generator's {key} network, and a {type(generator).__name__} "
                f"has no {attribute!r}; name it with {key}=NAME; it has {children or 'no parts'}"
            )

    def forward(self, code: Tensor) -> Tensor:
        part: Callable[..., Any] = getattr(self.generator, self.attribute)
        if self.context is not None:
            rows = torch.arange(len(code)) % len(self.context)
            x: Tensor = part(code, self.context[rows].to(code.device))
            return x
        return part(code)
