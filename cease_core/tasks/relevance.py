"""Which auxiliary tasks a model is trained with: weakly relevant ones, or what a control rule says.

Mao et al. (ECCV 2020, arXiv 2007.07236, Theorem 1) show for M tasks of equal variance that the joint vulnerability
of a model, the growth of its summed loss under the strongest small perturbation, is proportional to
√((1 + 2/M Σ_{j<i} Cov(r_i, r_j) / Cov(r_i, r_i)) / M), with r the tasks' input gradients. A task whose gradient
follows that of segmentation adds nothing; the less they have in common, the more it protects. Measuring is done in
`cease_core.tasks.gradients`; here is the decision, a pure function of the numbers.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from statistics import median
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cease_core.errors import CeaseError

Rule = Literal["weak", "strongest", "random", "all", "manual"]
Floor = Literal["chance", "noise"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Score(_Record):
    """What was measured of one task.

    Parameters
    ----------
    title
        The task's, for tables.
    derived_from
        What its target is made of.
    c_in
        Mean |cos(∇x L_seg, ∇x L_k)| over cases, clean and attacked, 0 to 1.
    c_in_clean, c_in_attacked
        Its two halves.
    chance
        c_in between the task's gradient in one case and segmentation's in another: what is alike because of where
        structures usually lie and where the encoder usually looks, and not because of a relation.
    c_theta
        Mean cos(∇θ L_seg, ∇θ L_k) over batches, clean and attacked, −1 to 1; θ are the shared encoder's weights.
    learnable
        u = 1 − loss / loss of the best constant prediction, on the clean cases; at most 1, 0 for nothing learnt.
    """

    title: str
    derived_from: Literal["image", "mask"]
    c_in: float
    c_in_clean: float
    c_in_attacked: float
    chance: float
    c_theta: float
    learnable: float


class Relevance(_Record):
    """What was measured of a pool of candidate tasks; to and from JSON by pydantic's own methods.

    Parameters
    ----------
    scores
        One a task, by name.
    pairwise
        Mean |cos(∇x L_j, ∇x L_k)| of every two tasks, symmetric, 1 on the diagonal.
    noise_floor
        c_in of a target that is pure noise, through a head with random weights.
    cases
        How many there were.
    epsilon, steps
        Of the attack, in window fractions.
    """

    scores: dict[str, Score] = Field(min_length=1)
    pairwise: dict[str, dict[str, float]]
    noise_floor: float
    cases: int
    epsilon: float
    steps: int

    @model_validator(mode="after")
    def _complete(self) -> Relevance:
        names = set(self.scores)
        if set(self.pairwise) != names or any(set(row) != names for row in self.pairwise.values()):
            raise ValueError("pairwise: every task must be compared with every task of scores")
        return self

    @property
    def weakest_first(self) -> tuple[str, ...]:
        """Names by rising c_in; ties by name."""
        return tuple(sorted(self.scores, key=lambda name: (self.scores[name].c_in, name)))


class Selection(_Record):
    """The tasks that a rule chose, and for every task the reason.

    Parameters
    ----------
    rule
        That chose.
    chosen
        Names, best first.
    reasons
        One sentence part a task, for people.
    summary
        The outcome in one sentence; it says so where fewer remain than were asked for.
    """

    rule: Rule
    chosen: tuple[str, ...]
    reasons: dict[str, str]
    summary: str


def select(
    relevance: Relevance,
    rule: Rule = "weak",
    count: int = 2,
    *,
    learnable: float = 0.2,
    conflict: float = -0.05,
    repeat: float = 0.5,
    floor: Floor = "chance",
    names: Sequence[str] = (),
    costly: Collection[str] = (),
    seed: int = 0,
) -> Selection:
    """Choose auxiliary tasks.

    ``weak`` takes from the tasks that are learnable, do not fight segmentation, have a c_in of at most the pool's
    median and at least the floor, those with the **lowest** c_in first: in the bound every bit of covariance costs,
    and the floor has already removed what merely looks weak because it has nothing to do with segmentation.
    A task that nearly repeats one already taken is passed over. Nothing is relaxed to reach ``count``: the choice
    may be shorter, or empty.

    ``strongest`` and ``random`` are its controls: the same requirements but for relevance, in falling order of
    c_in or shuffled. ``all`` takes every task and ``manual`` those of ``names``, whatever their scores.

    Parameters
    ----------
    relevance
        Of the pool, as measured on cases that are no test cases.
    rule
        See above.
    count
        How many to take (``weak``, ``strongest``, ``random``).
    learnable
        Lowest u.
    conflict
        Lowest c_theta.
    repeat
        Highest |cos| of input gradients between two chosen tasks.
    floor
        What c_in must reach: the task's own ``chance`` level, or what pure ``noise`` scores. The latter is the stricter
        one where an encoder that can segment already is warmed up: whatever passes through it, noise too, then pulls
        at the places that segmentation looks at.
    names
        For ``manual``.
    costly
        Tasks that ``weak``, ``strongest`` and ``random`` are to leave, since they need a pass of their own.
    seed
        For ``random``.

    Raises
    ------
    CeaseError
        If the rule or a name is unknown, ``count`` is below 1, or ``manual`` has no names.
    """
    if rule not in get_args(Rule):
        raise CeaseError(f"unknown rule {rule!r}; choose one of {', '.join(get_args(Rule))}.")
    if count < 1:
        raise CeaseError(f"the number of tasks to choose is {count}; give at least 1.")
    pool = relevance.weakest_first
    unfit = {name: _unfit(relevance.scores[name], learnable, conflict) for name in pool}
    if rule in ("all", "manual"):
        chosen = pool if rule == "all" else _named(names, pool)
        why = "every task is taken" if rule == "all" else "named by hand"
        reasons = {
            name: (f"kept: {why}" + (f", although {unfit[name]}" if unfit[name] else ""))
            if name in chosen
            else "not named"
            for name in pool
        }
        return Selection(rule=rule, chosen=chosen, reasons=reasons, summary=f"Took {_listed(chosen)}: {why}.")
    unfit |= {name: unfit[name] or "needs a pass of its own" for name in pool if name in costly}
    if rule == "weak":
        unfit |= {name: unfit[name] or _not_weak(relevance, name, floor) for name in pool}
        words = "the weakest relation that is left"
    elif rule == "strongest":
        pool, words = pool[::-1], "the strongest relation that is left"
    else:
        pool, words = tuple(random.Random(seed).sample(sorted(pool), len(pool))), "drawn by lot"
    chosen, reasons = _take(relevance, pool, unfit, count, repeat, words)
    return Selection(rule=rule, chosen=chosen, reasons=reasons, summary=_summary(rule, chosen, count))


def _unfit(score: Score, learnable: float, conflict: float) -> str:
    """Why a task should not help at all, or nothing."""
    if score.learnable < learnable:
        return f"not learnable: u = {score.learnable:.3f} < {learnable:g}"
    if score.c_theta < conflict:
        return f"fights segmentation: c_θ = {score.c_theta:.3f} < {conflict:g}"
    return ""


def _not_weak(relevance: Relevance, name: str, floor: Floor) -> str:
    """Why a task is not weakly relevant, or nothing."""
    chance = relevance.scores[name].chance
    c_in, middle = relevance.scores[name].c_in, median(s.c_in for s in relevance.scores.values())
    if floor == "chance" and c_in < chance:
        return f"irrelevant: c_in = {c_in:.3f} < {chance:.3f}, as with segmentation of another case"
    if floor == "noise" and c_in < relevance.noise_floor:
        return f"irrelevant: c_in = {c_in:.3f} < {relevance.noise_floor:.3f}, the score of pure noise"
    if c_in > middle:
        return f"strongly relevant: c_in = {c_in:.3f} > {middle:.3f}, the pool's median"
    return ""


def _take(
    relevance: Relevance, order: Sequence[str], unfit: dict[str, str], count: int, repeat: float, words: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Go through the tasks in order and take ``count`` that are fit and no near repeats."""
    chosen: list[str] = []
    reasons: dict[str, str] = {}
    for name in order:
        likeness = {other: relevance.pairwise[name][other] for other in chosen}
        nearest = max(likeness, key=likeness.__getitem__, default=None)
        if unfit[name]:
            reasons[name] = unfit[name]
        elif nearest is not None and likeness[nearest] > repeat:
            reasons[name] = f"nearly repeats {nearest}: cosine {likeness[nearest]:.3f} > {repeat:g}"
        elif len(chosen) == count:
            reasons[name] = f"not needed: {_listed(chosen)} came first"
        else:
            chosen.append(name)
            reasons[name] = f"kept: c_in = {relevance.scores[name].c_in:.3f}, {words}"
    return tuple(chosen), reasons


def _named(names: Sequence[str], pool: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise CeaseError(f"the rule manual needs names of tasks; give some of {', '.join(sorted(pool))}.")
    for name in names:
        if name not in pool:
            raise CeaseError(f"task {name!r} was not measured; choose among {', '.join(sorted(pool))}.")
    return tuple(dict.fromkeys(names))


def _summary(rule: Rule, chosen: Sequence[str], count: int) -> str:
    if not chosen:
        return f"No task meets the rule {rule}, {count} {'was' if count == 1 else 'were'} asked for: nothing is taken."
    if len(chosen) < count:
        return f"Took only {_listed(chosen)} by the rule {rule}: {count} were asked for, and no other task meets it."
    return f"Took {_listed(chosen)} by the rule {rule}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def table(relevance: Relevance, selection: Selection) -> str:
    """Every score and verdict as a Markdown table, by rising c_in; chosen tasks in bold, pure noise among them."""
    floor = relevance.noise_floor
    rows = [(floor, ("*pure noise*", f"{floor:.3f}", *[""] * 6, "for comparison"))]
    for name, score in relevance.scores.items():
        measured = (score.c_in, score.c_in_clean, score.c_in_attacked, score.chance, score.c_theta, score.learnable)
        title = f"**{name}**" if name in selection.chosen else name
        numbers = (f"{value:.3f}" for value in measured)
        rows.append((score.c_in, (title, *numbers, score.derived_from, selection.reasons[name])))
    rows.sort()
    head = ("task", "c_in", "clean", "attacked", "chance", "c_θ", "u", "target from", "verdict")
    rule = ("---", *("---:",) * 6, "---", "---")
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *(row for _, row in rows))]
    note = (
        f"{selection.summary} Measured on {relevance.cases} held-out cases, clean and under "
        f"PGD-{relevance.steps} at {relevance.epsilon * 255:g}/255."
    )
    return "\n".join([*lines, "", note, ""])
