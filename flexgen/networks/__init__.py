"""Generators, critics and encoders: plain `torch.nn.Module`s sized by their arguments.

A generator maps codes `(batch, latent_dim)` to data `(batch, *shape)`; a critic maps data to one
raw output (logit) each, `(batch,)`; an encoder to features, `(batch, out_features)`. Each says its
datum's `shape`, a generator its `latent_dim`, an encoder its `out_features`. They know nothing of
the objective they are trained with.
"""

from flexgen.networks.dcgan import DCGANCritic, DCGANGenerator
from flexgen.networks.mlp import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.networks.resconv import ResConvEncoder, ResConvGenerator

__all__ = [
    "DCGANCritic", "DCGANGenerator", "MLPCritic", "MLPEncoder", "MLPGenerator", "ResConvEncoder",
    "ResConvGenerator",
]  # fmt: skip
