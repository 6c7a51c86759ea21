"""Flows in float64: both directions, determinants, masks, densities, written-out derivatives."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from flexgen.distributions import DiagonalNormal
from flexgen.flows import (
    ActNorm,
    Autoregressive,
    Chain,
    Cost,
    Coupling,
    FlowDistribution,
    Inverse,
    LocationScale,
    LULinear,
    Permutation,
    Planar,
    SplineCoupling,
    Transform,
    conditioner,
)

small_coupling = functools.partial(Coupling, num_layers=3, hidden_features=[6], activation="Tanh")
small_steps = functools.partial(
    Autoregressive, num_layers=2, hidden_features=[7, 6], activation="Tanh"
)
MAPS: dict[str, Callable[..., Transform]] = {
    "coupling": small_coupling,
    "random": functools.partial(small_coupling, mask="random", num_layers=4),
    "checkerboard": functools.partial(small_coupling, mask="checkerboard", shape=(1, 2, 2)),
    "uneven": functools.partial(small_coupling, 5, hidden_features=[6, 5]),
    "nice": functools.partial(small_coupling, volume_preserving=True),
    "iaf": small_steps,
    "iaf random": functools.partial(small_steps, order="random"),
    "iaf gated": functools.partial(small_steps, update="gated", gate_bias=1.0),
    "iaf additive": functools.partial(small_steps, update="additive", hidden_features=[7]),
    "elu": functools.partial(small_steps, activation="ELU"),
    "maf": lambda *args, **options: Inverse(small_steps(*args, **options)),
    "chain": lambda *args, **options: Chain(
        [small_coupling(*args, **options), Permutation([2, 0, 3, 1]), LocationScale(*args)]
    ),
    "mixed": lambda *args, **options: Chain([
        LULinear(*args), ActNorm(*args), small_coupling(*args, **options),
        SplineCoupling(*args, hidden_features=[6], bins=3, bound=2.0),
    ]),
}  # fmt: skip


def mask_of(module: nn.Module, parameter: str) -> Tensor | float:
    return dict(module.named_buffers(recurse=False)).get(parameter.replace("weight", "mask"), 1.0)


def built(name: str, context_features: int = 0, features: int = 4) -> Transform:
    """A map with weights as large as trained ones."""
    torch.manual_seed(0)
    size = () if name == "uneven" else (features,)
    transform = MAPS[name](*size, context_features=context_features).double()
    for module in transform.modules():
        for parameter, value in module.named_parameters(recurse=False):
            spread = 0.1 if isinstance(module, LULinear | SplineCoupling) else 0.6
            value.data.normal_(0, spread).mul_(mask_of(module, parameter))
        if isinstance(module, LocationScale):
            module.factor.copy_(torch.randn(features, features).tril() + 3 * torch.eye(features))
    return transform


@pytest.fixture(autouse=True)
def blocks_of_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked products go by blocks at these sizes too."""
    monkeypatch.setattr(conditioner, "BLOCK_ROWS", 2)


def noise(transform: Transform, *batch: int) -> tuple[Tensor, Tensor | None]:
    eps = torch.randn(*batch, transform.features, dtype=torch.float64)
    if not transform.context_features:
        return eps, None
    return eps, torch.randn(*batch, transform.context_features, dtype=torch.float64)


@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("name", MAPS)
def test_round_trip_and_determinant(name: str, context_features: int) -> None:
    transform = built(name, context_features)
    eps, context = noise(transform, 3)
    z, ladj = transform(eps, context)
    back, back_ladj = transform.inverse(z, context)
    torch.testing.assert_close(back, eps)
    torch.testing.assert_close(back_ladj, -ladj)
    assert ladj.shape in ((3,), ())
    for i in range(3):
        c = None if context is None else context[i]
        matrix = jacobian(lambda x, c=c: transform(x, c)[0], eps[i])
        torch.testing.assert_close(matrix.slogdet().logabsdet, ladj.expand(3)[i])
    assert not torch.allclose(z, eps)


@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_written_out_derivative(name: str, inverse: bool, context_features: int) -> None:
    """Of codes, context and weights, along a random direction; masked entries have none."""
    transform = built(name, context_features)
    run = transform.inverse if inverse else transform.forward
    eps, context = noise(transform, 3)

    def value() -> Tensor:
        image, ladj = run(eps, context)
        return (image.sin() * torch.arange(1.0, 1 + transform.features)).sum() + (2 * ladj).sum()

    wanted = [(t.requires_grad_(), 1.0) for t in (eps, context) if t is not None] + [
        (p, mask_of(module, parameter))
        for module in transform.modules()
        for parameter, p in module.named_parameters(recurse=False)
    ]
    grads = torch.autograd.grad(value(), [t for t, _ in wanted])
    for (tensor, mask), grad in zip(wanted, grads, strict=True):
        assert torch.equal(grad * mask, grad)
        assert grad.any()
        direction = torch.randn_like(tensor) * mask
        with torch.no_grad():
            start = tensor.clone()
            above, below = (
                (tensor.copy_(start + step * direction), value())[1] for step in (1e-5, -1e-5)
            )
            tensor.copy_(start)
        slope = (above - below) / 2e-5
        torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["coupling", "iaf", "iaf gated"])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradcheck_by_codes_and_context(name: str, inverse: bool) -> None:
    transform = built(name, 2)
    eps, context = noise(transform, 2)
    run = transform.inverse if inverse else transform.forward
    assert context is not None
    assert torch.autograd.gradcheck(run, (eps.requires_grad_(), context.requires_grad_()))


@pytest.mark.parametrize("order", ["natural", "reversed", "random"])
@pytest.mark.parametrize("update", ["affine", "gated"])
def test_full_mask_of_a_step(order: str, update: str) -> None:
    """One step's Jacobian is non-zero exactly on and below the diagonal of its order."""
    torch.manual_seed(1)
    step = Autoregressive(
        6, num_layers=1, hidden_features=[40, 40], order=order, update=update, activation="Tanh"
    ).double()
    step.nets[0].weight2.data.mul_(100)
    eps = torch.randn(6, dtype=torch.float64)
    rank = step.orders[0].argsort()
    allowed = rank[:, None] >= rank
    assert torch.equal(jacobian(lambda x: step(x)[0], eps) != 0, allowed)
    assert torch.equal(jacobian(lambda x: step.inverse(x)[0], eps) != 0, allowed)


def test_masked_weights_stay_zero_under_an_optimizer_with_weight_decay() -> None:
    transform = Autoregressive(4, num_layers=2, hidden_features=[9, 8])
    optimizer = torch.optim.AdamW(transform.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        z, ladj = transform(torch.randn(5, 4))
        optimizer.zero_grad()
        (z.square().sum() + ladj.sum()).backward()
        optimizer.step()
    net = transform.nets[0]
    for k in range(net.depth):
        weight, mask = getattr(net, f"weight{k}"), getattr(net, f"mask{k}")
        assert torch.equal(weight != 0, (mask != 0).expand_as(weight))


@pytest.mark.parametrize("name", MAPS)
def test_a_context_is_shared_by_all_codes_of_its_batch(name: str) -> None:
    transform = built(name, 2)
    eps, _ = noise(transform, 5, 3)
    _, context = noise(transform, 3)
    assert context is not None
    z, ladj = transform(eps, context)
    assert z.shape == eps.shape
    one, one_ladj = transform(eps[2, 1], context[1])
    torch.testing.assert_close(z[2, 1], one)
    torch.testing.assert_close(ladj[2, 1], one_ladj)
    wide, _ = transform(eps[0, 0], context)
    assert wide.shape == (3, transform.features)


@pytest.mark.parametrize("name", ["coupling", "nice", "iaf", "iaf gated", "maf", "mixed"])
def test_density_integrates_to_one(name: str) -> None:
    transform = built(name, features=2)
    for parameter in transform.parameters():
        parameter.data.mul_(0.5)
    base = DiagonalNormal(*torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    p = FlowDistribution(base, transform)
    grid = torch.linspace(-9, 9, 541, dtype=torch.float64)
    with torch.no_grad():
        density = p.log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert float(density.sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("context_features", [0, 2])
def test_one_pass_draws_and_scores_as_two_do(context_features: int) -> None:
    transform = built("iaf", context_features)
    _, context = noise(transform, 3)
    base = DiagonalNormal(*torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64))
    p = FlowDistribution(base, transform, context)
    batch = (3,) if context_features else ()
    assert (p.batch_shape, p.event_shape) == (batch, (4,))
    z, log_prob = p.rsample_and_log_prob((7,))
    assert z.shape == (7, *batch, 4)
    assert z.requires_grad
    torch.testing.assert_close(p.log_prob(z), log_prob)
    assert p.sample((2,)).shape == (2, *batch, 4)
    if context is not None:
        alike = FlowDistribution(base, transform, context[:1].expand(3, -1)).sample()
        assert len(alike.unique(dim=0)) == 3  # each has noise of its own


def test_planar_steps() -> None:
    torch.manual_seed(0)
    transform = Planar(3, num_layers=4, context_features=2).double()
    for parameter in transform.parameters():
        parameter.data.normal_(0, 1.5)
    eps, context = noise(transform, 6)
    assert context is not None
    _, ladj = transform(eps, context)
    for i in range(6):
        matrix = jacobian(lambda x, i=i: transform(x, context[i])[0], eps[i])
        torch.testing.assert_close(matrix.slogdet().logabsdet, ladj[i])
        assert matrix.det() > 0
    assert transform.inverse_cost is Cost.ABSENT
    base = DiagonalNormal(torch.zeros(3), torch.ones(3))
    with pytest.raises(NotImplementedError, match="rsample_and_log_prob"):
        FlowDistribution(base, Planar(3)).log_prob(eps)


def test_costs_are_told() -> None:
    iaf, coupling = Autoregressive(3, hidden_features=[4]), Coupling(3)
    assert (iaf.forward_cost, iaf.inverse_cost) == (Cost.PARALLEL, Cost.SEQUENTIAL)
    maf = Inverse(iaf)
    assert (maf.forward_cost, maf.inverse_cost) == (Cost.SEQUENTIAL, Cost.PARALLEL)
    assert Chain([coupling, maf]).forward_cost is Cost.SEQUENTIAL
    assert coupling.inverse_cost is Cost.PARALLEL


@pytest.mark.parametrize("name", MAPS)
def test_a_new_map_is_near_the_identity_and_every_weight_learns(name: str) -> None:
    torch.manual_seed(0)
    size = () if name == "uneven" else (4,)
    transform = MAPS[name](*size, context_features=3)
    if name != "chain":
        eps, context = torch.randn(50, transform.features), torch.randn(50, 3)
        start = 8 * torch.tensor(1.0).sigmoid().log() if "gated" in name else 0
        assert (transform(eps, context)[1] - start).abs().max() < 0.2
    z, ladj = transform(torch.randn(50, transform.features), torch.randn(50, 3))
    (z.square().sum() + ladj.sum()).backward()
    for parameter, value in transform.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.any(), parameter


def test_sixteen_couplings_survive_wild_networks() -> None:
    """The bounded log-scale keeps a flow finite whatever its networks say."""
    torch.manual_seed(0)
    transform = Coupling(10, num_layers=16)
    for parameter in ("weight0", "weight1"):
        getattr(transform.nets[0], parameter).data.mul_(100)
    z, ladj = transform(torch.randn(20, 10))
    assert z.isfinite().all()
    assert ladj.abs().max() <= 16 * 5


def test_state_dict_carries_the_random_orders() -> None:
    first, second = (Coupling(9, mask="random") for _ in range(2))
    assert not torch.equal(first.orders, second.orders)
    second.load_state_dict(first.state_dict())
    eps = torch.randn(4, 9)
    assert torch.equal(first(eps)[0], second(eps)[0])


def test_checkerboard_moves_fields_of_one_colour() -> None:
    torch.manual_seed(0)
    transform = Coupling(2 * 3 * 4, num_layers=2, mask="checkerboard", shape=(2, 3, 4))
    first = transform.orders[0, : transform.parts[0]]
    board = torch.zeros(2, 3, 4).flatten().index_fill(0, first, 1.0).view(2, 3, 4)
    colour = (torch.arange(3)[:, None] + torch.arange(4)) % 2 == 0
    assert torch.equal(board, colour.float().expand(2, 3, 4))


def test_precision_does_not_follow_autocast() -> None:
    transform = built("coupling").float()
    eps = torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z, ladj = transform(eps)
        z.sum().backward()
    assert z.dtype == ladj.dtype == torch.float32
    assert torch.equal(z, transform(eps)[0])


def test_a_weight_changed_before_the_backward_is_noticed() -> None:
    transform = Coupling(4)
    z, _ = transform(torch.randn(3, 4))
    with torch.no_grad():
        transform.nets[0].weight0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Coupling(1), "`features` must be a whole number of at least 2"),
        (lambda: Coupling(4, num_layers=1), "`num_layers` must be a whole number of at least 2"),
        (lambda: Coupling(4, mask="odd"), "`mask` must be"),
        (lambda: Coupling(4, mask="checkerboard"), "`shape` must be"),
        (lambda: Coupling(4, mask="checkerboard", shape=(4, 1, 1)), "two fields"),
        (lambda: Coupling(4, hidden_features=[]), "`hidden_features` must"),
        (lambda: Coupling(4, activation="GELU"), "`activation` must be one of ReLU"),
        (lambda: Autoregressive(1), "`features` must be a whole number of at least 2"),
        (lambda: Autoregressive(4, order="odd"), "`order` must be"),
        (lambda: Autoregressive(4, update="odd"), "`update` must be"),
        (lambda: Planar(0), "`features` must be a whole number of at least 1"),
        (lambda: Permutation([0, 2]), "`order` must hold"),
        (lambda: Chain([]), "at least one map"),
        (lambda: Chain([Coupling(4), Coupling(5)]), "must agree"),
        (lambda: Coupling(4)(torch.zeros(2, 5)), r"a code must be \(\*batch, 4\)"),
        (lambda: Coupling(4)(torch.zeros(2, 4), torch.zeros(2, 1)), "`context` must be"),
        (lambda: Coupling(4, context_features=2)(torch.zeros(2, 4)), "got None"),
        (lambda: Planar(4, context_features=2)(torch.zeros(2, 4)), "got None"),
    ],
)
def test_mistakes_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["coupling", "iaf", "maf"])
def test_no_codes_at_all(name: str) -> None:
    transform = built(name)
    z, ladj = transform(noise(transform, 0)[0])
    assert (z.shape, ladj.shape) == ((0, 4), (0,))
    (z.sum() + ladj.sum()).backward()
    assert all(not p.grad.any() for p in transform.parameters() if p.grad is not None)


def test_a_point_too_far_for_the_inverse_has_no_density_and_spoils_no_mixture() -> None:
    flow = Autoregressive(2, num_layers=4, hidden_features=[8], update="gated", context_features=1)
    with torch.no_grad():
        for p in flow.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    q = FlowDistribution(DiagonalNormal(torch.zeros(2), torch.ones(2)), flow, torch.zeros(1, 1))
    near, far = q.rsample_and_log_prob()[0], torch.full((1, 2), -1e30)
    found = q.log_prob(torch.cat([near, far, torch.full((1, 2), math.nan)]))
    assert found[0].isfinite()
    assert found[1] == -math.inf
    assert found[2].isnan()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_second_derivatives_are_right(name: str, inverse: bool) -> None:
    transform = built(name, context_features=2)
    run = transform.inverse if inverse else transform.forward
    eps, context = noise(transform, 2)
    code = eps if not inverse else transform(eps, context)[0].detach()
    weights, towards = [], [torch.randn_like(code)]
    for module in transform.modules():
        for parameter, weight in module.named_parameters(recurse=False):
            weights.append(weight)
            towards.append(torch.randn_like(weight) * mask_of(module, parameter))

    def slopes(code: Tensor, **how: bool) -> tuple[Tensor | None, ...]:
        """Of codes and of weights."""
        code = code.detach().requires_grad_()
        image, ladj = run(code, context)
        value = image.sin().sum() + ladj.sum()
        return torch.autograd.grad(value, (code, *weights), allow_unused=True, **how)

    def slope(code: Tensor) -> Tensor:
        """Of all together, in one direction."""
        pairs = zip(slopes(code, create_graph=True), towards, strict=True)
        return torch.stack([(found * t).sum() for found, t in pairs if found is not None]).sum()

    for twice, once in zip(slopes(code, create_graph=True), slopes(code), strict=True):
        torch.testing.assert_close(twice, once)
    slope(code).backward()
    found = sum((w.grad * t).sum() for w, t in zip(weights, towards[1:], strict=True)
                if w.grad is not None)  # fmt: skip
    ends = []
    for step in (1e-6, -2e-6):
        for weight, towards_weight in zip(weights, towards[1:], strict=True):
            weight.data.add_(towards_weight, alpha=step)
        ends.append(slope(code).detach())
    torch.testing.assert_close(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_every_way_of_torch_to_differentiate_finds_the_same(name: str, inverse: bool) -> None:
    transform = built(name, context_features=0)
    run = transform.inverse if inverse else transform.forward
    x = transform(noise(transform)[0])[0].detach()

    def value(code: Tensor) -> Tensor:
        image, ladj = run(code)
        return image.sin().sum() + ladj.sum()

    ways = torch.autograd.functional
    (slope,) = torch.autograd.grad(value(code := x.clone().requires_grad_()), code)
    torch.testing.assert_close(torch.func.grad(value)(x), slope)
    torch.testing.assert_close(torch.func.jacfwd(value)(x), slope)
    torch.testing.assert_close(ways.jvp(value, x, slope)[1], slope.square().sum())
    hessian = ways.hessian(value, x)
    torch.testing.assert_close(ways.hessian(value, x, vectorize=True), hessian)
    torch.testing.assert_close(torch.func.hessian(value)(x), hessian)
