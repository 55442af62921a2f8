"""A defence as data: weighted terms over named views of a batch, and how its adversarial view is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cease_core.attacks.losses import LOSSES
from cease_core.tasks import TASKS
from cease_core.tasks.relevance import Floor, Rule

View = Literal["clean", "adversarial", "augmented"]
Balance = Literal["fixed", "uncertainty", "pcgrad"]
Ascent = Literal["seg", "segpgd", "consistency", "contrastive", "joint", "frequency", "free"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_loss(loss: str) -> str:
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
    return loss


class InnerAttack(_Strict):
    """The attack inside the training loop: signed gradient ascent in an ℓ∞ ball (Madry et al. 2018, 1706.06083).

    Parameters
    ----------
    epsilon
        Radius in window fractions, reached after `ramp` of the training.
    steps
        Gradient computations an image.
    step_size
        In window fractions; by default the larger of 1/255 and 2.5 ε / steps.
    ascent
        What is ascended: ``seg`` is `loss`; ``segpgd`` its pixels weighed as in SegPGD; ``consistency`` the
        divergence from the clean prediction (TRADES); ``contrastive`` one minus the cosine of projected features,
        after RoCL;
        ``joint`` is ``seg`` and ``contrastive``; ``frequency`` changes quantised block-DCT coefficients (VAFA);
        ``free`` reuses the gradient of the training step itself.
    loss
        Key of `cease_core.attacks.LOSSES`.
    ramp
        Share of the training over which ε rises from 0.
    reuse
        Begin at the clean image instead of at a random place, and let the pass that gives the first step train on
        the clean view as well. That view then costs no pass of its own. Its segmentation loss is what the first step
        climbs, in training mode; of its features other terms see the values alone, so that a task's share of the
        clean view trains its head only, unless the task shows the encoder another image.
    """

    epsilon: float = Field(default=8 / 255, gt=0)
    steps: int = Field(default=7, ge=1)
    step_size: float | None = Field(default=None, gt=0)
    ascent: Ascent = "seg"
    loss: str = "dice_ce"
    reuse: bool = False
    ramp: float = Field(default=0.2, ge=0, le=1)

    _loss = field_validator("loss")(_known_loss)

    def size(self, epsilon: float) -> float:
        """Step size for a radius, in window fractions."""
        return self.step_size if self.step_size is not None else max(1 / 255, 2.5 * epsilon / self.steps)


class _Term(_Strict, ABC):
    weight: float = Field(default=1.0, ge=0)

    @abstractmethod
    def views(self) -> frozenset[View]:
        """Views that the term reads."""


class SegmentationTerm(_Term):
    """The segmentation loss on one view.

    Parameters
    ----------
    view
        ``clean``, ``adversarial`` or ``augmented``.
    loss
        Key of `cease_core.attacks.LOSSES`, on logits.
    """

    kind: Literal["segmentation"] = "segmentation"
    view: View = "clean"
    loss: str = "dice_ce"

    _loss = field_validator("loss")(_known_loss)

    def views(self) -> frozenset[View]:
        return frozenset({self.view})


class ContrastiveTerm(_Term):
    """Alike features for all views of a scan: ``instance`` and ``dense`` parts.

    Parameters
    ----------
    over
        Views whose features are to be alike.
    still
        Those of them that others are drawn to without being drawn themselves. Unless another term reads them, they
        are looked at without a gradient, and cost no gradient computation.
    instance, dense
        Weights of the loss on pooled encoder features and of that on decoder features at stride 4.
    temperature, dense_temperature
        τ of the two.
    anchors
        Pixels a class and an image in the dense part, half of them such that the attack has turned.
    keys
        Upper bound on the pixels that anchors of a batch are compared with; ``positives_only`` needs none.
    positives_only
        Replaces both parts by one minus the cosine between positives: scans of one organ resemble each other,
        so that instance negatives are often false.
    width
        Dimensions of the projections.
    ramp
        Share of the training over which the weight rises from 0.
    """

    kind: Literal["contrastive"] = "contrastive"
    weight: float = Field(default=0.1, ge=0)
    over: tuple[View, ...] = ("clean", "adversarial", "augmented")
    still: tuple[Literal["clean", "augmented"], ...] = ()
    instance: float = Field(default=0.5, ge=0)
    dense: float = Field(default=0.5, ge=0)
    temperature: float = Field(default=0.5, gt=0)
    dense_temperature: float = Field(default=0.1, gt=0)
    anchors: int = Field(default=256, ge=2)
    keys: int = Field(default=4096, ge=2)
    positives_only: bool = False
    width: int = Field(default=128, ge=2)
    ramp: float = Field(default=0.2, ge=0, le=1)

    @field_validator("over")
    @classmethod
    def _several(cls, over: tuple[View, ...]) -> tuple[View, ...]:
        if len(set(over)) < 2 or len(set(over)) < len(over):
            raise ValueError("name at least two different views to hold together")
        return over

    @model_validator(mode="after")
    def _moving(self) -> ContrastiveTerm:
        if not set(self.still) < set(self.over):
            raise ValueError("still names views of over, and not all of them")
        return self

    def views(self) -> frozenset[View]:
        return frozenset(self.over)


class AuxiliaryTerm(_Term):
    """Auxiliary tasks on the shared encoder; ``weight`` is shared among them, each loss over its running mean.

    Parameters
    ----------
    tasks
        Keys of `cease_core.tasks.TASKS`. Empty until they are chosen by `rule`, before the training starts.
    rule, floor, count
        How they are chosen, above which level of relevance, and how many; see `cease_core.tasks.relevance`.
    own_pass
        Whether tasks may be chosen that show the encoder an image of their own, which costs a pass for each view.
    clean, adversarial
        Shares of the two views; without an adversarial view the clean one has all.
    """

    kind: Literal["auxiliary"] = "auxiliary"
    weight: float = Field(default=0.3, ge=0)
    tasks: tuple[str, ...] = ()
    rule: Rule = "weak"
    floor: Floor = "chance"
    count: int = Field(default=2, ge=1)
    own_pass: bool = True
    clean: float = Field(default=0.5, ge=0)
    adversarial: float = Field(default=0.5, ge=0)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [t for t in tasks if t not in TASKS]
        if unknown or len(set(tasks)) < len(tasks):
            raise ValueError(f"unknown or repeated task in {', '.join(tasks)}; choose from {', '.join(TASKS)}")
        return tasks

    @property
    def costly(self) -> frozenset[str]:
        """Tasks that a rule is to leave."""
        return frozenset() if self.own_pass else frozenset(name for name, task in TASKS.items() if task.presents)

    @model_validator(mode="after")
    def _named(self) -> AuxiliaryTerm:
        if self.rule == "manual" and not self.tasks:
            raise ValueError("the rule 'manual' needs tasks")
        if self.clean + self.adversarial == 0:
            raise ValueError("clean and adversarial are both 0; give at least one view a share")
        return self

    def views(self) -> frozenset[View]:
        shares: dict[View, float] = {"clean": self.clean, "adversarial": self.adversarial}
        return frozenset(view for view, share in shares.items() if share > 0)


class ConsistencyTerm(_Term):
    """KL(p(clean) ‖ p(adversarial)) a pixel: the second term of TRADES (Zhang et al. 2019, 1901.08573)."""

    kind: Literal["consistency"] = "consistency"
    weight: float = Field(default=6.0, ge=0)

    def views(self) -> frozenset[View]:
        return frozenset({"clean", "adversarial"})


class MartTerm(_Term):
    """Misclassification-aware training (Wang et al. 2020): boosted cross-entropy and a weighted KL.

    Parameters
    ----------
    trade_off
        λ of the KL part.
    """

    kind: Literal["mart"] = "mart"
    trade_off: float = Field(default=5.0, ge=0)

    def views(self) -> frozenset[View]:
        return frozenset({"clean", "adversarial"})


class DivideTerm(_Term):
    """Divide and conquer (Xu et al. 2021, 2003.06555): a branch of its own for pixels that cross the boundary."""

    kind: Literal["divide"] = "divide"

    def views(self) -> frozenset[View]:
        return frozenset({"clean", "adversarial"})


class FrequencyTerm(_Term):
    """Frequency consistency of VAFT (Hanif et al. 2023, 2307.07269): alike spectra of the two predictions.

    Theirs goes with an attack that is limited in frequency alone; ours stays in the ℓ∞ ball as well.
    """

    kind: Literal["frequency"] = "frequency"

    def views(self) -> frozenset[View]:
        return frozenset({"clean", "adversarial"})


class DistillationTerm(_Term):
    """Defensive distillation (Papernot et al. 2016, 1511.04508): a teacher's soft answers at a temperature.

    The teacher is any model, trained at a temperature of 1.

    Parameters
    ----------
    teacher
        Name or folder of the undefended model.
    temperature
        Divides the logits of both.
    view
        Where the student is asked; the teacher always sees the clean image.
    """

    kind: Literal["distillation"] = "distillation"
    teacher: str = ""
    temperature: float = Field(default=10.0, gt=0)
    view: View = "clean"

    def views(self) -> frozenset[View]:
        return frozenset({"clean", self.view})


Term = Annotated[
    SegmentationTerm
    | ContrastiveTerm
    | AuxiliaryTerm
    | ConsistencyTerm
    | MartTerm
    | DivideTerm
    | FrequencyTerm
    | DistillationTerm,
    Field(discriminator="kind"),
]


class Defence(_Strict):
    """What a model is trained for.

    Parameters
    ----------
    name
        Of the preset it comes from.
    terms
        Their weighted sum is minimised. A term of weight 0 is as good as absent: it is not computed.
    inner
        How the adversarial view is made.
    balance
        ``fixed`` weights; ``uncertainty`` (Kendall et al. 2018, 1705.07115) or ``pcgrad`` (Yu et al. 2020,
        2001.06782) among the segmentation as a whole and each auxiliary task.
    replays
        How often each batch is used in a row (Free adversarial training, Shafahi et al. 2019, 1904.12843).
    """

    name: str
    terms: tuple[Term, ...] = Field(min_length=1)
    inner: InnerAttack = InnerAttack()
    balance: Balance = "fixed"
    replays: int = Field(default=1, ge=1)

    @property
    def active(self) -> tuple[Any, ...]:
        """Terms that count."""
        return tuple(t for t in self.terms if t.weight > 0)

    @property
    def views(self) -> tuple[View, ...]:
        """Views that the active terms read, in a fixed order."""
        order: tuple[View, ...] = ("clean", "adversarial", "augmented")
        read = frozenset[View]().union(*(self.read_by(t) for t in self.active))
        return tuple(v for v in order if v in read)

    def read_by(self, term: Any) -> frozenset[View]:
        """Views that a term reads here: an auxiliary one makes do with the clean view where others need no attack."""
        views: frozenset[View] = term.views()
        if not isinstance(term, AuxiliaryTerm) or self.attacks:
            return views
        return frozenset({"clean"})

    @property
    def still(self) -> frozenset[View]:
        """Views that are looked at without a gradient: a contrastive term is drawn to them, and no other reads them."""
        held = frozenset[View]().union(*(t.still for t in self.active if isinstance(t, ContrastiveTerm)))
        return held.difference(*(self.read_by(t) for t in self.active if not isinstance(t, ContrastiveTerm)))

    @property
    def opening(self) -> SegmentationTerm | None:
        """The term that the first step of the inner attack also trains for, if the attack reuses that step."""
        return self._opens if self.inner.reuse and self.attacks else None

    @property
    def _opens(self) -> SegmentationTerm | None:
        return next((t for t in self.active if isinstance(t, SegmentationTerm) and t.view == "clean"), None)

    @property
    def attacks(self) -> bool:
        """Whether an adversarial view is made."""
        return any("adversarial" in t.views() for t in self.active if not isinstance(t, AuxiliaryTerm))

    @property
    def auxiliary(self) -> AuxiliaryTerm | None:
        """The auxiliary term, if there is one."""
        return next((t for t in self.active if isinstance(t, AuxiliaryTerm)), None)

    def with_tasks(self, tasks: tuple[str, ...]) -> Defence:
        """The same defence with auxiliary tasks chosen; without any, the term goes."""
        terms = tuple(
            t.model_copy(update={"tasks": tasks}) if isinstance(t, AuxiliaryTerm) else t
            for t in self.terms
            if tasks or not isinstance(t, AuxiliaryTerm)
        )
        return self.model_copy(update={"terms": terms})

    def with_some_tasks(self, ndim: int) -> Defence:
        """The same defence with as many tasks as it will choose, of those without a pass of their own: for its cost."""
        term = self.auxiliary
        if term is None or term.tasks:
            return self
        fit = [name for name, task in TASKS.items() if ndim in task.dims]
        cheap = [name for name in fit if not TASKS[name].presents]
        return self.with_tasks(tuple(fit if term.rule == "all" else cheap[: term.count]))

    def _check_reuse(self) -> None:
        if not (self.inner.ascent == "seg" and self.balance == "fixed" and self._opens):
            raise ValueError(
                "inner.reuse needs a segmentation term on the clean view, inner.ascent 'seg' and fixed balance"
            )
        if self._opens.loss != self.inner.loss:
            raise ValueError("with inner.reuse the clean view's segmentation loss and inner.loss must be the same")
        # Through the clean view's features no gradient flows a second time: these would teach the encoder nothing.
        for term in self.active:
            if term.kind == "divide" or (term.kind == "distillation" and term.view == "clean"):
                raise ValueError(f"inner.reuse does not go with a {term.kind} term on the clean view")
            if isinstance(term, AuxiliaryTerm) and term.adversarial == 0:
                raise ValueError("with inner.reuse auxiliary tasks need a share of the adversarial view")

    @model_validator(mode="after")
    def _consistent(self) -> Defence:
        if not self.active:
            raise ValueError("every term has weight 0; give at least one some weight")
        kinds = [(t.kind, getattr(t, "view", None)) for t in self.terms]
        if len(set(kinds)) < len(kinds):
            raise ValueError("a term stands twice; join the two by adding their weights")
        if self.inner.ascent in ("contrastive", "joint") and not any(t.kind == "contrastive" for t in self.active):
            raise ValueError(f"the inner attack ascends {self.inner.ascent!r}, but there is no contrastive term")
        if (self.inner.ascent == "free") != (self.replays > 1):
            raise ValueError("free adversarial training is inner.ascent 'free' together with replays above 1")
        if all(isinstance(t, AuxiliaryTerm) for t in self.active):
            raise ValueError("auxiliary tasks alone teach no segmentation; add a term that reads the mask")
        if self.inner.reuse:
            self._check_reuse()
        if self.inner.ascent == "free" and self.balance == "pcgrad":
            raise ValueError("free adversarial training has no gradient to reuse under pcgrad; choose another balance")
        return self
