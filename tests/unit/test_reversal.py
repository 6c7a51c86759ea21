"""Reversal: the published algorithms step by step, and a code that is its own sample's alone."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flexgen import reversal
from flexgen.networks import DCGANGenerator, MLPGenerator
from flexgen.reversal import calibrate_batch_norm
from flexgen.reversal.descent import WINDOW
from flexgen.reversal.starts import normal_codes

reverse = partial(reversal.reverse, method="adam")


def linear(latent_dim=4, features=9, seed=0):
    """A linear generator in float64 whose codes are known in closed form."""
    generator = nn.Linear(latent_dim, features).double()
    draw = torch.Generator().manual_seed(seed)
    weight = torch.linalg.qr(torch.randn(features, latent_dim, generator=draw).double())[0]
    generator.weight.data = weight * torch.linspace(0.7, 1.4, latent_dim).double()
    generator.bias.data = torch.randn(features, generator=draw).double()
    return generator


def network(kind, latent_dim=8, output_range=(-1, 1)):
    torch.manual_seed(0)
    if kind == "mlp":
        return MLPGenerator(latent_dim, (1, 8, 8), output_range, [32, 32])
    generator = DCGANGenerator(latent_dim, (1, 8, 8), output_range, [8, 4])
    calibrate_batch_norm(generator, torch.randn(256, latent_dim))
    return generator


def data(n, low=-1.0, high=1.0, seed=1, dtype=torch.float32, shape=(1, 8, 8)):
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, *shape, generator=draw, dtype=dtype)


def codes(n, latent_dim=8, seed=2, dtype=torch.float32):
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def equal(a, b, rows=slice(None)):
    return all(
        torch.equal(getattr(a, field)[rows], getattr(b, field))
        for field in ("z", "x_hat", "loss", "steps", "converged")
    )


# --- what it finds


@pytest.mark.parametrize(("method", "lr", "steps"), [("gd", 0.5, 200), ("adam", 0.05, 600)])
def test_linear_generator_gives_its_codes_back(method, lr, steps):
    generator, z = linear(), codes(6, 4, dtype=torch.float64)
    x = generator(z).detach()
    found = reverse(generator, x, latent_shape=4, method=method, lr=lr, steps=steps, tolerance=0)
    torch.testing.assert_close(found.z, z, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.x_hat, x, atol=1e-5, rtol=0)


def test_data_off_the_range_of_a_linear_generator_give_the_least_squares_code():
    generator = linear()
    x = data(5, dtype=torch.float64, shape=(9,))
    found = reverse(generator, x, latent_shape=4, method="gd", lr=0.5, steps=500, tolerance=0)
    target = (x - generator.bias.detach()).T
    least = torch.linalg.lstsq(generator.weight.detach(), target)
    torch.testing.assert_close(found.z, least.solution.T, atol=1e-8, rtol=0)
    residual = (generator(least.solution.T) - x).square().sum(1) / 2
    torch.testing.assert_close(found.loss, residual.detach(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
def test_result_is_consistent(kind):
    generator, x = network(kind), data(6)
    found = reverse(generator, x, latent_shape=8, steps=7)
    assert found.z.shape == (6, 8)
    assert torch.equal(found.steps, torch.full((6,), 7))
    torch.testing.assert_close(found.x_hat, generator.eval()(found.z).detach())
    expected = (found.x_hat - x).square().flatten(1).sum(1) / 2
    torch.testing.assert_close(found.loss, expected)
    assert not any(getattr(found, field).requires_grad for field in ("z", "x_hat", "loss"))


def test_codes_of_any_event_shape():
    flat = linear(6, 9)
    x = data(4, dtype=torch.float64, shape=(9,))
    vector = reverse(flat, x, latent_shape=6, steps=20)
    maps = reverse(lambda z: flat(z.flatten(1)), x, latent_shape=(2, 3), steps=20)
    assert maps.z.shape == (4, 2, 3)
    torch.testing.assert_close(maps.z.flatten(1), vector.z)


# --- the published algorithms


def hand_written(generator, x, z, steps, lr, loss):
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(generator(z), x), z)
        z = z.detach() - lr * gradient
    return z


@pytest.mark.parametrize("steps", [0, 1, 2, 25])
def test_gd_is_algorithm_1_of_kilcher(steps):
    generator, x, z = network("mlp"), data(16), codes(16)
    expected = hand_written(generator, x, z, steps, 0.05, lambda a, b: 0.5 * ((a - b) ** 2).sum())
    found = reverse(generator, x, latent_shape=8, method="gd", init=z, steps=steps, tolerance=0)
    torch.testing.assert_close(found.z, expected, rtol=1e-5, atol=1e-6)


def test_gd_is_algorithm_1_of_creswell_and_bharath():
    generator = network("mlp", output_range=(0, 1))
    x, z = data(16, 0, 1), codes(16)
    expected = hand_written(
        generator, x, z, 10, 0.05, lambda a, b: F.binary_cross_entropy(a, b, reduction="sum")
    )
    found = reverse(
        generator, x, latent_shape=8, loss="bce", method="gd", init=z, steps=10, tolerance=0
    )
    torch.testing.assert_close(found.z, expected, rtol=1e-4, atol=1e-5)
    expected = F.binary_cross_entropy(found.x_hat, x, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize(
    ("method", "optimizer"), [("adam", torch.optim.Adam), ("rmsprop", torch.optim.RMSprop)]
)
def test_adaptive_methods_are_torchs_on_the_summed_loss(method, optimizer):
    generator, x = network("mlp").requires_grad_(False), data(16)
    z = codes(16).requires_grad_()
    torchs = optimizer([z], lr=0.03)
    found = reverse(
        generator, x, latent_shape=8, method=method, lr=0.03, init=z, steps=30, tolerance=0
    )
    for _ in range(30):
        torchs.zero_grad()
        ((generator(z) - x).square().sum() / 2).backward()
        torchs.step()
    assert torch.equal(found.z, z.detach())


def test_saturated_cross_entropy_has_a_finite_loss_and_gradient():
    found = reverse(
        lambda z: torch.sigmoid(200 * z), data(4, 0, 1, shape=(3,)), latent_shape=3, loss="bce",
        init=torch.tensor([[-1.0, 1.0, 0.1]]).expand(4, 3), steps=3,
    )  # fmt: skip
    assert found.loss.isfinite().all()
    assert torch.equal(found.steps, torch.full((4,), 3))


def test_default_start_is_normal_with_the_given_scale():
    generator, x = network("mlp"), data(4000)
    start = reverse(generator, x, latent_shape=8, steps=0).z
    assert start.std() == pytest.approx(1e-4, rel=0.02)
    wide = reverse(generator, x, latent_shape=8, steps=0, init_scale=3.0).z
    torch.testing.assert_close(wide, 3e4 * start)


# --- a code is its own sample's alone


@pytest.mark.parametrize("kind", ["mlp", "dcgan"])
@pytest.mark.parametrize("method", ["gd", "rmsprop", "adam"])
def test_a_code_does_not_depend_on_its_batch(kind, method):
    """Every bit of every field, whatever the companions, order, batch size and padding."""
    generator, x = network(kind), data(36)
    options = {"latent_shape": 8, "method": method, "steps": WINDOW + 3, "tolerance": 0.05}
    together = reverse(generator, x, **options)
    assert method != "adam" or 0 < together.converged.sum() < 36
    some = torch.tensor([31, 3, 17])
    assert equal(together, reverse(generator, x[some], index=some, **options), some)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    assert equal(together, reverse(generator, x[order], index=order, **options), order)
    for batch_size in (7, 16):
        assert equal(together, reverse(generator, x, batch_size=batch_size, **options))


def test_a_code_does_not_depend_on_a_companion_that_bursts():
    def generator(z):
        return torch.where(z > 5, torch.inf, 30 * z)

    x = torch.tensor([[30.0], [300.0], [-15.0]])
    alone = reverse(generator, x[::2], latent_shape=1, index=torch.tensor([0, 2]), lr=0.1)
    beside = reverse(generator, x, latent_shape=1, lr=0.1)
    assert equal(beside, alone, slice(0, 3, 2))


def test_starts_depend_on_seed_and_index_alone():
    index = torch.tensor([5000, 3, 1023, 1024, 3])
    some = normal_codes(index, (2, 3), seed=7)
    assert torch.equal(some, normal_codes(torch.arange(5001), (2, 3), seed=7)[index])
    assert torch.equal(some[1], some[4])
    assert not torch.equal(some, normal_codes(index, (2, 3), seed=8))
    everything = normal_codes(torch.arange(5000), (4,), seed=0)
    assert everything.unique().numel() > 0.999 * everything.numel()
    assert abs(everything.mean()) < 0.03
    assert everything.std() == pytest.approx(1, abs=0.02)


def test_the_global_generator_is_not_touched():
    generator, x = network("dcgan"), data(3)
    before = torch.get_rng_state()
    reverse(generator, x, latent_shape=8, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tied", [{"norm": "batch"}, {"constraint": "moments"}])
def test_tied_batches_are_interleaved_and_come_back_in_order(tied):
    generator = network("dcgan")
    x = data(10)
    whole = reverse(generator, x, latent_shape=8, steps=3, batch_size=5, init=codes(10), **tied)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        own = reverse(generator, x[part], latent_shape=8, steps=3, init=codes(10)[part], **tied)
        torch.testing.assert_close(whole.z[part], own.z)
        torch.testing.assert_close(whole.loss[part], own.loss)


# --- the generator is left as it was


def state(generator):
    return (
        {name: tensor.clone() for name, tensor in generator.state_dict().items()},
        [module.training for module in generator.modules()],
        [parameter.requires_grad for parameter in generator.parameters()],
        [parameter.grad for parameter in generator.parameters()],
        [getattr(module, "track_running_stats", None) for module in generator.modules()],
        [getattr(module, "momentum", None) for module in generator.modules()],
    )


@pytest.mark.parametrize("norm", ["eval", "batch"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_generator_is_left_as_it_was(norm, fails):
    generator = network("dcgan").train()
    generator.net[0].eval()
    next(generator.parameters()).requires_grad_(False)
    before = state(generator)
    if fails:
        with pytest.raises(ValueError, match="output shape"):
            reverse(generator, data(4, shape=(1, 9, 9)), latent_shape=8, steps=2, norm=norm)
    else:
        reverse(generator, data(4), latent_shape=8, steps=2, norm=norm)
    after = state(generator)
    assert before[1:] == after[1:]
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


def test_dropout_is_off_and_the_mode_is_eval():
    seen = []

    class Watched(nn.Dropout):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    generator = nn.Sequential(nn.Linear(3, 4), Watched(0.5)).train()
    x = data(4, shape=(4,))
    reverse(generator, x, latent_shape=3, steps=3)
    reverse(generator, x, latent_shape=3, steps=3, norm="batch")
    assert seen
    assert not any(seen)


def test_a_function_of_a_network_collects_no_gradient():
    generator = linear()
    reverse(lambda z: generator(z), data(3, dtype=torch.float64, shape=(9,)), latent_shape=4)
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_batch_norm_by_the_batch_ties_codes_and_eval_does_not():
    """Creswell & Bharath, section 2.1: under batch statistics companions move a code."""
    generator, x, z = network("dcgan"), data(16), codes(16)
    other = torch.cat([x[:8], data(8, seed=9)])
    moved = {}
    for norm in ("eval", "batch"):
        a, b = (
            reverse(generator, batch, latent_shape=8, init=z, steps=10, norm=norm)
            for batch in (x, other)
        )
        moved[norm] = (a.z[:8] - b.z[:8]).abs().max()
    assert moved["eval"] == 0
    assert moved["batch"] > 1e-2


def test_batch_norm_by_the_batch_is_the_training_mode_function():
    generator, z = network("dcgan"), codes(16)
    x_hat = reverse(generator, data(16), latent_shape=8, init=z, steps=0, norm="batch").x_hat
    torch.testing.assert_close(x_hat, generator.train()(z).detach())


# --- constraints


def test_clip_projects_the_start_and_every_step():
    generator, x = linear(), 5 * data(6, dtype=torch.float64, shape=(9,))
    options = {"latent_shape": 4, "method": "gd", "lr": 0.3, "tolerance": 0}
    start = 4 * codes(6, 4, dtype=torch.float64)
    z = start.clamp(-0.5, 0.5)
    for steps in (0, 1, 2, 3):
        found = reverse(
            generator, x, init=start, steps=steps, constraint="clip", bounds=(-0.5, 0.5), **options
        )
        torch.testing.assert_close(found.z, z)
        z = (z - 0.3 * (generator(z) - x).detach() @ generator.weight.detach()).clamp(-0.5, 0.5)
    assert (found.z.abs() == 0.5).any()


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_moments_are_equation_5_summed_over_the_batch(loss):
    generator = network("mlp", output_range=(0, 1)).double()
    x, z = data(12, 0, 1, dtype=torch.float64), codes(12, dtype=torch.float64)

    def objective(x_hat, x):
        pixel = (
            F.binary_cross_entropy(x_hat, x, reduction="none")
            if loss == "bce"
            else (x_hat - x) ** 2 / 2
        )
        per_image = pixel.flatten(1).mean(1)
        mean, std = leaf.mean(), leaf.std(correction=0)
        return (per_image + 2.5 * ((0.3 - mean) ** 2 + (0.7 - std) ** 2)).sum()

    expected = z
    for _ in range(5):
        leaf = expected.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(generator(leaf), x), leaf)
        expected = leaf.detach() - 0.5 * gradient
    found = reverse(
        generator, x, latent_shape=8, loss=loss, method="gd", lr=0.5, steps=5, init=z, tolerance=0,
        constraint="moments", moments=(0.3, 0.7), constraint_weight=2.5,
    )  # fmt: skip
    torch.testing.assert_close(found.z, expected)
    assert found.loss.mean() > 1  # the reported loss is the sum over pixels all the same


def test_moments_pull_the_codes_to_the_prior():
    generator, x = network("mlp"), data(32)
    free = reverse(generator, x, latent_shape=8, steps=100)
    held = reverse(generator, x, latent_shape=8, steps=100, constraint="moments")
    assert abs(held.z.std() - 1) < 0.2 * abs(free.z.std() - 1)


# --- stopping, failure, history


def test_converged_samples_are_frozen_where_they_were_best():
    generator, x = linear(), data(16, dtype=torch.float64, shape=(9,))
    options = {"latent_shape": 4, "lr": 0.1, "init": 3 * codes(16, 4, dtype=torch.float64)}
    found = reverse(generator, x, steps=400, tolerance=1e-3, history=True, **options)
    assert found.converged.all()
    assert found.steps.unique().numel() > 1
    assert found.history.shape == (400, 16)
    assert found.steps.max() < 400
    free = reverse(generator, x, steps=400, tolerance=0, history=True, **options)
    for i, steps in enumerate(found.steps.tolist()):
        assert steps % WINDOW == 0
        assert torch.equal(found.history[:steps, i], free.history[:steps, i])
        assert found.loss[i] == found.history[:steps, i].min()
        assert (found.history[steps:, i] == found.loss[i]).all()


def test_nothing_converges_before_a_window_has_passed():
    x = data(4, dtype=torch.float64, shape=(9,))
    found = reverse(linear(), x, latent_shape=4, steps=WINDOW - 1, tolerance=0.9)
    assert not found.converged.any()
    assert (found.steps == WINDOW - 1).all()


def test_convergence_is_a_share_of_the_loss_over_the_window():
    """G(z) = z from 1 under gd with rate η: the loss falls by (1 − η)^(2·WINDOW) in a window."""
    rate = 1e-3
    share = 1 - (1 - rate) ** (2 * WINDOW)
    for factor, expected in ((0.9, False), (1.1, True)):
        found = reverse(
            lambda z: z, torch.zeros(1, 1).double(), latent_shape=1, init=torch.ones(1, 1).double(),
            method="gd", lr=rate, steps=2 * WINDOW, tolerance=factor * share,
        )  # fmt: skip
        assert bool(found.converged) is expected


def test_no_tolerance_takes_every_step():
    found = reverse(lambda z: z, torch.zeros(3, 2), latent_shape=2, steps=60, tolerance=0)
    assert (found.steps == 60).all()
    assert not found.converged.any()


def test_a_sample_met_to_within_the_tolerance_has_converged():
    """Under gd on G(z) = z the distance falls by the same factor forever: no standstill comes."""
    options = {"latent_shape": 1, "init": torch.ones(1, 1), "method": "gd", "lr": 0.2}
    x = torch.zeros(1, 1)
    left = 0.8 ** (WINDOW - 1)  # the loss is known before each update
    for tolerance, expected in ((1.1 * left, WINDOW), (0.9 * left, 2 * WINDOW)):
        found = reverse(lambda z: z, x, steps=100, tolerance=tolerance, **options)
        assert found.steps.item() == expected
        assert found.converged.item()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_sample_that_bursts_is_given_back_at_its_best(bad):
    def generator(z):
        return torch.where(z > 1, bad, z)

    found = reverse(
        generator, torch.tensor([[0.5], [2.0]]), latent_shape=1, init=torch.zeros(2, 1),
        method="gd", lr=0.4, steps=200,
    )  # fmt: skip
    assert found.converged.tolist() == [True, False]
    assert found.steps[1] < 50
    assert found.loss.isfinite().all()
    torch.testing.assert_close(found.z[1], torch.tensor([0.8]))
    torch.testing.assert_close(found.loss[1], torch.tensor(0.72))


def test_a_sample_that_bursts_with_its_last_step_is_given_back_at_its_best():
    found = reverse(
        lambda z: torch.where(z > 1, torch.inf, z), torch.tensor([[2.0]]), latent_shape=1,
        init=torch.zeros(1, 1), method="gd", lr=0.6, steps=1,
    )  # fmt: skip
    assert found.z.item() == 0
    assert found.loss.item() == 2


def test_a_gradient_that_is_not_finite_ends_a_sample_at_its_best():
    def generator(z):  # above 1 the value is z still, but the gradient is 0 / NaN
        return torch.where(z > 1, z, z + 0 * (1 - z).sqrt())

    found = reverse(
        generator, torch.tensor([[0.9]]), latent_shape=1, init=torch.tensor([[0.5]]),
        method="gd", lr=2.2, steps=5,
    )  # fmt: skip
    assert found.steps.item() == 1
    assert not found.converged.item()
    torch.testing.assert_close(found.z, torch.tensor([[0.5]]))


def test_a_sample_without_any_finite_loss_says_so():
    found = reverse(lambda z: z / 0, torch.ones(2, 1), latent_shape=1, steps=5)
    assert not found.loss.isfinite().any()
    assert not found.converged.any()
    assert (found.steps == 0).all()
    assert found.z.isfinite().all()


def test_history_is_the_loss_before_each_step():
    generator, x = network("mlp"), data(20)
    options = {"latent_shape": 8, "tolerance": 0.05}
    found = reverse(generator, x, steps=60, history=True, batch_size=16, **options)
    assert found.history.shape == (60, 20)
    for steps in (0, 1, 33):
        again = reverse(generator, x, steps=steps, **options)
        torch.testing.assert_close(found.history[steps], again.loss)
    assert reverse(generator, x, steps=2, **options).history is None


def test_progress_is_told_on_standard_error(capfd):
    generator, x = network("mlp"), data(20)
    quiet = reverse(generator, x, latent_shape=8, steps=WINDOW)
    assert capfd.readouterr() == ("", "")
    told = reverse(generator, x, latent_shape=8, steps=WINDOW, batch_size=8, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "20/20 samples" in err
    assert torch.equal(quiet.z, told.z)


# --- where it runs


def test_it_works_under_no_grad_and_autocast():
    generator, x = network("mlp"), data(16)
    plain = reverse(generator, x, latent_shape=8, steps=10)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = reverse(generator, x, latent_shape=8, steps=10)
    assert equal(plain, inside)


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode=False"):
        reverse(linear(), torch.zeros(2, 9).double(), latent_shape=4)


def test_data_made_in_inference_mode_are_taken():
    with torch.inference_mode():
        x = data(3)
        z = codes(3)
    assert reverse(network("mlp"), x, latent_shape=8, steps=2, init=z).z.shape == (3, 8)


def test_the_generators_precision_is_used():
    generator = linear()
    found = reverse(generator, data(3, shape=(9,)), latent_shape=4, steps=2)
    assert found.z.dtype == torch.float64
    x = data(3, dtype=torch.float64, shape=(9,))
    assert reverse(linear().float(), x, latent_shape=4, steps=2).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "l2"}, "`loss` must be one of mse, bce, l1, huber, lpips, perceptual, got 'l2'"),
        ({"method": "sgd"}, "`method` must be one of auto, lbfgs, gd, rmsprop, adam"),
        ({"norm": "train"}, "`norm` must be one of"),
        ({"constraint": "box"}, "`constraint` must be one of"),
        ({"lr": 0.0}, "`lr` must be positive"),
        ({"lr": math.nan}, "`lr` must be positive"),
        ({"steps": -1}, "`steps` must be a whole number of at least 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"tolerance": -1e-3}, "`tolerance` must be at least 0"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0"),
        ({"init_scale": -1.0}, "`init_scale` must be at least 0"),
        ({"constraint": "clip"}, "pass bounds=prior.support"),
        ({"bounds": (-1, 1)}, "bounds=None otherwise"),
        ({"constraint": "clip", "bounds": (1, -1)}, "low < high"),
        ({"init": "uniform"}, "`init` must be 'auto', 'normal'"),
        ({"init": torch.zeros(3, 5)}, r"`init` must be .* shape \(3, 4\), .* got \(3, 5\)"),
        ({"init": torch.full((3, 4), torch.nan)}, "finite codes"),
        ({"index": torch.arange(2)}, "`index` must hold"),
        ({"index": torch.arange(3) - 1}, "`index` must hold"),
        ({"x": torch.zeros(0, 9)}, "at least one sample"),
        ({"x": torch.zeros(9)}, r"a single sample is x\[None\]"),
        ({"x": torch.zeros(3, 9, dtype=torch.uint8)}, "floating point"),
        ({"x": torch.tensor([[0.0] * 9, [torch.nan] * 9])}, "in 1 of 2 samples"),
        ({"x": torch.zeros(3, 8)}, r"output shape \(9,\) .* got \(8,\)"),
        ({"x": torch.full((3, 9), -0.5), "loss": "bce"}, "`x` must lie in"),
        ({"loss": "bce"}, "the generator's output must lie in"),
        ({"norm": "batch", "generator": lambda z: z}, "needs the generator as a torch.nn.Module"),
        ({"norm": "batch", "x": torch.zeros(1, 9)}, "at least 2 samples"),
    ],
)
def test_wrong_calls_are_refused_with_a_remedy(change, message):
    call = {"generator": linear(), "x": torch.zeros(3, 9), "latent_shape": 4, "steps": 2} | change
    generator, x = call.pop("generator"), call.pop("x")
    with pytest.raises(ValueError, match=message):
        reverse(generator, x, **call)


def test_batch_norm_without_running_statistics_is_refused_in_eval():
    generator = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9, track_running_stats=False))
    with pytest.raises(ValueError, match="use norm='batch'"):
        reverse(generator, torch.zeros(3, 9), latent_shape=4)
    reverse(generator, torch.zeros(3, 9), latent_shape=4, norm="batch", steps=2)


# --- calibration


def test_calibrated_statistics_make_eval_what_training_is():
    torch.manual_seed(0)
    generator = DCGANGenerator(8, (1, 8, 8), (-1, 1), [16, 8])
    z = torch.randn(2000, 8)
    calibrate_batch_norm(generator, z)
    in_training = generator.train()(z).detach()
    calibrate_batch_norm(generator, z)
    torch.testing.assert_close(generator.eval()(z).detach(), in_training, rtol=0.01, atol=0.01)


def test_calibration_in_batches_is_the_mean_over_the_batches():
    layer = nn.BatchNorm1d(3)
    z = codes(100, 3)
    calibrate_batch_norm(layer, z, batch_size=40)
    torch.testing.assert_close(layer.running_mean, z[:80].mean(0))
    expected = (z[:40].var(0) + z[40:80].var(0)) / 2
    torch.testing.assert_close(layer.running_var, expected)


def test_calibration_forgets_what_it_replaces():
    layer = nn.BatchNorm1d(3).train()
    layer(50 + codes(100, 3))
    calibrate_batch_norm(layer, codes(100, 3))
    torch.testing.assert_close(layer.running_mean, codes(100, 3).mean(0))


def test_calibration_changes_nothing_else():
    generator = DCGANGenerator(8, (1, 8, 8), channels=[8, 4]).train()
    generator.net[0].eval()
    before = state(generator)
    calibrate_batch_norm(generator, codes(64, seed=5))
    after = state(generator)
    assert before[1:] == after[1:]
    changed = {n for n, tensor in before[0].items() if not torch.equal(tensor, after[0][n])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)


@pytest.mark.parametrize(("n", "batch_size"), [(1, None), (10, 20), (10, 1)])
def test_calibration_needs_enough_codes(n, batch_size):
    with pytest.raises(ValueError, match="draw more from the prior"):
        calibrate_batch_norm(network("dcgan"), codes(n), batch_size)
