"""FlexGen: flexible prior distributions in deep generative models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flexgen._version import __version__ as __version__

if TYPE_CHECKING:
    from flexgen import (  # noqa: I001
        analysis, callbacks, codes, data, distributions, drawing, flows, likelihoods, metrics,
        models, networks, objectives, posteriors, priors, regularisers, report, reversal, runs,
        training,
    )  # fmt: skip
    from flexgen.reversal import posterior_codes, reverse
    from flexgen.runs.compose import compose
    from flexgen.runs.errors import TrainingStopped
    from flexgen.runs.run import Run, open_run
    from flexgen.runs.train import train

__all__ = [
    "Run", "TrainingStopped", "analysis", "callbacks", "codes", "compose", "data", "distributions",
    "drawing", "flows", "likelihoods", "metrics", "models", "networks", "objectives", "open_run",
    "posterior_codes", "posteriors", "priors", "regularisers", "report", "reversal", "reverse",
    "runs", "train", "training",
]  # fmt: skip

_MODULES = {
    "Run": "flexgen.runs.run",
    "TrainingStopped": "flexgen.runs.errors",
    "compose": "flexgen.runs.compose",
    "open_run": "flexgen.runs.run",
    "posterior_codes": "flexgen.reversal",
    "reverse": "flexgen.reversal",
    "train": "flexgen.runs.train",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and Lightning take seconds, `flexgen --help` none of them."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in __all__:
        return import_module(f"flexgen.{name}")
    raise AttributeError(f"module 'flexgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
