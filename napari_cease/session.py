"""What the explorer is showing, as an evented value that knows no Qt.

Widgets write its fields and mirror them; whoever computes or draws listens. A field that does not fit its
type is refused when it is set.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from psygnal import EventedModel
from pydantic import ConfigDict, Field

from cease_core.attacks import FGSM, PGD, Norm
from cease_core.scan import LabelArray, Scan

LEVELS = 255
"""ε is counted in steps of 1/255 of the intensity window."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference mask on the scan's grid, with the name of the layer it came from."""

    name: str
    labels: LabelArray


class ExplorerSession(EventedModel):
    """The attack explorer's state.

    Parameters
    ----------
    scan, reference
        What is attacked, and the mask it is judged by (None: the model's own clean mask).
    undefended, defended
        Model folders; ``defended`` may be None.
    attack, norm, loss, steps
        The attack's parameters.
    level, top
        ε and the ladder's largest ε, in 1/255.
    index
        Slice along the scan's first axis.
    gain
        Contrast of the perturbation map.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, validate_assignment=True, extra="forbid")

    scan: Scan | None = None
    reference: Reference | None = None
    undefended: Path | None = None
    defended: Path | None = None
    attack: Literal["pgd", "fgsm"] = "pgd"
    norm: Norm = "linf"
    loss: str = "soft_dice"
    steps: int = Field(default=20, ge=1, le=1000)
    level: int = Field(default=0, ge=0, le=LEVELS)
    top: int = Field(default=16, ge=1, le=LEVELS)
    index: int = Field(default=0, ge=0)
    gain: float = Field(default=1.0, gt=0)
    show_perturbation: bool = True
    show_adversarial: bool = False
    side_by_side: bool = True

    @property
    def epsilon(self) -> float:
        """ε in window fractions."""
        return self.level / LEVELS

    def make_attack(self, epsilon: float | None = None) -> FGSM | PGD:
        """The attack that the fields describe."""
        radius = self.epsilon if epsilon is None else epsilon
        if self.attack == "fgsm":
            return FGSM(epsilon=radius, norm=self.norm, loss=self.loss)
        return PGD(epsilon=radius, norm=self.norm, loss=self.loss, steps=self.steps)
