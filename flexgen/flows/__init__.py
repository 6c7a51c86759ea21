"""Exact flows: invertible maps between base noise and codes. Forward is base to z.

A :class:`Transform` takes codes, and a context where it was built with one, and returns image and
log |det J| in one pass, in either direction; `forward_cost` and `inverse_cost` say which of them
is parallel, sequential or absent. :class:`FlowDistribution` makes a `torch.distributions`
distribution of a base and a map.
"""

from flexgen.contracts import Cost
from flexgen.flows.autoregressive import Autoregressive
from flexgen.flows.continuous import Continuous
from flexgen.flows.conv_autoregressive import ConvAutoregressive
from flexgen.flows.coupling import Coupling
from flexgen.flows.distribution import FlowDistribution
from flexgen.flows.mixing import ActNorm, LULinear
from flexgen.flows.planar import Planar
from flexgen.flows.spline import SplineCoupling
from flexgen.flows.transform import Chain, Inverse, LocationScale, Permutation, Transform

__all__ = [
    "ActNorm", "Autoregressive", "Chain", "Continuous", "ConvAutoregressive", "Cost", "Coupling",
    "FlowDistribution", "Inverse", "LULinear", "LocationScale", "Permutation", "Planar",
    "SplineCoupling", "Transform",
]  # fmt: skip
