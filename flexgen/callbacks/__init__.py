"""Callbacks: schedules, logging and pictures; the work is in reversal, priors and metrics."""

from flexgen.callbacks.checkpoint import Checkpoint
from flexgen.callbacks.code_length import CodeLength
from flexgen.callbacks.density import DensityScore
from flexgen.callbacks.early_stopping import EarlyStopping
from flexgen.callbacks.figures import CodeMap, Disagreement, SampleGrid, Spectrum
from flexgen.callbacks.inference import InferenceScore
from flexgen.callbacks.likelihood import LikelihoodScore
from flexgen.callbacks.measurement import Measurement
from flexgen.callbacks.posterior import AggregatePosterior, Reconstructions
from flexgen.callbacks.posterior_score import PosteriorScore
from flexgen.callbacks.progress import Progress
from flexgen.callbacks.pruning import PRUNED, Pruning, make_pruner
from flexgen.callbacks.quality import SampleQuality
from flexgen.callbacks.refit import PriorRefit
from flexgen.callbacks.reversal import ReversalScore
from flexgen.callbacks.scheduled import Scheduled

__all__ = [
    "PRUNED", "AggregatePosterior", "Checkpoint", "CodeLength", "CodeMap", "DensityScore",
    "Disagreement",
    "EarlyStopping", "InferenceScore", "LikelihoodScore", "Measurement", "PosteriorScore",
    "PriorRefit", "Progress", "Pruning", "Reconstructions", "ReversalScore", "SampleGrid",
    "SampleQuality", "Scheduled", "Spectrum", "make_pruner",
]  # fmt: skip
