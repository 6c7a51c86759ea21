"""What reversal takes from a prior: its support, and draws of it that nobody else has drawn."""

import torch

from flexgen.codes import prior_options
from flexgen.priors import Normal, Uniform
from flexgen.training import isolated_rng


def test_a_bank_never_holds_the_codes_that_the_same_seed_draws():
    # An image of the generator's own would else be reversed by looking its code up.
    for prior in (Normal(3), Uniform(3)):
        with isolated_rng(5):
            drawn = prior().sample((2048,))
        bank = prior_options(prior, {"seed": 5})["bank"]
        assert bank.shape == (2048, 3)
        assert not (bank[:, None] == drawn[None, :100]).all(2).any()
        assert torch.equal(bank, prior_options(prior, {"seed": 5})["bank"])


def test_support_bounds_the_codes_unless_something_else_was_asked():
    assert prior_options(Uniform(3), {})["bounds"] == (-1.0, 1.0)
    assert prior_options(Uniform(3), {})["constraint"] == "clip"
    assert prior_options(Uniform(3), {"constraint": None})["constraint"] is None
    assert prior_options(Normal(3), {})["constraint"] is None


def test_the_papers_loop_needs_no_bank():
    state = torch.get_rng_state()
    assert "bank" not in prior_options(Normal(3), {"method": "adam"})
    assert prior_options(Normal(3), {"method": "adam", "init": "bank", "bank": 7})[
        "bank"
    ].shape == (7, 3)
    assert torch.equal(torch.get_rng_state(), state)
