"""The same numbers as packages of others, on the same features, weights and fields.

Mixtures are compared with scikit-learn's, the energy distance with SciPy's, flows with zuko's in
their own files.
"""

import pytest
import torch
from torch import Tensor

from flexgen.flows import Continuous, Planar
from flexgen.metrics import Classifier, PrecisionRecall, frechet_distance, kernel_distance


def images(n: int, shift: float) -> Tensor:
    return (torch.randn(n, 1, 8, 8) * 0.3 + shift).clamp(-1, 1)


def test_frechet_and_kernel_distance_are_torch_fidelitys() -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    torch.manual_seed(0)
    classifier = Classifier((1, 8, 8), 4).eval()
    real, fake = images(600, 0.0), images(600, 0.1)
    with torch.no_grad():
        features = [classifier.features(x).double() for x in (real, fake)]
    moments = [metric_fid.fid_features_to_statistics(part) for part in features]
    theirs = metric_fid.fid_statistics_to_metric(*moments, verbose=False)
    fid, kid = frechet_distance(classifier), kernel_distance(classifier)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert float(fid.compute()) == pytest.approx(theirs[metric_fid.KEY_METRIC_FID], rel=1e-3)
    options = {"kid_subsets": 1, "kid_subset_size": 600, "verbose": False}
    kernels = metric_kid.kid_features_to_metric(
        *features, **options, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0,
    )  # fmt: skip
    expected = kernels[metric_kid.KEY_METRIC_KID_MEAN]
    assert float(kid.compute()) == pytest.approx(float(expected), rel=1e-6)


def test_precision_recall_density_and_coverage_are_prdcs() -> None:
    prdc = pytest.importorskip("prdc")
    torch.manual_seed(0)
    real, fake = torch.randn(200, 3).double(), (torch.randn(150, 3) * 0.7 + 0.5).double()
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    scores = PrecisionRecall(num_neighbours=5)
    scores.update(real, real=True)
    scores.update(fake, real=False)
    ours = {name: float(value) for name, value in scores.compute().items()}
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()})


def test_planar_steps_are_normflows() -> None:
    normflows = pytest.importorskip("normflows")
    torch.manual_seed(0)
    ours = Planar(3, num_layers=4).double()
    ours.free.data.normal_()
    eps = torch.randn(20, 3).double()
    z, total = eps, torch.zeros(20).double()
    for step in ours.free.detach():
        u, w, b = step.split([3, 3, 1])
        theirs = normflows.flows.Planar((3,), u=u[None], w=w[None], b=b)
        z, ladj = theirs(z)
        total = total + ladj
    found, determinant = ours(eps)
    torch.testing.assert_close(found, z)
    torch.testing.assert_close(determinant, total)


def test_the_density_of_a_continuous_flow_is_torchdiffeqs() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    flow = Continuous(3, hidden_features=16, num_steps=32).double()
    flow.velocity.last.weight.data.normal_(0, 0.4)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            v = flow.velocity(z, t[None])
            rows = [
                torch.autograd.grad(v[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(3)
            ]
        return v.detach(), torch.stack(rows).sum(0)

    eps = torch.randn(6, 3).double()
    times = torch.tensor([0.0, 1.0]).double()
    z, ladj = torchdiffeq.odeint(field, (eps, torch.zeros(6).double()), times, rtol=1e-9, atol=1e-9)
    found, determinant = flow(eps)
    torch.testing.assert_close(found, z[-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(determinant, ladj[-1], rtol=0, atol=1e-6)
