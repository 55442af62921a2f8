"""The checks on tables made by hand: what each of them sees, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cease_core.evaluation.audit import Audit
from cease_core.evaluation.checks import Check, Verdict, run_checks, verdict

DOUBTFUL = "doubtful: gradient masking suspected"
CASES = [f"case {i}" for i in range(6)]
SMALL, REPORT, HUGE = 4 / 255, 8 / 255, 0.5

# (role, ε) → Dice; a single number stands for all cases.
HONEST: dict[tuple[str, str, float], float | Sequence[float]] = {
    ("clean", "clean", 0.0): 0.9,
    ("noise", "control", REPORT): 0.85,
    ("fgsm", "one_step", REPORT): 0.7,
    ("pgd", "white_box", SMALL): 0.7,
    ("pgd", "white_box", REPORT): 0.5,
    ("joint", "joint", SMALL): 0.71,
    ("joint", "joint", REPORT): 0.51,
    ("pgd-longer", "longer", REPORT): 0.49,
    ("restart-1", "restart", REPORT): 0.51,
    ("restart-2", "restart", REPORT): 0.5,
    ("square", "black_box", REPORT): 0.75,
    ("transfer-other", "transfer", REPORT): 0.8,
    ("huge", "huge", HUGE): 0.0,
}
PROBE = {
    "reached": True,
    "zero_gradient": 0.0,
    "repeats": True,
    "rise": 1.0,
    "saturated": 0.0,
    "logit_scale": 8.0,
}


COLUMNS = ("model", "attack", "role", "epsilon", "case", "patient", "dice", "error")


def audit_of(
    changes: Mapping[tuple[str, str, float], float | Sequence[float]] | None = None,
    *,
    without: Sequence[str] = (),
    probe: Mapping[str, Any] | None = None,
    errors: Mapping[tuple[str, str], str] | None = None,
    complete: bool = True,
) -> Audit:
    """An honest model's audit with some Dice changed, some roles left out, and some jobs failed."""
    rows = []
    for (attack, role, epsilon), dice in {**HONEST, **(changes or {})}.items():
        for case, value in zip(CASES, np.broadcast_to(np.asarray(dice, dtype=float), len(CASES)), strict=True):
            error = (errors or {}).get((attack, case), "")
            if role not in without:
                rows.append(("model", attack, role, epsilon, case, case, np.nan if error else value, error))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    # Another model's rows must make no difference.
    other = frame.assign(model="other", dice=1.0)
    probes = pd.DataFrame([{"model": "model", "case": c, **PROBE, **(probe or {})} for c in CASES])
    if "probes" in without:
        probes = pd.DataFrame()
    facts = {
        "victims": [{"name": "model"}, {"name": "other"}],
        "settings": {"epsilons": [SMALL, REPORT], "report_epsilon": REPORT},
    }
    cases = pd.DataFrame({"case": CASES})
    return Audit(Path(), facts, pd.concat([frame, other]), probes, cases, 100, 100 if complete else 99)


@cache
def checks_of(audit: Audit) -> list[Check]:
    return run_checks(audit, "model")


def check(audit: Audit, name: str) -> Check:
    (found,) = [c for c in checks_of(audit) if c.name == name]
    return found


def judged(audit: Audit) -> tuple[str, set[str]]:
    found = verdict(checks_of(audit))
    return found.label, {c.name for c in found.deciding}


def test_an_honest_model_passes_everything() -> None:
    checks = run_checks(audit_of(), "model")
    assert {c.status for c in checks} == {"pass"}
    assert verdict(checks) == Verdict("credible", ())
    assert verdict(checks).sentence.startswith("credible")


def test_so_does_one_that_breaks_at_once() -> None:
    broken = {key: 0.0 for key in HONEST if key[1] not in ("clean", "control", "one_step")}
    assert judged(audit_of(broken)) == ("credible", set())


def test_and_one_that_noise_breaks_already() -> None:
    broken = {key: 0.05 for key in HONEST if key[1] != "clean"}
    assert judged(audit_of(broken)) == ("credible", set())


def test_every_check_can_be_read() -> None:
    for c in run_checks(audit_of(), "model"):
        assert c.figure
        assert c.why.endswith(".")
        assert not c.title.endswith(".")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("iterative_beats_one_step", {("fgsm", "one_step", REPORT): 0.45}),
        ("beats_noise", {("noise", "control", REPORT): 0.45}),
        ("beats_noise", {("noise", "control", REPORT): 0.5}),
        ("black_box_not_stronger", {("square", "black_box", REPORT): 0.45}),
        ("transfer_not_stronger", {("transfer-other", "transfer", REPORT): 0.45}),
        ("huge_breaks", {("huge", "huge", HUGE): 0.3}),
        ("falls_with_epsilon", {("pgd", "white_box", SMALL): 0.4}),
        ("steps_never_help", {("pgd-longer", "longer", REPORT): 0.6}),
    ],
)
def test_attacks_that_should_be_weaker_and_are_not(name: str, changes: dict[tuple[str, str, float], float]) -> None:
    audit = audit_of(changes)
    found = check(audit, name)
    assert (found.status, found.evidence) == ("fail", "masking")
    label, deciding = judged(audit)
    assert label == DOUBTFUL
    assert name in deciding


@pytest.mark.parametrize(
    ("name", "probe"),
    [
        ("gradient_reaches", {"reached": False}),
        ("gradient_not_zero", {"zero_gradient": 1.0}),
        ("not_saturated", {"saturated": 0.98}),
        ("gradient_leads", {"rise": 0.01}),
        ("gradient_leads", {"rise": -1.0}),
        ("gradient_leads", {"rise": float("nan")}),
        ("repeats", {"repeats": False}),
    ],
)
def test_gradients_that_cannot_be_followed(name: str, probe: dict[str, Any]) -> None:
    assert judged(audit_of(probe=probe)) == (DOUBTFUL, {name})


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("gradient_not_zero", "zero_gradient", 1.0),
        ("not_saturated", "saturated", 1.0),
        ("gradient_leads", "rise", 0.0),
        ("repeats", "repeats", False),
    ],
)
def test_a_gradient_that_is_hidden_in_a_third_of_the_cases(name: str, column: str, value: Any) -> None:
    audit = audit_of()
    audit.probes.loc[audit.probes["case"].isin(CASES[:2]), column] = value
    assert judged(audit) == (DOUBTFUL, {name})


def test_one_odd_case_is_no_evidence() -> None:
    audit = audit_of()
    audit.probes.loc[audit.probes["case"] == CASES[0], ["zero_gradient", "saturated", "rise"]] = (1.0, 1.0, 0.0)
    assert judged(audit) == ("credible", set())


def test_a_bent_path_that_leads_to_an_empty_mask_is_no_deceit() -> None:
    broken = {key: 0.0 for key in HONEST if key[1] not in ("clean", "control", "one_step")}
    audit = audit_of(broken, probe={"rise": 0.1})
    assert check(audit, "gradient_leads").status == "pass"
    assert judged(audit) == ("credible", set())


def test_masks_that_stand_are_judged_by_themselves() -> None:
    half = [0.0] * 3 + [0.5] * (len(CASES) - 3)
    roles = ("white_box", "joint", "longer", "restart")
    audit = audit_of({key: half for key in HONEST if key[1] in roles})
    audit.probes.loc[audit.probes["case"].isin(CASES[:3]), "rise"] = 0.0
    assert check(audit, "gradient_leads").status == "pass"
    audit.probes["rise"] = 0.0
    (found,) = [c for c in run_checks(audit, "model") if c.name == "gradient_leads"]
    assert found.status == "fail"


def test_where_no_gradient_arrives_none_is_judged() -> None:
    audit = audit_of(probe={"reached": False, "zero_gradient": 1.0, "rise": float("nan")})
    assert [check(audit, name).status for name in ("gradient_not_zero", "gradient_leads")] == ["not run"] * 2


def test_a_model_that_hides_its_gradient_in_some_cases_only() -> None:
    # On average white-box attacks are far stronger; in the last case they see nothing.
    changes = {
        ("pgd", "white_box", REPORT): [0.1, 0.1, 0.1, 0.1, 0.1, 0.9],
        ("joint", "joint", REPORT): [0.1, 0.1, 0.1, 0.1, 0.1, 0.9],
        ("pgd-longer", "longer", REPORT): [0.1, 0.1, 0.1, 0.1, 0.1, 0.9],
        ("restart-1", "restart", REPORT): [0.1, 0.1, 0.1, 0.1, 0.1, 0.9],
        ("restart-2", "restart", REPORT): [0.1, 0.1, 0.1, 0.1, 0.1, 0.9],
        ("square", "black_box", REPORT): [0.8, 0.8, 0.8, 0.8, 0.8, 0.5],
    }
    assert check(audit_of(changes), "black_box_not_stronger").status == "fail"


def test_a_model_without_gradient_is_doubtful_although_nothing_could_be_compared() -> None:
    sentence = "no gradient reaches the image through this model; use one without a hard decision inside."
    refused = {(a, c): sentence for a, role, _ in HONEST for c in CASES if role not in ("clean", "control")}
    label, deciding = judged(audit_of(errors=refused, without=("probes",)))
    assert (label, deciding) == (DOUBTFUL, {"gradient_reaches"})
    assert check(audit_of(errors=refused), "no_failures").status == "pass"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("converged", {("pgd-longer", "longer", REPORT): 0.3}),
        ("restarts_agree", {("restart-1", "restart", REPORT): 0.35}),
    ],
)
def test_an_attack_that_could_have_done_more(name: str, changes: dict[tuple[str, str, float], float]) -> None:
    assert judged(audit_of(changes)) == ("incomplete", {name})


def test_a_mask_that_is_destroyed_has_nothing_more_to_lose() -> None:
    changes = {
        ("pgd-longer", "longer", REPORT): 0.01,
        ("restart-1", "restart", REPORT): 0.3,
        ("restart-2", "restart", REPORT): 0.02,
    }
    assert judged(audit_of(changes)) == ("credible", set())


def test_an_audit_that_is_not_finished() -> None:
    assert judged(audit_of(complete=False)) == ("incomplete", {"finished"})


@pytest.mark.parametrize(
    ("role", "missing"),
    [
        ("one_step", {"iterative_beats_one_step"}),
        ("control", {"beats_noise"}),
        ("black_box", {"black_box_not_stronger"}),
        ("huge", {"huge_breaks"}),
        ("longer", {"converged", "steps_never_help"}),
        ("restart", {"restarts_agree"}),
        (
            "probes",
            {"gradient_reaches", "gradient_not_zero", "not_saturated", "gradient_leads", "repeats"},
        ),
    ],
)
def test_what_was_not_tried_is_not_run_and_the_verdict_waits(role: str, missing: set[str]) -> None:
    audit = audit_of(without=(role,))
    assert judged(audit) == ("incomplete", missing)
    assert {check(audit, name).status for name in missing} == {"not run"}


def test_a_second_model_is_not_required_and_neither_are_features() -> None:
    audit = audit_of(without=("transfer", "joint"))
    assert judged(audit) == ("credible", set())
    names = ("transfer_not_stronger", "transfer_beats_noise", "joint_not_stronger")
    assert [check(audit, name).status for name in names] == ["not run"] * 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("transfer_beats_noise", {("transfer-other", "transfer", REPORT): 0.89}),
        ("joint_not_stronger", {("joint", "joint", REPORT): 0.3, ("pgd-longer", "longer", REPORT): 0.3}),
    ],
)
def test_what_is_only_worth_knowing_has_no_part_in_the_verdict(
    name: str, changes: dict[tuple[str, str, float], float]
) -> None:
    audit = audit_of(changes)
    assert check(audit, name).status == "fail"
    assert judged(audit) == ("credible", set())


def test_suspicion_goes_before_incompleteness() -> None:
    label, deciding = judged(audit_of(probe={"repeats": False}, complete=False))
    assert (label, deciding) == (DOUBTFUL, {"repeats"})


def test_too_few_eligible_cases() -> None:
    few = audit_of({("clean", "clean", 0.0): [0.9, 0.9, 0.9, 0.9, 0.4, 0.4]})
    assert judged(few) == ("incomplete", {"enough_cases"})
    assert check(few, "enough_cases").figure.startswith("4 of 6 cases")


def test_many_slices_of_few_patients_are_few() -> None:
    audit = audit_of()
    audit.rows["patient"] = audit.rows["case"].map({c: f"patient {i // 2}" for i, c in enumerate(CASES)})
    assert judged(audit) == ("incomplete", {"enough_cases"})
    assert "of 3 patients" in check(audit, "enough_cases").figure


def test_cases_that_are_not_eligible_have_no_say() -> None:
    odd = audit_of(
        {
            ("clean", "clean", 0.0): [0.9, 0.9, 0.9, 0.9, 0.9, 0.4],
            ("square", "black_box", REPORT): [0.8, 0.8, 0.8, 0.8, 0.8, 0.0],
        }
    )
    assert judged(odd) == ("credible", set())


def test_without_any_eligible_case_nothing_is_compared() -> None:
    none = audit_of({("clean", "clean", 0.0): 0.2})
    label, deciding = judged(none)
    assert label == "incomplete"
    assert "enough_cases" in deciding
    assert check(none, "beats_noise").status == "not run"


def test_a_failed_case_is_named() -> None:
    audit = audit_of(errors={("pgd-longer", "case 3"): "the model failed on this case: it does not fit into memory."})
    label, deciding = judged(audit)
    assert (label, deciding) == ("incomplete", {"no_failures"})
    assert "case 3, pgd-longer" in check(audit, "no_failures").figure


def test_one_failed_case_of_many_is_recorded_and_the_rest_goes_on() -> None:
    audit = audit_of(errors={("pgd", "case 3"): "the model failed on this case."})
    wide = pd.concat(
        [
            audit.rows.assign(case=audit.rows["case"] + f" {i}", error="", dice=audit.rows["dice"].fillna(0.5))
            for i in range(4)
        ]
    )
    many = replace(audit, rows=pd.concat([audit.rows, wide]), probes=pd.concat([audit.probes] * 5))
    assert judged(many) == ("credible", set())
    assert check(many, "no_failures").figure.startswith("1 of 30 cases failed")


def test_nothing_was_done_yet() -> None:
    audit = audit_of(complete=False)
    empty = replace(audit, rows=audit.rows.iloc[:0], probes=pd.DataFrame())
    assert judged(empty)[0] == "incomplete"


def test_no_verdict_without_checks() -> None:
    assert verdict([]).label == "incomplete"
