"""What every metric keeps: batches, repetition, reset, copies, devices, generators."""

import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torchmetrics import Metric, MetricCollection

import flexgen.metrics
from flexgen.metrics import (
    NSCD,
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

N = 48
GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(N, 3, generator=GENERATOR)
Y = torch.randint(4, (N,), generator=GENERATOR)
IMAGES = torch.randn(2, N, 1, 4, 4, generator=GENERATOR)


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier((1, 4, 4), 3, num_features=4).eval().requires_grad_(False)


def codes(part: slice) -> list[tuple]:
    return [(Z[part],)]


def labelled(part: slice) -> list[tuple]:
    return [(Z[part], Y[part])]


def images(part: slice) -> list[tuple]:
    return [(IMAGES[0][part],)]


def two_samples(part: slice) -> list[tuple]:
    return [(IMAGES[0][part], True), (IMAGES[1][part] + 1, False)]


# What builds the metric, and what its `update` takes for a part of the data.
Case = tuple[Callable[[], Metric], Callable[[slice], list[tuple]]]
ONE_CALL: dict[str, Case] = {
    "pag": (PriorAgreement, codes),
    "pag_literal": (lambda: PriorAgreement(2.0, convention="literal"), codes),
    "kl": (GaussianKL, codes),
    "kl_reference": (lambda: GaussianKL(reference=(torch.ones(3), 2 * torch.eye(3))), codes),
    "modes": (lambda: ModeCoverage(torch.eye(3), std=0.5), codes),
    "clusters": (lambda: ClusterRatio(4), labelled),
    "score": (lambda: ClassifierScore(classifier()), images),
    "balance": (lambda: ClassBalance(classifier()), images),
}
BY_POSITION: dict[str, Case] = {
    "score_splits": (lambda: ClassifierScore(classifier(), num_splits=3), images)
}
TWO_CALLS: dict[str, Case] = {
    "emd": (EarthMoverDistance, two_samples),
    "energy": (EnergyDistance, two_samples),
    "nscd": (NSCD, two_samples),
    "precision": (PrecisionRecall, two_samples),
    "precision_features": (lambda: PrecisionRecall(classifier()), two_samples),
    "fid": (lambda: frechet_distance(classifier()), two_samples),
    "kid": (lambda: kernel_distance(classifier()), two_samples),
}
ALL = ONE_CALL | BY_POSITION | TWO_CALLS


def each(cases: dict[str, Case]):
    return pytest.mark.parametrize(("build", "calls"), cases.values(), ids=cases)


def update(metric: Metric, calls: Callable, start: int = 0, stop: int = N) -> Metric:
    for arguments in calls(slice(start, stop)):
        metric.update(*arguments)
    return metric


def measured(build: Callable, calls: Callable) -> Any:
    return update(build(), calls).compute()


def in_batches(build: Callable, calls: Callable, starts: Iterable[int], size: int) -> Any:
    metric = build()
    for start in starts:
        update(metric, calls, start, start + size)
    return metric.compute()


def close(a: Any, b: Any) -> None:
    # The features of images are in single precision and depend on who shares the batch.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_every_public_metric_has_a_case():
    public = {getattr(flexgen.metrics, name) for name in flexgen.metrics.__all__}
    classes = {c for c in public if isinstance(c, type) and issubclass(c, Metric)}
    assert classes <= {type(build()) for build, _ in ALL.values()}


@pytest.mark.parametrize("size", [1, 5, 16])
@each(ALL)
def test_batches_do_not_matter(build, calls, size):
    close(in_batches(build, calls, range(0, N, size), size), measured(build, calls))


@each(ONE_CALL | TWO_CALLS)
def test_the_order_of_the_batches_does_not_matter(build, calls):
    backwards = reversed(range(0, N, 5))
    close(in_batches(build, calls, backwards, 5), measured(build, calls))


@each(ALL)
def test_an_empty_batch_changes_nothing(build, calls):
    metric = build()
    for start, stop in ((0, 0), (0, 20), (20, 20), (20, N)):
        update(metric, calls, start, stop)
    close(metric.compute(), measured(build, calls))


@each(ALL)
def test_compute_repeats_itself_and_draws_no_random_number(build, calls):
    metric = update(build(), calls)
    metric.compute_with_cache = False  # torchmetrics would hand out the first value
    first = copy.deepcopy(metric.compute())
    before = torch.get_rng_state()
    same(metric.compute(), first)
    assert torch.equal(torch.get_rng_state(), before)


@each(ALL)
def test_updates_go_on_after_compute(build, calls):
    metric = update(build(), calls, 0, N // 2)
    half = copy.deepcopy(metric.compute())
    update(metric, calls, N // 2, N)
    close(metric.compute(), measured(build, calls))
    same(update(build(), calls, 0, N // 2).compute(), half)


@each(ALL)
def test_reset_forgets(build, calls):
    metric = update(build(), calls)
    first = copy.deepcopy(metric.compute())
    metric.reset()
    same(update(metric, calls).compute(), first)


@each(ALL)
def test_a_copy_keeps_what_was_seen(build, calls):
    metric = update(build(), calls)
    same(metric.clone().compute(), metric.compute())
    same(pickle.loads(pickle.dumps(metric)).compute(), metric.compute())


@each(ONE_CALL)
def test_forward_gives_the_batch_and_keeps_the_whole(build, calls):
    metric = update(build(), calls, 0, N // 2)
    (arguments,) = calls(slice(N // 2, N))
    close(metric(*arguments), update(build(), calls, N // 2, N).compute())
    close(metric.compute(), measured(build, calls))


@each(ALL)
def test_states_hold_no_graph(build, calls):
    metric = build()
    for x, *rest in calls(slice(0, N)):
        metric.update(x.clone().requires_grad_(), *rest)
    for state in metric.metric_state.values():
        tensors = state if isinstance(state, list) else [state]
        assert not any(tensor.requires_grad for tensor in tensors)


def test_scores_of_codes_share_their_state_in_a_collection():
    together = MetricCollection({"pag": PriorAgreement(), "kl": GaussianKL()})
    for part in Z.split(10):
        together.update(part)
    assert len(together.compute_groups) == 1
    values = together.compute()
    for name in ("pag", "kl"):
        close(values[name], measured(*ALL[name]))


def test_codes_in_half_precision_are_summed_in_double():
    metric = PriorAgreement()
    metric.update(Z.bfloat16())
    assert metric.sum_zz.dtype == metric.compute().dtype == torch.float64
    exact = PriorAgreement()
    exact.update(Z.bfloat16().double())
    assert float(metric.compute()) == float(exact.compute())
