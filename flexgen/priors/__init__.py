"""Priors p(z): modules that, called, return a `torch.distributions.Distribution` over codes.

What a prior is, :class:`flexgen.contracts.Prior` says. A distribution module of another package, a
zuko flow say, is one too: :func:`as_prior` adapts it.
"""

from flexgen.contracts import BaseSpace, Prior
from flexgen.priors.autoregressive import AutoregressiveMixture, MixtureMADE
from flexgen.priors.categorical import Categorical
from flexgen.priors.critic_sampling import Langevin, Rejection
from flexgen.priors.critic_transport import GradientFlow, OptimalTransport
from flexgen.priors.dequantised import Dequantised
from flexgen.priors.fitting import maximise_likelihood
from flexgen.priors.fixed import Hyperspherical, Normal, Truncation, Uniform
from flexgen.priors.flow import MAF, NSF, FlowPrior, RealNVP
from flexgen.priors.flow_matching import FlowMatching
from flexgen.priors.gaussian import Gaussian
from flexgen.priors.hierarchical import Hierarchical, TopDown
from flexgen.priors.kernel_density import KernelDensity
from flexgen.priors.metropolis_hastings import MetropolisHastings
from flexgen.priors.mixture import LearnableMixture, Mixture
from flexgen.priors.per_class import PerClass
from flexgen.priors.pixel import PixelPrior
from flexgen.priors.pixel_levels import PixelLevels
from flexgen.priors.polarity import Polarity
from flexgen.priors.pushforward import Pushforward
from flexgen.priors.reweighted import Masked, Weighted
from flexgen.priors.spherical_mixture import SphericalMixture
from flexgen.priors.staged import Staged, as_prior, base_codes
from flexgen.priors.tilted import LARS, LatentEnergy, NoiseContrastive
from flexgen.priors.vamp import MixtureOfPosteriors, Vamp

__all__ = [
    "LARS", "MAF", "NSF", "AutoregressiveMixture", "BaseSpace", "Categorical", "Dequantised",
    "FlowMatching", "FlowPrior", "Gaussian", "GradientFlow", "Hierarchical", "Hyperspherical",
    "KernelDensity", "Langevin", "LatentEnergy", "LearnableMixture", "Masked",
    "MetropolisHastings", "Mixture", "MixtureMADE", "MixtureOfPosteriors", "NoiseContrastive",
    "Normal", "OptimalTransport", "PerClass", "PixelLevels", "PixelPrior", "Polarity", "Prior",
    "Pushforward", "RealNVP", "Rejection", "SphericalMixture", "Staged", "TopDown", "Truncation",
    "Uniform", "Vamp", "Weighted", "as_prior", "base_codes", "maximise_likelihood",
]  # fmt: skip
