"""The report as one HTML page that needs nothing else: what it shows, and the template it is filled into."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cease_core.evaluation.audit.store import Audit
from cease_core.evaluation.protocol import ELIGIBLE, interval
from cease_core.evaluation.report import charts, words
from cease_core.evaluation.report.pictures import Shot, take
from cease_core.evaluation.summary import Curve, Measured, ModelSummary, Summary
from cease_core.models.card import PALETTE

MOST_PICTURES = 4
"""Cases that are shown as pictures."""

# Blue and vermilion first: the two that lie farthest apart, and dark enough for lines on white.
_ORDER = (4, 5, 2, 6, 0, 1, 3)
COLOURS = tuple(PALETTE[i] for i in _ORDER)

ROLES = {
    "control": "random noise",
    "one_step": "one step",
    "white_box": "white box",
    "joint": "white box, features and heads too",
    "longer": "white box, more steps",
    "restart": "white box, another start",
    "black_box": "without gradients",
    "transfer": "made on another model",
    "huge": "sanity check",
}


@dataclass(frozen=True)
class Task:
    """An auxiliary task that a model was, or was not, trained with; figures are None where the card has none."""

    name: str
    chosen: bool
    reason: str
    c_in: float | None = None
    chance: float | None = None
    c_theta: float | None = None
    learnable: float | None = None


@dataclass(frozen=True)
class Tasks:
    """How a model's auxiliary tasks were chosen."""

    summary: str
    rule: str
    tasks: tuple[Task, ...]
    measured: bool
    noise_floor: float | None


@dataclass(frozen=True)
class ModelView:
    """A model as the page shows it."""

    summary: ModelSummary
    style: charts.Style
    victim: Mapping[str, Any]
    finding: str
    belief: str
    curves: Markup
    legend: tuple[tuple[Markup, str], ...]
    pairs: Markup
    tasks: Tasks | None


@dataclass(frozen=True)
class CaseView:
    """A case as pictures: one shot for each model, None where there is none."""

    name: str
    shots: tuple[tuple[ModelView, Shot | None], ...]


def page(audit: Audit, summary: Summary) -> str:
    """HTML of the report.

    Parameters
    ----------
    audit
        Whose folder has the pictures.
    summary
        Of the same audit.
    """
    found = {name: Measured(audit, name) for name in audit.models}
    views = [_view(i, audit, summary, m, found[m.name]) for i, m in enumerate(summary.models)]
    differences = summary.comparison.differences if summary.comparison else ()
    contrasts = [words.contrast(summary, d) for d in differences if d.figure == "worst-case Dice"]
    return _template().render(
        summary=summary,
        facts=audit.facts,
        settings=_plain(audit.facts["settings"]),
        models=views,
        titles={m.name: m.title for m in summary.models},
        classes=audit.facts["class_names"],
        unfinished=words.unfinished(summary),
        familiar=words.familiar(audit),
        machines=[audit.facts["made"], *audit.facts.get("resumed", [])],
        contrasts=[c for c in contrasts if c],
        curves=Markup(_worst_curves(views)),
        cases=_cases(audit, views, found),
        trials=_trials(audit),
        not_run=_not_run(summary),
        colours=COLOURS,
        roles=ROLES,
        draws=(interval.__kwdefaults__ or {})["draws"],
    )


def _view(number: int, audit: Audit, summary: Summary, model: ModelSummary, found: Measured) -> ModelView:
    victim = next(v for v in audit.facts["victims"] if v["name"] == model.name)
    style = charts.Style.of_model(number)
    shown = [charts.Series("worst case of all", charts.Style.of_model(number, wide=True), model.curve)]
    shown += [charts.Series(c.name, charts.Style.of_trial(i), c) for i, c in enumerate(model.curves)]
    pairs = [
        charts.CasePair(case, float(clean), float(attacked))
        for case, clean, attacked in zip(found.cases, found.dice, found.here["dice"], strict=True)
    ]
    return ModelView(
        summary=model,
        style=style,
        victim=victim,
        finding=words.finding(summary, model),
        belief=words.belief(model),
        curves=Markup(charts.curves(shown, title=f"Dice over ε of each attack on {model.title}")),
        legend=tuple((Markup(charts.mark(s.style)), s.label) for s in shown),
        pairs=Markup(charts.pairs(pairs, style, title=f"Dice of each case, {model.title}", eligible=ELIGIBLE)),
        tasks=_tasks(victim),
    )


def _worst_curves(views: Sequence[ModelView]) -> str:
    series = [charts.Series(v.summary.title, v.style, _named(v.summary)) for v in views]
    return charts.curves(series, title="Worst-case Dice over ε")


def _named(model: ModelSummary) -> Curve:
    """The worst-case curve under the model's name, so that curves of several models can be told apart."""
    return model.curve.model_copy(update={"name": model.name})


# --- pictures ------------------------------------------------------------------------------------------------


def _cases(audit: Audit, views: Sequence[ModelView], found: Mapping[str, Measured]) -> list[CaseView]:
    """The cases that lose most, in turn by model, each of all models."""
    shown: list[CaseView] = []
    for case in _worst_first(found):
        shots = tuple((v, take(audit, v.summary.name, case)) for v in views)
        if any(shot for _, shot in shots):
            shown.append(CaseView(case, shots))
        if len(shown) == MOST_PICTURES:
            break
    return shown


def _worst_first(found: Mapping[str, Measured]) -> list[str]:
    """Cases by the Dice that they lose, eligible ones first: every model's worst, then every model's second …"""
    queues = [_by_loss(measured) for measured in found.values()]
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    return list(dict.fromkeys(turns))


def _by_loss(found: Measured) -> list[str]:
    loss = dict(zip(found.cases, found.dice - found.here["dice"].to_numpy(float), strict=True))
    counts = set(found.eligible)
    return sorted(loss, key=lambda case: (case not in counts, -loss[case], case))


# --- tables --------------------------------------------------------------------------------------------------


def _tasks(victim: Mapping[str, Any]) -> Tasks | None:
    """What the card says of the choice of auxiliary tasks: scores, reasons, or both."""
    selection = _entries(_entries(victim.get("training")).get("selection"))
    relevance = _entries(victim.get("relevance"))
    scores = {str(name): _entries(score) for name, score in _entries(relevance.get("scores")).items()}
    reasons = _entries(selection.get("reasons"))
    listed = selection.get("chosen")
    chosen = [str(name) for name in listed] if isinstance(listed, list) else []
    names = [*chosen, *(n for n in (*reasons, *scores) if n not in chosen)]
    if not names:
        return None
    figures = ("c_in", "chance", "c_theta", "learnable")
    tasks = tuple(
        Task(
            name=str(scores.get(name, {}).get("title") or name),
            chosen=name in chosen,
            reason=str(reasons.get(name, "")),
            **{f: _number(scores.get(name, {}).get(f)) for f in figures},
        )
        for name in dict.fromkeys(names)
    )
    return Tasks(
        summary=str(selection.get("summary") or ""),
        rule=str(selection.get("rule") or ""),
        tasks=tasks,
        measured=bool(scores),
        noise_floor=_number(relevance.get("noise_floor")),
    )


def _entries(value: Any) -> Mapping[str, Any]:
    """What a card has there, if it is of the kind that trainings write: cards may say anything."""
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _trials(audit: Audit) -> list[dict[str, Any]]:
    """All trials of the audit, with the models that each was planned for."""
    planned: dict[str, dict[str, Any]] = {}
    for victim in audit.facts["victims"]:
        for trial in victim["trials"]:
            entry = planned.setdefault(trial["name"], {**trial, "settings": _written(trial["settings"]), "models": []})
            entry["models"].append(victim["name"])
    return list(planned.values())


def _not_run(summary: Summary) -> list[str]:
    """What a reader may expect and this audit did not do."""
    told = []
    roles = {line.role for model in summary.models for line in model.trials}
    if not any(line.name == "sea" for model in summary.models for line in model.trials):
        told.append("The ensemble of losses (SEA) was not planned; stronger tiers run it.")
    if "joint" not in roles:
        told.append("No attack on features and auxiliary heads together with the mask was planned.")
    if "transfer" not in roles:
        told.append("No attack made on another model was planned; it takes a second model.")
    told.append("No certificate was sought: a worst case over attacks is an upper bound of robustness, never a proof.")
    for model in summary.models:
        if model.counts.pending:
            told.append(f"{model.title}: {words.plural(model.counts.pending, 'case')} still to do.")
        skipped = [c.title for c in model.checks if c.status == "not run"]
        if skipped:
            told.append(f"{model.title}: checks not run – {'; '.join(skipped)}.")
    return told


def _plain(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as text: ε in parts of 255."""

    def text(name: str, value: Any) -> str:
        if "epsilon" in name and value is not None:
            return ", ".join(words.level(e) for e in (value if isinstance(value, list) else [value]))
        if isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False) if value is not None else "all"

    return {name: text(name, value) for name, value in settings.items()}


def _written(settings: Mapping[str, Any]) -> str:
    """An attack's settings on one line; those that are not set are left out, inner attacks stand in brackets."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return f"[{_written(value)}]"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    shown = {name: value for name, value in settings.items() if value is not None}
    return ", ".join(
        f"{name} = {words.level(value) if name == 'epsilon' else text(value)}" for name, value in shown.items()
    )


def _colour(written: str) -> str:
    """A colour as cards write it; anything else is grey, since escaping does not make a style harmless."""
    return written if re.fullmatch(r"#[0-9A-Fa-f]{6}", written) else "#888888"


# --- the template --------------------------------------------------------------------------------------------


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": words.number,
        "share": words.share,
        "level": words.level,
        "signed": words.signed,
        "chance": words.chance,
        "count": words.count,
        "plural": words.plural,
        "colour": _colour,
    }
    environment.globals |= {
        "mark": lambda style: Markup(charts.mark(style)),
        "band": words.band,
        "band_share": words.band_share,
        "band_level": words.band_level,
    }
    return environment.get_template("template.html.j2")
