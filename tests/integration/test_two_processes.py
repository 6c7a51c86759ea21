"""Two processes that share the data give what one gives: every metric, and posterior draws."""

import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from flexgen.codes import in_shares
from flexgen.metrics import (
    ClassBalance,
    Classifier,
    ClassifierScore,
    ClusterRatio,
    EarthMoverDistance,
    EnergyDistance,
    GaussianKL,
    ModeCoverage,
    PrecisionRecall,
    PriorAgreement,
    frechet_distance,
    kernel_distance,
)
from flexgen.networks import MLPGenerator
from flexgen.priors import Normal
from flexgen.reversal import posterior_codes

N = 30
# States that hold samples or counts are gathered as they are; sums are added in another order.
EXACT = ("emd", "energy", "precision", "modes", "balance", "shares")
# Where process 1 takes over from process 0: in the middle, and never.
SHARES = {"uneven": 19, "one has nothing": N}


def cases() -> dict[str, tuple[Any, list[tuple]]]:
    """Every metric, and the arguments of its updates over all data."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N, 3, generator=generator)
    y = torch.randint(4, (N,), generator=generator)
    real, fake = torch.randn(2, N, 1, 4, 4, generator=generator)
    torch.manual_seed(0)
    classifier = Classifier((1, 4, 4), 3, num_features=4).eval().requires_grad_(False)
    both = [(real, True), (fake + 1, False)]
    reference = (torch.ones(3), 2 * torch.eye(3))
    return {
        "pag": (PriorAgreement(), [(z,)]),
        "pag_literal": (PriorAgreement(convention="literal"), [(z,)]),
        "kl": (GaussianKL(), [(z,)]),
        "kl_reference": (GaussianKL(reference=reference, bias_correct=True), [(z,)]),
        "emd": (EarthMoverDistance(), both),
        "energy": (EnergyDistance(), both),
        "precision": (PrecisionRecall(), both),
        "modes": (ModeCoverage(torch.eye(3), std=0.5), [(z,)]),
        "clusters": (ClusterRatio(4), [(z, y)]),
        "score": (ClassifierScore(classifier), [(real,)]),
        "balance": (ClassBalance(classifier), [(real,)]),
        "fid": (frechet_distance(classifier), both),
        "kid": (kernel_distance(classifier), both),
    }


def values(start: int, stop: int) -> dict[str, Any]:
    """What the metrics say after the rows from `start` to `stop`, in batches of 4."""
    results: dict[str, Any] = {}
    for name, (metric, updates) in cases().items():
        metric.compute_with_cache = False  # the second value is computed as well
        for at in range(start, stop, 4):
            rows = slice(at, min(at + 4, stop))
            for arguments in updates:
                metric.update(*(a[rows] if isinstance(a, torch.Tensor) else a for a in arguments))
        results[name] = metric.compute()
        if name == "pag":
            results["singular_values"] = metric.singular_values()
        if name == "kl":
            results["mean_term"] = metric.mean_term()
        if name == "balance":
            results["shares"] = metric.shares()
        if name == "score":
            results["split_scores"] = metric.split_scores()
        torch.testing.assert_close(metric.compute(), results[name])
    return results


def drawn(known: bool) -> dict[str, torch.Tensor]:
    """Posterior draws of uneven batches, in the end from known codes."""
    torch.manual_seed(0)
    generator = MLPGenerator(3, (6,), None, [16], num_classes=2)
    z, context = torch.randn(23, 3), torch.arange(23) % 2
    options: dict[str, Any] = {"num_temperatures": 5, "leapfrog_steps": 2, "chains": 2, "draws": 2}
    options |= {"context": context, "known": z if known else None, "batch_size": 10}
    x = generator(z, context).detach()
    return in_shares(posterior_codes, generator, x, prior=Normal(3), sigma=0.3, **options).tensors()


def process(rank: int, folder: Path) -> None:
    # A spawned process has imported the metrics and solved nothing yet.
    assert "ot" not in sys.modules
    assert "sklearn" not in sys.modules
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # without any update
    store = dist.FileStore(str(folder / "store"), 2)
    # A process that waits for the other in vain fails: by default after half an hour.
    patience = timedelta(seconds=40)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)
    try:
        results = {
            share: values(*((0, border) if rank == 0 else (border, N)))
            for share, border in SHARES.items()
        }
        widths = PriorAgreement()
        widths.update(torch.randn(9, 3 + rank))
        try:
            widths.compute()
        except ValueError as error:
            results["widths"] = str(error)
        results["drawn"] = [drawn(known) for known in (False, True)]
    finally:
        dist.destroy_process_group()
    torch.save(results, folder / f"{rank}.pt")


def test_two_processes_give_what_one_gives(tmp_path):
    mp.spawn(process, args=(tmp_path,), nprocs=2, daemon=True)
    expected, of_one = values(0, N), [drawn(known) for known in (False, True)]
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(results.pop("drawn"), of_one, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        assert "must hold data of one width, got [3, 4]" in results.pop("widths")
        assert results.keys() == SHARES.keys()
        for share, found in results.items():
            for name, value in expected.items():
                close = 0.0 if name in EXACT else 1e-12
                torch.testing.assert_close(
                    found[name], value, rtol=close, atol=close, msg=lambda m, s=share: f"{s}: {m}"
                )
            assert found.keys() == expected.keys()
