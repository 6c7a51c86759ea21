"""VQ-VAE: the codebook's averages, the gradient straight through, the bound, what is refused."""

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexgen.likelihoods import Bernoulli, Gaussian
from flexgen.models import VAE, VQVAE
from flexgen.networks import Codebook, MLPEncoder, MLPGenerator, SpatialEncoder, SpatialGenerator
from flexgen.networks.codebook import perplexity
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Categorical, Normal
from tests.training import noise, train, trainable, without_gradient

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Features(nn.Sequential):
    """Data to features, the first number of all positions first."""

    out_features = 6


def vq_vae(**options: Any) -> VQVAE:
    """Two vectors' numbers at each of three positions, of data (4,), all linear."""
    torch.manual_seed(0)
    encoder = Features(nn.Linear(4, 6, bias=False))
    likelihood = Gaussian(nn.Linear(6, 4, bias=False), learn_scale=False)
    codebook = Codebook(5, 2, **options.pop("codebook", {}))
    prior = options.pop("prior", Categorical(3, 5))
    return VQVAE(encoder, codebook, likelihood, prior, optimizer=ADAM, **options).double()


def test_each_feature_names_its_nearest_vector() -> None:
    model = vq_vae()
    x = torch.randn(50, 4).double()
    z = model.encode(x)
    assert z.shape == (50, 3)
    h = model.encoder(x).view(50, 2, 3)
    for position in range(3):
        distance = torch.cdist(h[:, :, position], model.codebook.vectors)
        assert torch.equal(z[:, position].long(), distance.argmin(1))
    # points: as the encoder has its features, the first number of all positions first
    points = model.points(z).view(50, 2, 3)
    assert torch.equal(points[:, :, 1], model.codebook.vectors[z[:, 1].long()])


def test_the_gradient_goes_straight_through_as_its_closed_form_says() -> None:
    model = vq_vae(commitment=0.7)
    model.eval()  # the codebook stays
    x = torch.randn(8, 4).double()
    model.loss(x).backward()
    weight, decode = model.encoder[0].weight, model.likelihood.of_vectors.decoder.weight
    with torch.no_grad():
        h = x @ weight.T
        e = model.points(model.encode(x))
        # −log p(x|e) = |x − D e|² / 2 + …; its gradient at e is that of h; plus β · 2 (h − e).
        of_h = (e @ decode.T - x) @ decode + 0.7 * 2 * (h - e)
        expected = of_h.T @ x / len(x)
        of_decoder = (e @ decode.T - x).T @ e / len(x)
    torch.testing.assert_close(weight.grad, expected)
    torch.testing.assert_close(decode.grad, of_decoder)
    assert (h - e).abs().max() > 0.1
    assert model.codebook.vectors.grad is None


def test_the_codebook_follows_the_papers_averages() -> None:
    torch.manual_seed(0)
    book = Codebook(4, 2, decay=0.9, restart=0).double()
    count, total = torch.ones(4).double(), book.vectors.clone()
    for _ in range(20):
        z = torch.randn(30, 2).double() + 1
        index = book.nearest(z)
        before = book.vectors.clone()
        torch.testing.assert_close(index, torch.cdist(z, before).argmin(1))
        book.update(z, index)
        for k in range(4):
            mine = z[index == k]
            count[k] = 0.9 * count[k] + 0.1 * len(mine)
            total[k] = 0.9 * total[k] + 0.1 * mine.sum(0)
        torch.testing.assert_close(book.uses, count)
        torch.testing.assert_close(book.vectors, total / count[:, None])
        assert not torch.equal(book.vectors, before)


def test_a_vector_that_is_never_named_stays_and_stays_finite() -> None:
    book = Codebook(2, 1, decay=0.5, restart=0)
    book.vectors.copy_(torch.tensor([[0.0], [100.0]]))
    book.sums.copy_(book.vectors)
    z = torch.zeros(10, 1)
    for _ in range(400):  # 0.5 ** 400 is no float32
        book.update(z, book.nearest(z))
    assert book.vectors.flatten().tolist() == [0.0, 100.0]
    book.update(torch.full((4, 1), 90.0), book.nearest(torch.full((4, 1), 90.0)))
    assert book.vectors[1].item() == pytest.approx(90)


def test_a_vector_that_is_hardly_named_is_put_on_the_batch() -> None:
    torch.manual_seed(0)
    book = Codebook(3, 1, decay=0.5, restart=0.2)
    book.vectors.copy_(torch.tensor([[0.0], [50.0], [60.0]]))
    book.sums.copy_(book.vectors)
    z = torch.tensor([[1.0], [2.0], [3.0]])
    for _ in range(2):  # 1, ½, ¼
        book.update(z, book.nearest(z))
        assert book.vectors.flatten()[1:].tolist() == [50.0, 60.0]
    book.update(z, book.nearest(z))
    assert set(book.vectors.flatten()[1:].tolist()) <= {1.0, 2.0, 3.0}
    assert book.uses[1:].tolist() == [1.0, 1.0]
    assert torch.equal(book.sums[1:], book.vectors[1:])


def test_perplexity_and_share_of_names() -> None:
    spread, used = perplexity(torch.tensor([[0, 0], [1, 1]]), 8)
    assert float(spread) == pytest.approx(2)
    assert float(used) == 0.25
    spread, _ = perplexity(torch.tensor([0, 0, 0, 5]), 8)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(spread) == pytest.approx(math.exp(entropy))


def test_the_bound_is_its_two_parts_and_below_log_p() -> None:
    model = vq_vae()
    x = torch.randn(6, 4).double()
    z = model.encode(x)
    of_data, of_codes = model.terms(x)
    torch.testing.assert_close(of_data, model.likelihood(z).log_prob(x))
    torch.testing.assert_close(of_codes, torch.full((6,), -3 * math.log(5)).double())
    torch.testing.assert_close(model.log_likelihood(x), of_data + of_codes)
    # log p(x), by all the codes that there are
    codes = torch.cartesian_prod(*[torch.arange(5.0)] * 3).double()
    everything = (
        model.likelihood(codes[:, None]).log_prob(x) + model.prior().log_prob(codes)[:, None]
    )
    assert (everything.logsumexp(0) >= of_data + of_codes).all()
    other = Categorical(3, 5).double()
    other.fit(z)
    gain = model.log_likelihood(x, prior=other) - model.log_likelihood(x)
    torch.testing.assert_close(gain, other().log_prob(z) + 3 * math.log(5))


def test_training_moves_codebook_and_networks_and_measuring_moves_nothing() -> None:
    model = vq_vae().float()
    before = copy.deepcopy(model.state_dict())
    learns = trainable(model)
    train(model, noise(32, 4), 3)
    assert without_gradient(learns) == []
    assert not torch.equal(model.codebook.vectors, before["likelihood.codebook.vectors"])
    after = copy.deepcopy(model.state_dict())
    model.encode(torch.randn(9, 4))
    model.terms(torch.randn(9, 4))
    assert model.sample(5).shape == (5, 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]), name


def test_a_prior_that_learns_is_trained_by_the_codes_and_moves_none() -> None:
    class Shares(Categorical):
        def __init__(self) -> None:
            super().__init__(3, 5)
            self.log_probs = nn.Parameter(torch.zeros(3, 5))

        def forward(self, context: Tensor | None = None) -> Any:
            shown = Categorical(3, 5)
            shown.log_probs = self.log_probs.log_softmax(1)
            return shown()

    model = vq_vae(prior=Shares())
    model.eval()
    x = torch.randn(8, 4).double()
    model.loss(x).backward()
    assert model.prior.current.log_probs.grad.abs().sum() > 0
    plain = vq_vae()
    plain.load_state_dict({**plain.state_dict(), **{
        k: v for k, v in model.state_dict().items() if not k.startswith("prior")}})  # fmt: skip
    plain.eval()
    plain.loss(x).backward()
    torch.testing.assert_close(model.encoder[0].weight.grad, plain.encoder[0].weight.grad)


def test_codes_and_prior_must_be_of_one_kind() -> None:
    with pytest.raises(ValueError, match=r"VQVAE are names, whole numbers below 5, and a Normal "
                       r"prior is over real numbers; use prior=categorical"):  # fmt: skip
        vq_vae(prior=Normal(3))
    with pytest.raises(ValueError, match=r"below 5, and a Categorical prior is over .* below 4"):
        vq_vae(prior=Categorical(3, 4))
    encoder = MLPEncoder((4,), hidden_features=[8])
    with pytest.raises(ValueError, match=r"a VAE are real numbers, and a Categorical prior is"):
        VAE(
            DiagonalGaussian(encoder, 3), Bernoulli(MLPGenerator(3, (4,), None, [8])),
            Categorical(3, 5), optimizer=ADAM,
        )  # fmt: skip


def test_a_wrong_size_is_named() -> None:
    encoder = SpatialEncoder((1, 8, 8), 2, [4])
    likelihood = Bernoulli(SpatialGenerator((1, 8, 8), 2, None, [4]))
    model = VQVAE(encoder, Codebook(5, 2), likelihood, Categorical(9, 5), optimizer=ADAM)
    with pytest.raises(ValueError, match=r"2 numbers at each of `latent_dim` 9 .* `latent_dim=16`"):
        model.check_fit((1, 8, 8), (0.0, 1.0))
    right = VQVAE(encoder, Codebook(5, 2), likelihood, Categorical(16, 5), optimizer=ADAM)
    right.check_fit((1, 8, 8), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"Bernoulli likelihood is of data in \(0.0, 1.0\)"):
        right.check_fit((1, 8, 8), (-1.0, 1.0))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 12, 9)])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_spatial_networks_mirror_each_other_and_see_locally(
    shape: tuple[int, int, int], num_classes: int | None
) -> None:
    torch.manual_seed(0)
    options = {"num_classes": num_classes}
    encoder = SpatialEncoder(shape, 3, [4, 6], **options)
    generator = SpatialGenerator(shape, 3, None, [6, 4], **options)
    labels = [] if num_classes is None else [torch.tensor([1, 0])]
    x = torch.randn(2, *shape)
    z = encoder(x, *labels)
    assert z.shape == (2, encoder.out_features) == (2, generator.latent_dim)
    assert generator(z, *labels).shape == x.shape
    if num_classes:
        assert not torch.equal(generator(z, *labels), generator(z, 1 - labels[0]))
        return
    # A change of the first pixel does not reach the last position of a large map.
    changed = x.clone()
    changed[..., 0, 0] += 10
    moved = (encoder(changed) - z).view(2, *generator.code_shape).abs().sum(1)
    assert moved[:, 0, 0].min() > 0
    if shape[1] > 20:
        assert moved[:, -1, -1].max() == 0


def test_codebook_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="`num_vectors` must be a whole number of at least 2"):
        Codebook(1, 2)
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), got 1"):
        Codebook(4, 2, decay=1)
