"""The modules in a script of Lightning's own: what its Trainer is asked for is done, or refused."""

import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from flexgen.callbacks import SampleGrid
from flexgen.data import Ring, ToyData
from flexgen.likelihoods import Gaussian
from flexgen.models import VAE, Adversarial
from flexgen.networks import MLPCritic, MLPEncoder, MLPGenerator
from flexgen.objectives import WGANGP
from flexgen.posteriors import DiagonalGaussian
from flexgen.priors import Normal

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice on workers and loggers
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
]

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)
X, Y = torch.randn(320, 2), torch.arange(320) % 3


def gan(num_classes: int | None = None, **options: Any) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(
        MLPGenerator(4, (2,), hidden_features=[16], num_classes=num_classes),
        MLPCritic((2,), hidden_features=[16], num_classes=num_classes),
        Normal(4), WGANGP(), generator_optimizer=ADAM, critic_optimizer=ADAM,
        critic_steps=3, log_every=10, num_classes=num_classes, **options,
    )  # fmt: skip


def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(
        DiagonalGaussian(MLPEncoder((2,), [16]), 4),
        Gaussian(MLPGenerator(4, (2,), hidden_features=[16])), Normal(4), optimizer=ADAM,
    )  # fmt: skip


LOADERS = {
    "tensor": DataLoader(X, 32),
    "pair": DataLoader(TensorDataset(X, Y), 32),
    "dict": DataLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], 32),
}


def stream() -> ToyData:
    return ToyData(
        name="ring", shape=[2], range=None, batch_size=32, seed=0, num_train=320,
        num_validation=50, num_test=50, distribution=Ring(num_modes=8, radius=0.8, std=0.02),
    )  # fmt: skip


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    if "callbacks" not in options:
        quiet["enable_checkpointing"] = False
    return pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, **{**quiet, **options})


@pytest.mark.parametrize("kind", LOADERS)
def test_max_steps_counts_generator_steps_on_any_loader(kind: str, tmp_path: Path) -> None:
    model, train = gan(), trainer(tmp_path, max_steps=20)
    train.fit(model, LOADERS[kind])
    assert model.counters.generator_steps == train.global_step == 20
    assert model.counters.batches == model.counters.critic_steps == 60
    assert model.counters.images_seen == 60 * 32


def test_max_steps_ends_a_training_on_the_stream(tmp_path: Path) -> None:
    model, train = gan(), trainer(tmp_path, max_steps=37)
    train.fit(model, datamodule=stream())
    assert model.counters.generator_steps == train.global_step == 37


def test_epochs_and_their_limits_are_those_of_the_loader(tmp_path: Path) -> None:
    model = vae()
    trainer(tmp_path, max_epochs=3).fit(model, LOADERS["pair"])
    assert model.counters.generator_steps == 30
    model = vae()
    trainer(tmp_path, max_epochs=2, limit_train_batches=4).fit(model, LOADERS["pair"])
    assert model.counters.generator_steps == 8


def test_max_time_ends_a_training(tmp_path: Path) -> None:
    for data in ({"train_dataloaders": LOADERS["pair"]}, {"datamodule": stream()}):
        model = vae()
        trainer(tmp_path, max_time={"seconds": 1}).fit(model, **data)
        assert model.counters.generator_steps > 0


@pytest.mark.parametrize("data", [{"train_dataloaders": LOADERS["pair"]}, {"datamodule": stream()}])
def test_fast_dev_run_makes_whole_steps(data: dict[str, Any], tmp_path: Path) -> None:
    model = gan()
    trainer(tmp_path, fast_dev_run=True).fit(model, **data)
    assert model.counters.generator_steps == 1
    assert model.counters.critic_steps == 3


def test_early_stopping_sees_the_losses(tmp_path: Path) -> None:
    model = vae()
    stop = EarlyStopping("loss/generator", patience=2, min_delta=0.5)
    trainer(tmp_path, max_epochs=100, callbacks=[stop]).fit(model, LOADERS["pair"])
    assert model.counters.generator_steps < 1000
    assert stop.stopped_epoch > 0


@pytest.mark.parametrize("data", [{"train_dataloaders": LOADERS["pair"]}, {"datamodule": stream()}])
def test_model_checkpoint_saves_at_its_steps(data: dict[str, Any], tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=15, save_top_k=-1)
    trainer(tmp_path, max_steps=40, callbacks=[save]).fit(gan(), **data)
    found = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert found == ["step=15.ckpt", "step=30.ckpt"]
    again, train = gan(), trainer(tmp_path, max_steps=40)
    train.fit(again, **data, ckpt_path=tmp_path / "step=30.ckpt", weights_only=True)
    assert again.counters.generator_steps == train.global_step == 40
    assert again.counters.batches == 120


def test_a_profiler_sees_the_step(tmp_path: Path) -> None:
    train = trainer(tmp_path, max_steps=3, profiler="simple")
    train.fit(vae(), LOADERS["pair"])
    assert "run_training_batch" in train.profiler.summary()


STEPS = {"max_steps": 5}


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (
            {"max_steps": 5, "gradient_clip_val": 0.5},
            "pair",
            r"gradient_clip=0\.5.*model\.gradient_clip=0\.5",
        ),
        (
            {"max_steps": 5, "accumulate_grad_batches": 2},
            "pair",
            r"accumulate=2.*model\.accumulate=2",
        ),
        ({}, "stream", "max_epochs.*give max_steps"),
        ({"max_epochs": -1}, "stream", "would never end.*max_steps"),
        (STEPS | {"limit_train_batches": 1}, "stream", "limit_train_batches.*max_steps"),
        (STEPS | {"overfit_batches": 1}, "stream", r"overfit_batches.*data\.num_train"),
        (
            {"max_steps": 5, "callbacks": [EarlyStopping("loss/generator")]},
            "stream",
            "EarlyStopping",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(
    options: dict[str, Any], data: str, message: str, tmp_path: Path
) -> None:
    fed = {"datamodule": stream()} if data == "stream" else {"train_dataloaders": LOADERS[data]}
    model = gan()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).fit(model, **fed)
    assert model.counters.batches == 0


def test_labels_reach_a_conditional_model_or_are_missed(tmp_path: Path) -> None:
    model = gan(num_classes=3)
    trainer(tmp_path, max_steps=4).fit(model, LOADERS["dict"])
    assert model.counters.generator_steps == 4
    with pytest.raises(ValueError, match="got data alone"):
        trainer(tmp_path, max_steps=4).fit(gan(num_classes=3), LOADERS["tensor"])


def test_a_misfit_is_told_by_the_first_batch(tmp_path: Path) -> None:
    model = vae()
    with pytest.raises(ValueError, match="do not fit"):
        trainer(tmp_path, max_steps=4).fit(model, DataLoader(torch.randn(64, 3), 32))
    assert model.counters.batches == 0


def test_a_misfit_with_the_stream_is_told_before_the_first_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = Gaussian(MLPGenerator(4, (3,), hidden_features=[16]))
    model = VAE(DiagonalGaussian(MLPEncoder((3,), [16]), 4), decoder, Normal(4), optimizer=ADAM)
    with pytest.raises(ValueError, match="do not fit"):
        trainer(tmp_path, max_steps=4).fit(model, datamodule=stream())
    assert model.counters.batches == 0


def test_a_measurement_without_a_data_module_is_refused(tmp_path: Path) -> None:
    train = trainer(tmp_path, max_steps=4, callbacks=[SampleGrid()])
    with pytest.raises(ValueError, match="datamodule="):
        train.fit(vae(), LOADERS["pair"])
