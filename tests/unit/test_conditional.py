"""Labels through networks, models, priors, data and reversal."""

import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flexgen.callbacks import SampleQuality
from flexgen.contracts import in_context
from flexgen.data import ImageData
from flexgen.likelihoods import Bernoulli
from flexgen.models import VAE, Adversarial
from flexgen.networks import (
    DCGANCritic,
    DCGANGenerator,
    MLPCritic,
    MLPEncoder,
    MLPGenerator,
    ResConvEncoder,
    ResConvGenerator,
)
from flexgen.objectives import WGANGP, gradient_penalty
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Gaussian, Masked, Normal, PerClass, Rejection
from flexgen.reversal import reverse

K, D, SHAPE = 3, 4, (1, 8, 8)
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "mlp generator": MLPGenerator(D, SHAPE, hidden_features=[8], num_classes=K),
        "mlp norm": MLPGenerator(
            D, SHAPE, hidden_features=[8], norm="batch", num_classes=K, condition="norm"
        ),
        "mlp layer norm": MLPGenerator(
            D, SHAPE, hidden_features=[8], norm="layer", num_classes=K, condition="norm"
        ),
        "dcgan generator": DCGANGenerator(D, SHAPE, channels=[8, 4], num_classes=K),
        "dcgan norm": DCGANGenerator(
            D, SHAPE, channels=[8, 4], num_classes=K, condition="norm"
        ),
        "resconv generator": ResConvGenerator(
            D, SHAPE, channels=[4], linear_features=[8], num_classes=K
        ),
        "mlp projection": MLPCritic(SHAPE, hidden_features=[8], num_classes=K),
        "mlp concatenation": MLPCritic(
            SHAPE, hidden_features=[8], num_classes=K, condition="concatenation"
        ),
        "dcgan projection": DCGANCritic(SHAPE, channels=[4, 8], num_classes=K),
        "dcgan concatenation": DCGANCritic(
            SHAPE, channels=[4, 8], num_classes=K, condition="concatenation"
        ),
        "mlp encoder": MLPEncoder(SHAPE, [8], num_classes=K),
        "resconv encoder": ResConvEncoder(
            SHAPE, channels=[4], linear_features=[8], num_classes=K
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", networks())
def test_a_network_sees_its_label(name: str) -> None:
    network = networks()[name]
    codes = "generator" in name or "norm" in name
    x = torch.randn(6, D) if codes else torch.randn(6, *SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():  # γ = 1, β = 0 say nothing of a class yet
            parameter += 0.1 * torch.randn_like(parameter)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    out = network(x, labels)
    network.eval()
    same, other = network(x, labels), network(x, (labels + 1) % K)
    assert ((same - other).view(6, -1).abs().amax(1) > 1e-4).all()
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0 or "bias" in key, key
    with pytest.raises(ValueError, match="must be given labels"):
        network(x)


def test_a_conditional_norm_starts_as_the_norm_itself() -> None:
    torch.manual_seed(0)
    plain = MLPGenerator(D, SHAPE, hidden_features=[8], norm="batch")
    torch.manual_seed(0)
    of_class = MLPGenerator(
        D, SHAPE, hidden_features=[8], norm="batch", num_classes=K, condition="norm"
    )
    z = torch.randn(10, D)
    torch.testing.assert_close(of_class(z, torch.arange(10) % K), plain(z))


def test_projection_adds_the_class_direction_in_the_features() -> None:
    critic = MLPCritic(SHAPE, hidden_features=[8], num_classes=K).double()
    x, labels = torch.randn(5, *SHAPE).double(), torch.tensor([0, 1, 2, 2, 0])
    features = critic.hidden(x.flatten(1))
    direction = critic.output.direction.weight.T[labels]  # type: ignore[union-attr]
    wanted = critic.output.output(features).squeeze(1) + (direction * features).sum(1)
    torch.testing.assert_close(critic(x, labels), wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPGenerator(D, SHAPE, num_classes=K, condition="norm"), "needs a normalisation"),
        (
            lambda: MLPGenerator(D, SHAPE, num_classes=K, condition="projection"),
            "one of input, norm",
        ),
        (lambda: MLPCritic(SHAPE, num_classes=0), "num_classes"),
    ],
)
def test_mistakes_are_told(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def gan(prior: nn.Module | None = None, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(
        MLPGenerator(D, SHAPE, [-1, 1], hidden_features=[16], num_classes=10),
        MLPCritic(SHAPE, hidden_features=[16], num_classes=10),
        prior or Normal(D), WGANGP(), generator_optimizer=ADAM, critic_optimizer=ADAM,
        num_classes=10, **options,
    )  # fmt: skip


def digits(value_range: tuple[int, int] = (-1, 1)) -> ImageData:
    return ImageData(name="digits", shape=SHAPE, range=value_range, batch_size=50, seed=0)


def fit(model: pl.LightningModule, data: ImageData, steps: int = 3) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)


@pytest.mark.parametrize("prior", [Normal(D), Masked(Normal(D)), PerClass(Gaussian(D), 10)])
def test_a_conditional_gan_trains_samples_and_is_scored_by_class(
    prior: nn.Module, tmp_path: Path
) -> None:
    model, data = gan(prior), digits()
    fit(model, data)
    x = model.sample(20)
    assert x.shape == (20, *SHAPE)
    labels = torch.arange(20) % 10
    torch.manual_seed(1)
    in_turn = model.sample(20)
    torch.manual_seed(1)
    assert torch.equal(in_turn, model.sample(20, labels)), "without labels, the classes in turn"
    seen: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    SampleQuality(n=60, draws=1).run(model, data, tmp_path)
    hook.remove()
    _, wanted = data.split("validation", 60, 0)
    assert torch.equal(torch.cat(seen[-1:]), wanted), "samples have the labels of the data"


def test_a_conditional_vae_trains_and_bounds_the_likelihood_given_the_label() -> None:
    torch.manual_seed(0)
    model = VAE(
        DiagonalGaussian(MLPEncoder(SHAPE, [16], num_classes=10), D),
        Bernoulli(MLPGenerator(D, SHAPE, hidden_features=[16], num_classes=10)),
        Normal(D), optimizer=ADAM, num_classes=10,
    )  # fmt: skip
    data = digits((0, 1))
    fit(model, data)
    x, labels = data.split("test", 8)
    assert labels is not None
    right = model.log_likelihood(x, 50, labels)
    assert right.shape == (8,)
    assert not torch.allclose(right, model.log_likelihood(x, 50, (labels + 1) % 10), rtol=1e-3)
    assert model.encode(x, labels).shape == (8, D)


def test_the_penalty_mixes_data_and_keeps_labels() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def critic(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x.detach(), y))
        return (x * (y + 1.0)[:, None]).sum(1)

    real, fake = torch.zeros(4, 3), torch.ones(4, 3)
    labels = torch.arange(4)
    eps = torch.tensor([0.0, 0.25, 0.5, 1.0])
    penalty = gradient_penalty(critic, (real, labels), (fake, labels), eps)
    mixed, kept = seen[0]
    assert torch.equal(kept, labels)
    torch.testing.assert_close(mixed, (1 - eps)[:, None].expand(4, 3))
    norm = (labels + 1) * 3**0.5
    torch.testing.assert_close(penalty, (norm - 1).square().mean())


def test_streams_hand_out_the_labels_of_their_rows() -> None:
    data = digits()
    x, labels = data.split("train")
    assert labels is not None
    batch = next(data.stream(position=7))
    assert batch.context is not None
    for image, label in zip(batch.x, batch.context, strict=True):
        rows = (x == image).flatten(1).all(1)
        assert label in labels[rows]


class Shifted(nn.Module):
    """G(z, y) = 2 z + 10 y: codes that are known."""

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        return 2 * z + 10 * context[:, None]


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
@pytest.mark.parametrize("batch_size", [256, 7])
def test_reversal_takes_each_samples_own_context(method: Any, batch_size: int) -> None:
    torch.manual_seed(0)
    z, labels = torch.randn(23, 2), torch.randint(0, K, (23,))
    x = Shifted()(z, labels)
    found = reverse(
        Shifted(), x, latent_shape=2, context=labels, method=method, batch_size=batch_size,
        steps=300, tolerance=1e-6,
    )  # fmt: skip
    torch.testing.assert_close(found.z, z, atol=5e-2, rtol=0)
    wrong = reverse(Shifted(), x, latent_shape=2, context=(labels + 1) % K, method=method)
    assert (wrong.z - z).abs().max() > 1


def test_a_code_does_not_depend_on_its_companions_contexts() -> None:
    generator = DCGANGenerator(D, SHAPE, channels=[8, 4], num_classes=K).eval()
    torch.manual_seed(0)
    labels = torch.randint(0, K, (20,))
    with torch.no_grad():
        x = generator(torch.randn(20, D), labels)
    options: dict[str, Any] = {"latent_shape": D, "steps": 30, "bank": 64}
    together = reverse(generator, x, context=labels, **options)
    order = torch.randperm(20)
    shuffled = reverse(generator, x[order], context=labels[order], index=order, **options)
    assert torch.equal(shuffled.z, together.z[order])
    part = order[:5]
    few = reverse(generator, x[part], context=labels[part], index=part, **options)
    assert torch.equal(few.z, together.z[part])


def test_mistaken_contexts_of_a_reversal_are_told() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="one entry for each of 3 samples"):
        reverse(Shifted(), x, latent_shape=2, context=torch.zeros(2))
    many = torch.arange(100.0)
    with pytest.raises(ValueError, match="bank of starts is made for each context"):
        reverse(Shifted(), torch.zeros(100, 2), latent_shape=2, context=many)
    assert reverse(
        Shifted(), torch.zeros(100, 2), latent_shape=2, context=many, init="normal"
    ).z.shape == (100, 2)


class TestPerClass:
    @pytest.fixture
    def prior(self) -> PerClass:
        prior = PerClass(Gaussian(2), K)
        torch.manual_seed(0)
        labels = torch.arange(3000) % K
        codes = torch.randn(3000, 2) * 0.1 + labels[:, None]
        keep = (labels > 0) | (torch.arange(3000) < 900)
        self.report = prior.fit(codes[keep], context=labels[keep])
        return prior

    def test_each_class_has_its_own(self, prior: PerClass) -> None:
        labels = torch.tensor([2, 0, 1, 1, 0])
        z = prior(labels).sample((500,))
        assert z.shape == (500, 5, 2)
        torch.testing.assert_close(z.mean((0, 2)), labels.float(), atol=0.02, rtol=0)
        assert prior.draw(5, labels).shape == (5, 2)

    def test_densities_are_those_of_the_classes_and_of_their_mixture(self, prior: PerClass) -> None:
        # Near the classes: in single precision the densities of far points are 0.
        labels = torch.tensor([2, 0, 1, 1, 0])
        z = 0.1 * torch.randn(5, 2) + labels[:, None]
        each = torch.stack([prior.of(k)().log_prob(z) for k in range(K)])
        torch.testing.assert_close(prior(labels).log_prob(z), each[labels, torch.arange(5)])
        mixture = (each.exp() * prior.weights[:, None]).sum(0).log()
        torch.testing.assert_close(prior().log_prob(z), mixture)
        assert prior.weights.tolist() == pytest.approx([300 / 2300, 1000 / 2300, 1000 / 2300])
        many = prior().sample((4000,))
        assert (many.mean(1).round() == 0).double().mean() == pytest.approx(300 / 2300, abs=0.03)

    def test_it_needs_labels_and_codes_of_every_class(self, prior: PerClass) -> None:
        codes = torch.randn(50, 2)
        with pytest.raises(ValueError, match="codes with labels"):
            prior.fit(codes)
        with pytest.raises(ValueError, match="none of class 1"):
            prior.fit(codes, context=torch.zeros(50, dtype=torch.long))
        with pytest.raises(ValueError, match="nothing to learn"):
            PerClass(Normal(2), K).fit(codes, context=torch.arange(50) % K)
        with pytest.raises(ValueError, match="conditional=true"):
            PerClass(Normal(2), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [lambda: Masked(Normal(2), rate=0.5), lambda: Rejection(Normal(2))]
)
def test_a_prior_that_draws_by_score_scores_each_class_by_its_own(make: Any) -> None:
    prior = make()
    # Class 0 wants z₀ low, class 1 wants it high.
    prior.bind(score=lambda z, y: 3 * z[:, 0] * (2 * y - 1))
    labels = torch.tensor([0, 1] * 300)
    torch.manual_seed(0)
    z = prior.draw(600, labels)
    assert z.shape == (600, 2)
    assert z[labels == 0, 0].mean() < -0.5
    assert z[labels == 1, 0].mean() > 0.5
    assert {"critic_std", "acceptance"} <= prior.statistics.keys()


def test_a_plain_module_is_called_without_a_context() -> None:
    linear = nn.Linear(2, 2)
    z = torch.zeros(1, 2)
    assert torch.equal(in_context(linear, z, None), linear(z))
