"""How long the codes of held-out data are under a prior, and what they leave to the likelihood."""

from pathlib import Path
from typing import Any

import torch

from flexgen.callbacks.likelihood import level_of
from flexgen.callbacks.measurement import Measurement, divergence, energy_distance
from flexgen.checks import check_integer
from flexgen.codes import context_of
from flexgen.files import write_tensors
from flexgen.models import VQVAE
from flexgen.networks.codebook import perplexity

# Of the prior, for the moments of its normal: of fewer, their own noise shows in the divergence.
_DRAWS = 10_000


class CodeLength(Measurement):
    """The bound on the negative log-likelihood of held-out data under a VQ-VAE, and its two parts.

    Logged, in nats per datum: `elbo/reconstruction`, −log p(x|z) at the code z of x, and `elbo/kl`,
    the code's length −log p(z) under the prior in use, which is the KL of a posterior that is one
    point; their sum, an upper bound on −log p(x), as `nll/samples` with `nll/standard_error` and
    `nll/bits_per_dimension`, and its negative `elbo/bound`. Of the codes `codebook/perplexity`, e
    to the entropy of how often each vector is named, and `codebook/used`, the share of vectors that
    are named at all.

    A name is no number: no normal is fitted to it, and no PAG taken. What takes its place is of the
    vectors that the names mean, all positions side by side: `pag/fit`, the KL of the codes' normal
    to that of 10,000 draws from the prior, where there are more codes than such coordinates, and
    `pag/samples`, the energy distance of codes to draws.

    Saved: `nll/step=….safetensors` with `nll (n,)`, the bound of each datum, its part `length
    (n,)`, and `index (n,)`, which of the split it is.

    Args:
        n: data; at most what the split holds.
        split: which part of the data.
        **schedule: see :class:`~flexgen.callbacks.Measurement`.

    Raises:
        ValueError: if `n` is under 2.

    Source: van den Oord et al., "Neural discrete representation learning", 2017, section 3.1.
    """

    needs = ("codebook",)
    split: str

    def __init__(self, *, n: int = 1000, split: str = "test", **schedule: Any) -> None:
        super().__init__(**schedule)
        self.n, self.split = check_integer("n", n, 2), split

    @torch.no_grad()
    def measure(self, model: VQVAE, data: Any, run_dir: Path) -> dict[str, float]:
        which = self.split, min(self.n, data.size(self.split)), self.seed
        x, label = data.split(*which)
        x, context = x.to(model.device), context_of(model, label)
        of_data, of_codes = model.terms(x, context)
        nll, z = -(of_data + of_codes), model.encode(x, context)
        path = run_dir / "nll" / f"step={model.counters.generator_steps:08d}.safetensors"
        found = {"nll": nll.cpu(), "length": -of_codes.cpu(), "index": data.indices(*which)}
        write_tensors(path, found)
        values = level_of(nll, x[0].numel() if model.likelihood.has_mass else None)
        spread, used = perplexity(z, model.num_values)
        values |= {
            "elbo/bound": -float(nll.mean()),
            "elbo/reconstruction": -float(of_data.mean()),
            "elbo/kl": -float(of_codes.mean()),
            "codebook/perplexity": float(spread),
            "codebook/used": float(used),
        }
        points = model.points(z)
        with model.evaluating():
            draws = model.points(model.prior.draw(_DRAWS, model.in_turn(_DRAWS)))
        if len(points) > points.shape[1] + 1:
            values["pag/fit"] = divergence(points, draws)
        values["pag/samples"] = energy_distance(draws[: len(points)], points)
        return values
