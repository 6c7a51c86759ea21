"""The generator that `flexgen reverse generator=…` names: loaded, tried, ready to reverse."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexgen.analysis.code_spaces import flat, in_space
from flexgen.analysis.reversal_inputs import read_labels
from flexgen.contracts import Prior
from flexgen.files import file_sha256
from flexgen.reversal.freezing import Generator, frozen
from flexgen.reversal.loading import Loaded, Probe, load_generator, missing_latent_shape, probe
from flexgen.reversal.losses import FromUnit, Moved, ToUnit, in_unit_range

Range = tuple[float, float]


@dataclass(frozen=True)
class Found:
    """A generator, the shape of its codes, what it makes of some, and how it is to be reversed.

    `range` is (low, high) of its black and white, `data_range` that of floats in an array, where
    that is known to be another; `options` are for `reverse`; `context` is what it is called with
    beside the codes, of all data; `original` is what was loaded, before its codes were made those
    of a space; `samples` gives so many samples of its own; `prior` is that over its codes, N(0, I)
    if None.
    """

    loaded: Loaded
    latent_shape: tuple[int, ...]
    probe: Probe
    range: Range
    data_range: Range | None
    options: dict[str, Any]
    context: Tensor | None
    original: Generator
    samples: Callable[[int], Tensor]
    prior: Prior | None


def open_generator(
    asked: dict[str, Any], options: dict[str, Any], device: torch.device, rank: int
) -> Found:
    """Load a generator, find out what its codes and images are, and settle the options; ValueError
    if it does not fit what was asked, FileNotFoundError if it is not there."""
    loaded, its_range, prior = _load(asked, device)
    original = loaded.generator
    loaded, asked = flat(loaded, asked)
    options, context = dict(options), read_labels(asked["labels"])
    if options.get("norm") == "batch" and loaded.kind.startswith("TorchScript"):
        raise ValueError(
            "norm=batch reaches the batch norms of a torch.nn.Module, got a TorchScript file; "
            "give the module itself with generator=package.module:attribute"
        )
    latent_shape = _latent_shape(asked, loaded)
    if prior is not None:
        from flexgen.codes import prior_options

        options = prior_options(prior, options)
        del options["latent_shape"]
    black_white = pair("range", asked["range"]) or its_range or (-1.0, 1.0)
    bounds, mapped = options.get("bounds"), asked["space"] != "z"
    draw = _draw(latent_shape, loaded.dtype, None if mapped else bounds, prior, device)
    samples = partial(_samples, loaded.generator, context, draw, options)
    spaced, shape, options = in_space(loaded, latent_shape, asked, options, context, device)
    if spaced is not loaded:  # codes of its prior are N(0, I), and labels went into w
        context, prior = None if mapped else context, None
        draw = _draw(shape, loaded.dtype, bounds, None, device)
    first = None if context is None else context[:1]
    one = replace(spaced, generator=partial(_in_turn, spaced.generator, first))
    tried = probe(spaced if first is None else one, shape, device)
    found = Found(
        spaced, shape, tried, black_white, None, options, context, original, samples, prior
    )
    if options.get("init") == "encoder" and context is not None:
        raise ValueError("reverse.init=encoder does not go with labels=; leave one of them out")
    if options.get("init") == "encoder":
        options["init"] = _encoder(asked, found, draw, rank).to(device)
    elif asked["encoder"]:
        raise ValueError(
            f"`encoder` goes with reverse.init=encoder, got {options.get('init')!r}; give both"
        )
    return _in_unit_range(found) if in_unit_range(options.get("loss", "mse")) else found


def pair(name: str, value: Any, rising: bool = True) -> Range | None:
    """Two numbers from a configuration, or None; else a ValueError."""
    if value is None:
        return None
    numbers = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    if not numbers or len(value) != 2 or (rising and not value[0] < value[1]):
        raise ValueError(f"`{name}` must be [low,high] with low < high, got {value}; as in [-1,1]")
    return float(value[0]), float(value[1])


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as a person writes it."""
    return "×".join(str(size) for size in shape)


def _in_unit_range(found: Found) -> Found:
    """With a cross-entropy, which wants [0, 1], both sides are moved there."""
    low, high = found.range
    if (low, high) == (0.0, 1.0):
        return found
    tried = found.probe
    lowest, highest = ((value - low) / (high - low) for value in (tried.low, tried.high))
    generator, to_unit = found.loaded.generator, ToUnit(low, high)
    moved: Generator = (
        Moved(generator, to_unit)
        if isinstance(generator, nn.Module)
        else lambda z, *context: to_unit(generator(z, *context))
    )
    options = dict(found.options)
    if callable(options.get("init")):  # learned on the generator's own range
        options["init"] = nn.Sequential(FromUnit(low, high), options["init"])
    return replace(
        found, options=options, loaded=replace(found.loaded, generator=moved),
        probe=replace(tried, low=lowest, high=highest), range=(0.0, 1.0), data_range=found.range,
        samples=lambda n: to_unit(found.samples(n)),
    )  # fmt: skip


def _load(asked: dict[str, Any], device: torch.device) -> tuple[Loaded, Range | None, Prior | None]:
    """The generator; of a FlexGen run also its range and the prior over its codes."""
    folder = Path(asked["generator"])
    if not (folder / "config.yaml").is_file():
        network = asked["network"] and _network(asked["network"])
        source, key, trust = asked["generator"], asked["key"], asked["trust"]
        loaded = load_generator(source, network=network, key=key, trust=trust, device=device)
        if network:
            about = f"{loaded.sha256} {json.dumps(asked['network'], sort_keys=True)}"
            loaded = replace(loaded, sha256=hashlib.sha256(about.encode()).hexdigest())
        return loaded, None, None
    from flexgen.codes import base_space
    from flexgen.runs.run import open_run

    run = open_run(folder, asked["trust"])
    model = run.latent.to(device).eval()
    model.requires_grad_(False)
    generator, prior = base_space(model)
    shape = (prior.latent_dim,)
    loaded = Loaded(generator, shape, "FlexGen run", file_sha256(run.checkpoint))
    return loaded, run.data.range, prior


def _network(config: dict[str, Any]) -> nn.Module:
    from flexgen.runs.build import instantiate  # takes Lightning along, which shards do not need

    network: nn.Module = instantiate(config)
    return network


def _samples(
    generator: Generator, context: Tensor | None, draw: Callable[[int], Tensor],
    options: dict[str, Any], n: int,
) -> Tensor:  # fmt: skip
    """Samples of a generator's own, for each in turn of some contexts."""
    norm, seed = options.get("norm", "eval"), options.get("seed", 0)
    with torch.no_grad(), frozen(generator, norm), torch.random.fork_rng():
        # Not the seed itself, by which others draw codes to start from.
        torch.manual_seed(int(np.random.SeedSequence([seed, n]).generate_state(1)[0]))
        return _in_turn(generator, context, draw(n)).float()


def _in_turn(generator: Callable[..., Tensor], context: Tensor | None, z: Tensor) -> Tensor:
    """Data of codes, for each in turn of some contexts."""
    if context is None:
        return generator(z)
    rows = torch.arange(len(z)) % len(context)
    return generator(z, context[rows].to(z.device))


def _encoder(asked: dict[str, Any], found: Found, draw: Callable[[int], Tensor], rank: int) -> Any:
    """The encoder of a generator, learned now if it is not there."""
    from flexgen.reversal.encoder import load_or_train_encoder, train_encoder

    loaded = found.loaded
    codes = [found.latent_shape, *(asked[name] for name in ("space", "slope", "noise"))]
    identity = f"{loaded.sha256} {codes} {found.options.get('bounds')}"
    path = Path(asked["encoder"] or "")
    if not asked["encoder"]:  # in the user's own cache, by what it belongs to
        name = hashlib.sha256(identity.encode()).hexdigest()[:20]
        path = Path(asked["paths"]["cache_dir"]) / "encoders" / f"{name}.safetensors"
    if rank and not path.is_file():
        raise ValueError(
            f"there is no encoder at {path} for this process to share; have one process learn it "
            "first, with processes=1 n=1"
        )
    seed = found.options.get("seed", 0)
    return load_or_train_encoder(
        path,
        identity,
        lambda: train_encoder(loaded.generator, draw, seed=seed, progress=asked["progress"]),
        say=rank == 0,
    )


def _draw(
    shape: tuple[int, ...], dtype: torch.dtype, bounds: Range | None, prior: Prior | None,
    device: torch.device,
) -> Callable[[int], Tensor]:  # fmt: skip
    """Codes as the generator was trained on: the run's prior, the given box, or N(0, I)."""

    def draw(n: int) -> Tensor:
        if prior is not None:
            return prior.draw(n)
        if bounds is not None:
            low, high = bounds
            return torch.rand(n, *shape, device=device, dtype=dtype) * (high - low) + low
        return torch.randn(n, *shape, device=device, dtype=dtype)

    return draw


def _latent_shape(asked: dict[str, Any], loaded: Loaded) -> tuple[int, ...]:
    dim, shape = asked["latent_dim"], asked["latent_shape"]
    if dim is not None and shape is not None:
        raise ValueError(f"give latent_dim or latent_shape, not both, got {dim} and {shape}")
    given = [dim] if dim is not None else shape
    if given is None:
        if loaded.latent_shape is None:
            raise ValueError(missing_latent_shape(loaded))
        return loaded.latent_shape
    if not isinstance(given, list) or not all(type(size) is int and size > 0 for size in given):
        raise ValueError(
            f"latent_dim must be a whole number above 0, latent_shape a list of them, got {given}; "
            "as in latent_dim=100 or latent_shape=[512,4,4]"
        )
    fixed = None if loaded.any_size and len(given) == 3 else loaded.latent_shape
    if fixed not in (None, tuple(given)):
        raise ValueError(
            f"the {loaded.kind} takes codes of shape {shape_text(fixed or ())}, got "
            f"{shape_text(tuple(given))}; leave out latent_dim and latent_shape"
        )
    return tuple(given)
