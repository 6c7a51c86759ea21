"""TorchScript files, seen through before they are loaded: some of its operations act on files."""

import re
import zipfile
from pathlib import Path

__all__ = ["check_script"]

# TorchScript has no Python in it, but a method that runs on loading, and these.
_ACTS = re.compile(
    rb"\bops\.(?!aten\.|prim\.|quantized\.)\w+\.\w+|\b(?:from_file|save|load_tensor|rpc_\w+)\s*\("
)


def check_script(path: Path) -> None:
    """Refuse a file whose code calls an operation that could write a file or reach out.

    Operations are called by their names, so what its code does not name it cannot call. Refused are
    those that map or save files, and all that are not of torch itself, as a library's that is
    loaded too: `torchvision` has one that writes any file.

    Raises:
        ValueError: naming the first.
        OSError: if it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():  # not by name, which several may share
            content = archive.read(entry)
            found = _ACTS.search(content) if entry.filename.lower().endswith(".py") else None
            if found is None and entry.filename.lower().endswith(".pkl"):
                found = re.search(rb"torch\.classes\.[\w.]+", content)
            if found is not None:
                raise ValueError(
                    f"{path} calls {found[0].decode().rstrip('( ')}, which could write a file or "
                    "run code; if you trust it, say trust=true"
                )
