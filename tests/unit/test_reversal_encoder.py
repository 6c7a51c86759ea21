"""An encoder learns to invert its generator from samples alone, and is kept beside it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flexgen.networks import MLPGenerator
from flexgen.reversal import reverse, train_encoder
from flexgen.reversal.encoder import load_or_train_encoder, refined


def generator(seed=0):
    torch.manual_seed(seed)
    return MLPGenerator(4, (1, 6, 6), (-1, 1), [32])


def prior(n):
    return torch.randn(n, 4)


@pytest.fixture(scope="module")
def trained():
    return train_encoder(generator(), prior, steps=150)


def test_codes_of_samples_are_guessed(trained):
    z = torch.randn(200, 4, generator=torch.Generator().manual_seed(9))
    guess = trained(generator()(z))
    assert (guess - z).square().mean() < 0.3  # the mean of the prior would give 1
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_encoder_is_a_start(trained):
    x = generator()(torch.randn(20, 4)).detach()
    guess = reverse(generator(), x, latent_shape=4, init=trained, starts=1, steps=1)
    found = reverse(generator(), x, latent_shape=4, init=trained)
    assert guess.how.startswith("lbfgs, 1 start from an encoder, ")
    assert found.how.startswith("lbfgs, up to 2 starts from an encoder and the nearest of 2048")
    assert found.loss.mean() < 0.01 * guess.loss.mean()


def test_rounds_of_feedback_make_the_guess_better_and_never_worse(trained):
    x = generator()(torch.randn(50, 4)).detach()
    x[0] = 30.0  # which no code makes

    def loss(z):
        return (generator()(z) - x).square().flatten(1).sum(1)

    guess = trained(x)
    better = refined(trained, generator(), x, guess)
    assert (loss(better) <= loss(guess)).all()
    assert loss(better)[1:].mean() < 0.8 * loss(guess)[1:].mean()
    assert torch.equal(refined(trained, generator(), x, guess, rounds=0), guess)


def test_training_is_repeatable_and_leaves_the_rest_alone():
    module = generator().train()
    state = torch.get_rng_state()
    first = train_encoder(module, prior, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    torch.randn(5)
    again = train_encoder(module, prior, steps=3)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_saved_encoder_is_loaded_for_its_own_generator_alone(tmp_path, trained):
    path, made = tmp_path / "there" / "encoder.safetensors", []

    def train():
        made.append(1)
        return trained

    load_or_train_encoder(path, "one", train)
    loaded = load_or_train_encoder(path, "one", train)
    assert len(made) == 1
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(loaded(x), trained(x))
    load_or_train_encoder(path, "other", train)
    assert len(made) == 2


def test_damaged_file_is_told(tmp_path, trained):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"\x08\x00")
    with pytest.raises(ValueError, match=r"is damaged .* remove it"):
        load_or_train_encoder(path, "one", lambda: trained)


@pytest.mark.parametrize(
    ("module", "steps", "message"),
    [(nn.Linear(4, 3), 0, "`steps` must be"), (lambda z: z / 0, 2, "finite data")],
)
def test_wrong_calls_are_refused(module, steps, message):
    with pytest.raises(ValueError, match=message):
        train_encoder(module, prior, steps=steps)


def test_pairs_are_not_the_draws_of_the_seed_itself():
    seen = []

    def remembered(n):
        seen.append(torch.randn(n, 4))
        return seen[-1]

    train_encoder(generator(), remembered, steps=1, seed=7)
    same = torch.randn(4096, 4, generator=torch.Generator().manual_seed(7))
    assert not (seen[0] == same).all(1).any()


def test_another_file_is_not_overwritten(tmp_path, trained):
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is no encoder"):
        load_or_train_encoder(path, "one", lambda: trained)
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_encoders_of_generators_in_other_precisions(dtype):
    module = generator().to(dtype)
    encoder = train_encoder(module, prior, steps=2)
    x = module(torch.randn(5, 4).to(dtype)).detach()
    found = reverse(module, x, latent_shape=4, init=encoder, steps=5)
    assert found.z.isfinite().all()
