"""Generator reversal: from data back to the codes that generate them."""

from flexgen.reversal.engine import Reversal, reverse
from flexgen.reversal.modes import calibrate_batch_norm

__all__ = ["Reversal", "calibrate_batch_norm", "reverse"]
