"""Whether a robustness figure can be trusted: sanity checks of an audit, and the verdict they add up to.

After Carlini et al. 2019 (arXiv 1902.06705) and Athalye, Carlini & Wagner 2018 (arXiv 1802.00420): a model that seems
robust is taken for one whose gradient is hidden until attacks that need no gradient, attacks that are allowed
everything, and the gradient itself say otherwise. All is read from an audit's tables; no model is asked again.

Attacks are compared on eligible cases, case by case. "By how much does adding this attack lower the worst case?" is
the question, never which of two means is lower: a model that hides the gradient of some cases only would otherwise be
acquitted by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import pandas as pd

from cease_core.evaluation.protocol import eligible
from cease_core.models.segmenter import NO_GRADIENT

Status = Literal["pass", "fail", "not run"]
Evidence = Literal["masking", "completeness", "information"]
Label = Literal["credible", "doubtful: gradient masking suspected", "incomplete"]

NEAR = 0.02
"""Dice by which an attack that has no business being stronger may lower the worst case: what luck gives it."""

CLEARLY = 0.02
"""Dice by which white-box attacks must beat random noise; one that finds no more than noise has found nothing."""

BROKEN = 0.1
"""Dice below which nothing is left: to be no worse than noise is then no fault, and a huge ε has to lead there."""

CONVERGED = 0.05
"""Dice that still more steps may be expected to take before the figure counts as unfinished (see `_to_come`)."""

AGREE = 0.1
"""Dice that still more starts may be expected to take; beyond it the figure is a matter of the seed."""

JOINT = 0.05
"""Dice by which attacking features and heads as well may lower the worst case before the plain figure is optimistic."""

ZERO = 0.9
"""Share of a structure's values without a gradient; a median filter, which is honest, has less than a half."""

SATURATED = 0.5
"""Share of decisions whose other answer has probability 0."""

RISE = 0.25
"""Share of the promised gain that a step along the gradient must bring; behind eight grey levels it is 0.37."""

ENOUGH = 5
"""Patients with an eligible case; with fewer, one decides the figure, however many slices there are of it."""

FAILED = 0.05
"""Share of cases in which something may have failed; they are missing from the worst case, so it looks better."""

_WHITE_BOX = ("white_box", "joint", "longer", "restart")


class Tables(Protocol):
    """What is read of an audit (see `cease_core.evaluation.audit.store.Audit`)."""

    @property
    def rows(self) -> pd.DataFrame: ...

    @property
    def probes(self) -> pd.DataFrame: ...

    @property
    def report_epsilon(self) -> float: ...

    @property
    def complete(self) -> bool: ...


@dataclass(frozen=True)
class Check:
    """One question to an audit, and its answer.

    Parameters
    ----------
    name
        For tables and files.
    title
        What holds if the check passes.
    status
        ``"pass"``, ``"fail"`` or ``"not run"``.
    figure
        What decided, in words and numbers.
    why
        What a failure means.
    evidence
        What a failure speaks for: ``"masking"``, or that the figure is unfinished (``"completeness"``);
        ``"information"`` has no part in the verdict.
    required
        Whether the verdict has to wait for it.
    """

    name: str
    title: str
    status: Status
    figure: str
    why: str
    evidence: Evidence
    required: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the checks add up to.

    Parameters
    ----------
    label
        ``"credible"``, ``"doubtful: gradient masking suspected"`` or ``"incomplete"``.
    deciding
        The checks that made it so; none where it is credible.
    """

    label: Label
    deciding: tuple[Check, ...]

    @property
    def sentence(self) -> str:
        """The verdict and its reasons in one sentence."""
        reasons = "; ".join(f"{c.title} – {c.status} ({c.figure})" for c in self.deciding)
        return f"{self.label}: {reasons}." if reasons else f"{self.label}: every required check passed."


def run_checks(audit: Tables, model: str) -> list[Check]:
    """All checks of one model, in the order a report shows them.

    Parameters
    ----------
    audit
        Finished or not.
    model
        One of its models.
    """
    found = _Found(audit, model)
    return [check(found) for check in CHECKS]


def verdict(checks: Iterable[Check]) -> Verdict:
    """What checks add up to: suspicion goes before incompleteness, since more cases would not lift it."""
    checks = tuple(checks)
    hidden = tuple(c for c in checks if c.evidence == "masking" and c.status == "fail")
    if hidden:
        return Verdict("doubtful: gradient masking suspected", hidden)
    missing = tuple(
        c
        for c in checks
        if c.evidence != "information" and (c.status == "fail" or (c.required and c.status == "not run"))
    )
    return Verdict("incomplete", missing) if missing or not checks else Verdict("credible", ())


class _Found:
    """An audit's tables of one model, as the checks ask for them."""

    def __init__(self, audit: Tables, model: str) -> None:
        self.epsilon = audit.report_epsilon
        self.complete = audit.complete
        self.all = audit.rows[audit.rows["model"] == model]
        clean = self.all[self.all["attack"] == "clean"].set_index("case")["dice"].dropna()
        self.clean: pd.Series[float] = clean[eligible(clean)]
        self.rows = self.all[self.all["case"].isin(self.clean.index) & self.all["dice"].notna()]
        probes = audit.probes
        self.probes = probes[probes["model"] == model] if len(probes) else probes
        if len(self.clean) and len(self.probes):
            self.probes = self.probes[self.probes["case"].isin(self.clean.index)]

    @cached_property
    def base(self) -> str | None:
        """The plain white-box attack, which restarts and longer runs repeat: the plan's first."""
        names = self.rows.loc[self.rows["role"] == "white_box", "attack"]
        return str(names.iloc[0]) if len(names) else None

    @cached_property
    def best(self) -> dict[tuple[str, str], pd.Series[float]]:
        """Lowest Dice of each eligible case (NaN where there is none), by role and attack, at up to the report's ε."""
        rows = self.rows[self.rows["epsilon"] <= self.epsilon * (1 + 1e-9)]
        lowest = rows.groupby(["role", "attack", "case"])["dice"].min().unstack("case")
        return {(str(role), str(attack)): dice for (role, attack), dice in lowest.iterrows()}

    def dice(self, *roles: str, attack: str | None = None) -> pd.Series[float]:
        """Lowest Dice of each eligible case over trials of these roles, at up to the report's ε."""
        found = [dice for (role, name), dice in self.best.items() if role in roles and attack in (None, name)]
        if not found:
            return pd.Series(dtype=float)
        values = np.fmin.reduce([dice.to_numpy() for dice in found])
        return pd.Series(values, index=found[0].index).dropna()

    def plain(self) -> pd.Series[float]:
        """Of the plain white-box attack."""
        return self.dice("white_box", attack=self.base or "")


def _paired(first: pd.Series[float], second: pd.Series[float]) -> tuple[pd.Series[float], pd.Series[float]]:
    return first.align(second, join="inner")


def _lowers(worst: pd.Series[float], other: pd.Series[float]) -> float:
    """By how much an attack lowers a worst case, mean over the cases."""
    return float((worst - other).clip(lower=0).mean())


def _to_come(before: pd.Series[float], after: pd.Series[float]) -> float:
    """What further effort may still take from Dice, mean over the cases: as much again as this one, or all there is.

    A mask that is destroyed already has nothing to lose, however luckily the attack came to it.
    """
    taken = (before - after).clip(lower=0)
    return float(taken.clip(upper=before - taken).mean())


def _status(holds: bool) -> Status:
    return "pass" if holds else "fail"


def _cases(count: int) -> str:
    return f"{count} case" + ("" if count == 1 else "s")


def _patients(count: int) -> str:
    return f"{count} patient" + ("" if count == 1 else "s")


# --- the gradient --------------------------------------------------------------------------------------------


def _gradient_reaches(found: _Found) -> Check:
    refused = found.all["error"].str.contains(NO_GRADIENT, regex=False)
    probes = found.probes
    status: Status = "not run"
    figure = "no probes"
    if len(probes):
        reached = int(probes["reached"].astype(bool).sum())
        status = _status(reached == len(probes))
        figure = f"in {reached} of {_cases(len(probes))}"
    if refused.any():
        status, figure = "fail", f"{int(refused.sum())} attacks found none"
    return Check(
        "gradient_reaches",
        "The gradient reaches the image",
        status,
        figure,
        "Attacks follow the gradient; a model that cuts it off was never really attacked.",
        "masking",
    )


def _probed(
    probes: pd.DataFrame, column: str, *, most: float = np.inf, least: float = -np.inf
) -> tuple[Status, float, str]:
    """Judge the worse quartile of a probe's figure: a model that hides a quarter of its cases hides enough.

    A case without a figure counts 0. Where no gradient arrives there is none to look at, and another check says so.
    """
    if column != "saturated" and len(probes):
        probes = probes[probes["reached"].astype(bool)]
    if not len(probes):
        return "not run", np.nan, "no gradient to look at"
    values = probes[column].astype(float).fillna(0.0)
    low = np.isfinite(least)
    value = float(values.quantile(0.25 if low else 0.75, interpolation="lower" if low else "higher"))
    return _status(least <= value <= most), value, f"worse quartile of {_cases(len(values))}"


def _gradient_there(found: _Found) -> Check:
    status, share, of = _probed(found.probes, "zero_gradient", most=ZERO)
    return Check(
        "gradient_not_zero",
        "The gradient is not zero",
        status,
        of if status == "not run" else f"zero at {share:.0%} of the structure, {of}",
        "Where the gradient is zero an attack stands still, although another way to damage the mask may lie close by.",
        "masking",
    )


def _not_saturated(found: _Found) -> Check:
    status, share, of = _probed(found.probes, "saturated", most=SATURATED)
    figure = of
    if status != "not run":
        figure = f"{share:.0%} of the decisions, {of}; median logit {found.probes['logit_scale'].median():.3g}"
    return Check(
        "not_saturated",
        "The model's answers are not saturated",
        status,
        figure,
        "A model that claims absolute certainty gives attacks no hint in which direction it could be made to doubt.",
        "masking",
    )


def _gradient_leads(found: _Found) -> Check:
    # Where the gradient led all the way to an empty mask, a bent path is no deceit.
    worst = found.dice(*_WHITE_BOX)
    standing = found.probes
    if len(standing):
        standing = standing[~standing["case"].isin(worst.index[worst <= BROKEN])]
    status, share, of = _probed(standing, "rise", least=RISE)
    figure = of if status == "not run" else f"{share:.2f} of the promised gain, {of}"
    if len(found.probes) and not len(standing):
        status, figure = "pass", f"it led to a Dice of at most {BROKEN} in all of {_cases(len(found.probes))}"
    return Check(
        "gradient_leads",
        "A step along the gradient damages the mask as promised",
        status,
        figure,
        "A gradient that does not lead where it points sends attacks astray.",
        "masking",
    )


def _repeats(found: _Found) -> Check:
    probes = found.probes
    status: Status = "not run"
    figure = "no probes"
    if len(probes):
        same = int(probes["repeats"].astype(bool).sum())
        status, figure = _status(same == len(probes)), f"in {same} of {_cases(len(probes))}"
    return Check(
        "repeats",
        "The same scan gets the same answer",
        status,
        figure,
        "A model that rolls dice blurs the gradient of a single look; an attack has to average over many.",
        "masking",
    )


# --- attacks against each other ------------------------------------------------------------------------------


def _stronger_than(found: _Found, role: str) -> tuple[Status, str]:
    worst, other = _paired(found.dice(*_WHITE_BOX), found.dice(role))
    if not len(worst):
        return "not run", "nothing to compare"
    gain = _lowers(worst, other)
    figure = (
        f"Dice {worst.mean():.3f} against {other.mean():.3f} in {_cases(len(worst))}; "
        f"adding it lowers the worst case by {gain:.3f}"
    )
    return _status(gain <= NEAR), figure


def _iterative(found: _Found) -> Check:
    status, figure = _stronger_than(found, "one_step")
    return Check(
        "iterative_beats_one_step",
        "Many steps are at least as strong as one",
        status,
        figure,
        "If one long step does more than many short ones, the short ones were misled.",
        "masking",
    )


def _noise(found: _Found) -> Check:
    status, figure = _stronger_than(found, "control")
    if status == "pass":
        worst, noise = _paired(found.dice(*_WHITE_BOX), found.dice("control"))
        status = _status(float(worst.mean()) <= max(BROKEN, float(noise.mean()) - CLEARLY))
    return Check(
        "beats_noise",
        "White-box attacks clearly beat random noise",
        status,
        figure,
        "An attack that does no more than noise of the same size has found nothing, so surviving it proves nothing.",
        "masking",
    )


def _transfer(found: _Found) -> Check:
    status, figure = _stronger_than(found, "transfer")
    return Check(
        "transfer_not_stronger",
        "Attacks made on another model are not stronger",
        status,
        figure,
        "Perturbations made without ever seeing this model should do less than those made for it.",
        "masking",
        required=False,
    )


def _black_box(found: _Found) -> Check:
    status, figure = _stronger_than(found, "black_box")
    return Check(
        "black_box_not_stronger",
        "Random search without gradients is not stronger",
        status,
        figure,
        "Blind trial and error that succeeds where gradients fail shows that the gradients were hidden.",
        "masking",
    )


def _transfer_noise(found: _Found) -> Check:
    transfer, noise = _paired(found.dice("transfer"), found.dice("control"))
    status: Status = "not run"
    figure = "nothing to compare"
    if len(transfer):
        status = _status(float((transfer - noise).mean()) <= NEAR)
        figure = f"Dice {transfer.mean():.3f} against {noise.mean():.3f} in {_cases(len(transfer))}"
    return Check(
        "transfer_beats_noise",
        "Attacks made on another model beat random noise",
        status,
        figure,
        "If they do not, the other model has too little in common with this one for its attacks to tell anything.",
        "information",
        required=False,
    )


# --- ε and steps ---------------------------------------------------------------------------------------------


def _huge(found: _Found) -> Check:
    rows = found.rows[found.rows["role"] == "huge"]
    status: Status = "not run"
    figure = "no attack with a huge ε"
    if len(rows):
        left = float(rows.groupby("case")["dice"].min().mean())
        status = _status(left <= BROKEN)
        figure = f"Dice {left:.3f} at ε = {rows['epsilon'].max():.2g} in {_cases(rows['case'].nunique())}"
    return Check(
        "huge_breaks",
        "A huge perturbation destroys the mask",
        status,
        figure,
        "With so much freedom the scan can be replaced altogether; a mask that survives was not really attacked.",
        "masking",
    )


def _monotone(found: _Found) -> Check:
    rows = found.rows[found.rows["role"].isin(("white_box", "joint"))]
    curve = rows.pivot_table(index=["attack", "case"], columns="epsilon", values="dice").dropna()
    status: Status = "not run"
    figure = "no curve"
    if len(curve):
        clean = found.clean.reindex(curve.index.get_level_values("case")).to_numpy()
        heights = np.column_stack([clean, curve.to_numpy()])
        attacks = curve.index.get_level_values("attack")
        means = pd.DataFrame(heights).groupby(attacks.to_numpy()).mean().to_numpy()
        rise = float(np.diff(means, axis=1).max())
        status = _status(rise <= NEAR)
        figure = f"from one ε to the next Dice rises by {max(rise, 0.0):.3f} at most"
    return Check(
        "falls_with_epsilon",
        "More ε never helps the model",
        status,
        figure,
        "What a small perturbation can do a larger one can do too; where Dice rises with ε the attack is weak.",
        "masking",
    )


def _longer(found: _Found) -> Check:
    plain, longer = _paired(found.plain(), found.dice("longer"))
    status: Status = "not run"
    figure = "nothing to compare"
    if len(plain):
        harm = _lowers(longer, plain)
        status = _status(harm <= NEAR)
        figure = f"more steps leave Dice {harm:.3f} higher, mean over {_cases(len(plain))}"
    return Check(
        "steps_never_help",
        "More steps never help the model",
        status,
        figure,
        "An attack that gets weaker when it is given more time follows a gradient that misleads it.",
        "masking",
    )


def _converged(found: _Found) -> Check:
    short, longer = _paired(found.dice("white_box", "joint", "restart"), found.dice("longer"))
    status: Status = "not run"
    figure = "nothing to compare"
    if len(short):
        gain = _to_come(short, longer)
        status = _status(gain <= CONVERGED)
        figure = (
            f"more steps lower the worst case by {_lowers(short, longer):.3f} in {_cases(len(short))}; "
            f"about {gain:.3f} may be to come"
        )
    return Check(
        "converged",
        "The attack has converged",
        status,
        figure,
        "If more steps still make the attack much stronger, the figure would fall further with even more.",
        "completeness",
    )


def _restarts(found: _Found) -> Check:
    runs = pd.DataFrame({name: dice for (role, name), dice in found.best.items() if role == "restart"})
    status: Status = "not run"
    figure = "no restarts"
    if len(runs):
        runs = runs.join(found.plain().rename("plain"), how="inner").dropna()
    if len(runs):
        weakest, strongest = runs.max(axis=1), runs.min(axis=1)
        gain = _to_come(weakest, strongest)
        status = _status(gain <= AGREE)
        figure = (
            f"{runs.shape[1]} runs lie {float((weakest - strongest).mean()):.3f} apart, mean over {_cases(len(runs))}; "
            f"about {gain:.3f} may be to come"
        )
    return Check(
        "restarts_agree",
        "Restarts agree",
        status,
        figure,
        "If the outcome depends on where an attack happens to start, other starts would find more.",
        "completeness",
    )


def _joint(found: _Found) -> Check:
    plain, joint = _paired(found.dice("white_box"), found.dice("joint"))
    status: Status = "not run"
    figure = "nothing to compare"
    if len(plain):
        gain = _lowers(plain, joint)
        status = _status(gain <= JOINT)
        figure = f"attacking features too lowers the worst case by {gain:.3f} in {_cases(len(plain))}"
    return Check(
        "joint_not_stronger",
        "Attacking features and auxiliary heads adds little",
        status,
        figure,
        "If it adds much, the figure of the mask's attack alone is too good; the worst case has both.",
        "information",
        required=False,
    )


# --- the cases -----------------------------------------------------------------------------------------------


def _enough(found: _Found) -> Check:
    asked = found.all["case"].nunique()
    count = len(found.clean)
    patients = found.all.loc[found.all["case"].isin(found.clean.index), "patient"].nunique()
    return Check(
        "enough_cases",
        "Enough patients have an eligible case",
        _status(patients >= ENOUGH),
        f"{count} of {_cases(asked)} with a clean Dice of at least ½, of {_patients(patients)}; {ENOUGH} are needed",
        "A model has to find a structure before it can be robust in finding it, and few cases say little.",
        "completeness",
    )


def _failed(found: _Found) -> Check:
    bad = found.all[(found.all["error"] != "") & ~found.all["error"].str.contains(NO_GRADIENT, regex=False)]
    count, asked = bad["case"].nunique(), found.all["case"].nunique()
    figure = f"{count} of {_cases(asked)} failed"
    if count:
        figure += f"; the first: {bad['case'].iloc[0]}, {bad['attack'].iloc[0]}: {bad['error'].iloc[0]}"
    return Check(
        "no_failures",
        "Attacks ran on all cases",
        _status(count <= FAILED * asked),
        figure,
        "Cases in which an attack failed are missing from the worst case, which looks better for it.",
        "completeness",
    )


def _finished(found: _Found) -> Check:
    return Check(
        "finished",
        "The audit is finished",
        _status(found.complete),
        "all jobs done" if found.complete else "jobs are left",
        "What has not been tried yet may still break the model.",
        "completeness",
    )


CHECKS: tuple[Callable[[_Found], Check], ...] = (
    _gradient_reaches,
    _gradient_there,
    _not_saturated,
    _gradient_leads,
    _repeats,
    _iterative,
    _noise,
    _black_box,
    _transfer,
    _transfer_noise,
    _huge,
    _monotone,
    _longer,
    _converged,
    _restarts,
    _joint,
    _enough,
    _failed,
    _finished,
)
