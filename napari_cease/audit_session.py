"""What the audit dock shows, as an evented value that knows no Qt: the choices, and what an audit has found so far.

An audit's folder is the truth. Its journal is read as it grows, never twice, and never written to: another process
appends to it meanwhile.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from psygnal import EventedModel
from pydantic import ConfigDict, Field

from cease_core.data import find_cases
from cease_core.data.splits import put_aside
from cease_core.errors import CeaseError
from cease_core.evaluation.audit import Settings, Victim, tier
from cease_core.evaluation.audit.plan import Tier, Trial, trials
from cease_core.evaluation.audit.store import CASES, CLEAN, Entry, keys_of, parse_entry
from cease_core.evaluation.audit.units import choose
from cease_core.evaluation.audit.victims import victims_of
from cease_core.evaluation.summary import CURVE_ROLES, HUGE, Summary
from cease_core.models import ModelCard
from cease_core.models.checkpoint import load_card
from cease_core.models.library import user_library
from napari_cease.jobs.auditing import FIGURES, Request, Status
from napari_cease.units import LEVELS

State = Literal["idle", "running", "stopped", "finished", "failed"]
AT_ONCE = 2**17
"""Bytes of a journal that are read in one go, a few milliseconds' worth."""

AUDITS = "audits"
"""Folder of audits, beside the user's library of models."""


def audits_place() -> Path:
    """Where audits go unless somebody says otherwise."""
    return user_library().parent / AUDITS


# --- what was found ------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the table; NaN where a figure is not known."""

    model: str
    attack: str
    epsilon: float
    case: str
    dice: float
    clean: float
    psnr: float
    error: str


class JournalTail:
    """What is appended to an audit's journal, as it comes; a line that is not complete is waited for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.more = False
        self._place = 0

    def read(self, limit: int = AT_ONCE) -> list[Entry]:
        """Entries since the last call, of ``limit`` bytes or a little less; `more` says whether that was not all."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                text = file.read(limit)
                if text and b"\n" not in text:
                    text += file.readline()
        except OSError:
            self.more = False
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        self.more = bool(whole) and len(text) >= limit
        return [entry for line in whole.splitlines(keepends=True) if (entry := parse_entry(line)) is not None]


class Results:
    """What the journal has told, kept ready for table, curves and time left.

    Parameters
    ----------
    facts
        Content of ``audit.json``.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.rows: list[Row] = []
        self.titles = _titles(facts["victims"])
        self.levels: tuple[float, ...] = tuple(facts["settings"]["epsilons"])
        self.jobs = len(keys_of(facts))
        self._done: set[tuple[str, str, str]] = set()
        self._clean: dict[tuple[str, str], float] = {}
        self._lowest: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
        self._swept: dict[tuple[str, str], set[float]] = defaultdict(set)
        self._heights: dict[tuple[str, str], list[float]] = {}
        self._spent: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.failures = 0

    @property
    def done(self) -> int:
        """Jobs that are finished."""
        return len(self._done)

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in finished jobs."""
        for entry in entries:
            if entry.key in self._done:
                continue
            self._done.add(entry.key)
            model, trial, case = entry.key
            self._spent[model, trial].append(entry.seconds)
            for row in entry.rows:
                self._take(model, trial, case, row)
            self._climb((model, case))

    def _take(self, model: str, trial: str, case: str, row: Mapping[str, Any]) -> None:
        dice, epsilon, role = float(row.get("dice", math.nan)), float(row["epsilon"]), row.get("role", "")
        place = model, case
        if trial == CLEAN:
            self._clean[place] = dice
        elif role != HUGE and not math.isnan(dice):
            lowest = self._lowest[place]
            lowest[epsilon] = min(dice, lowest.get(epsilon, math.inf))
            if role in CURVE_ROLES:
                self._swept[place].add(epsilon)
        psnr = float(row.get("psnr", math.nan))
        self.failures += bool(row.get("error"))
        clean = self._clean.get(place, math.nan)
        self.rows.append(Row(model, trial, epsilon, case, dice, clean, psnr, str(row.get("error") or "")))

    def _climb(self, place: tuple[str, str]) -> None:
        """Work out a case's worst Dice at every ε once a white-box attack has tried them all, and again after that."""
        clean = self._clean.get(place, math.nan)
        if math.isnan(clean) or not self._swept[place].issuperset(self.levels):
            return
        lowest = self._lowest[place]
        reached = ([d for e, d in lowest.items() if e <= level * (1 + 1e-9)] for level in self.levels)
        self._heights[place] = [clean, *(min(clean, *dice) for dice in reached)]

    def curve(self, model: str) -> list[tuple[float, float]]:
        """ε and mean worst-case Dice over the cases that a white-box attack has tried at every ε; 0 first."""
        heights = [of_case for (name, _), of_case in self._heights.items() if name == model]
        means = [sum(column) / len(heights) for column in zip(*heights, strict=True)]
        return list(zip((0.0, *self.levels), means, strict=True)) if heights else []

    @property
    def seconds_left(self) -> float | None:
        """What the rest will take, by what each trial took so far; None before the first job."""
        if not self._spent:
            return None
        known = {key: sum(s) / len(s) for key, s in self._spent.items()}
        by_trial: dict[str, list[float]] = defaultdict(list)
        for (_, trial), mean in known.items():
            by_trial[trial].append(mean)
        usual = sum(known.values()) / len(known)
        cases, left = len(self.facts["cases"]), 0.0
        for victim in self.facts["victims"]:
            for trial in (CLEAN, *(t["name"] for t in victim["trials"])):
                key = victim["name"], trial
                others = by_trial.get(trial)
                each = known.get(key) or (sum(others) / len(others) if others else usual)
                left += each * (cases - len(self._spent.get(key, ())))
        return left


def _titles(victims: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each model is called; where several have one title, their names tell them apart."""
    count = Counter(v["title"] for v in victims)
    return {v["name"]: v["title"] if count[v["title"]] == 1 else f"{v['title']} ({v['name']})" for v in victims}


@dataclass(frozen=True)
class ChosenCase:
    """A row of an audit, with what it takes to look at it.

    Parameters
    ----------
    case
        As in the table: the case's name, with the slice's index behind it if there is one.
    model, attack, epsilon
        Names as in the table, and the ε in window fractions; ``"clean"`` at 0 is the unattacked scan.
    name, index
        The case's own name, and the slice along the scan's first axis; None for all of it.
    model_folder, data
        Where they lie; None where the audit does not say.
    settings
        Parameters of the attack as `cease_core.attacks.build.describe` gives them; empty for the clean scan.
    """

    case: str
    model: str
    attack: str
    epsilon: float
    name: str
    index: int | None = None
    model_folder: Path | None = None
    data: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def chosen_case(row: Row, facts: Mapping[str, Any], folder: Path, request: Request | None) -> ChosenCase:
    """What a row of the table is about.

    Parameters
    ----------
    facts, folder, request
        Of the row's audit.
    """
    name, index = row.case, None
    try:
        with (folder / f"{CASES}.csv").open(encoding="utf-8", newline="") as file:
            slices = {line["case"]: int(line["slice"]) for line in csv.DictReader(file)}
    except (OSError, ValueError, KeyError):
        slices = {}
    if slices.get(row.case, -1) >= 0:
        index = slices[row.case]
        name = row.case.removesuffix(f"[{index}]")
    victim: Mapping[str, Any] = next((v for v in facts["victims"] if v["name"] == row.model), {})
    settings: dict[str, Any] = next((t["settings"] for t in victim.get("trials", ()) if t["name"] == row.attack), {})
    places = [m for m in (request.models if request else ()) if m.name == victim.get("folder")]
    return ChosenCase(
        row.case,
        row.model,
        row.attack,
        row.epsilon,
        name,
        index,
        places[0] if places else None,
        request.data if request else None,
        settings,
    )


# --- before it starts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """What a folder has for an audit.

    Parameters
    ----------
    cases
        In all.
    seen
        Of these, how many a model was trained on, or its checkpoint chosen by.
    taken
        How many the audit would take.
    """

    cases: int
    seen: int
    taken: int


def look(models: Sequence[Path], data: Path, settings: Settings, *, keep_seen: bool) -> Looked:
    """Count a folder's cases.

    Raises
    ------
    CeaseError
        If the folder has none, or none is left.
    """
    cases = put_aside(find_cases(data))
    victims = [_victim(folder, load_card(folder)) for folder in models]
    known = {n for v in victims if v.card.data for n in (*v.card.data.train, *v.card.data.validation)}
    seen = sum(case.name in known for case in cases)
    if cases and seen == len(cases) and not keep_seen:
        raise CeaseError(
            f"All {seen} cases of this folder were used to train a chosen model or to choose its checkpoint; "
            "choose other data, or keep such cases and say so."
        )
    return Looked(len(cases), seen, len(choose(cases, victims, settings, keep_seen=keep_seen).cases))


def why_not(folder: Path, card: ModelCard, chosen: Sequence[tuple[Path, ModelCard]]) -> str:
    """Why a model cannot be audited together with those that are chosen; empty if it can."""
    try:
        victims_of([*(_victim(*other) for other in chosen if other[0] != folder), _victim(folder, card)])
    except CeaseError as error:
        return str(error)
    return ""


def _victim(folder: Path, card: ModelCard) -> Victim:
    # Without the hash of the weights: nothing is loaded to look.
    return Victim(card.name, card, "", folder)


def explained(settings: Settings) -> str:
    """What an audit with these settings does, and what it costs about, in a line or two."""
    planned = trials(settings, encoder=True)
    names = [_short(t) for t in planned if t.role in ("white_box", "joint")]
    low, high = (round(LEVELS * e, 3) for e in (settings.epsilons[0], settings.epsilons[-1]))
    levels = f"ε = {low:g}/255" if low == high else f"ε from {low:g} to {high:g}/255"
    cases = "all cases" if settings.cases is None else f"up to {settings.cases} case{'s' * (settings.cases != 1)}"
    return (
        f"{', '.join(names)} at {levels}, and the checks, on {cases}; about {gradients(settings):,} gradients a case "
        "and model."
    )


def gradients(settings: Settings) -> int:
    """Passes with gradient that a case costs on one model, to two digits; a query counts as a third of one."""
    total = sum(_cost(t) for t in trials(settings, encoder=True))
    digits = max(0, len(str(round(total))) - 2)
    return int(round(total / 10**digits) * 10**digits)


def _cost(trial: Trial) -> float:
    attack: Any = trial.attack
    if trial.role == "black_box":
        return float(attack.queries) / 3
    # All rungs of a ladder below the first take about as many steps as the first.
    rungs = 2 if len(trial.epsilons) > 1 else 1
    members = len(attack.losses) if isinstance(getattr(attack, "losses", None), tuple) else 1
    return float(getattr(attack, "steps", 1)) * members * rungs


def _short(trial: Trial) -> str:
    name = {"pgd": "PGD", "sea": "SEA", "joint": "joint attack"}.get(trial.name, trial.name)
    steps = getattr(trial.attack, "steps", None)
    return f"{name}-{steps}" if steps and trial.role != "joint" else name


# --- the session ---------------------------------------------------------------------------------------------


class AuditSession(EventedModel):
    """The audit dock's state.

    Parameters
    ----------
    models
        Folders of the models under audit, in the order they were chosen.
    data
        Folder of the data set.
    tier, changes
        Where the settings start from, and what was set by hand (see `cease_core.evaluation.audit.Settings`).
    keep_seen
        Whether cases stay that a model was trained on or its checkpoint chosen by.
    headline
        Whether the headline goes into the folders of the user's own models.
    out
        Folder for the results; None for a new one beside the library.
    folder
        Of the audit that the rest is about.
    state, sentence
        Where it stands, and what went wrong.
    results
        What it has found so far; None before it has begun.
    count
        Rows so far; changes whenever `results` has grown.
    summary
        Figures, checks and verdicts; None before the report is written.
    headlines
        Titles of the models whose folders got the headline.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, validate_assignment=True, extra="forbid")

    models: tuple[Path, ...] = ()
    data: Path | None = None
    tier: Tier = "quick"
    changes: dict[str, Any] = Field(default_factory=dict)
    keep_seen: bool = False
    headline: bool = True
    out: Path | None = None

    folder: Path | None = None
    state: State = "idle"
    sentence: str = ""
    results: Results | None = None
    count: int = 0
    summary: Summary | None = None
    headlines: tuple[str, ...] = ()

    # --- the choices ----------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Those of the tier with what was set by hand."""
        return tier(self.tier, **self.changes)

    def choose_tier(self, name: Tier) -> None:
        """Take all settings of a tier."""
        self.changes = {}
        self.tier = name

    def tune(self, **values: Any) -> None:
        """Set some settings by hand and keep the others.

        Raises
        ------
        CeaseError
            If a value does not fit; nothing is changed then.
        """
        wanted = {**self.changes, **values}
        if "epsilons" in values:
            levels = wanted["epsilons"] = tuple(sorted(set(values["epsilons"])))
            if levels and wanted.get("report_epsilon", tier(self.tier).report_epsilon) not in levels:
                wanted["report_epsilon"] = levels[-1]
        found, usual = tier(self.tier, **wanted), tier(self.tier)
        self.changes = {n: getattr(found, n) for n in wanted if getattr(found, n) != getattr(usual, n)}

    def request(self) -> Request:
        """What the choices come to.

        Raises
        ------
        CeaseError
            If models or data are missing.
        """
        if not self.models:
            raise CeaseError("An audit needs a model; tick one.")
        if self.data is None:
            raise CeaseError("An audit needs scans with masks; choose a folder.")
        plain = self.settings.model_dump(mode="json")
        models = tuple(folder.absolute() for folder in self.models)
        return Request(models, self.data.expanduser().absolute(), plain, self.keep_seen, self.headline)

    def place(self, day: str) -> Path:
        """Folder for the results: the chosen one, or a free one named after data and day."""
        if self.out is not None:
            return self.out
        name = f"{self.data.expanduser().absolute().name if self.data else 'audit'}-{day}"
        place, number = audits_place() / name, 2
        while place.exists():
            place, number = audits_place() / f"{name}-{number}", number + 1
        return place

    # --- the audit ------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether a process works on it."""
        return self.state == "running"

    @property
    def resumable(self) -> bool:
        """Whether something is left to do."""
        return self.state in ("stopped", "failed")

    @property
    def jobs(self) -> int:
        """In all; 0 before they are known."""
        return self.results.jobs if self.results else 0

    @property
    def done(self) -> int:
        """Jobs that are finished."""
        return self.results.done if self.results else 0

    @property
    def rows(self) -> Sequence[Row]:
        """The table so far, in the order in which the jobs were done."""
        return self.results.rows if self.results else ()

    @property
    def seconds_left(self) -> float | None:
        """Time left; None while that is not known."""
        return self.results.seconds_left if self.results and self.alive else None

    def begin(self, folder: Path | None) -> None:
        """Forget the audit before and be about another one."""
        self.results = self.summary = None
        self.count, self.sentence, self.headlines = 0, "", ()
        self.folder = folder
        self.state = "idle"

    def know(self, facts: Mapping[str, Any]) -> None:
        """Take in what the audit is made of."""
        self.results = Results(facts)

    def hear(self, entries: Iterable[Entry]) -> None:
        """Take in finished jobs."""
        if self.results is not None:
            self.results.add(entries)
            self.count = len(self.results.rows)

    def stand(self, status: Status) -> None:
        """Take in where the audit stands; what has all its jobs and its report is finished, whoever did it."""
        self.sentence, self.headlines = status.sentence, status.headlines
        ended = status.stage != "running"
        if ended and self.summary is None and self.folder is not None:
            self.summary = read_summary(self.folder, self.done)
        elif not ended:
            self.summary = None
        whole = self.summary is not None and self.summary.complete
        self.state = "finished" if ended and whole and not status.sentence else status.stage

    @property
    def told(self) -> str:
        """Where the audit stands, in a sentence."""
        kept = f"{self.done} of {self.jobs} jobs are kept" if self.jobs else "nothing was computed yet"
        if self.state == "idle":
            return ""
        if self.state == "running":
            if not self.jobs:
                return "Loading the models and reading the cases."
            if self.done == self.jobs:
                return "Writing the report."
            return f"{self.done} of {self.jobs} jobs are done{_left(self.seconds_left)}."
        if self.state == "stopped":
            return f"Stopped: {kept}, and Resume goes on from there."
        if self.state == "failed":
            sentence = (self.sentence or "The audit failed.").strip()
            return f"{sentence[0].upper()}{sentence[1:]} {kept[0].upper()}{kept[1:]}; Resume goes on from there."
        return f"Finished: all {self.jobs} jobs are done."

    @property
    def notes(self) -> str:
        """What a reader of the figures would want to have known: cases that were left out, and why."""
        facts: Mapping[str, Any] = self.results.facts if self.results else {}
        said = []
        if seen := facts.get("seen"):
            said.append(f"{len(seen)} case{'s' * (len(seen) != 1)} left out, seen in training: {', '.join(seen)}.")
        said += [f"Left out: {name}: {reason}" for name, reason in facts.get("unusable", {}).items()]
        return " ".join(said)


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f", about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60)
    return f", about {minutes} min left" if minutes < 90 else f", about {minutes / 60:.1f} h left"


def read_summary(folder: Path, done: int) -> Summary | None:
    """The report's figures; None if there are none, or they are of fewer jobs than ``done``."""
    try:
        found = Summary.model_validate_json((folder / FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.finished == done else None
