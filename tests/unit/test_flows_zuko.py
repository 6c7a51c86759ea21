"""The same numbers as zuko on the same weights."""

import pytest
import torch

from flexgen.distributions import DiagonalNormal
from flexgen.flows import Autoregressive, Coupling, FlowDistribution, Inverse


@pytest.fixture(scope="module", autouse=True)
def zuko():  # type: ignore[no-untyped-def]
    """zuko, which turns torch's validation of arguments off; it is on again for the others."""
    arguments = torch.distributions.Distribution.arg_constraints
    yield pytest.importorskip("zuko")
    torch.distributions.Distribution.set_default_validate_args(__debug__)
    torch.distributions.Distribution.arg_constraints = arguments


def widened(transform: torch.nn.Module) -> None:
    """As far from the identity as trained ones are."""
    net = transform.nets[0]
    getattr(net, f"weight{net.depth - 1}").data.mul_(100)


def normal(d: int) -> DiagonalNormal:
    return DiagonalNormal(torch.zeros(d).double(), torch.ones(d).double())


def test_couplings() -> None:
    from benchmarks.flow_twins import coupling_twin

    torch.manual_seed(0)
    ours = Coupling(6, num_layers=5, hidden_features=[20, 30]).double()
    widened(ours)
    theirs = coupling_twin(ours, [20, 30])
    x = torch.randn(50, 6, dtype=torch.float64)
    p = FlowDistribution(normal(6), Inverse(ours))
    torch.testing.assert_close(p.log_prob(x), theirs().log_prob(x))
    eps = torch.randn(50, 6, dtype=torch.float64)
    z, ladj = Inverse(ours)(eps)
    torch.testing.assert_close(z, theirs().transform.inv(eps))
    assert ladj.abs().max() > 0.2


@pytest.mark.parametrize("context_features", [0, 3])
@pytest.mark.parametrize("order", ["reversed", "natural"])
def test_autoregressive_steps(order: str, context_features: int) -> None:
    from benchmarks.flow_twins import autoregressive_twin

    torch.manual_seed(0)
    ours = Autoregressive(
        5, num_layers=3, hidden_features=[21, 30], order=order, context_features=context_features
    ).double()
    widened(ours)
    theirs = autoregressive_twin(ours, [21, 30])
    eps = torch.randn(50, 5, dtype=torch.float64)
    context = torch.randn(50, context_features).double() if context_features else None
    z, ladj = ours(eps, context)
    their_z, their_ladj = theirs(context).transform.call_and_ladj(eps)
    torch.testing.assert_close(z, their_z)
    torch.testing.assert_close(ladj, their_ladj)
    assert ladj.abs().max() > 0.2
    p = FlowDistribution(normal(5), Inverse(ours), context)
    torch.testing.assert_close(p.log_prob(eps), theirs(context).log_prob(eps))
    torch.testing.assert_close(Inverse(ours)(eps, context)[0], theirs(context).transform.inv(eps))
