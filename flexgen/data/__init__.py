"""Data sets: toys, images of the table `SPECS`, any folder of images, array or table.

A `DataModule` gives deterministic subsets (`split`) and an endless stream of training batches
(`stream`) whose order is a function of the seed and the position alone.
"""

from flexgen.data.arrays import ArrayData, array_range, array_shape
from flexgen.data.catalogue import SPECS, Spec
from flexgen.data.images import ImageData, folder_shape
from flexgen.data.module import DataModule
from flexgen.data.stream import Stream
from flexgen.data.tables import TableData, table_shape
from flexgen.data.toys import Grid, Line, Ring, SwissRoll, Toy, ToyData, ring8

__all__ = [
    "SPECS", "ArrayData", "DataModule", "Grid", "ImageData", "Line", "Ring", "Spec", "Stream",
    "SwissRoll", "TableData", "Toy", "ToyData", "array_range", "array_shape", "folder_shape",
    "ring8", "table_shape",
]  # fmt: skip
