"""What a pickle holds: a generator, or weights of one, maybe beside others."""

import pickle
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import MAGIC_NUMBER

from flexgen.checks import first_line

# Under these names generators are saved, the averaged one, which makes the better images, first.
_NAMES = (
    "G_ema", "g_ema", "generator_ema", "netG_ema", "G", "netG", "g", "generator", "gen", "decoder",
    "ema", "model", "state_dict",
)  # fmt: skip

_CODE = (
    "start the command in the folder of the code that wrote it, or put that folder on PYTHONPATH "
    "(for NVIDIA's StyleGAN files their repository, with torch_utils and dnnlib)"
)


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save`, or of pickle itself, holds. It does whatever its writer wants.

    Raises:
        ValueError: if a class in it cannot be found, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            if file.read(1) == b"\x80" and not _of_torch(path):
                file.seek(0)
                return pickle.load(file)
        return torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as error:
        frames = traceback.extract_tb(error.__traceback__)
        if inside := [frame.filename for frame in frames if frame.name == "<module>"]:
            raise ValueError(
                f"cannot load {path}: the code of its classes is there, and {inside[-1]} fails to "
                f"import what it needs ({first_line(error)}); install that here"
            ) from error
        raise ValueError(
            f"cannot load {path}: its classes need the module {error.name}, which cannot be "
            f"imported here; {_CODE}"
        ) from error
    except AttributeError as error:
        raise ValueError(
            f"cannot load {path} ({first_line(error)}): a class in it is not where it was; {_CODE}"
        ) from error
    except Exception as error:  # whatever unpickling may raise
        raise ValueError(
            f"cannot load {path} ({first_line(error)}); it is cut short, or no file of torch's"
        ) from error


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by itself or of `torch.save`; nothing in it is run."""
    with open(path, "rb") as file:
        if file.read(1) == b"\x80":
            return True
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    inside = {name.partition("/")[2] for name in names}
    return "data.pkl" in inside and not inside & {"constants.pkl", "archive_format"}


def _of_torch(path: Path) -> bool:
    """Whether a pickle is of `torch.save` as it was before archives: its number comes first."""
    with open(path, "rb") as file:
        return MAGIC_NUMBER.to_bytes(10, "little") in file.read(32)


Weights = dict[str, Tensor]


def pick(
    content: Any, key: str | None, path: Path, *, weights: bool
) -> tuple[nn.Module | Weights, str | None]:
    """The generator in what a file holds, or its weights, and a note on which it is.

    Args:
        content: a module, weights, or a mapping of such things.
        key: where it lies in there, as `G_ema` or `state_dict.generator`; None: under a usual name.
        path: of the file, for messages.
        weights: whether weights are wanted, not a module.

    Raises:
        ValueError: if there is none, or several and none under a usual name.
    """
    value = content
    for part in key.split(".") if key else ():
        value = _part(value, part, f"{path} has no key {key!r}; it holds {_held(content)}")
    if _fits(value, weights):
        return _bare(value), None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{path} holds {_held(value)}, no generator and no weights")
    # Weights that lie directly beside other things, an optimizer's state, say, are in a mapping.
    found = [name for name, one in value.items() if _fits(one, weights)]
    usual = [name for name in _NAMES if name in found] or found[: len(found) == 1]
    prefix = "" if key is None else f"{key}."
    if usual:
        others = [str(name) for name in value if name != usual[0]]
        note = f"taken: key={prefix}{usual[0]}" + (
            f"; the file also holds {_listed(others)}" if others else ""
        )
        return _bare(value[usual[0]]), note
    if found:
        raise ValueError(
            f"{path} holds several: {_listed(found)}; say which is the generator, "
            f"key={prefix}{found[0]}"
        )
    inside = [name for name in _NAMES if isinstance(value.get(name), Mapping)]
    if inside and not any(_fits(one, True) for one in value.values()):
        return pick(content, f"{prefix}{inside[0]}", path, weights=weights)
    if not weights and any(_fits(one, True) for one in (value, *value.values())):
        raise ValueError(
            f"{path} holds weights alone ({_held(value)}); name what they belong to: "
            "network={_target_: package.Class, latent_dim: 100}"
        )
    raise ValueError(
        f"{path} holds {_held(value)}, "
        + ("no weights of one network" if weights else "no generator")
    )


def _part(value: Any, part: str, refusal: str) -> Any:
    if isinstance(value, Mapping):
        if part in value:
            return value[part]
        below = {
            str(name).removeprefix(f"{part}."): one
            for name, one in value.items()
            if str(name).startswith(f"{part}.")
        }
        if below:
            return below
    if isinstance(value, nn.Module) and part in dict(value.named_children()):
        return value.get_submodule(part)
    raise ValueError(refusal)


def _fits(value: Any, weights: bool) -> bool:
    if not weights:
        return isinstance(value, nn.Module)
    tensors = isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in value.values())
    return tensors and bool(value)


def _bare(value: Any) -> Any:
    """Weights without the prefix that DataParallel gives their names."""
    if isinstance(value, Mapping) and all(str(name).startswith("module.") for name in value):
        return {str(name).removeprefix("module."): one for name, one in value.items()}
    return dict(value) if isinstance(value, Mapping) else value


def _held(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary ({_listed(list(value))})"
    return type(value).__name__


def _listed(names: list[Any]) -> str:
    return ", ".join(map(str, names[:6])) + (", …" if len(names) > 6 else "")


class Styled(nn.Module):
    """A generator that is called with codes and labels and draws noise, as StyleGAN is: with codes
    alone where it has no labels, and its noise held at the maps that it has saved.

    Args:
        net: called with z, c and `noise_mode`; its parts `mapping` and `synthesis` likewise.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.latent_dim = net, int(net.z_dim)  # type: ignore[arg-type]
        self.num_labels = int(net.c_dim)  # type: ignore[arg-type]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Data of codes `(batch, z_dim)`, labels `(batch, c_dim)`."""
        x: Tensor = self.net(z, self._labels(z, labels), noise_mode="const")
        return x

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """W of Z, `(batch, layers, w_dim)`."""
        w: Tensor = self.net.mapping(z, self._labels(z, labels))  # type: ignore[operator]
        return w

    def synthesis(self, w: Tensor) -> Tensor:
        """Data of W."""
        x: Tensor = self.net.synthesis(w, noise_mode="const")  # type: ignore[operator]
        return x

    def _labels(self, z: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None and self.num_labels:
            raise ValueError(
                f"this generator wants labels of {self.num_labels} numbers beside its codes; give "
                "a function that fixes them, generator=package.module:function"
            )
        return z.new_zeros(len(z), 0) if labels is None else labels.to(z.dtype)
