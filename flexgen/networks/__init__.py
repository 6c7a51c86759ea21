"""Generators, critics and encoders: plain `torch.nn.Module`s sized by their arguments.

A generator maps codes `(batch, latent_dim)` to data `(batch, *shape)`; a critic maps data to one
raw output (logit) each, `(batch,)`; an encoder to features, `(batch, out_features)`. Each says its
datum's `shape`, a generator its `latent_dim`, an encoder its `out_features`. They know nothing of
the objective they are trained with. A pixel network is a density of images; called, it gives their
distribution.
"""

from flexgen.networks.codebook import Codebook
from flexgen.networks.dcgan import DCGANCritic, DCGANEncoder, DCGANGenerator
from flexgen.networks.gated_pixelcnn import GatedPixelCNN
from flexgen.networks.joint import JointCritic
from flexgen.networks.made import MADE
from flexgen.networks.mlp import (
    MLPCritic,
    MLPEncoder,
    MLPFirstLevel,
    MLPGenerator,
    MLPStochasticGenerator,
)
from flexgen.networks.multiscale import MultiscalePixelCNN
from flexgen.networks.pixelcnn import PixelCNN
from flexgen.networks.pixelrnn import DiagonalBiLSTM, RowLSTM
from flexgen.networks.positioned import Positioned
from flexgen.networks.resconv import ResConvEncoder, ResConvGenerator
from flexgen.networks.resnet import ResNetCritic, ResNetGenerator
from flexgen.networks.resnet_vae import BottomUpResNet, TopDownResNet
from flexgen.networks.spatial import SpatialEncoder, SpatialGenerator

__all__ = [
    "MADE", "BottomUpResNet", "Codebook", "DCGANCritic", "DCGANEncoder", "DCGANGenerator",
    "DiagonalBiLSTM", "GatedPixelCNN", "JointCritic", "MLPCritic", "MLPEncoder", "MLPFirstLevel",
    "MLPGenerator", "MLPStochasticGenerator", "MultiscalePixelCNN", "PixelCNN", "Positioned",
    "ResConvEncoder", "ResConvGenerator", "ResNetCritic", "ResNetGenerator", "RowLSTM",
    "SpatialEncoder", "SpatialGenerator", "TopDownResNet",
]  # fmt: skip
