"""SEA: the segmentation ensemble attack, the worst per case over several losses and ways to ascend them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from cease_core.attacks.apgd import APGD
from cease_core.attacks.base import About
from cease_core.attacks.ensemble import Ensemble
from cease_core.attacks.gradient import PGD, Iterative
from cease_core.attacks.losses import ascent
from cease_core.errors import CeaseError


@dataclass(frozen=True, kw_only=True)
class SEA(Ensemble):
    """Worst per case over several losses, each ascended in three ways (after arXiv 2306.12941).

    The authors run APGD through shrinking balls once for each of three losses. No loss is strongest on every
    model, and neither is one way to ascend: on the shipped models the shrinking balls break what APGD in the
    ball of ε leaves, and the other way round. So each loss is ascended by both and, at a fixed step, by `PGD`.

    Parameters
    ----------
    losses
        What its members ascend, keys of `cease_core.attacks.LOSSES`; ``loss`` is not used.
    steps
        Gradient steps of each restart of each member, so three times as many for each loss.
    restarts
        Random starts of each member.

    Examples
    --------
    >>> [(type(m).__name__, m.loss) for m in SEA(losses=("js",)).members()]
    [('APGD', 'js'), ('APGD', 'js'), ('PGD', 'js')]
    """

    about: ClassVar[About] = About(
        title="SEA",
        group="strong",
        definition="Several losses, each by APGD in shrinking balls, APGD and PGD; each case keeps the strongest.",
        source="Croce, Singh & Hein 2024, arXiv 2306.12941",
        when="Before you call a model robust: one loss alone often misses the worst perturbation.",
        shown=("norm", "steps", "restarts"),
    )

    losses: tuple[str, ...] = ("soft_dice", "dice_masked", "masked_ce", "js", "lovasz", "miss")
    steps: int = 40
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.losses:
            raise CeaseError("SEA has no losses; give at least one, such as soft_dice.")
        for loss in self.losses:
            ascent(loss, targeted=False)
        if len(set(self.losses)) < len(self.losses):
            raise CeaseError(f"SEA has a loss twice in {', '.join(self.losses)}; give each once.")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise CeaseError(f"{name} is {getattr(self, name)}; give at least 1.")

    def members(self) -> tuple[Iterative, ...]:
        ways: tuple[Iterative, ...] = (APGD(shrink=True), APGD(), PGD())
        return tuple(
            replace(
                way,
                epsilon=self.epsilon,
                norm=self.norm,
                loss=loss,
                criterion=self.criterion,
                stop_below=self.stop_below,
                seed=self.seed,
                steps=self.steps,
                restarts=self.restarts,
            )
            for loss in self.losses
            for way in ways
        )
