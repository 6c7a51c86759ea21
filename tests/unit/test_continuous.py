"""Continuous flows: the divergence in closed form, the determinant, and the error of the steps."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.autograd.functional import jacobian

from flexgen.flows import Continuous
from flexgen.priors import FlowMatching


def built(num_steps: int = 8) -> Continuous:
    """A field as strong as trained ones; the map starts near the identity."""
    torch.manual_seed(0)
    flow = Continuous(3, hidden_features=16, num_steps=num_steps).double()
    z = torch.randn(5, 3).double()
    torch.testing.assert_close(flow(z)[0], z, atol=1e-2, rtol=0)
    flow.velocity.last.weight.data.normal_(0, 0.4)
    return flow


def test_the_divergence_is_the_jacobians_trace() -> None:
    field = built().velocity
    z, t = torch.randn(4, 3).double(), torch.tensor([0.3]).double()
    v, divergence = field.with_divergence(z, t, field.kernel())
    torch.testing.assert_close(v, field(z, t))
    traces = [jacobian(lambda row: field(row, t), row).trace() for row in z]
    torch.testing.assert_close(divergence, torch.stack(traces), rtol=0, atol=1e-13)


def test_it_solves_the_equation_by_an_independent_solver() -> None:
    flow = built(64)
    eps = torch.randn(3).double()

    def field(t: float, state: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            v, d = flow.velocity.with_divergence(
                torch.from_numpy(state[:3]), torch.tensor([t]).double(), flow.velocity.kernel()
            )
        return np.append(v.numpy(), d.numpy())

    end = solve_ivp(field, (0, 1), np.append(eps.numpy(), 0.0), rtol=1e-12, atol=1e-12).y[:, -1]
    z, ladj = flow(eps)
    torch.testing.assert_close(z, torch.from_numpy(end[:3]), rtol=0, atol=1e-7)
    torch.testing.assert_close(ladj, torch.tensor(end[3]), rtol=0, atol=1e-7)
    det = jacobian(lambda row: flow(row)[0], eps).det().log()
    torch.testing.assert_close(ladj, det, rtol=0, atol=1e-7)
    back, inverse = flow.inverse(z)
    torch.testing.assert_close(back, eps, rtol=0, atol=1e-7)
    torch.testing.assert_close(inverse, -ladj, rtol=0, atol=1e-7)


def test_the_error_of_the_steps_falls_at_least_with_their_fourth_power() -> None:
    z = torch.randn(200, 3).double()
    coarse, fine = (built(steps).step_error(z).mean() for steps in (16, 32))
    assert coarse / fine > 12


def test_a_fitted_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    codes = torch.randn(2000, 2)
    codes[:, 1] = 0.3 * codes[:, 1] + codes[:, 0].square()
    prior = FlowMatching(2, hidden_features=32, steps=400, lr=1e-2)
    prior.fit(codes)
    side = torch.linspace(-1, 1, 160)
    x, y = 7 * side, 10 + 14 * side
    grid = torch.cartesian_prod(x, y)
    with torch.no_grad():
        mass = prior().log_prob(grid).double().exp().sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert float(mass) == pytest.approx(1, abs=0.01)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_steps`"):
        Continuous(2, num_steps=0)
    with pytest.raises(ValueError, match="`coupling`"):
        FlowMatching(2, coupling="best")  # type: ignore[arg-type]
