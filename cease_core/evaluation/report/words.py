"""Figures and findings in words: what the page and the model card's section have in common."""

from __future__ import annotations

import math

from cease_core.evaluation.audit.store import Audit
from cease_core.evaluation.summary import Difference, Figure, ModelSummary, Spread, Summary

UNDEFINED = "–"
HARD_TO_SEE = 30.0
"""PSNR in dB from which a change is called hard to see; lossy compression that passes unnoticed lies there."""

MOST_REASONS = 3
"""Of a verdict, in a sentence; the checks' table has all."""

# --- figures -------------------------------------------------------------------------------------------------


def number(value: Figure, digits: int = 3) -> str:
    """With so many decimals.

    Examples
    --------
    >>> number(0.5), number(None)
    ('0.500', '–')
    """
    return UNDEFINED if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def share(value: Figure) -> str:
    """In per cent.

    Examples
    --------
    >>> share(0.123), share(0.004), share(0.0001), share(0), share(0.996)
    ('12 %', '0.4 %', '< 0.1 %', '0 %', '99.6 %')
    """
    if value is None:
        return UNDEFINED
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    fine = 0 < value < 0.0995 or 0.995 <= value < 1
    return f"{100 * value:.1f} %" if fine else f"{100 * value:.0f} %"


def level(epsilon: Figure, digits: int = 1) -> str:
    """A window fraction in parts of 255, as the field writes it.

    Examples
    --------
    >>> level(8 / 255), level(6.42 / 255), level(0.5)
    ('8/255', '6.4/255', '0.5')
    """
    if epsilon is None:
        return UNDEFINED
    if epsilon >= 0.2:
        return f"{epsilon:g}"
    parts = 255 * epsilon
    whole = math.isclose(parts, round(parts), abs_tol=1e-6)
    return f"{parts:.0f}/255" if whole else f"{parts:.{digits}f}/255"


def parts_of_255(value: float) -> str:
    """A window fraction times 255, without needless zeros."""
    return f"{255 * value:.3g}"


def count(value: int) -> str:
    """With thousands set apart by thin spaces."""
    return f"{value:,}".replace(",", "\u202f")


def signed(value: Figure, digits: int = 3) -> str:
    """With its sign."""
    return UNDEFINED if value is None else f"{value:+.{digits}f}".replace("-", "−")


def chance(p: Figure) -> str:
    """A p value."""
    if p is None:
        return UNDEFINED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def band(spread: Spread, digits: int = 2) -> str:
    """An interval."""
    if spread.low is None or spread.high is None:
        return ""
    return f"{number(spread.low, digits)} to {number(spread.high, digits)}"


def band_share(spread: Spread) -> str:
    """An interval of shares."""
    return "" if spread.low is None or spread.high is None else f"{share(spread.low)} to {share(spread.high)}"


def band_level(spread: Spread) -> str:
    """An interval of ε."""
    return "" if spread.low is None or spread.high is None else f"{level(spread.low)} to {level(spread.high)}"


def plural(n: int, noun: str) -> str:
    """
    Examples
    --------
    >>> plural(1, "case"), plural(2, "case")
    ('1 case', '2 cases')
    """
    return f"{count(n)} {noun}" + ("" if n == 1 else "s")


# --- findings ------------------------------------------------------------------------------------------------


def finding(summary: Summary, model: ModelSummary) -> str:
    """What the audit found about a model, for a reader who knows masks but not attacks."""
    counts, headline = model.counts, model.headline
    if not counts.measured:
        if counts.failed:
            return f"Nothing can be said about “{model.title}”: it failed on {plural(counts.failed, 'case')}."
        return f"Nothing can be said about “{model.title}” yet: no case has been attacked so far."
    said = (
        f"A change of every pixel by at most {level(summary.epsilon)} of the intensity window{_visible(model)} "
        f"takes the mask of “{model.title}” from a Dice of {number(headline.clean_dice.mean, 2)} to "
        f"{number(headline.worst_dice.mean, 2)}, mean of {plural(counts.measured, 'case')}."
    )
    if not counts.eligible:
        return f"{said} Even without an attack it finds no structure with a Dice of ½, so no success rate is given."
    lost = round((headline.asr_drop.mean or 0) * counts.eligible)
    cases = plural(counts.eligible, "case")
    which = (
        f"none of the {cases}" if lost == 0 else f"all {cases}" if lost == counts.eligible else f"{lost} of the {cases}"
    )
    return f"{said} In {which} that it segments acceptably without an attack, half of the Dice or more is lost."


def _visible(model: ModelSummary) -> str:
    psnr, ssim = model.perturbation.psnr, model.perturbation.ssim
    if psnr is None:
        return ""
    eye = "hard to see" if psnr >= HARD_TO_SEE else "visible"
    return f" – {eye}, PSNR {number(psnr, 1)}\u00a0dB, SSIM\u00a0{number(ssim, 2)} –"


def belief(model: ModelSummary) -> str:
    """Whether to believe that, and why."""
    deciding = [c for c in model.checks if c.name in model.verdict.deciding]
    deciding.sort(key=lambda c: c.status != "fail")
    passed = sum(c.status == "pass" for c in model.checks)
    if model.verdict.label == "credible":
        return (
            f"The figure is credible because {plural(passed, 'sanity check')} passed and none that is required failed."
        )
    reasons = "; ".join(
        f"“{c.title}” {'failed' if c.status == 'fail' else 'was not run'} ({c.figure.rstrip('.')})"
        for c in deciding[:MOST_REASONS]
    )
    if len(deciding) > MOST_REASONS:
        reasons += f"; and {len(deciding) - MOST_REASONS} more among the checks"
    if model.verdict.label.startswith("doubtful"):
        return f"Do not rely on this figure: the model probably hides its gradient from the attack. {reasons}."
    return f"The figure is not final. {reasons}."


def unfinished(summary: Summary) -> str:
    """What is missing, where the audit is not complete; otherwise empty."""
    if summary.complete:
        return ""
    return (
        f"This audit is not finished: {count(summary.finished)} of {plural(summary.jobs, 'job')} are done, and the "
        "figures are of what is there. Attacks that are missing can only lower a case's Dice."
    )


def familiar(audit: Audit) -> str:
    """A warning where models were asked about cases that they know; otherwise empty."""
    kept = len(audit.facts.get("kept", ()))
    if not kept:
        return ""
    # The table of cases has a row for each slice.
    cases = plural(audit.cases["sha256"].nunique(), "case")
    were = "was" if kept == 1 else "were"
    return (
        f"{count(kept)} of the {cases} {were} used to train a model or to choose its checkpoint, as its card says; "
        "on data that no model has seen the figures may be lower."
    )


def contrast(summary: Summary, difference: Difference) -> str:
    """What a difference in worst-case Dice means, and whether it can be believed; empty where there is none."""
    if summary.comparison is None or difference.mean is None:
        return ""
    models = {m.name: m for m in summary.models}
    pair = models[difference.model], models[difference.baseline]
    more = "more" if difference.mean >= 0 else "less"
    p = chance(difference.p)
    p = p if p.startswith("<") else f"= {p}"
    said = (
        f"On the {plural(summary.comparison.cases, 'case')} that all compared models segment acceptably, "
        f"“{pair[0].title}” keeps {number(abs(difference.mean), 2)} Dice {more} than “{pair[1].title}” at "
        f"{level(summary.epsilon)}"
    )
    if difference.low is None or difference.high is None:
        said += ". One patient is too few to tell them apart."
    else:
        said += f" (95\u00a0% interval {signed(difference.low, 2)} to {signed(difference.high, 2)}, p {p})."
        if difference.low <= 0 <= difference.high:
            said += " The interval holds 0, so the audit does not tell them apart."
    for model in pair:
        if model.verdict.label != "credible":
            said += f" But the figure of “{model.title}” is {model.verdict.label}."
    return said
