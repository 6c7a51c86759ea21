"""Scores of codes and of samples, as torchmetrics whose states add up or concatenate.

Codes against a prior: `PriorAgreement`, `GaussianKL`, `EnergyDistance`, `NSCD`; classes among
codes: `ClusterRatio`. Samples against data: `EarthMoverDistance`, `PrecisionRecall`,
`frechet_distance`, `kernel_distance`; samples alone: `ModeCoverage`, `ClassBalance`,
`ClassifierScore`. Several processes give what one gives, and `compute` draws no random numbers.
`kwargs` of each go to `torchmetrics.Metric`.
"""

from flexgen.metrics.agreement import PriorAgreement, pag_bias, pag_interval
from flexgen.metrics.class_balance import ClassBalance
from flexgen.metrics.classifier import Classifier, train_classifier
from flexgen.metrics.classifier_scores import ClassifierScore, frechet_distance, kernel_distance
from flexgen.metrics.classifier_store import load_classifier, load_or_train_classifier
from flexgen.metrics.clusters import ClusterRatio
from flexgen.metrics.gaussian_kl import GaussianKL
from flexgen.metrics.inception import InceptionFeatures
from flexgen.metrics.likelihood import active_units, bits_per_dimension, marginal_log_prob
from flexgen.metrics.modes import ModeCoverage
from flexgen.metrics.precision_recall import PrecisionRecall
from flexgen.metrics.reconstruction import reconstruction_error
from flexgen.metrics.two_sample import (
    NSCD,
    EarthMoverDistance,
    EnergyDistance,
    earth_mover_distance,
)

__all__ = [
    "NSCD", "ClassBalance", "Classifier", "ClassifierScore", "ClusterRatio", "EarthMoverDistance",
    "EnergyDistance", "GaussianKL", "InceptionFeatures", "ModeCoverage", "PrecisionRecall",
    "PriorAgreement", "active_units", "bits_per_dimension", "earth_mover_distance",
    "frechet_distance", "kernel_distance", "load_classifier", "load_or_train_classifier",
    "marginal_log_prob", "pag_bias", "pag_interval", "reconstruction_error", "train_classifier",
]  # fmt: skip
