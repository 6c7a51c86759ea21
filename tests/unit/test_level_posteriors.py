"""Posteriors of levels: the evidence of a linear model, free bits, the shared pass, maps."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from flexgen.contracts import Cost
from flexgen.flows import Autoregressive, ConvAutoregressive
from flexgen.likelihoods import Bernoulli, Gaussian
from flexgen.models import VAE
from flexgen.networks import BottomUpResNet, MLPEncoder, MLPFirstLevel, TopDownResNet
from flexgen.networks.layers import initialise_from_data
from flexgen.posteriors import Bidirectional, BottomUp
from flexgen.priors import Hierarchical, Normal, RealNVP, TopDown
from tests.training import train, trainable, without_gradient
from tests.unit.linear_gaussian import ADAM, Encoder

FEATURES, NOISE = 3, 0.7
POSTERIORS = {
    "bottom_up": functools.partial(BottomUp, hidden_features=()),
    "markov": functools.partial(BottomUp, hidden_features=(), sees_data=False),
    "bidirectional": Bidirectional,
}


class Linear:
    """x = W z₁ + b + noise, z₁ = (a z₂, 0) + c + S ε: evidence and both exact posteriors are known.

    W has columns at right angles and a single number of z₁ depends on z₂, so that levels have
    independent numbers in either order.
    """

    def __init__(self, name: str, off: float = 0.0, **options: Any) -> None:
        torch.manual_seed(0)
        w = torch.linalg.qr(torch.randn(FEATURES, 2).double())[0] * torch.tensor([2.0, 0.5])
        a, c = torch.tensor([1.3, 0.0]).double(), torch.tensor([0.2, -0.4]).double()
        s, b = torch.tensor([0.6, 0.9]).double(), torch.randn(FEATURES).double()
        prior = Hierarchical(3, [2, 1], hidden_features=())
        decoder = MLPFirstLevel(2, (FEATURES,), None, [])
        posterior = POSTERIORS[name](Encoder(), 3)
        likelihood = Gaussian(decoder, NOISE, learn_scale=False)
        self.model = VAE(posterior, likelihood, prior, optimizer=ADAM, **options).double()
        first = torch.diag(s**2) + a[:, None] * a  # of z₁
        cov = w @ first @ w.T + NOISE**2 * torch.eye(FEATURES).double()
        self.evidence = MultivariateNormal(w @ c + b, cov)
        self.x = self.evidence.sample((40,))
        seen = w.T / NOISE**2  # of x less b, in natural parameters of z₁

        with torch.no_grad():
            given = prior.networks[0].output
            given.weight.copy_(torch.cat([a, torch.zeros(2)])[:, None])
            given.bias.copy_(torch.cat([c, s.log()]))
            decoder.output.weight.copy_(w)
            decoder.output.bias.copy_(b)
            for parameter in posterior.parameters():
                parameter.zero_()
            if name != "bidirectional":
                # q(z₁|x), then q(z₂|z₁): what is fed on of x has columns of zeros.
                scale = (seen @ w + torch.linalg.inv(first)).diagonal().rsqrt()
                lowest, top = (network[-1] for network in posterior.networks)
                gain = scale[:, None] ** 2 * seen
                own = scale**2 * (torch.linalg.inv(first) @ c) - gain @ b
                variance = 1 / (1 + a[0] ** 2 / s[0] ** 2)
                top.weight[0, -2] = variance * a[0] / s[0] ** 2
                top.bias.copy_(torch.stack([-top.weight[0, -2] * c[0], variance.log() / 2]))
            else:
                # q(z₂|x), then q(z₁|z₂, x), whose prior's mean and log-scale the ladder gives.
                lowest, top = posterior.up
                scale = (seen @ w + torch.diag(1 / s**2)).diagonal().rsqrt()
                gain, own = scale[:, None] ** 2 * seen, -(scale**2) * (seen @ b)
                posterior.down["0"].weight[:2, :2] = torch.diag(scale**2 / s**2)
                given_top = w @ torch.diag(s**2) @ w.T + NOISE**2 * torch.eye(FEATURES).double()
                through = (w @ a) @ torch.linalg.inv(given_top)
                variance = 1 / (1 + through @ (w @ a))
                top.weight[0] = variance * through
                top.bias.copy_(
                    torch.stack([-variance * (through @ (w @ c + b)), variance.log() / 2])
                )
                self.top = variance * (through @ (self.x - w @ c - b).T), variance.sqrt()
            lowest.weight[:2] = gain
            lowest.bias.copy_(torch.cat([own + off, scale.log()]))
        # KL of the shifted lowest level to the exact one, which is what the ELBO loses.
        self.gap = float((off**2 / scale**2).sum() / 2)


@pytest.mark.parametrize("name", POSTERIORS)
def test_every_weight_is_the_evidence_under_either_exact_posterior(name: str) -> None:
    linear = Linear(name)
    expected = linear.evidence.log_prob(linear.x).expand(5, -1)
    weights = linear.model.log_weights(linear.x, 5)
    torch.testing.assert_close(weights, expected)
    # The same from the three distributions apart.
    q = linear.model.posterior(linear.x)
    z, log_q = q.rsample_and_log_prob((5,))
    apart = linear.model.likelihood(z).log_prob(linear.x) + linear.model.prior().log_prob(z)
    torch.testing.assert_close(apart - q.log_prob(z), expected)
    torch.testing.assert_close(q.log_prob(z), log_q)


@pytest.mark.parametrize("name", POSTERIORS)
def test_bounds_of_shifted_posteriors(name: str) -> None:
    x = Linear(name).x.repeat(100, 1)
    losses = []
    for k in (1, 8):
        linear = Linear(name, off=0.2, importance_samples=k)
        torch.manual_seed(1)
        losses.append(-float(linear.model.loss(x).detach()))
    evidence = float(linear.evidence.log_prob(linear.x).mean())
    if name == "bidirectional":  # of the other order the upper level follows the shifted lower one
        assert losses[0] == pytest.approx(evidence - linear.gap, abs=0.05)
    assert losses[0] < losses[1] - 0.03 < evidence - 0.02


def test_the_kl_of_a_level_is_that_of_its_exact_posterior() -> None:
    linear = Linear("bidirectional")
    loc, scale = linear.top
    expected = (loc**2 + scale**2 - 1).mean() / 2 - scale.log()
    torch.manual_seed(1)
    found = linear.model.posterior(linear.x).draw((1000,))
    assert found.kl is not None
    assert found.log_p is not None
    by_draws = (found.log_q - found.log_p).mean((0, 1))
    torch.testing.assert_close(found.kl.mean((0, 1))[1], expected)
    torch.testing.assert_close(found.kl.mean((0, 1)), by_draws, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("name", POSTERIORS)
def test_free_bits_are_of_each_level(name: str) -> None:
    linear = Linear(name, draws=500)

    def loss(free_bits: float) -> float:
        linear.model.free_bits = free_bits
        torch.manual_seed(1)
        return float(linear.model.loss(linear.x).detach())

    torch.manual_seed(1)
    found = linear.model.posterior(linear.x).draw((500,))
    kl = found.kl
    if kl is None:
        kl = found.log_q - linear.model.prior().log_prob_of_levels(found.z)
    lowest, top = kl.mean((0, 1)).tolist()
    free = (lowest / 2 + top) / 2  # of each number: one level has more, the other less
    floored = max(2 * free - lowest, 0) + max(free - top, 0)
    assert floored > 0.1
    assert loss(free) - loss(0.0) == pytest.approx(floored, abs=1e-6)
    assert loss(50.0) - loss(0.0) == pytest.approx(150 - lowest - top, abs=1e-6)


IAF = functools.partial(
    Autoregressive, num_layers=2, hidden_features=[8], context_features=3, update="gated"
)


def of_vectors(kind: Callable[..., Any], **options: Any) -> VAE:
    torch.manual_seed(0)
    posterior = kind(MLPEncoder((1, 4, 4), [8]), 7, **options)
    likelihood = Bernoulli(MLPFirstLevel(3, (1, 4, 4), None, [8]))
    prior = Hierarchical(7, [3, 2, 2], hidden_features=[8])
    return VAE(posterior, likelihood, prior, optimizer=ADAM)


def of_maps(
    flow: Callable[..., Any] | None = None, blocks: tuple[int, ...] = (1, 2), **options: Any
) -> VAE:
    torch.manual_seed(0)
    encoder = BottomUpResNet((1, 16, 16), channels=4, blocks=blocks)
    d = {(1, 2): 2 * (64 + 16 + 16), (1,): 2 * 64}[blocks]
    decoder = TopDownResNet(d, (1, 16, 16), code_channels=2, channels=4, blocks=blocks)
    posterior = Bidirectional(encoder, d, flow=flow, weight_norm=True)
    return VAE(posterior, Bernoulli(decoder), TopDown(d), optimizer=ADAM, **options)


CONV = functools.partial(ConvAutoregressive, hidden_channels=[4])


@pytest.mark.parametrize(
    "model",
    [
        lambda: of_vectors(BottomUp), lambda: of_vectors(BottomUp, flow=IAF, flow_levels=[2, 3]),
        lambda: of_vectors(Bidirectional), lambda: of_vectors(Bidirectional, flow=IAF),
        of_maps, lambda: of_maps(CONV),
    ],
    ids=["up", "up with flows", "bidirectional", "with flows", "maps", "maps with flows"],
)  # fmt: skip
def test_each_levels_parameters_get_a_gradient(model: Callable[[], VAE]) -> None:
    vae = model()
    shape = (1, 16, 16) if vae.prior.latent_dim > 7 else (1, 4, 4)
    learns = trainable(vae)
    train(vae, iter(lambda: torch.rand(6, *shape).round(), None))
    assert without_gradient(learns) == []


def test_a_flow_is_of_the_levels_that_are_named() -> None:
    posterior = of_vectors(Bidirectional, flow=IAF, flow_levels=[3]).posterior
    assert list(posterior.flows) == ["2"]
    assert posterior.log_prob_cost is Cost.SEQUENTIAL
    assert of_vectors(Bidirectional).posterior.log_prob_cost is Cost.PARALLEL
    q = posterior(torch.rand(4, 1, 4, 4))
    z, log_q = q.rsample_and_log_prob((2,))
    torch.testing.assert_close(q.log_prob(z), log_q)
    assert q.log_prob(z[:, :1]).shape == (2, 4)


def test_one_pass_down_gives_the_kl_and_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_maps(CONV)
    x = torch.rand(3, 1, 16, 16).round()
    torch.manual_seed(1)
    weights = model.log_weights(x, 2)
    calls: list[int] = []
    own = TopDownResNet.rung
    monkeypatch.setattr(
        TopDownResNet, "rung", lambda self, level, h: calls.append(level) or own(self, level, h)
    )
    torch.manual_seed(1)
    torch.testing.assert_close(model.log_weights(x, 2), weights)
    model.loss(x)
    assert calls == [2, 1, 0] * 2
    torch.manual_seed(1)
    z, log_q = model.posterior(x).rsample_and_log_prob((2,))
    apart = model.likelihood(z).log_prob(x) + model.prior().log_prob(z) - log_q
    torch.testing.assert_close(apart, weights)


def test_what_a_block_adds_is_scaled() -> None:
    def added(scale: float) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"channels": 4, "blocks": [2], "residual_scale": scale}
        low, high = BottomUpResNet((1, 8, 8), **sizes)(torch.ones(1, 1, 8, 8)).chunk(2, 1)
        decoder = TopDownResNet(64, (1, 8, 8), code_channels=2, **sizes)
        state = decoder.start(1)
        below = decoder.below(1, decoder.rung(1, state).state, torch.ones(1, 32))
        return below - state, low, high

    (one, low, high), (tenth, same, other) = added(1.0), added(0.1)
    torch.testing.assert_close(one, 10 * tenth)
    torch.testing.assert_close(low, same)
    assert not torch.allclose(high, other)


def test_noise_of_maps_is_the_base_space() -> None:
    model = of_maps(blocks=(1,)).double()
    base, to_code, from_code, _ = model.prior.base_space()
    eps = torch.randn(2, 128).double()
    z = to_code(eps)
    assert from_code is not None
    torch.testing.assert_close(from_code(z), eps)
    volume = torch.autograd.functional.jacobian(lambda e: to_code(e[None])[0], eps[0]).slogdet()[1]
    torch.testing.assert_close(model.prior().log_prob(z[0]), base().log_prob(eps[0]) - volume)


def test_a_prior_of_the_top_level_that_learns() -> None:
    torch.manual_seed(0)
    prior = Hierarchical(5, [3, 2], [8], RealNVP(2, num_layers=2, hidden_features=[8])).double()
    assert not prior().is_normal
    base, to_code, from_code, _ = prior.base_space()
    eps = torch.randn(4, 5).double()
    z = to_code(eps)
    assert from_code is not None
    torch.testing.assert_close(from_code(z), eps)
    jacobian = torch.autograd.functional.jacobian(lambda e: to_code(e[None])[0], eps[0])
    expected = base().log_prob(eps[0]) - jacobian.slogdet()[1]
    torch.testing.assert_close(prior().log_prob(z[0]), expected)
    assert prior().sample((3, 2)).shape == (3, 2, 5)
    with pytest.raises(ValueError, match=r"`top` must be a prior with a density over .* 2 numbers"):
        Hierarchical(5, [3, 2], top=Normal(3))


def test_a_convolutional_flow_is_triangular_and_inverts() -> None:
    torch.manual_seed(0)
    flow = ConvAutoregressive((2, 2, 3), num_layers=2, hidden_channels=[3, 5]).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, 0, 0.7)
    eps, context = torch.randn(2, 12).double(), torch.randn(4, 2, 18).double()
    z, ladj = flow(eps, context)
    assert z.shape == (4, 2, 12)
    back, minus = flow.inverse(z, context)
    torch.testing.assert_close(back, eps.expand_as(back))
    torch.testing.assert_close(minus, -ladj)

    def jacobian(f: ConvAutoregressive) -> Tensor:
        found = torch.autograd.functional.jacobian(lambda e: f(e, context[0, 0])[0], eps[0])
        order = torch.arange(12).view(2, 2, 3).permute(1, 2, 0).flatten()  # rows, columns, channels
        return found[order][:, order]

    torch.testing.assert_close(jacobian(flow).slogdet()[1], flow(eps[0], context[0, 0])[1])
    flow.steps = flow.steps[:1]
    one = jacobian(flow)
    assert torch.equal(one, one.tril())
    assert (one.diagonal() > 0).all()
    # Both channels of the row above, as far right as a kernel of 3 sees from the next one; in
    # a pixel the channel before.
    assert (one[6:8, :4] != 0).all()
    assert one[1, 0] != 0


def test_the_first_batch_sets_lengths_and_biases() -> None:
    model = of_maps(CONV, data_init=0.1)
    x = torch.rand(16, 1, 16, 16).round()
    names = ("posterior.encoder.first", "posterior.up.0", "likelihood.decoder.leave.2")
    seen: dict[str, Tensor] = {}
    initialise_from_data(model, lambda: model.log_weights(x, 1), 0.1)
    torch.manual_seed(1)
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    model.log_weights(x, 1)
    for name, out in seen.items():
        std, mean = torch.std_mean(out.transpose(0, 1).flatten(1), 1, correction=0)
        # Behind draws the statistics are those of other draws.
        loose = 0.05 if name.startswith("likelihood") else 1e-3
        torch.testing.assert_close(std, torch.full_like(std, 0.1), rtol=4 * loose + 1e-3, atol=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=loose)
    assert seen.keys() == set(names)


def test_averaged_weights_are_measured_and_the_others_train() -> None:
    model = of_vectors(BottomUp)
    averaged = VAE(model.posterior, model.likelihood, model.prior, optimizer=ADAM, ema_decay=0.5)
    weight = averaged.likelihood.decoder.output.weight
    history = [weight.detach().clone()]
    stream = iter(lambda: torch.rand(6, 1, 4, 4).round(), None)
    train(averaged, stream, 3, after=lambda: history.append(weight.detach().clone()))
    expected = history[0]
    for t, value in enumerate(history[1:]):
        expected = torch.lerp(expected, value, 1 - min(0.5, (1 + t) / (10 + t)))
    with averaged.evaluating():
        torch.testing.assert_close(weight.detach(), expected)
        averaged.sample(2)
        torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(weight, history[-1])
    assert not torch.equal(weight, expected)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: VAE(Bidirectional(Encoder(), 2), Gaussian(nn.Linear(2, 3)), Normal(2),
                     optimizer=ADAM), "a Normal prior has none; use prior=hierarchical"),
        (lambda: VAE(BottomUp(Encoder(), 2), Gaussian(nn.Linear(2, 3)), Normal(2),
                     optimizer=ADAM), "a Normal prior has none; use prior=hierarchical"),
        (lambda: of_vectors(BottomUp, flow=IAF, flow_levels=[4]), "`flow_levels` must be of 1"),
        (lambda: of_vectors(Bidirectional, flow={"num_layers": 2}), "set `posterior.flow=null`"),
        (lambda: TopDownResNet(9, (1, 16, 16), code_channels=2, channels=4, blocks=[1]),
         "set `latent_dim=128`"),
        (lambda: BottomUpResNet((1, 16, 16), residual_scale=0), "finite, got 0; use 0.1"),
        (lambda: VAE(Bidirectional(Encoder(), 7), Gaussian(nn.Linear(7, 3)), TopDown(7),
                     optimizer=ADAM), "a TopDown prior is that of a decoder"),
        (lambda: VAE(Bidirectional(Encoder(), 128), Gaussian(TopDownResNet(
            128, (1, 16, 16), code_channels=2, channels=4, blocks=[1])), TopDown(128),
            optimizer=ADAM), "the encoder must give maps"),
        (lambda: ConvAutoregressive((2, 4, 4), kernel_size=2), "`kernel_size` be odd"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_told_with_the_remedy(
    build: Callable[[], Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        build()
