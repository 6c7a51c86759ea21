"""LightningModules: one for the adversarial families, and what every family shares."""

from flexgen.models.adversarial import Adversarial
from flexgen.models.generative import Generative

__all__ = ["Adversarial", "Generative"]
