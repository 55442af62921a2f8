"""Attacks on segmentation models, as frozen values that are called on a batch."""

from cease_core.attacks.base import About, Attack
from cease_core.attacks.criteria import CRITERIA
from cease_core.attacks.gradient import BIM, FGSM, MIFGSM, PGD
from cease_core.attacks.ladder import Rung, ladder
from cease_core.attacks.losses import LOSSES
from cease_core.attacks.norms import Norm
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Step

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "bim": BIM,
    "pgd": PGD,
    "mifgsm": MIFGSM,
}

__all__ = [
    "ATTACKS",
    "BIM",
    "CRITERIA",
    "FGSM",
    "LOSSES",
    "MIFGSM",
    "PGD",
    "About",
    "Attack",
    "AttackResult",
    "Callback",
    "Norm",
    "Problem",
    "Rung",
    "Step",
    "ladder",
]
