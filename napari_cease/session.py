"""What the explorer is showing, as an evented value that knows no Qt.

Widgets write its fields and mirror them; whoever computes or draws listens. A field that does not fit its
type is refused when it is set.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psygnal import EventedModel
from pydantic import ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator

from cease_core.attacks import ATTACKS, Attack
from cease_core.attacks.build import build_attack, parameters
from cease_core.attacks.targets import TARGETS
from cease_core.errors import CeaseError
from cease_core.scan import LabelArray, Scan
from napari_cease.choices import DEFAULT, make, needs_source, suits, target_title
from napari_cease.units import LEVELS


@dataclass(frozen=True, eq=False)
class Reference:
    """A mask on the scan's grid, with the name of the layer it came from."""

    name: str
    labels: LabelArray


@dataclass(frozen=True, eq=False)
class Region:
    """Where the scan may change, shape of the scan, with the name of the layer it came from."""

    name: str
    inside: NDArray[np.bool_]


class ExplorerSession(EventedModel):
    """The attack explorer's state.

    Parameters
    ----------
    scan, reference
        What is attacked, and the mask it is judged by (None: the model's own clean mask).
    undefended, defended
        Model folders; ``defended`` may be None.
    attack
        Key of `cease_core.attacks.ATTACKS`.
    parameters
        What was set by hand of the attack's parameters, by name; kept for other attacks that have it too.
    target
        The mask to reach: a key of `cease_core.attacks.targets.TARGETS`, or a mask; None to leave the mask.
    region
        Where the scan may change; None for everywhere.
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
    attack: str = DEFAULT
    parameters: dict[str, Any] = Field(default_factory=dict)
    target: str | Reference | None = None
    region: Region | None = None
    level: int = Field(default=0, ge=0, le=LEVELS)
    top: int = Field(default=16, ge=1, le=LEVELS)
    index: int = Field(default=0, ge=0)
    gain: float = Field(default=1.0, gt=0)
    show_perturbation: bool = True
    show_adversarial: bool = False
    show_critical: bool = False
    side_by_side: bool = True
    _attacked: int = PrivateAttr(0)

    @field_validator("attack")
    @classmethod
    def _known_attack(cls, key: str) -> str:
        if key not in ATTACKS:
            raise ValueError(f"unknown attack {key!r}; choose one of {', '.join(ATTACKS)}")
        return key

    @field_validator("parameters")
    @classmethod
    def _known_parameters(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        attack = info.data.get("attack", DEFAULT)
        known = {name for kind in ATTACKS.values() for name in parameters(kind)} - {"epsilon"}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"no attack has a parameter {', '.join(unknown)}")
        mine = {name: value for name, value in given.items() if name in parameters(ATTACKS[attack])}
        try:
            built = build_attack(attack, **mine)
        except CeaseError as error:
            raise ValueError(str(error)) from error
        return given | {name: getattr(built, name) for name in mine}

    @field_validator("target")
    @classmethod
    def _known_target(cls, target: str | Reference | None) -> str | Reference | None:
        if isinstance(target, str) and target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; choose one of {', '.join(TARGETS)}")
        return target

    @property
    def epsilon(self) -> float:
        """ε in window fractions."""
        return self.level / LEVELS

    @property
    def target_name(self) -> str:
        """What the target is called; empty without one."""
        if self.target is None:
            return ""
        return target_title(self.target) if isinstance(self.target, str) else self.target.name

    def step(self, by: int) -> None:
        """Change ε by some 1/255, within the ladder."""
        self.level = min(max(self.level + by, 0), self.top)

    def toggle_clean(self) -> None:
        """Go to ε = 0, or from there back to where ε was; to the largest, if it was nowhere yet."""
        if self.level:
            self._attacked, self.level = self.level, 0
        else:
            self.level = min(self._attacked or self.top, self.top)

    def tune(self, **values: Any) -> None:
        """Set some parameters of the attack and keep the others."""
        self.parameters = {**self.parameters, **values}

    def make_attack(self, epsilon: float | None = None) -> Attack:
        """The attack that the fields describe; parameters that it does not have or accept are left out."""
        return replace(self.rule, epsilon=self.epsilon if epsilon is None else epsilon)

    @property
    def rule(self) -> Attack:
        """The attack at ε = 0: all that results depend on but ε; equal for equal settings."""
        return make(self.attack, self.parameters)

    # --- choices that bear on each other ---

    def choose_attack(self, key: str) -> str:
        """Choose an attack and, where it needs one, a target; returns what else was changed, in a sentence.

        Raises
        ------
        ValueError
            If there is no such attack.
        """
        title = ATTACKS[key].about.title if key in ATTACKS else key
        self.attack = key
        if suits(key, targeted=self.target is not None, twins=True):
            return ""
        if self.target is None:
            self.target = "erase"
            return f"{title} needs a mask to reach: the target is now “{target_title('erase')}”."
        self.target = None
        return f"{title} cannot reach a mask: it now leaves the mask, whatever comes instead."

    def choose_target(self, target: str | Reference | None) -> str:
        """Choose a mask to reach, or none; returns what else was changed, in a sentence.

        Raises
        ------
        ValueError
            If there is no such target.
        """
        self.target = target
        if suits(self.attack, targeted=target is not None, twins=True):
            return ""
        return self._fall_back("cannot reach a mask" if target is not None else "needs a mask to reach")

    def lose_source(self) -> str:
        """There is no second model any more; returns what was changed for it, in a sentence or empty."""
        return self._fall_back("needs a second model with the same classes") if needs_source(self.attack) else ""

    def _fall_back(self, reason: str) -> str:
        before = ATTACKS[self.attack].about.title
        self.attack = DEFAULT
        return f"{before} {reason}: the attack is now {ATTACKS[DEFAULT].about.title}."
