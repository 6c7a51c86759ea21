"""Imports of torch, Lightning and what stands on them."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage among the million objects that torch's modules are.

    It takes half a second less, of six, and nobody looks through them afterwards either.
    """
    first = "torch" not in sys.modules
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()
            atexit.register(gc.unfreeze)  # extensions complain of what is left at the end
