"""Attacks on segmentation models, as frozen values that are called on a batch."""

from cease_core.attacks.alma import ALMAProx
from cease_core.attacks.apgd import APGD
from cease_core.attacks.asma import ASMA
from cease_core.attacks.base import About, Attack
from cease_core.attacks.criteria import CRITERIA
from cease_core.attacks.critical import CriticalMap
from cease_core.attacks.dag import DAG
from cease_core.attacks.features import FeatureAttack, MixedAttack
from cease_core.attacks.frequency import FrequencyPGD
from cease_core.attacks.gradient import BIM, FGSM, MIFGSM, PGD
from cease_core.attacks.ladder import Rung, ladder
from cease_core.attacks.losses import LOSSES
from cease_core.attacks.medis import MedIS
from cease_core.attacks.minimal import Bisection, MinimalResult
from cease_core.attacks.noise import RandomNoise
from cease_core.attacks.norms import Norm
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Step
from cease_core.attacks.sea import SEA
from cease_core.attacks.square import Square
from cease_core.attacks.transfer import Transfer
from cease_core.attacks.vafa import VAFA
from cease_core.attacks.weighted import CosPGD, SegPGD

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "bim": BIM,
    "pgd": PGD,
    "mifgsm": MIFGSM,
    "bisection": Bisection,
    "alma": ALMAProx,
    "apgd": APGD,
    "sea": SEA,
    "segpgd": SegPGD,
    "cospgd": CosPGD,
    "transfer": Transfer,
    "feature": FeatureAttack,
    "mixed": MixedAttack,
    "noise": RandomNoise,
    "vafa": VAFA,
    "frequency": FrequencyPGD,
    "square": Square,
    "medis": MedIS,
    "dag": DAG,
    "asma": ASMA,
}

__all__ = [
    "APGD",
    "ASMA",
    "ATTACKS",
    "BIM",
    "CRITERIA",
    "DAG",
    "FGSM",
    "LOSSES",
    "MIFGSM",
    "PGD",
    "SEA",
    "VAFA",
    "ALMAProx",
    "About",
    "Attack",
    "AttackResult",
    "Bisection",
    "Callback",
    "CosPGD",
    "CriticalMap",
    "FeatureAttack",
    "FrequencyPGD",
    "MedIS",
    "MinimalResult",
    "MixedAttack",
    "Norm",
    "Problem",
    "RandomNoise",
    "Rung",
    "SegPGD",
    "Square",
    "Step",
    "Transfer",
    "ladder",
]
