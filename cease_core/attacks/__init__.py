"""Attacks on segmentation models, as frozen values that are called on a batch."""

from cease_core.attacks.base import Attack, AttackResult, Callback, Step
from cease_core.attacks.gradient import FGSM, PGD
from cease_core.attacks.ladder import Rung, ladder
from cease_core.attacks.losses import LOSSES
from cease_core.attacks.norms import Norm

ATTACKS: dict[str, type[Attack]] = {"fgsm": FGSM, "pgd": PGD}

__all__ = [
    "ATTACKS",
    "FGSM",
    "LOSSES",
    "PGD",
    "Attack",
    "AttackResult",
    "Callback",
    "Norm",
    "Rung",
    "Step",
    "ladder",
]
