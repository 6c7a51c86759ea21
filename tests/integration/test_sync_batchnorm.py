"""Batch norm over all processes. Torch has it on GPUs alone: its statistics are not tested here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import nn

from flexgen.models import Adversarial
from flexgen.reversal import reverse
from tests.conftest import SMALL
from tests.contract.test_configs import config


def test_it_is_refused_without_gpus(flexgen: Callable[..., Path]) -> None:
    with pytest.raises(SystemExit, match=r"sync_batchnorm=true` needs GPUs.*trainer=ddp"):
        flexgen("train", *SMALL, "trainer.sync_batchnorm=true")


def test_it_replaces_every_batch_norm_and_changes_nothing_that_is_measured() -> None:
    from hydra.utils import instantiate

    torch.manual_seed(0)
    small = ("network.generator.hidden_features=[8]", "network.critic.hidden_features=[8]")
    model: Adversarial = instantiate(config(*small, "network.generator.norm=batch")["model"])
    z = model.prior().sample(torch.Size((4,)))
    before, weights = model.decode(z), list(model.parameters())
    codes = reverse(model.decoder, before, latent_shape=model.latent_dim, steps=5).z

    synced = TorchSyncBatchNorm().apply(model)

    norms = [m for m in synced.modules() if isinstance(m, nn.BatchNorm1d | nn.SyncBatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert all(a is b for a, b in zip(weights, synced.parameters(), strict=True))
    assert torch.equal(synced.decode(z), before)
    assert torch.equal(
        reverse(synced.decoder, before, latent_shape=model.latent_dim, steps=5).z, codes
    )
