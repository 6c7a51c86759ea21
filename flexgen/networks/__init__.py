"""Generators and critics: plain `torch.nn.Module`s sized by their arguments.

A generator maps codes `(batch, latent_dim)` to data `(batch, *shape)`; a critic maps data to one
raw output (logit) each, `(batch,)`. They know nothing of the objective they are trained with.
"""

from flexgen.networks.dcgan import DCGANCritic, DCGANGenerator
from flexgen.networks.mlp import MLPCritic, MLPGenerator

__all__ = ["DCGANCritic", "DCGANGenerator", "MLPCritic", "MLPGenerator"]
