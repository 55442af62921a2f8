"""The critical ε of every voxel: how small a radius flips its class. It comes free with the ε ladder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cease_core.scan import FloatArray, LabelArray


class CriticalMap:
    """Collects masks at different ε, in any order.

    Parameters
    ----------
    clean
        Class ids of the unattacked image, any shape.

    Examples
    --------
    >>> critical = CriticalMap(np.array([1, 1, 0], dtype=np.int32))
    >>> critical.update(0.02, np.array([0, 0, 0], dtype=np.int32))
    >>> critical.update(0.01, np.array([1, 0, 0], dtype=np.int32))
    >>> critical.values.tolist()
    [0.019999999552965164, 0.009999999776482582, nan]
    """

    def __init__(self, clean: LabelArray) -> None:
        self.clean = clean
        self.values: FloatArray = np.full(clean.shape, np.nan, np.float32)
        """Smallest ε at which the voxel's class differed from the clean mask's; NaN where it never did."""

    def update(self, epsilon: float, mask: LabelArray) -> NDArray[np.bool_]:
        """Learn from an attack of size ``epsilon``.

        Parameters
        ----------
        epsilon
            Radius in window fractions.
        mask
            Class ids of the attacked image, shape of ``clean``.

        Returns
        -------
        ndarray of bool
            Where `values` have changed.
        """
        # A comparison with NaN is false: a voxel that never flipped takes any ε.
        lower = (mask != self.clean) & ~(self.values <= epsilon)
        self.values[lower] = epsilon
        return lower
