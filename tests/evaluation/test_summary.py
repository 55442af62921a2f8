"""The figures of an audit, against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from made_audits import EPSILONS, REPORT, Made, dice, make_audit

from cease_core.evaluation import paired
from cease_core.evaluation.audit.store import Audit
from cease_core.evaluation.summary import Measured, Summary, summarise

CLEAN = (0.9, 0.8, 0.7, 0.6, 0.4)
"""The last case is not eligible, whatever becomes of it."""


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    models = {"plain": Made(CLEAN, 0.05), "better": Made([c - 0.02 for c in CLEAN], 0.01, defence="cease")}
    return make_audit(tmp_path_factory.mktemp("audit"), models)


@pytest.fixture(scope="module")
def summary(audit: Audit) -> Summary:
    return summarise(audit)


def figure(value: float | None) -> float:
    assert value is not None
    return value


def test_headline(summary: Summary) -> None:
    plain = summary.models[0].headline
    # At 8/255 PGD takes 8 · 0.05: 0.5, 0.4, 0.3, 0.2 and 0 are left; 0.4 is half of 0.8, so three of four are lost.
    assert plain.clean_dice.mean == pytest.approx(0.68)
    assert plain.worst_dice.mean == pytest.approx(0.28)
    assert plain.asr_drop.mean == pytest.approx(3 / 4)
    assert plain.asr_drop_largest.mean == 1
    # Smallest ε: 10 (0.4 of 0.9), 8 (0.4 of 0.8), 8 (0.3 of 0.7), 8 (0.2 of 0.6).
    assert plain.d_censored.mean == pytest.approx((10 + 8 + 8 + 8) / 4 / 255)
    heights = [0.68, 0.58, 0.48, 0.28, np.mean([0.4, 0.3, 0.2, 0.1, 0])]
    assert plain.auc.mean == pytest.approx(np.trapezoid(heights, [0, 2, 4, 8, 10]) / 10)


def test_what_resists_counts_with_the_largest_epsilon(summary: Summary) -> None:
    better = summary.models[1]
    assert better.headline.asr_drop_largest.mean == 0
    assert better.headline.d_censored.mean == pytest.approx(EPSILONS[-1])
    assert better.d_success is None


def test_counts(summary: Summary) -> None:
    counts = summary.models[0].counts
    assert (counts.planned, counts.measured, counts.eligible, counts.failed, counts.pending) == (5, 5, 4, 0, 0)


def test_the_curve_is_the_worst_of_all_attacks_and_lies_in_its_band(summary: Summary) -> None:
    for model in summary.models:
        assert [p.epsilon for p in model.curve.points] == [0.0, *EPSILONS]
        for i, point in enumerate(model.curve.points):
            low, middle, high = (figure(f) for f in (point.low, point.dice, point.high))
            assert low <= middle <= high
            assert all(middle <= figure(c.points[i].dice) + 1e-12 for c in model.curves)
        assert {c.name for c in model.curves} == {"pgd", "sea"}


def test_a_smaller_perturbation_is_allowed_at_every_larger_epsilon(tmp_path: Path) -> None:
    audit = make_audit(tmp_path, {"m": Made(CLEAN, 0.02)})
    rows = audit.rows
    # A ladder that is weak at the top: 10/255 does nothing.
    rows.loc[(rows["epsilon"] == EPSILONS[-1]) & rows["role"].eq("white_box"), "dice"] = 0.95
    found = Measured(audit, "m")
    assert found.attacked[-1] == pytest.approx(found.attacked[-2])


def test_a_huge_perturbation_is_no_part_of_the_worst_case(audit: Audit) -> None:
    found = Measured(audit, "plain")
    assert set(found.worst(1.0)["attack"]) == {"pgd"}


def test_trials(summary: Summary) -> None:
    lines = {t.name: t for t in summary.models[0].trials}
    assert lines["noise"].dice == pytest.approx(np.mean([dice(c, 0.05, "noise", REPORT) for c in CLEAN]))
    assert lines["huge"].epsilon == 0.5
    assert lines["fgsm"].epsilon == lines["pgd"].epsilon == REPORT
    assert lines["fgsm"].asr_drop == 0
    assert lines["pgd"].decides == 5
    # A ladder's rows count gradients from its beginning, so a job's cost is its largest row.
    assert lines["pgd"].gradients == 5 * 20
    assert lines["square"].queries == 5 * 200
    assert summary.models[0].gradients == sum(t.gradients for t in lines.values())


def test_structures_and_calibration(summary: Summary) -> None:
    model = summary.models[0]
    assert model.overlap["hd95"].clean == pytest.approx(2 + 20 * (1 - 0.68))
    assert model.calibration["ece"].clean == pytest.approx(0.02)
    assert model.calibration["ece"].attacked == pytest.approx(np.mean([0.02 + 0.2 * 8 * 0.05 / c for c in CLEAN]))
    assert [(c.name, c.dice.attacked) for c in model.classes] == [
        ("core", pytest.approx(0.28)),
        ("rim", pytest.approx(0.28)),
    ]


def test_perturbations_are_those_of_the_worst_case(summary: Summary) -> None:
    size = summary.models[0].perturbation
    assert size.rms == pytest.approx(0.9 * REPORT)
    assert size.psnr == pytest.approx(-20 * math.log10(0.9 * REPORT))


def test_lesions_by_size_weigh_voxels(summary: Summary) -> None:
    # Lesions of 20 … 24 and 300 … 340 mm²: terciles at 23 and 310.
    sizes = summary.models[0].sizes
    assert [s.title for s in sizes] == [
        "small (below 23 mm²)",
        "medium (23 to 310 mm²)",
        "large (from 310 mm²)",
    ]
    assert [s.lesions for s in sizes] == [3, 3, 4]
    assert [s.found.clean for s in sizes] == [1, 1, 1]
    left = {c: max(0.0, c - 0.4) / c for c in CLEAN}
    # Small ones are found where more than half of the Dice is left: of 20, 21 and 22 mm² only the first.
    assert sizes[0].found.attacked == pytest.approx(20 / (20 + 21 + 22))
    assert (sizes[0].missed_clean, sizes[0].missed_attacked) == (0, 2)
    large = {310: left[0.8], 320: left[0.7], 330: left[0.6], 340: left[0.4]}
    expected = sum(size * share for size, share in large.items()) / sum(large)
    assert sizes[2].found.attacked == pytest.approx(expected, abs=1e-6)
    assert sizes[2].missed_attacked == 1


def test_models_are_compared_on_the_cases_eligible_for_all(summary: Summary, audit: Audit) -> None:
    both = summary.comparison
    assert both is not None
    assert (both.cases, both.patients, both.left_out) == (4, 4, ())
    gaps = {d.figure: d for d in both.differences}
    assert {(d.model, d.baseline) for d in both.differences} == {("better", "plain")}
    assert gaps["clean Dice"].mean == pytest.approx(-0.02)
    assert gaps["worst-case Dice"].mean == pytest.approx(0.8 * 0 + 0.4 - 0.08 - 0.02)
    first, second = (Measured(audit, m, both_cases(audit)).here["dice"] for m in ("better", "plain"))
    expected = paired(first, second)
    assert gaps["worst-case Dice"].p == pytest.approx(expected.p)
    assert [s.headline.clean_dice.mean for s in both.standings] == pytest.approx([0.75, 0.73])


def both_cases(audit: Audit) -> list[str]:
    return [c for c in audit.facts["cases"] if c != "case4"]


def test_slices_of_one_patient_are_one_piece_of_evidence(tmp_path: Path) -> None:
    clean = [0.9] * 3 + [0.6] * 3
    single = make_audit(tmp_path / "single", {"m": Made(clean, 0.01)})
    slices = make_audit(tmp_path / "slices", {"m": Made(clean, 0.01)}, per_patient=3)
    one, two = (summarise(a).models[0] for a in (single, slices))
    assert (one.counts.patients, two.counts.patients) == (6, 2)
    widths = [figure(m.headline.clean_dice.high) - figure(m.headline.clean_dice.low) for m in (one, two)]
    assert widths[1] > widths[0]


def test_a_rate_on_which_all_patients_agree_has_no_interval(summary: Summary) -> None:
    # A bootstrap of what never varies has no width, which would claim certainty.
    better = summary.models[1].headline
    for spread in (better.asr_drop_largest, better.d_censored):
        assert spread.mean is not None
        assert spread.low is spread.high is None


def test_the_interval_of_unequal_patients_holds_its_mean(tmp_path: Path) -> None:
    clean = [0.9] * 10 + [0.6, 0.62, 0.58, 0.61, 0.6]
    audit = make_audit(tmp_path, {"m": Made(clean, 0.01)})
    audit.rows.loc[audit.rows["case"].isin([f"case{i}" for i in range(10)]), "patient"] = "one"
    spread = summarise(audit).models[0].headline.clean_dice
    assert figure(spread.low) <= figure(spread.mean) <= figure(spread.high)


@pytest.mark.parametrize("name", ["NA", "null", "nan", "007", "1e5"])
def test_a_case_may_be_called_anything(tmp_path: Path, name: str) -> None:
    audit = make_audit(tmp_path, {"m": Made((0.9, 0.8), 0.05)}, case_names=[name, "other"])
    assert list(audit.cases["case"]) == [name, "other"]
    assert summarise(audit).models[0].counts.measured == 2


def test_it_reads_back_what_it_wrote(summary: Summary) -> None:
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


# --- what is not there ---------------------------------------------------------------------------------------


def test_a_case_that_failed_is_left_out_and_counted(tmp_path: Path) -> None:
    audit = make_audit(tmp_path, {"m": Made(CLEAN, 0.05, failing=["case0"]), "n": Made(CLEAN, 0.01)})
    summary = summarise(audit)
    counts = summary.models[0].counts
    assert (counts.measured, counts.eligible, counts.failed) == (4, 3, 1)
    assert summary.models[0].headline.clean_dice.mean == pytest.approx(np.mean(CLEAN[1:]))
    assert summary.models[0].errors["pgd on case0"] == "the model failed on this case."
    assert summary.comparison is not None
    assert summary.comparison.cases == 3


def test_an_unfinished_audit_has_the_figures_of_what_is_there(tmp_path: Path) -> None:
    summary = summarise(make_audit(tmp_path, {"m": Made(CLEAN, 0.05)}, done=0.5))
    assert not summary.complete
    counts = summary.models[0].counts
    assert 0 < counts.measured < 5
    assert counts.measured + counts.pending == 5
    assert summary.models[0].verdict.label == "incomplete"


@pytest.mark.parametrize("done", [0.0, 1.0])
def test_without_a_measured_case_figures_are_undefined(tmp_path: Path, done: float) -> None:
    everything = [f"case{i}" for i in range(5)]
    summary = summarise(make_audit(tmp_path, {"m": Made(CLEAN, 0.05, failing=everything)}, done=done))
    model = summary.models[0]
    assert model.counts.measured == 0
    assert model.headline.clean_dice.mean is model.headline.auc.mean is model.curve.points[0].dice is None
    assert model.sizes == ()
    Summary.model_validate_json(summary.model_dump_json())


def test_without_an_eligible_case_there_is_no_rate(tmp_path: Path) -> None:
    audit = make_audit(tmp_path, {"poor": Made([0.3] * 5, 0.01), "m": Made(CLEAN, 0.01), "n": Made(CLEAN, 0.02)})
    summary = summarise(audit)
    poor = summary.models[0].headline
    assert poor.worst_dice.mean == pytest.approx(0.22)
    assert poor.asr_drop.mean is poor.d_censored.mean is None
    assert summary.comparison is not None
    assert (summary.comparison.left_out, summary.comparison.cases) == (("poor",), 4)
