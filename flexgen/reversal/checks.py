"""What reversal refuses, each with one line that names the remedy."""

from torch import Tensor


def check_data(x: Tensor, unit: bool) -> None:
    """Refuse data that are no batch of finite numbers, and with `unit` those outside [0, 1]."""
    if x.dim() < 2 or not len(x):
        raise ValueError(
            f"`x` must be a batch of at least one sample, (n, *shape), got {tuple(x.shape)}; "
            "a single sample is x[None]"
        )
    if not x.is_floating_point():
        raise ValueError(f"`x` must be floating point, got {x.dtype}; scale it to the data's range")
    if not x.isfinite().all():
        raise ValueError(
            "`x` must be finite, got NaN or infinity in "
            f"{int((~x.flatten(1).isfinite().all(1)).sum())} of {len(x)} samples; leave them out"
        )
    if unit:
        check_unit("`x`", x)


def check_unit(name: str, x: Tensor) -> None:
    """Refuse values that a binary cross-entropy is not defined on."""
    if ((x < 0) | (x > 1)).any():
        raise ValueError(
            f"{name} must lie in [0, 1] under loss='bce', got values from {float(x.min()):.4g} to "
            f"{float(x.max()):.4g}; train with `data.range=[0,1]` or use loss='mse'"
        )
