"""A section on robustness for a model card, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cease_core.evaluation.audit.store import Audit
from cease_core.evaluation.report import words
from cease_core.evaluation.summary import ModelSummary, Summary


def card_section(audit: Audit, summary: Summary, model: ModelSummary) -> str:
    """What a reader of a model's card should know of its robustness.

    Parameters
    ----------
    audit
        For its settings and versions.
    summary, model
        Of the same audit.

    Returns
    -------
    str
        Markdown, with a heading of the second level.
    """
    head, made = model.headline, audit.facts["made"]
    here, top = words.level(summary.epsilon), words.level(summary.largest)
    rate, interval = "Attack success rate at", words.band_share
    figures = [
        ("Clean Dice", words.number(head.clean_dice.mean), words.band(head.clean_dice, 3)),
        (f"Worst-case Dice at {here}", words.number(head.worst_dice.mean), words.band(head.worst_dice, 3)),
        (f"{rate} {here}", words.share(head.asr_drop.mean), interval(head.asr_drop)),
        (f"{rate} {top}", words.share(head.asr_drop_largest.mean), interval(head.asr_drop_largest)),
        (
            f"Mean smallest ε of success, at most {top}",
            words.level(head.d_censored.mean),
            words.band_level(head.d_censored),
        ),
        ("Area under the curve", words.number(head.auc.mean), words.band(head.auc, 3)),
    ]
    checks = [(c.title, c.status, c.figure) for c in model.checks]
    attacks = [(t.name, t.title, words.level(t.epsilon), words.number(t.dice)) for t in model.trials]
    counts = model.counts
    settings = audit.facts["settings"]
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in made["versions"].items())
    hashes = f"data {audit.facts['data'][:16]}, weights {_weights(audit, model)[:16]} (SHA-256)"
    parts = [
        f"## Robustness: {_text(model.title)}",
        _text(words.unfinished(summary)),
        _text(words.familiar(audit)),
        _text(words.finding(summary, model)),
        f"**Verdict: {_text(model.verdict.label)}.** {_text(words.belief(model))}",
        _table(("Figure", "Value", "95 % interval"), figures),
        f"{words.plural(counts.measured, 'case')} of {words.plural(counts.patients, 'patient')} measured, "
        f"{counts.eligible} eligible (clean Dice of at least ½), {counts.failed} failed. ε is the largest change of a "
        "pixel, as a fraction of the intensity window. An attack succeeds if Dice falls to half the clean one or "
        "lower. The worst case is the lowest Dice over all attacks up to that ε. Intervals are bootstraps over "
        "patients.",
        "### Attacks\n\n" + _table(("Trial", "Attack", "ε", "Mean Dice"), attacks),
        "### Sanity checks\n\n" + _table(("Check", "Answer", "Figure"), checks),
        f"Tier {_text(str(settings['tier']))}, seed {settings['seed']}, {_text(str(made['date']))}; {versions}; "
        f"{hashes}.",
        "A worst case over attacks is an upper bound: another attack may find more.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _weights(audit: Audit, model: ModelSummary) -> str:
    return str(next(v["weights"] for v in audit.facts["victims"] if v["name"] == model.name))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(words: str) -> str:
    """Text that cannot be taken for Markdown or HTML, on one line."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in " ".join(words.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
