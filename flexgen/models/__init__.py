"""LightningModules: one for every adversarial family."""

from flexgen.models.adversarial import Adversarial

__all__ = ["Adversarial"]
