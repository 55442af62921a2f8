"""PGD in a band of frequencies: which of them break the mask?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.dct import Cosines
from cease_core.attacks.gradient import Iterative
from cease_core.attacks.norms import per_case, rms, steepest
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import Run
from cease_core.errors import CeaseError

ROUNDS = 4  # of clipping to the ball and projecting onto the band, at each step


@dataclass(frozen=True, kw_only=True)
class FrequencyPGD(Iterative):
    """PGD whose perturbation holds frequencies of one band only (after Guo et al. 2019, arXiv 1809.08758).

    Frequencies are those of the discrete cosine transform of the whole image: that of a coefficient is the
    largest k / n over the axes, k half-waves in n pixels, so 0 is flat and 1 the finest chequerboard. The
    perturbation is scaled into the ball rather than clipped, and so keeps to its band exactly, but for
    what ``bounds`` and a region cut away. A narrow band therefore fills less of an ℓ∞ ball than PGD does; the
    whole band (0, 1) is PGD.

    Parameters
    ----------
    band
        Lowest frequency, and the one that it ends before, from 0 to 1: (0, 0.25) is what an image of a
        quarter of the size can show.

    Examples
    --------
    >>> FrequencyPGD(band=(0.5, 1.0)).steps
    20
    """

    about: ClassVar[About] = About(
        title="Frequency PGD",
        group="frequency",
        definition="PGD whose perturbation is kept to a band of frequencies of the cosine transform.",
        source="After Guo, Frank & Weinberger 2019, arXiv 1809.08758",
        when="To learn which frequencies break the mask; smooth perturbations outlive resampling and blurring.",
        shown=("band", "norm", "loss", "steps"),
    )

    band: tuple[float, float] = (0.0, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.band[0] < self.band[1] <= 1:
            raise CeaseError(f"band is {self.band}; give two frequencies from 0 to 1, the lower first.")

    def climb(self, run: Run, delta: Tensor, *, epsilon: float, steps: int, step_size: float) -> Tensor:
        problem = run.problem
        band = Band(self.band, problem.images)
        within = self._scaled(problem, band.only(delta), epsilon)
        delta = self._kept(problem, within)
        for step in range(steps):
            grad = run.gradient(delta, self.objective(step, steps))
            moved = within + step_size * self._uphill(problem, band, grad)
            # Scaling alone would let a few peaks shrink all the rest.
            for _ in range(ROUNDS if self.norm == "linf" else 0):
                moved = band.only(moved.clamp(-epsilon, epsilon))
            within = self._scaled(problem, moved, epsilon)
            delta = self._kept(problem, within)
            if run.over:
                break
        run.look(delta)
        return delta

    def _kept(self, problem: Problem, within: Tensor) -> Tensor:
        return problem.clip(within if problem.region is None else within * problem.region)

    def _uphill(self, problem: Problem, band: Band, grad: Tensor) -> Tensor:
        inside = grad if problem.region is None else grad * problem.region
        # Steepest for ℓ2; for ℓ∞ the signs' part in the band, which always leads uphill.
        direction = band.only(steepest(band.only(inside), self.norm))
        # What the band takes away shall not make steps shorter.
        return direction / per_case(rms(direction).clamp_min(1e-20), direction)

    def _scaled(self, problem: Problem, delta: Tensor, epsilon: float) -> Tensor:
        inside = delta if problem.region is None else delta * problem.region
        size = inside.flatten(1).abs().amax(dim=1) if self.norm == "linf" else rms(inside, problem.region)
        return delta * per_case((epsilon / size.clamp_min(1e-20)).clamp_max(1.0), delta)


class Band:
    """The images that hold frequencies of one band only.

    Raises
    ------
    CeaseError
        If images of this size have no such frequency.
    """

    def __init__(self, band: tuple[float, float], images: Tensor) -> None:
        sizes = images.shape[2:]
        self.cosines = Cosines(sizes, images)
        frequency = torch.zeros(sizes, device=images.device)
        for axis, size in enumerate(sizes):
            line = torch.arange(size, device=images.device) / size
            frequency = frequency.maximum(line.view(-1, *(1,) * (len(sizes) - 1 - axis)))
        self.passes = (frequency >= band[0]) & (frequency < band[1])
        if not self.passes.any():
            raise CeaseError(f"images of {tuple(sizes)} have no frequency in {band}; give a wider band.")

    def only(self, images: Tensor) -> Tensor:
        """The nearest images (N, C, *spatial) in the band."""
        if self.passes.all():
            return images
        return self.cosines.inverse(self.cosines.forward(images) * self.passes)
