"""The training core: step counters, schedules, averages, generators' states, checkpoints, logs."""

from flexgen.training.checkpoint import (
    CheckpointFiles,
    find_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from flexgen.training.counters import Counters, Schedule
from flexgen.training.csv_logger import CSVLogger
from flexgen.training.ema import EMA
from flexgen.training.loop import Loop
from flexgen.training.lr_schedules import CosineLR, LinearLR, StepLR, WarmupLR
from flexgen.training.processes import copy_from_zero, gather_from_all, rank
from flexgen.training.rng import isolated_rng, rng_state, seed_of_rank, set_rng_state
from flexgen.training.wandb_logger import LogPictures, WandbLogger

__all__ = [
    "EMA", "CSVLogger", "CheckpointFiles", "CosineLR", "Counters", "LinearLR", "LogPictures",
    "Loop", "Schedule", "StepLR", "WandbLogger", "WarmupLR", "copy_from_zero", "find_checkpoints",
    "gather_from_all", "isolated_rng", "latest_checkpoint", "load_checkpoint", "rank",
    "rng_state", "save_checkpoint", "seed_of_rank", "set_rng_state",
]  # fmt: skip
