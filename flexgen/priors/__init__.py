"""Priors p(z): modules that, called, return a `torch.distributions.Distribution` over codes.

`prior().sample((n,))`, `prior().rsample((n,))` and `prior().log_prob(z)` are all that a model
needs, so any zuko flow is a prior too. Beside the call a prior of ours has

* ``latent_dim``: the size of its event, `event_shape == (latent_dim,)`,
* ``has_log_prob``: whether `log_prob` exists; one without raises with the remedy,
* ``support``: the (low, high) box that codes live in, or None,
* ``base_space()``: present on priors that are a map of another, e.g. a flow's of N(0, I),
* ``fit(codes, …)``: present on priors that learn from codes,
* ``attach(score)``: present on priors that draw by a critic's score, and
  ``at(player, step, score)`` where training steps draw by it too,
* ``attach_posterior(posterior)``: present on priors made of a VAE's posteriors,
* ``start(x)``: present on priors that start from ``num_components`` training data.
"""

from flexgen.priors.base_space import BaseSpace, base_codes
from flexgen.priors.critic_sampling import Langevin, Rejection
from flexgen.priors.fitting import fit_prior
from flexgen.priors.fixed import Normal, Uniform
from flexgen.priors.flow import MAF, FlowPrior, RealNVP
from flexgen.priors.gaussian import Gaussian
from flexgen.priors.kernel_density import KernelDensity
from flexgen.priors.mixture import LearnableMixture, Mixture
from flexgen.priors.pushforward import Pushforward
from flexgen.priors.reweighted import Masked, Weighted
from flexgen.priors.staged import Staged
from flexgen.priors.vamp import MixtureOfPosteriors, Vamp

__all__ = [
    "MAF",
    "BaseSpace",
    "FlowPrior",
    "Gaussian",
    "KernelDensity",
    "Langevin",
    "LearnableMixture",
    "Masked",
    "Mixture",
    "MixtureOfPosteriors",
    "Normal",
    "Pushforward",
    "RealNVP",
    "Rejection",
    "Staged",
    "Uniform",
    "Vamp",
    "Weighted",
    "base_codes",
    "fit_prior",
]
