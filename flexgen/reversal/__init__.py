"""Generator reversal: from data back to the codes that generate them."""

from flexgen.reversal.encoder import Encoder, train_encoder
from flexgen.reversal.engine import Reversal, reverse
from flexgen.reversal.modes import calibrate_batch_norm

__all__ = ["Encoder", "Reversal", "calibrate_batch_norm", "reverse", "train_encoder"]
