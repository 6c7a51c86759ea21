"""Exact flows against those of zuko, nflows, normflows and Pythae, all sides in turn.

    python benchmarks/flows.py [--rounds 7] [--only coupling,iaf,slow] [--compile]

The peers but zuko are optional; `pip install --target PEERS --no-deps nflows normflows pythae UMNN`
and `PYTHONPATH=PEERS` take them in. All sides have the same layers, widths and batch (100), so the
same numbers of weights but for what a peer cannot leave out (its text says what). zuko's side is a
twin of ours on the same weights (`flow_twins.py`), and the two must agree before anything is timed.

Quoted are medians over the rounds of CPU seconds of the process, with one thread, in milliseconds a
call, and the medians of each round's ratio to zuko.
"""

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from flow_twins import autoregressive_twin, coupling_twin
from torch import Tensor, nn

from flexgen.distributions import DiagonalNormal
from flexgen.flows import Autoregressive, Coupling, FlowDistribution, Inverse

Side = Callable[[], object]
BATCH, CONTEXT, HIDDEN = 100, 200, [512, 512]


def peer(name: str) -> Any:
    """A peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def normal(d: int) -> DiagonalNormal:
    return DiagonalNormal(torch.zeros(d), torch.ones(d))


def log_normal(eps: Tensor) -> Tensor:
    return normal(eps.shape[-1]).log_prob(eps)


def trained(module: nn.Module, loss: Callable[[], Tensor]) -> Side:
    """A forward and a backward."""

    def step() -> None:
        module.zero_grad()
        loss().backward()

    return step


def without_gradient(run: Callable[[], object]) -> Side:
    return torch.no_grad()(run)


def agree(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


def widened(transform: nn.Module) -> None:
    net = transform.nets[0]
    getattr(net, f"weight{net.depth - 1}").data.mul_(20)


def couplings(d: int, layers: int, compiled: bool) -> tuple[dict[str, Side], dict[str, Side]]:
    """RealNVP with one hidden layer of 100: a density with its gradient; draws with theirs."""
    ours, x = Coupling(d, num_layers=layers), torch.randn(BATCH, d)
    widened(ours)
    twin = coupling_twin(ours, [100])
    agree(ours(x), twin().transform.call_and_ladj(x))
    p = FlowDistribution(normal(d), ours)
    densities = {
        "zuko": trained(twin, lambda: -twin().log_prob(x).mean()),
        "FlexGen": trained(ours, lambda: -p.log_prob(x).mean()),
    }
    draws = {
        "zuko": without_gradient(lambda: twin().rsample_and_log_prob((BATCH,))),
        "FlexGen": without_gradient(lambda: p.rsample_and_log_prob((BATCH,))),
    }
    split = Coupling(d, num_layers=layers, mask="random")
    q = FlowDistribution(normal(d), split)
    densities["FlexGen, random masks"] = trained(split, lambda: -q.log_prob(x).mean())
    if compiled:
        faster = Coupling(d, num_layers=layers)
        faster.compile()
        r = FlowDistribution(normal(d), faster)
        densities["FlexGen, compiled"] = trained(faster, lambda: -r.log_prob(x).mean())
    if peer("nflows"):
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow
        from nflows.nn.nets import MLP
        from nflows.transforms import AffineCouplingTransform, CompositeTransform

        class Net(MLP):
            """Their MLP takes no context, and their coupling hands over one that is None."""

            def forward(self, inputs: Tensor, context: None = None) -> Tensor:
                return super().forward(inputs)

        theirs = Flow(
            CompositeTransform([
                AffineCouplingTransform(
                    torch.arange(d) % 2 == i % 2, lambda a, b: Net((a,), (b,), [100])
                )
                for i in range(layers)
            ]),
            StandardNormal([d]),
        )  # fmt: skip
        densities["nflows"] = trained(theirs, lambda: -theirs.log_prob(x).mean())
        draws["nflows"] = without_gradient(lambda: theirs.sample_and_log_prob(BATCH))
    if normflows := peer("normflows"):
        parts = []
        for _ in range(layers):
            net = normflows.nets.MLP([d // 2, 100, d])
            parts += [
                normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(d, mode="swap")
            ]  # fmt: skip
        other = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(d, False), parts)
        densities["normflows"] = trained(other, lambda: -other.log_prob(x).mean())
        draws["normflows"] = without_gradient(lambda: other.sample(BATCH))
    return densities, draws


def steps(d: int, compiled: bool) -> tuple[dict[str, Side], dict[str, Side], dict[str, Side]]:
    """Eight steps of 512-512 with a context of 200: draws scored, an outside point, MAF draws."""
    eps, context = torch.randn(BATCH, d), torch.randn(BATCH, CONTEXT)
    ours = Autoregressive(d, context_features=CONTEXT)
    widened(ours)
    twin = autoregressive_twin(ours, HIDDEN)
    agree(ours(eps, context), twin(context).transform.call_and_ladj(eps))

    def score(transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        # As a posterior's term of the bound: log q, and z goes on to a decoder.
        z, ladj = transform(eps, context)
        return (log_normal(eps) - ladj + z.square().sum(-1)).mean()

    draws = {
        "zuko": trained(
            twin, lambda: score(lambda e, c: twin(c).transform.call_and_ladj(e))
        ),
        "FlexGen": trained(ours, lambda: score(ours)),
    }  # fmt: skip
    p = FlowDistribution(normal(d), ours, context)
    outside = {
        "zuko": without_gradient(lambda: twin(context).transform.inv.call_and_ladj(eps)),
        "FlexGen": without_gradient(lambda: p.log_prob(eps)),
    }
    maf = FlowDistribution(normal(d), Inverse(ours), context)
    maf_draws = {
        "zuko": without_gradient(lambda: twin(context).transform.inv(eps)),
        "FlexGen": without_gradient(lambda: maf.sample()),
        "FlexGen, with gradient": trained(ours, lambda: maf.rsample().square().sum()),
    }
    if compiled:
        faster = Autoregressive(d, context_features=CONTEXT)
        faster.compile()
        draws["FlexGen, compiled"] = trained(faster, lambda: score(faster))
    for name, library, kind, residual in (
        ("nflows", "nflows.transforms", "MaskedAffineAutoregressiveTransform", False),
        # Its networks take a context in residual blocks alone, which have one product more.
        ("normflows", "normflows.flows", "MaskedAffineAutoregressive", True),
    ):
        if not peer(name):
            continue
        build = getattr(importlib.import_module(library), kind)
        theirs = nn.ModuleList(
            build(
                d, HIDDEN[0], context_features=CONTEXT, num_blocks=1, use_residual_blocks=residual
            )
            for _ in range(8)
        )

        def through(e: Tensor, c: Tensor, layers: nn.ModuleList = theirs) -> tuple[Tensor, Tensor]:
            total = e.new_zeros(len(e))
            for layer in layers:
                e, ladj = layer(e, c)
                total = total + ladj
            return e, total

        def back(layers: nn.ModuleList = theirs) -> None:
            z = eps
            for layer in layers:
                z, _ = layer.inverse(z, context)

        draws[name] = trained(theirs, lambda through=through: score(through))
        if name == "nflows":
            outside[name] = without_gradient(back)
    if peer("pythae"):
        from pythae.models.normalizing_flows import IAF, IAFConfig

        iaf = IAF(
            IAFConfig(
                input_dim=(d,), n_made_blocks=8, n_hidden_in_made=2, hidden_size=HIDDEN[0],
                include_batch_norm=False,
            )
        )  # fmt: skip

        def pythae(e: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            image = iaf.inverse(e)
            return image.out, image.log_abs_det_jac

        draws["Pythae (no context)"] = trained(iaf, lambda: score(pythae))
        outside["Pythae (no context)"] = without_gradient(lambda: iaf(eps))
    return draws, outside, maf_draws


def compare(title: str, sides: dict[str, Side], rounds: int, calls: int) -> None:
    """Print each side's milliseconds a call and its ratio to the first."""
    for side in sides.values():
        side()
        side()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.process_time()
            for _ in range(calls):
                side()
            taken[name].append(1e3 * (time.process_time() - start) / calls)
    print(f"\n{title}")
    for name, values in taken.items():
        ratio = statistics.median(a / b for a, b in zip(values, taken["zuko"], strict=True))
        print(f"  {name:<24}{statistics.median(values):9.2f} ms{ratio:7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="coupling,iaf,slow", help="some of coupling,iaf,slow")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    if missing := [name for name in ("nflows", "normflows", "pythae") if not peer(name)]:
        print(f"not installed, so left out: {', '.join(missing)}; see the head of this script")
    print(f"torch {torch.__version__}, 1 thread, batch {BATCH}, {asked.rounds} rounds")
    only = asked.only.split(",")
    for d, layers in ((50, 8), (32, 8), (50, 16), (32, 16)) if "coupling" in only else ():
        densities, draws = couplings(d, layers, asked.compile)
        text = f"RealNVP, d {d}, {layers} layers: "
        compare(text + "density, forward and backward", densities, asked.rounds, 30)
        compare(text + "draws and their density, no gradient", draws, asked.rounds, 30)
    for d in (50, 32) if {"iaf", "slow"} & set(only) else ():
        draws, outside, maf_draws = steps(d, asked.compile)
        if "iaf" in only:
            compare(f"IAF, d {d}: draws and log q, forward and backward", draws, asked.rounds, 2)
        if "slow" in only:
            rounds = min(3, asked.rounds)
            compare(f"IAF, d {d}: density of points from outside", outside, rounds, 1)
            compare(f"MAF, d {d}: draws", maf_draws, rounds, 1)


if __name__ == "__main__":
    main()
