"""Data sets: toys, images of the table `SPECS`, any folder of images.

A `DataModule` gives deterministic subsets (`split`) and an endless stream of training batches
(`stream`) whose order is a function of the seed and the position alone.
"""

from flexgen.data.catalogue import SPECS, Spec
from flexgen.data.images import ImageData
from flexgen.data.module import DataModule
from flexgen.data.stream import Stream
from flexgen.data.toys import Grid, Line, Ring, SwissRoll, Toy, ToyData, ring8

__all__ = [
    "SPECS", "DataModule", "Grid", "ImageData", "Line", "Ring", "Spec", "Stream", "SwissRoll",
    "Toy", "ToyData", "ring8",
]  # fmt: skip
