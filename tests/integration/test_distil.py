"""A prior that draws by the critic's score, distilled into one that needs no critic."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flexgen.metrics import EnergyDistance
from flexgen.metrics_table import read_metrics
from flexgen.priors import Pushforward
from flexgen.runs.run import open_run
from tests.conftest import SMALL

DISTIL = (
    "more=3", "refit.source=prior", "refit.n=2000", "refit.n_held_out=500", "prior.steps=400",
    "prior.network.hidden_features=[16]", "prior.critic.hidden_features=[16]",
)  # fmt: skip


@pytest.fixture
def masked(flexgen: Callable[..., Path]) -> Path:
    # A strong mask, so that the base is far from what is to be learned.
    return flexgen("train", *SMALL, "prior=masked", "prior.rate=0.2", "report=false")


def test_a_masked_prior_is_distilled(flexgen: Callable[..., Path], masked: Path) -> None:
    child = flexgen(
        "refit", f"run={masked}", *DISTIL, "refit.keep=always", "report=false", run_dir="child"
    )
    model = open_run(child).model
    assert isinstance(model.prior.current, Pushforward)
    assert model.counters.generator_steps == 33
    model.critic = torch.nn.Identity()  # not asked any more
    assert model.sample(7).shape == (7, 2)

    rows = read_metrics(child / "metrics.csv").rows
    logged = {name: value for row in rows for name, value in row.items()}
    assert logged["prior/effective_sample_size"] == pytest.approx(0.2, abs=0.01)
    base = model.prior.stages[0].base().sample((500,))
    held_out = open_run(masked).model.prior().sample((500,))
    from_base = EnergyDistance()
    from_base.update(held_out, real=True)
    from_base.update(base, real=False)
    assert logged["refit/energy_after"] < 0.3 * from_base.compute()


def test_no_prior_is_closer_to_its_own_draws(flexgen: Callable[..., Path], masked: Path) -> None:
    with pytest.raises(SystemExit, match=r"source=prior.*refit\.keep=always"):
        flexgen("refit", f"run={masked}", *DISTIL, run_dir="child")
