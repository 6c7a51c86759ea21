"""LightningModules: the adversarial families, the likelihood families, and what all share."""

from flexgen.models.adversarial import Adversarial
from flexgen.models.ali import ALI
from flexgen.models.autoencoder import Autoencoder
from flexgen.models.density import DensityModel
from flexgen.models.latent import Latent
from flexgen.models.vae import VAE
from flexgen.models.vq_vae import VQVAE

__all__ = ["ALI", "VAE", "VQVAE", "Adversarial", "Autoencoder", "DensityModel", "Latent"]
