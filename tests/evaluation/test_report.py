"""The report shows the table's numbers, asks no network for anything, and stands any name and any audit."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_audits import EPSILONS, REPORT, Made, make_audit
from PIL import Image

from cease_core.errors import CeaseError
from cease_core.evaluation.audit.store import picture_path
from cease_core.evaluation.report import write_report
from cease_core.evaluation.report.pictures import WIDEST, take
from cease_core.evaluation.report.words import share

CLEAN = (0.9, 0.8, 0.7, 0.6, 0.55, 0.4)
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/a.png onerror=alert(1)>"
CARD = {
    "training": {
        "selection": {
            "rule": "weak",
            "chosen": ["sobel"],
            "reasons": {"sobel": "kept: the weakest relation that is left", "hog": "strongly relevant"},
            "summary": "Took sobel by the rule weak.",
        }
    },
    "relevance": {
        "scores": {"sobel": {"title": "Sobel", "c_in": 0.0421, "chance": 0.01, "c_theta": 0.2, "learnable": 0.5}},
        "noise_floor": 0.0123,
    },
}


class Page(HTMLParser):
    """Elements in order, each with its attributes and the text up to the next tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("style", "script"):
            self.texts.append(data)

    def having(self, attribute: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.elements if attribute in attributes]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(folder: Path) -> tuple[Page, dict[str, Any], pd.DataFrame]:
    path = write_report(folder)
    assert path == folder / "report.html"
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Page(path.read_text(encoding="utf-8")), figures, pd.read_csv(folder / "table.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page, dict[str, Any], pd.DataFrame]:
    folder = tmp_path_factory.mktemp("audit")
    models = {
        "plain": Made(CLEAN, 0.05, title="Plain"),
        "better": Made([c - 0.03 for c in CLEAN], 0.013, title="Better", facts=CARD),
    }
    make_audit(folder, models, pictures=True)
    return (folder, *read(folder))


# --- numbers -------------------------------------------------------------------------------------------------


def test_curves_have_the_tables_numbers(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    _, page, figures, table = report
    points = [p for p in page.having("data-epsilon") if p["data-series"] in ("plain", "better")]
    assert len(points) == 2 * (1 + len(EPSILONS))
    used = table[table["role"] != "huge"]
    for point in points:
        mine = used[(used["model"] == point["data-series"]) & (used["epsilon"] <= float(point["data-epsilon"]))]
        worst = mine["dice"].astype(float).groupby(mine["case"]).min()
        assert float(point["data-dice"]) == pytest.approx(worst.mean(), abs=1e-12)
        assert float(point["data-low"]) <= float(point["data-dice"]) <= float(point["data-high"])
    drawn = [float(p["data-dice"]) for p in points if p["data-series"] == "plain"]
    assert drawn == [p["dice"] for p in figures["models"][0]["curve"]["points"]]


def test_curves_of_each_attack_have_the_tables_numbers(
    report: tuple[Path, Page, dict[str, Any], pd.DataFrame],
) -> None:
    _, page, _, table = report
    points = [p for p in page.having("data-epsilon") if p["data-series"] == "sea" and float(p["data-epsilon"]) > 0]
    assert len(points) == 2 * len(EPSILONS)
    for model, mine in zip(("plain", "better"), (points[: len(EPSILONS)], points[len(EPSILONS) :]), strict=True):
        rows = table[(table["model"] == model) & (table["attack"] == "sea")]
        means = rows["dice"].astype(float).groupby(rows["epsilon"]).mean()
        assert [float(p["data-dice"]) for p in mine] == pytest.approx([means[e] for e in EPSILONS])


def test_each_case_is_drawn_with_its_numbers(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    _, page, _, table = report
    drawn = page.having("data-case")
    assert len(drawn) == 2 * len(CLEAN)
    plain = {p["data-case"]: (float(p["data-clean"]), float(p["data-attacked"])) for p in drawn[: len(CLEAN)]}
    rows = table[(table["model"] == "plain") & (table["role"] != "huge") & (table["epsilon"] <= REPORT)]
    clean = rows[rows["attack"] == "clean"].set_index("case")["dice"].astype(float)
    worst = rows["dice"].astype(float).groupby(rows["case"]).min()
    assert plain == {case: (clean[case], worst[case]) for case in clean.index}


def test_what_is_drawn_lies_where_its_number_says(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    _, page, _, _ = report
    points = [p for p in page.having("data-epsilon") if p["data-series"] == "plain"]
    places = [tuple(map(float, re.findall(r"[\d.]+", p["transform"]))) for p in points]
    x, y = np.array(places).T
    epsilon, value = (np.array([float(p[k]) for p in points]) for k in ("data-epsilon", "data-dice"))
    for place, number in ((x, epsilon), (y, value)):
        slope, start = np.polyfit(number, place, 1)
        assert place == pytest.approx(slope * number + start, abs=0.1)
    assert np.polyfit(value, y, 1)[0] < 0


def test_words_and_tables_have_the_figures(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    _, page, figures, _ = report
    for model in figures["models"]:
        for name in ("clean_dice", "worst_dice", "auc"):
            assert f"{model['headline'][name]['mean']:.3f}" in page.text
        for trial in model["trials"]:
            assert f"{trial['dice']:.3f}" in page.text
        for check in model["checks"]:
            assert check["title"] in page.text
            assert check["figure"] in page.text
    for told in ("Sobel", "0.042", "0.012", "Took sobel by the rule weak."):
        assert told in page.text


def test_settings_versions_and_hashes_are_told(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    _, page, _, _ = report
    for told in ("cd" * 32, "ab" * 32, "torch 2.13.0", "a processor", "steps = 20", "2/255, 4/255, 8/255, 10/255"):
        assert told in page.text


# --- the page ------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_and_nothing_is_run(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    folder, page, _, _ = report
    source = (folder / "report.html").read_text(encoding="utf-8")
    for attributes in (a for _, a in page.elements):
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?://", source)
    assert "script" not in {tag for tag, _ in page.elements}
    policy = next(a["content"] for a in page.having("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_every_reference_within_the_page_leads_somewhere(
    report: tuple[Path, Page, dict[str, Any], pd.DataFrame],
) -> None:
    _, page, _, _ = report
    ids = [a["id"] for a in page.having("id")]
    assert len(ids) == len(set(ids))
    wanted = {a["href"][1:] for a in page.having("href") if a["href"].startswith("#")}
    assert wanted | {a["aria-labelledby"] for a in page.having("aria-labelledby")} <= set(ids)


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    made = Made(CLEAN, 0.05, title=HOSTILE, defence=HOSTILE, facts={"notes": HOSTILE, "architecture": HOSTILE})
    audit = make_audit(tmp_path, {"m": made}, class_names=(HOSTILE,), pictures=True)
    facts = json.loads((tmp_path / "audit.json").read_text())
    facts["unusable"] = {HOSTILE: HOSTILE}
    facts["class_names"][0]["color"] = "red;background:url(http://evil.example)"
    (tmp_path / "audit.json").write_text(json.dumps(facts))
    page, _, _ = read(audit.folder)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img"}
    assert not any("evil" in value for a in page.having("style") for value in [a["style"]])
    assert "<script>alert('x')</script>" in page.text
    card = (tmp_path / "robustness.md").read_text(encoding="utf-8")
    assert not re.search("<(script|img)", card)


def test_pictures_show_the_same_cases_of_all_models(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    _, page, _, _ = report
    assert page.text.count("Attacked: Dice") == 2 * 4
    assert page.text.count("amplified 15 times") == 2 * 4
    pictures = [a["href"] for tag, a in page.elements if tag == "image"]
    assert len(pictures) == 2 * 4 * 4
    assert all(p.startswith("data:image/png;base64,") for p in pictures)


# --- pictures ------------------------------------------------------------------------------------------------


def test_a_picture_is_made_small_and_keeps_its_shape(tmp_path: Path) -> None:
    audit = make_audit(tmp_path, {"m": Made(CLEAN, 0.05)}, pictures=True)
    path = picture_path(tmp_path, "m", "case0")
    with np.load(path) as kept:
        content = dict(kept)
    mask = np.zeros((300, 900), np.uint8)
    mask[100:200, 300:600] = 1
    content |= dict.fromkeys(("reference", "clean", "attacked"), mask)
    content |= {k: np.full((3, 300, 900), 0.01, np.float16) for k in ("image", "perturbation")}
    np.savez_compressed(path, **content)
    shot = take(audit, "m", "case0")
    assert shot is not None
    for uri in (shot.scan, shot.perturbation, shot.perturbed):
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            assert picture.size == (WIDEST, round(300 * WIDEST / 900))
    assert (shot.width, shot.height) == (900, 300)
    # The outline runs along the edges of the pixels: half a pixel inside at the corners, where it is cut.
    numbers = np.array(re.findall(r"([\d.]+),([\d.]+)", shot.reference[0].path), float)
    assert numbers.min(axis=0) == pytest.approx([300, 100])
    assert numbers.max(axis=0) == pytest.approx([600, 200])


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_a_damaged_picture_is_left_out(tmp_path: Path, content: bytes) -> None:
    audit = make_audit(tmp_path, {"m": Made(CLEAN, 0.05)}, pictures=True)
    picture_path(tmp_path, "m", "case0").write_bytes(content)
    assert take(audit, "m", "case0") is None
    assert take(audit, "m", "no such case") is None
    assert "Attacked: Dice" in read(tmp_path)[0].text


# --- any audit -----------------------------------------------------------------------------------------------

AUDITS: dict[str, tuple[dict[str, Made], dict[str, Any], str]] = {
    "one model": ({"m": Made(CLEAN, 0.05)}, {}, "The figure is credible because"),
    "more models than colours": ({f"m{i}": Made(CLEAN[:1], 0.01, title=f"M{i}") for i in range(8)}, {}, "M7"),
    "unfinished": ({"m": Made(CLEAN, 0.05)}, {"done": 0.6}, "This audit is not finished: 32 of 54 jobs are done"),
    "not begun": ({"m": Made(CLEAN, 0.05)}, {"done": 0.0}, "no case has been attacked so far"),
    "all failed": (
        {"m": Made(CLEAN, 0.05, failing=[f"case{i}" for i in range(6)])},
        {},
        "it failed on 6 cases",
    ),
    "none eligible": ({"m": Made([0.3] * 6, 0.01), "n": Made([0.2] * 6, 0.01)}, {}, "no success rate is given"),
    "masked": ({"m": Made(CLEAN, 0.0001)}, {}, "probably hides its gradient"),
}


@pytest.mark.parametrize(("models", "options", "told"), AUDITS.values(), ids=AUDITS)
def test_any_audit_can_be_reported(tmp_path: Path, models: dict[str, Made], options: dict[str, Any], told: str) -> None:
    make_audit(tmp_path, models, **options)
    page, figures, _ = read(tmp_path)
    assert told in page.text
    assert not {"nan", "None", "inf"} & set(page.text.split())
    assert len(figures["models"]) == len(models)


def test_a_comparison_with_a_doubtful_model_says_so(tmp_path: Path) -> None:
    make_audit(tmp_path, {"honest": Made(CLEAN, 0.05), "masked": Made(CLEAN, 0.0001, title="Masked")})
    text = read(tmp_path)[0].text
    assert "But the figure of “Masked” is doubtful: gradient masking suspected." in text


def test_cases_that_a_model_has_seen_are_named_where_they_were_kept(tmp_path: Path) -> None:
    make_audit(tmp_path, {"m": Made(CLEAN, 0.05)})
    facts = json.loads((tmp_path / "audit.json").read_text())
    (tmp_path / "audit.json").write_text(json.dumps(facts | {"kept": ["case0", "case3"]}))
    told = "2 of the 6 cases were used to train a model or to choose its checkpoint"
    assert told in read(tmp_path)[0].text
    assert told in (tmp_path / "robustness.md").read_text(encoding="utf-8")


def test_an_audit_that_went_on_elsewhere_says_so(tmp_path: Path) -> None:
    make_audit(tmp_path, {"m": Made(CLEAN, 0.05)})
    facts = json.loads((tmp_path / "audit.json").read_text())
    facts["resumed"] = [facts["made"] | {"processor": "another processor", "versions": {"torch": "3.0.1"}}]
    (tmp_path / "audit.json").write_text(json.dumps(facts))
    text = read(tmp_path)[0].text
    assert "another processor" in text
    assert "torch 3.0.1" in text


def test_one_patient_is_compared_without_an_interval(tmp_path: Path) -> None:
    models = {"a": Made(CLEAN, 0.05), "b": Made(CLEAN, 0.01)}
    make_audit(tmp_path, models, per_patient=len(CLEAN))
    text = read(tmp_path)[0].text
    assert "interval –" not in text
    assert "One patient is too few to tell them apart." in text


@pytest.mark.parametrize(
    "card",
    [
        {"relevance": "see the paper"},
        {"relevance": {"scores": {"sobel": {"c_in": "much", "chance": float("nan")}, "hog": None}}},
        {"relevance": {"scores": ["sobel"], "noise_floor": "low"}, "training": {"selection": ["sobel"]}},
        {"training": {"selection": {"chosen": "sobel", "reasons": "none", "rule": 3}}},
    ],
)
def test_a_card_that_says_something_else_of_its_tasks_stops_no_report(tmp_path: Path, card: dict[str, Any]) -> None:
    make_audit(tmp_path, {"m": Made(CLEAN, 0.05, facts=card)})
    assert "nan" not in read(tmp_path)[0].text.split()


@pytest.mark.parametrize(
    ("value", "told"), [(1.0, "100 %"), (0.996, "99.6 %"), (0.9999, "> 99.9 %"), (0.5, "50 %"), (0.0, "0 %")]
)
def test_only_all_is_a_hundred_per_cent(value: float, told: str) -> None:
    assert share(value) == told


@pytest.mark.parametrize("lost", ["settings", "cases", "class_names", "made", "data"])
def test_a_plan_that_lacks_something_is_one_sentence(tmp_path: Path, lost: str) -> None:
    make_audit(tmp_path, {"m": Made(CLEAN, 0.05)})
    facts = json.loads((tmp_path / "audit.json").read_text())
    del facts[lost]
    (tmp_path / "audit.json").write_text(json.dumps(facts))
    with pytest.raises(CeaseError, match=lost):
        write_report(tmp_path)


def test_the_cards_section_stands_for_itself(report: tuple[Path, Page, dict[str, Any], pd.DataFrame]) -> None:
    folder, _, figures, _ = report
    text = (folder / "robustness.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Robustness: Plain",
        "## Robustness: Better",
    ]
    plain = figures["models"][0]
    assert f"| Worst-case Dice at 8/255 | {plain['headline']['worst_dice']['mean']:.3f} |" in text
    assert "**Verdict: credible.**" in text
    rows = [line for line in text.splitlines() if line.startswith("| pgd |")]
    assert len(rows) == 2


def test_a_folder_without_an_audit(tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match="holds no audit"):
        write_report(tmp_path)
