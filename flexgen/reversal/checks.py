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


def check_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A mask as booleans of x's shape, some of them true for each sample."""
    try:
        known = mask.to(x.device).bool().expand_as(x)
    except RuntimeError as error:
        raise ValueError(
            f"`mask` must fit data of shape {tuple(x.shape)}, got {tuple(mask.shape)}; give "
            "(height, width), (*shape) or (n, *shape)"
        ) from error
    if not ((mask == 0) | (mask == 1)).all() or not known.flatten(1).any(1).all():
        raise ValueError(
            "`mask` must be 1 where x is known and 0 elsewhere, some of it 1 for each sample, got "
            f"values from {float(mask.min()):.4g} to {float(mask.max()):.4g}"
        )
    return known


def check_loss(loss: Tensor) -> None:
    """Refuse a loss, of 32 samples, that is not one number for each."""
    if not isinstance(loss, Tensor) or loss.dim() != 1:
        raise ValueError(
            "`loss` must give one number for each sample, (batch,), got "
            f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}; sum over "
            "a sample's elements, not over the batch"
        )
