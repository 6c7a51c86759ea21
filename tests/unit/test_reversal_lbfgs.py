"""The search by L-BFGS: a code is its own sample's alone, and none is worse than where it began."""

import math

import pytest
import torch
from torch import nn

from flexgen.networks import DCGANGenerator, MLPGenerator
from flexgen.reversal import calibrate_batch_norm, fast, reverse
from flexgen.reversal.curvature import direction
from flexgen.reversal.lbfgs import LBFGS
from flexgen.reversal.losses import half_squared_error
from flexgen.reversal.passes import Passes, Work
from flexgen.reversal.starts import Bank, Starts, normal_codes


def codes(n, latent_dim, seed=2, dtype=torch.float32):
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(kind, latent_dim=12):
    torch.manual_seed(0)
    if kind == "mlp":
        return MLPGenerator(latent_dim, (1, 8, 8), (-1, 1), [32, 32]).eval()
    generator = DCGANGenerator(latent_dim, (1, 8, 8), (-1, 1), [16, 8])
    calibrate_batch_norm(generator, codes(256, latent_dim))
    return generator.eval()


def images(n, seed=1):
    return 2 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1


def two_loop(s, y, g):
    """Nocedal & Wright, algorithm 7.4, for one row whose pairs are all there."""
    q, alphas = g.clone(), []
    for step, change in zip(s.flip(0), y.flip(0), strict=True):
        alpha = (step @ q) / (step @ change)
        alphas.append(alpha)
        q = q - alpha * change
    q = q * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
    for step, change, alpha in zip(s, y, reversed(alphas), strict=True):
        q = q + step * (alpha - (change @ q) / (step @ change))
    return -q


@pytest.mark.parametrize("missing", [0, 1, 3, 4])
def test_compact_direction_is_the_two_loop_recursion(missing):
    draw = torch.Generator().manual_seed(0)
    hessian = torch.randn(5, 7, 7, generator=draw, dtype=torch.float64)
    hessian = hessian @ hessian.mT + torch.eye(7, dtype=torch.float64)
    s = torch.randn(5, 4, 7, generator=draw, dtype=torch.float64)
    s[:, :missing] = 0
    y = s @ hessian
    g = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    found, known = direction(s, y, g)
    assert known.tolist() == [missing < 4] * 5
    if missing < 4:
        expected = [two_loop(s[i, missing:], y[i, missing:], g[i]) for i in range(5)]
        torch.testing.assert_close(found, torch.stack(expected))


def test_linear_generator_gives_its_codes_back():
    torch.manual_seed(0)
    generator = nn.Linear(4, 9).double()
    z = codes(6, 4, dtype=torch.float64)
    found = reverse(generator, generator(z).detach(), latent_shape=4, tolerance=1e-9)
    torch.testing.assert_close(found.z, z, atol=1e-5, rtol=0)
    assert found.converged.all()


def test_misfit_gives_the_least_squares_code():
    torch.manual_seed(0)
    generator = nn.Linear(4, 9).double()
    x = torch.rand(5, 9, dtype=torch.float64)
    found = reverse(generator, x, latent_shape=4, tolerance=1e-9)
    least = torch.linalg.lstsq(generator.weight.detach(), (x - generator.bias.detach()).T)
    torch.testing.assert_close(found.z, least.solution.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
@pytest.mark.parametrize("precision", ["auto", "float32", "plain"])
def test_result_is_of_the_generator_itself(kind, precision, monkeypatch):
    monkeypatch.setattr(fast, "WORTH_BFLOAT16", 0)
    generator, x = network(kind), images(20)
    found = reverse(generator, x, latent_shape=12, steps=30, precision=precision)
    torch.testing.assert_close(found.x_hat, generator(found.z).detach())
    expected = (found.x_hat - x).square().flatten(1).sum(1) / 2
    torch.testing.assert_close(found.loss, expected)
    slow = reverse(generator, x, latent_shape=12, method="adam", steps=30)
    assert found.loss.mean() < slow.loss.mean()


def test_cross_entropy_falls_below_the_papers_loop():
    torch.manual_seed(0)
    generator = MLPGenerator(12, (1, 8, 8), (0, 1), [32, 32]).eval()
    x = (images(20) + 1) / 2
    found = reverse(generator, x, latent_shape=12, loss="bce")
    slow = reverse(generator, x, latent_shape=12, loss="bce", method="adam")
    assert (found.loss <= slow.loss * 1.01).float().mean() > 0.9


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_half_precision_generators_are_searched_in_float32(method):
    generator, x = network("mlp").to(torch.bfloat16), images(5)
    found = reverse(generator, x, latent_shape=12, method=method, steps=20)
    assert found.z.dtype == found.loss.dtype == torch.float32
    start = reverse(generator, x, latent_shape=12, method=method, steps=1)
    assert (found.loss < start.loss).all()


# The search is chaotic enough that any difference in one bit would show.
@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
@pytest.mark.parametrize("latent_dim", [2, 10, 17])
def test_a_code_does_not_depend_on_its_companions(kind, latent_dim, monkeypatch):
    monkeypatch.setattr(fast, "WORTH_BFLOAT16", 0)  # bfloat16 for these small networks too
    generator, x = network(kind, latent_dim), images(37)
    options = {"latent_shape": latent_dim, "steps": 25, "bank": 256}
    whole = reverse(generator, x, **options)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(3))
    shuffled = reverse(generator, x[order], index=order, batch_size=7, **options)
    alone = reverse(generator, x[5:6], index=torch.tensor([5]), **options)
    for field in ("z", "x_hat", "loss", "steps", "converged"):
        assert torch.equal(getattr(shuffled, field), getattr(whole, field)[order])
        assert torch.equal(getattr(alone, field), getattr(whole, field)[5:6])


@pytest.mark.parametrize("init", ["normal", "bank", "codes", "several", "encoder"])
def test_starts_of_every_kind(init):
    generator, x = network("mlp"), images(17)
    starts = {
        "codes": codes(17, 12),
        "several": codes(17 * 3, 12).view(17, 3, 12),
        "encoder": lambda x: x.flatten(1)[:, :12],
    }
    options = {"latent_shape": 12, "init": starts.get(init, init), "init_scale": 0.1, "steps": 30}
    found = reverse(generator, x, **options)
    rows = torch.tensor([3, 16])
    if isinstance(options["init"], torch.Tensor):
        options["init"] = options["init"][rows]
    again = reverse(generator, x[rows], index=rows, **options)
    assert torch.equal(again.z, found.z[rows])


def test_result_is_never_worse_than_the_start():
    generator, x = network("dcgan"), images(16)
    start = codes(16, 12)
    before = half_squared_error(generator(start).detach(), x)
    for steps in (1, 2, 50):
        found = reverse(generator, x, latent_shape=12, init=start, steps=steps)
        assert (found.loss <= before * (1 + 1e-6)).all()


def test_a_bank_gives_means_of_the_nearest_and_the_nearest():
    bank = Bank(lambda z: z, torch.arange(100.0)[:, None])
    near = bank.nearest(torch.tensor([[0.2], [99.0]]), 3)
    assert near[:, :, 0].tolist() == [[1.5, 0, 5.5], [97.5, 99, 93.5]]


@pytest.mark.parametrize("bank", [1, 2, 3])
def test_bank_smaller_than_the_starts(bank):
    generator, x = network("mlp"), images(30)
    found = reverse(generator, x, latent_shape=12, bank=bank, starts=5, steps=20)
    assert found.how.startswith(f"lbfgs, {'1 start' if bank == 1 else f'up to {bank} starts'} from")
    assert found.z.isfinite().all()


def test_a_start_without_a_finite_loss_does_not_end_the_search():
    x = torch.tensor([[1e4]])
    for init in ([60.0, 0.0], [60.0, 61.0, 9.0], [60.0, 61.0, 62.0, 9.0]):
        found = reverse(lambda z: z.exp(), x, latent_shape=1, init=torch.tensor([init])[:, :, None])
        assert found.loss < 1


def test_tolerance_0_takes_all_evaluations():
    found = reverse(network("mlp"), images(3), latent_shape=12, tolerance=0, steps=30, starts=1)
    assert found.steps.tolist() == [60, 60, 60]  # of the start and the refinement
    assert not found.converged.any()


def narrowing(n=8, latent_dim=12):
    """A linear map with ever weaker directions, and data that lie beyond codes within 1."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(20, latent_dim, generator=draw).double()
    weight *= torch.logspace(0, -1, latent_dim).double()
    return weight, torch.randn(n, 20, generator=draw).double() * 3


@pytest.mark.parametrize("bounds", [(-1, 1), (-0.3, 1), (-1, 0.3), (0.2, 1)])
def test_codes_stay_within_bounds_and_reach_the_constrained_minimum(bounds):
    weight, x = narrowing()
    box = {"latent_shape": 12, "constraint": "clip", "bounds": bounds}
    found = reverse(lambda z: z @ weight.T, x, **box, tolerance=1e-10, steps=150)
    slow = reverse(lambda z: z @ weight.T, x, **box, method="gd", lr=0.02, steps=2000, tolerance=0)
    assert (found.z.min(), found.z.max()) == bounds
    torch.testing.assert_close(found.loss, slow.loss, atol=0, rtol=1e-4)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_the_mirrored_problem_takes_the_mirrored_course(steps):
    weight, x = narrowing()
    start = codes(8, 12, dtype=torch.float64).clamp(-0.3, 1)[:, None]
    options = {"latent_shape": 12, "constraint": "clip", "tolerance": 0, "steps": steps}
    found = reverse(lambda z: z @ weight.T, x, bounds=(-0.3, 1), init=start, **options)
    mirrored = reverse(lambda z: -z @ weight.T, x, bounds=(-1, 0.3), init=-start, **options)
    # No rounding tells a number from its negative, so only the bounds could.
    assert torch.equal(mirrored.z, -found.z)


def test_hard_samples_take_more_starts_and_easy_ones_two():
    def generate(z):  # wells at every whole number, the deeper the nearer to 0
        return torch.cat([0.1 * z, (torch.pi * z).sin()], 1)

    x = torch.zeros(2, 2)
    starts = torch.tensor([[1.1, 0.9, 0.05, 2.9], [3.1, 4.9, 2.1, 0.05]])[:, :, None]
    two = reverse(generate, x, latent_shape=1, init=starts[:, :2])
    four = reverse(generate, x, latent_shape=1, init=starts)
    assert torch.equal(four.z[:1], two.z[:1])  # its first two agree, so the third is not taken
    assert torch.equal(four.steps[:1], two.steps[:1])
    assert four.loss[1] < 0.01 * two.loss[1]


def test_normal_starts_of_a_sample_differ():
    starts = Starts("normal", 3, 2, (4,), 1.0, None, None, 0)
    start = starts.of(torch.arange(2), torch.zeros(2, 5), lambda: pytest.fail("no bank is needed"))
    assert not torch.equal(start(0), start(1))
    assert torch.equal(start(0)[1:], normal_codes(torch.tensor([1]), (4,), 0))


def test_a_sample_without_a_finite_loss_spoils_no_other():
    def generate(z):
        return torch.where(z[:, :1] > 50, torch.nan, z)

    x, start = torch.zeros(4, 2), codes(4, 2)
    start[2] = 100
    found = reverse(generate, x, latent_shape=2, init=start)
    assert found.loss.isfinite().tolist() == [True, True, False, True]
    assert found.converged.tolist() == [True, True, False, True]


def test_restarts_and_tell_report_the_best_so_far():
    generator, x = network("mlp"), images(16)
    seen = []
    found = reverse(generator, x, latent_shape=12, watch=seen.append, precision="plain")
    losses = torch.stack([half_squared_error(generator(z).detach(), x) for z in seen])
    assert (losses.diff(dim=0) <= 1e-4).all()
    torch.testing.assert_close(losses[-1], found.loss, atol=1e-3, rtol=1e-3)


def test_an_exact_fit_is_converged_though_its_loss_still_falls():
    scales = torch.linspace(1, 0.05, 30, dtype=torch.float64)
    z = codes(5, 30, dtype=torch.float64)
    options = {"latent_shape": 30, "tolerance": 1e-2, "steps": 40}
    found = reverse(lambda z: z * scales, z * scales, **options)
    assert found.converged.all()
    fewer = reverse(lambda z: z * scales, z * scales, **options, starts=2)
    assert torch.equal(found.steps, fewer.steps)  # nothing better is left to look for
    longer = reverse(lambda z: z * scales, z * scales, **options | {"tolerance": 1e-6})
    assert (longer.loss < 0.5 * found.loss).all()


def test_codes_of_any_shape():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Flatten(), nn.Linear(18, 48), nn.Unflatten(1, (3, 4, 4))).eval()
    z = codes(5, 18).view(5, 2, 3, 3)
    x = generator(z).detach()
    found = reverse(generator, x, latent_shape=(2, 3, 3), tolerance=1e-6)
    assert found.z.shape == z.shape
    torch.testing.assert_close(found.z, z, atol=0.02, rtol=0)


def test_auto_says_what_it_chose():
    generator, x = network("dcgan"), images(3)
    found = reverse(generator, x, latent_shape=12, steps=2)
    assert found.how.startswith("lbfgs, up to 2 starts from the nearest of 2048 samples, passes in")
    noisy = lambda z: generator(z + 1e-7 * torch.rand_like(z))  # noqa: E731
    how = reverse(noisy, x, latent_shape=12, steps=2).how
    assert how.endswith("plain passes (it draws random numbers)")
    tied = reverse(generator, x, latent_shape=12, steps=2, norm="batch")
    assert tied.how == "adam, step size 0.05, at most 2 steps, 1 start from N(0, 0.0001²)"


def test_bfloat16_is_for_passes_that_are_work():
    small, large = network("mlp"), MLPGenerator(12, (1, 8, 8), (-1, 1), [700, 700]).eval()
    assert "bfloat16" not in reverse(small, images(2), latent_shape=12, steps=2).how
    how = reverse(large, images(2), latent_shape=12, steps=2).how
    assert ("bfloat16" in how) == fast.has_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "goes with neither norm='batch'"),
        ({"history": True}, "nor with history=True"),
        ({"constraint": "moments"}, "goes with neither"),
        ({"starts": 0}, "`starts` must be a whole number of at least 1, got 0"),
        ({"bank": 0}, "`bank` must be a whole number of at least 1"),
        ({"bank": torch.zeros(5, 3)}, r"`bank` must be .* got \(5, 3\)"),
        ({"precision": "half"}, "`precision` must be one of"),
        ({"init": torch.zeros(3, 2, 5)}, r"`init` must be finite codes"),
        ({"init": lambda x: x}, "`init` gave"),
        ({"starts": 2.5}, "`starts` must be a whole number of at least 1, got 2.5"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1, got 0"),
        ({"latent_shape": ()}, "`latent_shape` must be a size or sizes of at least 1"),
        ({"latent_shape": 0}, "`latent_shape` must be a size or sizes of at least 1"),
        ({"constraint": "clip", "bounds": (0.0, math.inf)}, "`bounds` must be finite"),
        ({"generator": torch.no_grad()(lambda z: 2 * z)}, "must be differentiable in its codes"),
        ({"generator": lambda z: (9 * z).round()}, "no slope in its codes"),
        ({"generator": lambda z: (z, z)}, r"got a tuple .*generator\(z\)\[0\]"),
    ],
)
def test_wrong_calls_are_refused_with_a_remedy(options, message):
    call = {"generator": network("mlp"), "latent_shape": 12, "method": "lbfgs"} | options
    x = images(3) if "generator" not in options else torch.zeros(3, 12)
    with pytest.raises(ValueError, match=message):
        reverse(call.pop("generator"), x, **call)


def test_generator_and_random_state_are_left_as_they_were():
    generator = network("dcgan").train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    state = torch.get_rng_state()
    reverse(generator, images(4), latent_shape=12, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def test_rosenbrock_is_solved_from_the_classic_start():
    # Half the squared error of (10 (b - a²), 1 - a) is Rosenbrock's function.
    def generate(z):
        a, b = z.unbind(1)
        return torch.stack([10 * (b - a.square()), 1 - a], 1)

    solver = LBFGS(half_squared_error, steps=300, bounds=None, tolerance=0.0)
    start = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)
    target = torch.zeros(1, 2, dtype=torch.float64)
    passes = Passes(generate, generate, "")
    found = solver.run(passes, Work(target, lambda k: start, 1, lambda share, z, loss: None))
    torch.testing.assert_close(found["z"], torch.ones(1, 2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_normal_starts_differ_by_sample_and_by_start():
    a = normal_codes(torch.arange(3), (4,), 0)
    b = normal_codes(torch.arange(3), (4,), 1)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_on_a_plateau_no_code_has_converged(method: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 20, generator=draw)
    x = 2 * torch.rand(40, 20, generator=draw) - 1

    def clipping(z: torch.Tensor) -> torch.Tensor:
        return (30 * (z @ weight + 1)).clamp(-1, 1)

    found = reverse(clipping, x, latent_shape=4, method=method, steps=100)
    z = found.z.requires_grad_()
    (slope,) = torch.autograd.grad((clipping(z) - x).square().sum(), z)
    flat = ~slope.any(1)
    assert flat.any()
    assert not found.converged[flat].any()
