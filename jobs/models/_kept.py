"""Item vectors as they travel: on disk, in the memory that a node's workers share, and in the kernel's reach.

| `store_as` | bytes a number | how far off |
| --- | --- | --- |
| float32 | 4 | 0 |
| float16 | 2 | 2 ** -11 of the number, or 2 ** -25 where that is more |
| int8 | 1, and 4 a vector | 1 / 254 of the vector's largest number |

int8 keeps y as s * q, with a scale s = max |y| / 127 for each vector, in a file beside the numbers q: vectors of rare items are
short, and one scale for all would leave nothing of them.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError

StoreAs = Literal["float32", "float16", "int8"]
FACTORS, SCALES = "item_factors.npy", "item_scales.npy"
MOST = 127
"""The largest int8 that is used, so that both signs reach as far."""


class Scaled:
    """Vectors of int8, each with its scale. What is taken out of it by number is float32."""

    def __init__(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        """`codes`: items x factors; may be memory-mapped. `scales`: one an item."""
        self.codes, self.scales = np.asarray(codes), np.asarray(scales)  # a map's own class costs time at each look
        self.shape = codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, items: NDArray[np.integer] | slice) -> NDArray[np.float32]:
        return self.codes[items].astype(np.float32) * self.scales[items, None]


Factors = NDArray[np.floating] | Scaled
"""Items x factors."""


def kept(factors: NDArray[np.float32], store_as: StoreAs) -> Factors:
    """Trained factors as they are kept; what is scored and folded in is what is kept, so that a loaded model is the fitted one.

    Raises InputError where a number is not finite, or too large for float16.
    """
    if not np.isfinite(factors).all():
        raise InputError("item factors are not finite: training went wrong; try a larger regularization")
    if store_as == "int8":
        scales = (np.abs(factors).max(axis=1, initial=0) / MOST).astype(np.float32)
        codes = np.divide(factors, scales[:, None], out=np.zeros_like(factors), where=scales[:, None] > 0)
        return Scaled(np.rint(codes).clip(-MOST, MOST).astype(np.int8), scales)  # clip: scales near 0 are coarse
    if store_as == "float16" and np.abs(factors).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(
            f"item factors reach {np.abs(factors).max():g}, and float16 65504: set store_as to float32 or int8"
        )
    return factors.astype(store_as, copy=False)


def save(factors: Factors, folder: Path) -> None:
    """One .npy file, and one more of scales where there are some."""
    if isinstance(factors, Scaled):
        np.save(folder / SCALES, factors.scales)
    np.save(folder / FACTORS, factors.codes if isinstance(factors, Scaled) else factors)


def load(folder: Path) -> Factors:
    """What `save` wrote, memory-mapped, so that the workers of a node share it."""
    factors = np.load(folder / FACTORS, mmap_mode="r")
    scales = folder / SCALES
    return Scaled(factors, np.load(scales, mmap_mode="r")) if scales.exists() else factors
