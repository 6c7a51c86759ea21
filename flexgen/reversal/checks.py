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


def returned(value: object) -> str:
    """What a generator gave that is no tensor of floats, and what to do about it, in words."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return f"shape {tuple(value.shape)}; give it a batch dimension"
    if isinstance(value, Tensor):
        return (
            f"{value.dtype} of shape {tuple(value.shape)}; let it return floats, what it has "
            "before it rounds them to whole numbers"
        )
    one = "[0]"
    if isinstance(value, dict):
        names = [str(name) for name in value]
        one = f"[{names[0]!r}]" if names else one
        found = f"a dict ({', '.join(names[:6])})"
    elif isinstance(value, tuple | list):
        kinds = (tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in value)
        found = f"a {type(value).__name__} ({', '.join(map(str, kinds))})"
    else:
        found, one = f"a {type(value).__name__}", ".sample"
    return f"{found}; wrap it in a function that returns its data, lambda z: generator(z){one}"


def turned(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """How data of one shape are turned to another, a remedy for a message; "" if they are not."""
    if len(found) != 3 or len(wanted) != 3 or found == wanted:
        return ""
    if (found[2], found[0], found[1]) == wanted:
        return "they are channels last: permute them, x.permute(0, 3, 1, 2)"
    if (found[1], found[2], found[0]) == wanted:
        return "the generator's are channels last: permute x to it, x.permute(0, 2, 3, 1)"
    return ""
