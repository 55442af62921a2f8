"""What an audit does: its tiers, and the trials that each consists of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cease_core.attacks import FGSM, MIFGSM, PGD, SEA, Attack, MixedAttack, RandomNoise, Square, Transfer
from cease_core.attacks.build import describe
from cease_core.errors import CeaseError, first_fault
from cease_core.evaluation.audit.store import CLEAN

Tier = Literal["quick", "standard", "full"]
Role = Literal["control", "one_step", "white_box", "joint", "longer", "restart", "huge", "black_box", "transfer"]

CURVE = (1 / 255, 2 / 255, 4 / 255, 6 / 255, 8 / 255, 10 / 255)
HUGE = 0.5
"""An ε that leaves nothing of a scan: whatever survives it is not seen by the attack."""

_Epsilon = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Trial:
    """An attack and its part in an audit.

    Parameters
    ----------
    name
        Unique in the audit; the table's ``attack``.
    role
        What it is for. ``white_box`` and ``joint`` trials make the curve; all others are run at one ε.
    attack
        With all its parameters but ε.
    epsilons
        In window fractions, rising.
    source
        Of a transfer: the model that it is made on.
    """

    name: str
    role: Role
    attack: Attack
    epsilons: tuple[float, ...]
    source: str | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON."""
        settings = {k: v for k, v in describe(self.attack).items() if k not in ("epsilon", "source")}
        return {
            "name": self.name,
            "role": self.role,
            "title": self.attack.about.title,
            "settings": settings,
            "epsilons": list(self.epsilons),
            "source": self.source,
        }


class Settings(BaseModel):
    """Settings of an audit; `tier` fills in those of a tier.

    Parameters
    ----------
    tier
        Which one they started from.
    cases
        At most so many, chosen by a hash of the patient's name; None for all.
    slices
        Of each volume that a 2-D model is audited on, evenly spaced among those with a structure; 0 for the whole.
    epsilons
        Of the curve, in window fractions, rising.
    report_epsilon
        The one that single figures are given for.
    steps, longer
        Of the white-box attack, and of the same with many more.
    restarts
        Further runs of it from other random starts.
    queries
        Of the black-box attack.
    sea_steps
        Of each member of the ensemble of losses; 0 leaves it out.
    joint
        Whether features and auxiliary heads are attacked together with the mask.
    seed
        Of everything random.
    threads
        Of each process on a CPU. Sums are taken in another order by another number of threads, and an attack
        makes much of little, so results are the same only for the same number.
    tolerance
        Of the surface Dice, in millimetres.

    Raises
    ------
    ValidationError
        If a value is out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tier: Tier = "quick"
    cases: int | None = Field(default=12, ge=1)
    slices: int = Field(default=1, ge=0)
    epsilons: tuple[_Epsilon, ...] = Field(default=(2 / 255, 4 / 255, 8 / 255, 10 / 255), min_length=1)
    report_epsilon: _Epsilon = 8 / 255
    steps: int = Field(default=20, ge=1)
    longer: int = Field(default=100, ge=1)
    restarts: int = Field(default=2, ge=0)
    queries: int = Field(default=200, ge=1)
    sea_steps: int = Field(default=0, ge=0)
    joint: bool = False
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    tolerance: float = Field(default=2.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> Settings:
        if list(self.epsilons) != sorted(set(self.epsilons)):
            raise ValueError("epsilons: give them rising, each once")
        if self.report_epsilon not in self.epsilons:
            raise ValueError("report_epsilon: it must be one of the epsilons")
        return self


_TIERS: dict[Tier, dict[str, Any]] = {
    "quick": {},
    "standard": {
        "cases": 40,
        "epsilons": CURVE,
        "steps": 40,
        "longer": 200,
        "restarts": 2,
        "queries": 500,
        "sea_steps": 12,
        "joint": True,
    },
    "full": {
        "cases": None,
        "slices": 3,
        "epsilons": CURVE,
        "steps": 40,
        "longer": 400,
        "restarts": 5,
        "queries": 2000,
        "sea_steps": 40,
        "joint": True,
    },
}


def tier(name: str, **changes: Any) -> Settings:
    """Settings of a tier.

    Parameters
    ----------
    name
        ``"quick"``: the curve of one attack and every sanity check that needs no second model, on a dozen cases.
        ``"standard"``: an ensemble of losses and the joint attack as well, on 40 cases. ``"full"``: all cases,
        more steps, restarts and queries.
    **changes
        Fields of `Settings` to set differently.

    Raises
    ------
    CeaseError
        If there is no such tier, or a value does not fit.

    Examples
    --------
    >>> tier("quick", cases=4).cases
    4
    """
    if name not in _TIERS:
        raise CeaseError(f"unknown tier {name!r}; choose one of {', '.join(_TIERS)}.")
    try:
        return Settings(**{"tier": name, **_TIERS[name], **changes})
    except ValidationError as error:
        raise CeaseError(f"the audit's settings do not fit: {first_fault(error, 'settings')}; correct that.") from error


def trials(settings: Settings, *, encoder: bool, sources: tuple[str, ...] = ()) -> tuple[Trial, ...]:
    """What is tried on a model.

    Parameters
    ----------
    settings
        Of the audit.
    encoder
        Whether the model shows its features, which the joint attack needs.
    sources
        Models that transfers can be made on.
    """
    curve, here = settings.epsilons, (settings.report_epsilon,)
    plain = PGD(steps=settings.steps, seed=settings.seed)
    planned = [
        Trial("noise", "control", RandomNoise(seed=settings.seed), here),
        Trial("fgsm", "one_step", FGSM(seed=settings.seed), here),
        Trial("pgd", "white_box", plain, curve),
    ]
    if settings.sea_steps:
        planned.append(Trial("sea", "white_box", SEA(steps=settings.sea_steps, seed=settings.seed), curve))
    if settings.joint and encoder:
        planned.append(Trial("joint", "joint", MixedAttack(steps=settings.steps, seed=settings.seed), curve))
    planned += [
        Trial("pgd-longer", "longer", replace(plain, steps=settings.longer), here),
        *(
            Trial(f"restart-{i}", "restart", replace(plain, seed=settings.seed + i), here)
            for i in range(1, settings.restarts + 1)
        ),
        Trial("square", "black_box", Square(queries=settings.queries, seed=settings.seed), here),
        *(
            Trial(
                f"transfer-{source}",
                "transfer",
                Transfer(inner=MIFGSM(steps=settings.steps), seed=settings.seed),
                here,
                source,
            )
            for source in sources
        ),
        Trial("huge", "huge", plain, (HUGE,)),
    ]
    assert CLEAN not in {t.name for t in planned}
    return tuple(planned)
