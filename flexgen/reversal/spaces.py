"""Codes of every kind as one flat vector, which is what everything in this package searches.

Each space is a module from flat codes `(n, latent_dim)` to data, whose codes are N(0, I) under the
generator's own prior, or nearly so: what holds of codes z under N(0, I), banks, clipping, MAP and
posterior draws, then holds in it.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flexgen.checks import check_integer, check_positive
from flexgen.reversal.freezing import Generator
from flexgen.reversal.starts import normal_codes

# Directions in which mapped codes hardly vary keep so much of the largest variance: all of W stays
# within reach.
_LEAST_VARIANCE = 1e-4
_AT_ONCE = 1000


class Structured(nn.Module):
    """G of one flat code, for a generator whose code is a list or dict of tensors, nested or not.

    Args:
        generator: codes of that structure, each tensor `(n, …)`, to data `(n, *shape)`.
        shapes: the structure with a shape in place of each tensor, as in
            `{"z": [100], "noise": [[1, 4, 4], [1, 8, 8]]}`.

    Attributes:
        latent_dim: size of the flat code.

    Raises:
        ValueError: for a structure that holds something else.

    Example:
        >>> space = Structured(lambda code: code["a"] + code["b"][0], {"a": [3], "b": [[3]]})
        >>> space(torch.ones(2, space.latent_dim)).shape
        torch.Size([2, 3])
    """

    def __init__(self, generator: Generator, shapes: Any) -> None:
        super().__init__()
        self.generator, self.shapes = generator, shapes
        self.latent_dim = sum(prod(shape) for shape in _leaves(shapes))

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        x: Tensor = self.generator(self.unflatten(z), *context)
        return x

    def unflatten(self, z: Tensor) -> Any:
        """The generator's own codes of flat ones `(n, latent_dim)`."""
        sizes = [prod(shape) for shape in _leaves(self.shapes)]
        return _filled(self.shapes, iter(z.split(sizes, 1)))

    def flatten(self, codes: Any) -> Tensor:
        """Flat codes `(n, latent_dim)` of the generator's own."""
        return torch.cat([tensor.flatten(1) for tensor in _tensors(codes, self.shapes)], 1)


class WSpace(nn.Module):
    r"""x = S(w), w = f⁻¹(μ + V √Λ u): outputs w of a mapping network M(z), whitened, as codes u.

    μ and VΛVᵀ are mean and covariance of f(w), w = M(z), over draws of z ~ N(0, I). So u = 0 is the
    mean, and u is nearly N(0, I) where w is a mapped draw. f(w) is w where it is positive, and
    `slope` · w elsewhere: 1 leaves w as it is; 5 undoes the leaky ReLU of slope 0.2 in which a
    StyleGAN's mapping ends, and makes f(w) nearly Gaussian. Any w has a code.

    Args:
        mapping: M, from z `(n, latent_dim)` to w, `(n, d)`, or `(n, layers, d)` with the same w for
            each layer.
        synthesis: S, from w to data, of each layer `(n, layers, d)`; of one, `(n, d)`, where M
            gives that and there are no `layers`.
        latent_dim: size of z.
        plus: whether each layer has a code of its own ("W+"), or all have one ("W").
        layers: how many of them S has, where M does not say it.
        slope: of f for negative values.
        num_draws: of z.
        seed: of the draws.
        like: a tensor of the device and floating type that M takes.

    Attributes:
        latent_dim: size of u: d, or layers · d with `plus`.

    Raises:
        ValueError: if M gives layers different codes, or no batch of codes, or the number of layers
            is not known.

    Source: Karras et al., "Analyzing and improving the image quality of StyleGAN", 2020, appendix D
        (10,000 draws, start at the mean); Abdal, Qin, Wonka, "Image2StyleGAN", 2019 (W+); Wulff &
        Torralba, "Improving inversion and generation diversity in StyleGAN using a Gaussianized
        latent space", 2020, section 3 (f, slope 5, mean and covariance).
    """

    loc: Tensor
    basis: Tensor
    inverse: Tensor

    def __init__(
        self, mapping: Callable[[Tensor], Tensor], synthesis: Callable[[Tensor], Tensor],
        latent_dim: int, *, plus: bool = False, layers: int | None = None, slope: float = 1.0,
        num_draws: int = 10_000, seed: int = 0, like: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_positive("slope", slope)
        check_integer("num_draws", num_draws, 2)
        self.mapping, self.synthesis, self.slope = mapping, synthesis, slope
        like = torch.zeros(()) if like is None else like
        z = normal_codes(torch.arange(num_draws), (latent_dim,), seed).to(like)
        w = torch.cat([self._mapped(part) for part in z.split(_AT_ONCE)])
        repeats = w.shape[1] if w.dim() == 3 else None
        if repeats and not torch.equal(w, w[:, :1].expand_as(w)):
            raise ValueError(
                "the mapping network must give all layers the same w, got different ones; write "
                "the codes as a list of tensors (`Structured`) instead"
            )
        self.plus, self.layers = plus, repeats or layers
        if self.layers is not None:
            check_integer("layers", self.layers)
        elif plus:
            raise ValueError(
                "`layers` must say how many layers take a code each, as the mapping network gives "
                "one code for all, got None; as in layers=8"
            )
        v = self._f(w[:, 0] if repeats else w).float()
        loc = v.mean(0)
        # The covariance's eigenvectors and values; in double, as it is nearly singular.
        values, vectors = torch.linalg.eigh(torch.cov(v.double().T).reshape(len(loc), len(loc)))
        scale = values.clamp_min(_LEAST_VARIANCE * values.max().clamp_min(1e-12)).sqrt()
        self.register_buffer("loc", loc)
        self.register_buffer("basis", (vectors * scale).float())
        self.register_buffer("inverse", (vectors / scale).float())
        self.latent_dim = len(loc) * (self.layers or 1 if plus else 1)

    def forward(self, u: Tensor) -> Tensor:
        return self.synthesis(self.to_w(u))

    def to_w(self, u: Tensor) -> Tensor:
        """What the synthesis takes, w of each layer or one, of codes `(n, latent_dim)`."""
        u = u.unflatten(1, (-1, len(self.loc)))
        v = self.loc + u.to(self.loc.dtype) @ self.basis.T
        w = torch.where(v > 0, v, v / self.slope).to(u.dtype)
        return w[:, 0] if self.layers is None else w.expand(-1, self.layers, -1)

    def of_w(self, w: Tensor) -> Tensor:
        """Codes `(n, latent_dim)` of w, `(n, d)` or `(n, layers, d)`."""
        w = w[:, None] if w.dim() == 2 else w
        w = w.expand(-1, self.layers or 1, -1) if self.plus else w[:, :1]
        u = (self._f(w).to(self.loc.dtype) - self.loc) @ self.inverse
        return u.flatten(1)

    def of_z(self, z: Tensor) -> Tensor:
        """Codes `(n, latent_dim)` of z, `(n, size)`: exact draws from the mapped prior."""
        return torch.cat([self.of_w(self._mapped(part)) for part in z.split(_AT_ONCE)])

    def _f(self, w: Tensor) -> Tensor:
        return torch.where(w > 0, w, self.slope * w)

    @torch.no_grad()
    def _mapped(self, z: Tensor) -> Tensor:
        w = self.mapping(z)
        if not isinstance(w, Tensor) or w.dim() not in (2, 3) or len(w) != len(z):
            found = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
            raise ValueError(f"the mapping network must give (n, d) or (n, layers, d), got {found}")
        return w


class NoiseMaps(nn.Module):
    """G of one flat code (z, noise): buffers that hold a generator's fixed noise become variables.

    The maps are N(0, I), as a generator draws them in training. Unpenalised they take on what they
    can of the image, so search them with `constraint="map"`, whose penalty for them is
    −log N(noise; 0, I).

    Args:
        generator: a module from codes `(n, *latent_shape)` to data.
        latent_shape: shape of one of its codes.
        names: end of the names of the buffers, such as "noise_const"; each is a map
            `(…, height, width)` that is added to features `(n, channels, height, width)`.

    Attributes:
        latent_dim: size of the flat code.

    Raises:
        ValueError: if there is no such buffer, or the generator is a TorchScript program.

    Source: the variables are those of Karras et al., 2020, appendix D. Departure: they penalise the
        maps' autocorrelation, here it is their probability.
    """

    def __init__(self, generator: nn.Module, latent_shape: Sequence[int], names: str) -> None:
        super().__init__()
        maps = {
            name: buffer.shape[-2:]
            for name, buffer in generator.named_buffers()
            if name.endswith(names) and buffer.dim() >= 2
        }
        if not maps or isinstance(generator, torch.jit.ScriptModule):
            having = ", ".join(name for name, b in generator.named_buffers() if b.dim() >= 2)
            raise ValueError(
                f"`noise` must be the end of the names of buffers of a torch.nn.Module, "
                f"(…, height, width), got {names!r}; it has {having or 'no such buffers'}"
            )
        self.generator, self.maps, self.latent_shape = generator, maps, tuple(latent_shape)
        self.sizes = [prod(self.latent_shape), *(prod(shape) for shape in maps.values())]
        self.latent_dim = sum(self.sizes)

    def forward(self, code: Tensor, *context: Tensor) -> Tensor:
        z, *noise = code.split(self.sizes, 1)
        shaped = {
            name: flat.reshape(len(flat), 1, *shape)
            for (name, shape), flat in zip(self.maps.items(), noise, strict=True)
        }
        given = (z.reshape(len(z), *self.latent_shape), *context)
        # Not tied: of a module that is there by two names it would put back the maps it was given.
        x: Tensor = functional_call(self.generator, shaped, given, tie_weights=False)
        return x

    def with_noise(self, z: Tensor, seed: int) -> Tensor:
        """Codes `(n, latent_dim)` of the generator's own and drawn maps."""
        index = torch.arange(len(z))
        noise = normal_codes(index, (self.latent_dim - self.sizes[0],), seed)
        return torch.cat([z.flatten(1), noise.to(z)], 1)


def is_structure(shapes: Any) -> bool:
    """Whether it is a list or dict of shapes, not one shape."""
    return isinstance(shapes, dict) or (
        isinstance(shapes, list | tuple) and any(isinstance(s, list | tuple | dict) for s in shapes)
    )


def _leaves(shapes: Any) -> Iterator[tuple[int, ...]]:
    if is_structure(shapes):
        for part in shapes.values() if isinstance(shapes, dict) else shapes:
            yield from _leaves(part)
    elif (
        isinstance(shapes, list | tuple)
        and shapes
        and all(type(n) is int and n > 0 for n in shapes)
    ):
        yield tuple(shapes)
    else:
        raise ValueError(
            "`shapes` must be lists and dicts of shapes, each a list of sizes above 0, got "
            f"{shapes!r}; as in {{z: [100], noise: [[1,4,4],[1,8,8]]}}"
        )


def _filled(shapes: Any, parts: Iterator[Tensor]) -> Any:
    if isinstance(shapes, dict):
        return {name: _filled(part, parts) for name, part in shapes.items()}
    if is_structure(shapes):
        return [_filled(part, parts) for part in shapes]
    flat = next(parts)
    return flat.reshape(len(flat), *shapes)


def _tensors(codes: Any, shapes: Any) -> Iterator[Tensor]:
    if isinstance(codes, Tensor):
        yield codes
    elif isinstance(shapes, dict):
        for name, part in shapes.items():  # in the order of the shapes, not of these codes
            yield from _tensors(codes[name], part)
    else:
        for code, part in zip(codes, shapes, strict=True):
            yield from _tensors(code, part)
