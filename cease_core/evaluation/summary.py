"""What an audit found, in figures: everything that a report shows, as plain values.

A *measured* case has a clean row and a row of a white-box attack at every ε of the curve; a case of which less is known
counts nowhere, and a report says how many there are. The *worst case* of a case at ε is the lowest Dice over all trials
but the one with a huge ε, at this ε and all smaller ones, the unattacked scan included. Means are over measured cases;
success rates and distortions over those that are *eligible* as well, with a clean Dice of at least ½. Intervals are
95 % percentile bootstraps over patients, each drawn with all its cases; a single patient has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas.core.groupby import SeriesGroupBy
from pydantic import BaseModel, ConfigDict

from cease_core.evaluation.audit.store import CLEAN, Audit
from cease_core.evaluation.checks import Check, run_checks, verdict
from cease_core.evaluation.lesions import UNITS, strata
from cease_core.evaluation.protocol import (
    asr_drop,
    asr_medis,
    asr_pixel,
    case_areas,
    d_success,
    eligible,
    independent,
    interval,
    paired,
    smallest_epsilon,
)

Figure = float | None
"""A number, or None where it is undefined or infinite."""

Compared = Literal["clean Dice", "worst-case Dice", "area under the curve", "smallest ε of success"]

CURVE_ROLES = ("white_box", "joint")
HUGE = "huge"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Record):
    """A mean over cases with its 95 % interval; None without a case, and without an interval."""

    mean: Figure
    low: Figure
    high: Figure


class Headline(_Record):
    """The five figures that stand for a model.

    Parameters
    ----------
    clean_dice, worst_dice
        Without an attack, and worst case at the report's ε.
    asr_drop, asr_drop_largest
        Share of eligible cases whose Dice falls to half or lower: at the report's ε, and at the curve's largest.
    d_censored
        Mean smallest ε of success, at most the curve's largest; a window fraction.
    auc
        Normalised area under the worst-case curve, in [0, 1].
    """

    clean_dice: Spread
    worst_dice: Spread
    asr_drop: Spread
    asr_drop_largest: Spread
    d_censored: Spread
    auc: Spread


class Counts(_Record):
    """Cases: planned, measured, eligible of these, with something that failed, and neither; and their patients."""

    planned: int
    measured: int
    eligible: int
    failed: int
    pending: int
    patients: int


class Point(_Record):
    """A curve at one ε (window fraction): mean Dice, its band where one was worked out, and the cases it is of."""

    epsilon: float
    dice: Figure
    low: Figure = None
    high: Figure = None
    asr_drop: Figure = None
    cases: int


class Curve(_Record):
    """Dice over ε, from 0 on; of one trial, or of the worst case over all."""

    name: str
    points: tuple[Point, ...]


class Line(_Record):
    """A trial at one ε, means over the measured cases that have a row of it.

    Parameters
    ----------
    name, role, title
        As planned; the title is the attack's name in the field.
    epsilon
        Window fraction.
    decides
        Cases in which it was the strongest of all trials at the report's ε.
    gradients, queries
        Evaluations it took in all; those of a trial on a whole curve are for the whole curve.
    """

    name: str
    role: str
    title: str
    epsilon: float
    cases: int
    dice: Figure
    asr_drop: Figure
    asr_pixel: Figure
    rms: Figure
    linf: Figure
    psnr: Figure
    ssim: Figure
    decides: int
    gradients: int
    queries: int


class Change(_Record):
    """A figure without an attack and in the worst case at the report's ε."""

    clean: Figure
    attacked: Figure


class ClassLine(_Record):
    """Dice of one class."""

    id: int
    name: str
    dice: Change


class SizeLine(_Record):
    """Lesions of one class of size.

    Parameters
    ----------
    title
        With the bounds and their unit.
    lesions
        How many.
    found
        Share of their voxels that the mask has.
    missed_clean, missed_attacked
        Lesions of which it has none.
    """

    title: str
    lesions: int
    found: Change
    missed_clean: int
    missed_attacked: int


class Size(_Record):
    """Of the perturbations that made the worst case, means over cases; PSNR in dB over those that changed anything."""

    rms: Figure
    linf: Figure
    psnr: Figure
    ssim: Figure


class CheckLine(_Record):
    """A sanity check and its answer (see `cease_core.evaluation.checks.Check`)."""

    name: str
    title: str
    status: Literal["pass", "fail", "not run"]
    figure: str
    why: str
    evidence: str
    required: bool

    @classmethod
    def of(cls, check: Check) -> CheckLine:
        """From the check itself."""
        return cls(
            name=check.name,
            title=check.title,
            status=check.status,
            figure=check.figure,
            why=check.why,
            evidence=check.evidence,
            required=check.required,
        )


class VerdictLine(_Record):
    """What the checks add up to: the label, one sentence, and the names of the checks that decided."""

    label: str
    sentence: str
    deciding: tuple[str, ...]


class ModelSummary(_Record):
    """All figures of one model."""

    name: str
    title: str
    defence: str
    counts: Counts
    headline: Headline
    verdict: VerdictLine
    checks: tuple[CheckLine, ...]
    asr_medis: Change
    asr_pixel: Figure
    d_success: Figure
    overlap: dict[Literal["dice", "iou", "hd95", "nsd"], Change]
    calibration: dict[Literal["ece", "nll", "brier"], Change]
    perturbation: Size
    curve: Curve
    curves: tuple[Curve, ...]
    trials: tuple[Line, ...]
    classes: tuple[ClassLine, ...]
    sizes: tuple[SizeLine, ...]
    errors: dict[str, str]
    gradients: int
    queries: int


class Standing(_Record):
    """A model's headline on the common cases."""

    name: str
    headline: Headline


class Difference(_Record):
    """Two models on the common cases: ``model`` minus ``baseline``, mean over patients; p by Wilcoxon, unadjusted."""

    model: str
    baseline: str
    figure: Compared
    mean: Figure
    low: Figure
    high: Figure
    p: Figure


class Comparison(_Record):
    """Models on the cases that are eligible for all of them.

    Parameters
    ----------
    left_out
        Models without any eligible case, which would leave nothing to compare the others on.
    """

    cases: int
    patients: int
    left_out: tuple[str, ...]
    standings: tuple[Standing, ...]
    differences: tuple[Difference, ...]


class Summary(_Record):
    """What an audit found.

    Parameters
    ----------
    epsilon, largest, epsilons
        Of single figures, the curve's largest, and all of the curve; window fractions.
    length_unit
        Of HD95, ``"mm"`` or ``"pixel"``.
    size_unit
        Of lesions.
    comparison
        None for a single model.
    """

    complete: bool
    jobs: int
    finished: int
    epsilon: float
    largest: float
    epsilons: tuple[float, ...]
    length_unit: str
    size_unit: str
    models: tuple[ModelSummary, ...]
    comparison: Comparison | None


def summarise(audit: Audit) -> Summary:
    """Work out all figures of an audit, finished or not.

    Parameters
    ----------
    audit
        From `cease_core.evaluation.audit.load_audit`.
    """
    measured = [Measured(audit, name) for name in audit.models]
    unit = _length_unit(audit.cases)
    return Summary(
        complete=audit.complete,
        jobs=audit.jobs,
        finished=audit.finished,
        epsilon=audit.report_epsilon,
        largest=audit.epsilons[-1],
        epsilons=audit.epsilons,
        length_unit=unit,
        size_unit=_size_unit(audit.cases, unit),
        models=tuple(_model(audit, m) for m in measured),
        comparison=_compare(measured) if len(measured) > 1 else None,
    )


class Measured:
    """The rows of one model, as the figures ask for them.

    Parameters
    ----------
    audit
        Finished or not.
    model
        One of its models.
    only
        Cases to keep; all by default.
    """

    def __init__(self, audit: Audit, model: str, only: Iterable[str] | None = None) -> None:
        self.audit = audit
        self.model = model
        self.all = audit.rows[audit.rows["model"] == model]
        kept = self.all if only is None else self.all[self.all["case"].isin(list(only))]
        valid = kept[kept["dice"].notna()]
        clean = valid[valid["attack"] == CLEAN].set_index("case")
        curve = valid[valid["role"].isin(CURVE_ROLES) & valid["epsilon"].isin(audit.epsilons)]
        levels = curve.groupby("case")["epsilon"].nunique()
        whole = set(levels.index[levels == len(audit.epsilons)]) & set(clean.index)
        self.cases: list[str] = [c for c in audit.facts["cases"] if c in whole]
        self.clean = clean.loc[self.cases]
        self.trials = valid[(valid["attack"] != CLEAN) & valid["case"].isin(whole)]
        # Attacks first: among equals, a perturbation that was found says more than that none is needed.
        self._candidates = pd.concat(
            [self.trials[self.trials["role"] != HUGE], self.clean.reset_index()], ignore_index=True
        )

    @property
    def dice(self) -> NDArray[np.float64]:
        """Without an attack (cases,)."""
        return _values(self.clean["dice"])

    @property
    def patients(self) -> NDArray[Any]:
        """Whose case each is (cases,)."""
        return self.clean["patient"].to_numpy(dtype=str)

    @cached_property
    def attacked(self) -> NDArray[np.float64]:
        """Worst-case Dice (levels, cases) at the curve's ε."""
        lowest = [self._allowed(e).min() for e in self.audit.epsilons]
        return np.stack([_values(level.loc[self.cases]) for level in lowest])

    @cached_property
    def here(self) -> pd.DataFrame:
        """The rows of the worst case at the report's ε, by case."""
        return self.worst(self.audit.report_epsilon)

    @property
    def eligible(self) -> list[str]:
        """Cases with a clean Dice of at least ½."""
        return [case for case, counts in zip(self.cases, eligible(self.dice), strict=True) if counts]

    def worst(self, epsilon: float) -> pd.DataFrame:
        """The row with the lowest Dice of each case at up to ``epsilon``, by case."""
        return self._candidates.loc[self._allowed(epsilon).idxmin()].set_index("case").loc[self.cases]

    def _allowed(self, epsilon: float) -> SeriesGroupBy[float, str]:
        allowed = self._candidates[self._candidates["epsilon"] <= epsilon * (1 + 1e-9)]
        return allowed.groupby("case")["dice"]

    def spread(self, values: ArrayLike) -> Spread:
        """Mean of values (cases,), those that are NaN left out, and its interval over patients."""
        data = np.asarray(values, dtype=np.float64)
        low, high = interval(data, patients=self.patients)
        return Spread(mean=_mean(data), low=_figure(low), high=_figure(high))

    def rate(self, values: ArrayLike) -> Spread:
        """As `spread`, of values that many cases share: where all patients agree there is no interval.

        A bootstrap of what never varies has no width, and 0 % of five cases is not known to be 0 % of all.
        """
        found = self.spread(values)
        if len(np.unique(independent(values, self.patients))) > 1:
            return found
        return Spread(mean=found.mean, low=None, high=None)


# --- one model -----------------------------------------------------------------------------------------------


def _model(audit: Audit, found: Measured) -> ModelSummary:
    victim = next(v for v in audit.facts["victims"] if v["name"] == found.model)
    checks = run_checks(audit, found.model)
    reached = verdict(checks)
    lines = tuple(_lines(found, victim["trials"]))
    failed = found.all[found.all["error"] != ""]
    clean, here = found.clean, found.here
    return ModelSummary(
        name=found.model,
        title=victim["title"],
        defence=victim["defence"],
        counts=_counts(audit, found, set(failed["case"])),
        headline=_headline(found),
        verdict=VerdictLine(
            label=reached.label, sentence=reached.sentence, deciding=tuple(c.name for c in reached.deciding)
        ),
        checks=tuple(CheckLine.of(c) for c in checks),
        asr_medis=Change(
            clean=_figure(asr_medis(_values(clean["mean_iou"]))), attacked=_figure(asr_medis(_values(here["mean_iou"])))
        ),
        asr_pixel=_figure(asr_pixel(_values(here["flipped"]))),
        d_success=_figure(d_success(found.dice, found.attacked, audit.epsilons)),
        overlap={
            "dice": _change(found, "dice"),
            "iou": _change(found, "iou"),
            "hd95": _change(found, "hd95_mm"),
            "nsd": _change(found, "nsd"),
        },
        calibration={"ece": _change(found, "ece"), "nll": _change(found, "nll"), "brier": _change(found, "brier")},
        perturbation=Size(
            rms=_mean(here["rms"]), linf=_mean(here["linf"]), psnr=_mean(here["psnr"]), ssim=_mean(here["ssim"])
        ),
        curve=_worst_curve(found),
        curves=tuple(_trial_curves(found, victim["trials"])),
        trials=lines,
        classes=tuple(
            ClassLine(id=c, name=name, dice=_change(found, f"dice_{c}")) for c, name in audit.classes.items()
        ),
        sizes=tuple(_sizes(audit, found)),
        errors={f"{row['attack']} on {row['case']}": str(row["error"]) for _, row in failed.iterrows()},
        gradients=_spent(found.all, "gradients"),
        queries=_spent(found.all, "queries"),
    )


def _headline(found: Measured) -> Headline:
    epsilons = found.audit.epsilons
    before, levels = found.dice, found.attacked
    here = _values(found.here["dice"])
    smallest = np.minimum(smallest_epsilon(before, levels, epsilons), epsilons[-1])

    def fallen(after: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(eligible(before), after <= before / 2, np.nan)

    return Headline(
        clean_dice=found.spread(before),
        worst_dice=found.spread(here),
        asr_drop=found.rate(fallen(here)),
        asr_drop_largest=found.rate(fallen(levels[-1])),
        d_censored=found.rate(smallest),
        auc=found.spread(case_areas(before, levels, epsilons)),
    )


def _counts(audit: Audit, found: Measured, failed: set[str]) -> Counts:
    planned = list(audit.facts["cases"])
    known = set(found.cases) | failed
    return Counts(
        planned=len(planned),
        measured=len(found.cases),
        eligible=len(found.eligible),
        failed=len(failed),
        pending=sum(case not in known for case in planned),
        patients=len(set(found.patients)),
    )


def _worst_curve(found: Measured) -> Curve:
    levels = [(0.0, found.dice), *zip(found.audit.epsilons, found.attacked, strict=True)]
    points = []
    for epsilon, values in levels:
        band = found.spread(values)
        points.append(
            Point(
                epsilon=epsilon,
                dice=band.mean,
                low=band.low,
                high=band.high,
                asr_drop=_figure(asr_drop(found.dice, values)) if epsilon else 0.0 if found.eligible else None,
                cases=len(found.cases),
            )
        )
    return Curve(name="worst case", points=tuple(points))


def _trial_curves(found: Measured, trials: Sequence[dict[str, Any]]) -> Iterable[Curve]:
    """Of the trials that were run at every ε of the curve, on the cases that have them all."""
    epsilons = found.audit.epsilons
    if len(epsilons) < 2 or not found.cases:
        return
    for trial in trials:
        rows = found.trials[found.trials["attack"] == trial["name"]]
        if trial["role"] == HUGE or not set(epsilons) <= set(rows["epsilon"]):
            continue
        levels = rows.pivot(index="epsilon", columns="case", values="dice")
        levels = levels.loc[list(epsilons)].dropna(axis="columns")
        clean = found.clean["dice"].loc[list(levels.columns)]
        means = [(0.0, _mean(clean)), *zip(epsilons, map(_mean, levels.to_numpy()), strict=True)]
        yield Curve(
            name=trial["name"],
            points=tuple(Point(epsilon=e, dice=dice, cases=len(clean)) for e, dice in means),
        )


def _lines(found: Measured, trials: Sequence[dict[str, Any]]) -> Iterable[Line]:
    report = found.audit.report_epsilon
    deciding = found.here["attack"].value_counts()
    for trial in trials:
        epsilon = report if report in trial["epsilons"] else trial["epsilons"][-1]
        mine = found.trials[found.trials["attack"] == trial["name"]]
        rows = mine[mine["epsilon"] == epsilon].set_index("case")
        before = found.clean["dice"].loc[list(rows.index)]
        yield Line(
            name=trial["name"],
            role=trial["role"],
            title=trial["title"],
            epsilon=epsilon,
            cases=len(rows),
            dice=_mean(rows["dice"]),
            asr_drop=_figure(asr_drop(before, rows["dice"])),
            asr_pixel=_figure(asr_pixel(rows["flipped"])),
            rms=_mean(rows["rms"]),
            linf=_mean(rows["linf"]),
            psnr=_mean(rows["psnr"]),
            ssim=_mean(rows["ssim"]),
            decides=int(deciding.get(trial["name"], 0)),
            gradients=_spent(mine, "gradients"),
            queries=_spent(mine, "queries"),
        )


def _change(found: Measured, column: str) -> Change:
    return Change(clean=_mean(found.clean[column]), attacked=_mean(found.here[column]))


def _sizes(audit: Audit, found: Measured) -> Iterable[SizeLine]:
    """Lesions of the measured cases by size; the bounds are those of all the audit's cases."""
    known = {str(row["case"]): json.loads(row["lesions"]) for _, row in audit.cases.iterrows()}
    bounds = strata([size for sizes in known.values() for size in sizes])
    size = np.array([s for case in found.cases for s in known[case]], dtype=np.float64)
    clean, attacked = (
        np.array([share for text in rows["lesions"] for share in json.loads(text)], dtype=np.float64)
        for rows in (found.clean, found.here)
    )
    unit = _size_unit(audit.cases, _length_unit(audit.cases))
    stratum = strata(size, bounds.edges).index if len(size) else np.zeros(0, np.int64)
    for number, title in enumerate(bounds.titles(unit)):
        inside = stratum == number
        if inside.any():
            yield SizeLine(
                title=title,
                lesions=int(inside.sum()),
                found=Change(
                    clean=float(np.average(clean[inside], weights=size[inside])),
                    attacked=float(np.average(attacked[inside], weights=size[inside])),
                ),
                missed_clean=int((clean[inside] == 0).sum()),
                missed_attacked=int((attacked[inside] == 0).sum()),
            )


def _spent(rows: pd.DataFrame, column: str) -> int:
    """Evaluations of all jobs; a ladder's rows count from its beginning, so its largest is the job's."""
    return int(rows.groupby(["attack", "case"])[column].max().fillna(0).sum())


# --- several models ------------------------------------------------------------------------------------------


def _compare(models: Sequence[Measured]) -> Comparison:
    able = [m for m in models if m.eligible]
    left_out = tuple(m.model for m in models if not m.eligible)
    shared = set.intersection(*(set(m.eligible) for m in able)) if len(able) > 1 else set()
    common = [Measured(m.audit, m.model, shared) for m in able] if shared else []
    patients = common[0].patients if common else np.zeros(0, str)
    return Comparison(
        cases=len(shared),
        patients=len(set(patients)),
        left_out=left_out,
        standings=tuple(Standing(name=m.model, headline=_headline(m)) for m in common),
        differences=tuple(
            difference for baseline, model in combinations(common, 2) for difference in _differences(model, baseline)
        ),
    )


def _differences(model: Measured, baseline: Measured) -> Iterable[Difference]:
    epsilons = model.audit.epsilons

    def per_case(found: Measured) -> dict[Compared, NDArray[np.float64]]:
        smallest = smallest_epsilon(found.dice, found.attacked, epsilons)
        return {
            "clean Dice": found.dice,
            "worst-case Dice": _values(found.here["dice"]),
            "area under the curve": case_areas(found.dice, found.attacked, epsilons),
            "smallest ε of success": np.minimum(smallest, epsilons[-1]),
        }

    first, second = per_case(model), per_case(baseline)
    for name, values in first.items():
        gap = paired(values, second[name], model.patients)
        yield Difference(
            model=model.model,
            baseline=baseline.model,
            figure=name,
            mean=_figure(gap.mean),
            low=_figure(gap.low),
            high=_figure(gap.high),
            p=_figure(gap.p),
        )


# --- small things --------------------------------------------------------------------------------------------


def _values(column: pd.Series[Any]) -> NDArray[np.float64]:
    return column.to_numpy(dtype=np.float64)


def _mean(values: ArrayLike) -> Figure:
    """Mean of the finite values; None without one."""
    data = np.asarray(values, dtype=np.float64)
    finite = data[np.isfinite(data)]
    return float(finite.mean()) if finite.size else None


def _figure(value: float) -> Figure:
    return float(value) if math.isfinite(value) else None


def _length_unit(cases: pd.DataFrame) -> str:
    return str(cases["unit"].iloc[0]) if "unit" in cases and len(cases) else "mm"


def _size_unit(cases: pd.DataFrame, length_unit: str) -> str:
    if length_unit == "mm":
        return UNITS[int(cases["ndim"].iloc[0]) if len(cases) else 2]
    return "pixels"
