"""Generator reversal: from data back to the codes that generate them."""

from flexgen.reversal.annealed import Mapped, PosteriorCodes, posterior_codes
from flexgen.reversal.encoder import Encoder, train_encoder
from flexgen.reversal.engine import Reversal, reverse
from flexgen.reversal.freezing import calibrate_batch_norm
from flexgen.reversal.loading import Loaded, load_generator
from flexgen.reversal.pivotal import Tuned, pivotal_tuning
from flexgen.reversal.spaces import NoiseMaps, Structured, WSpace
from flexgen.reversal.stream import Streamed, TensorSource, reverse_stream

__all__ = [
    "Encoder", "Loaded", "Mapped", "NoiseMaps", "PosteriorCodes", "Reversal", "Streamed",
    "Structured", "TensorSource", "Tuned", "WSpace", "calibrate_batch_norm", "load_generator",
    "pivotal_tuning", "posterior_codes", "reverse", "reverse_stream", "train_encoder",
]  # fmt: skip
