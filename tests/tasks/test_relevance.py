"""Measuring how tasks relate to segmentation, and choosing by it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cease_core.attacks.losses import dice_ce, one_hot
from cease_core.errors import CeaseError
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule
from cease_core.models.architectures import Backbone, Features
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.gradients import PureNoise, measure
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.relevance import Relevance, Rule, Score, Selection, select, table
from cease_core.tasks.relevance_figure import similarity_figure

# --- The rule, on constructed numbers ---------------------------------------------------------------------------------


def pool(
    scores: dict[str, dict[str, float]], alike: dict[tuple[str, str], float] | None = None, floor: float = 0.05
) -> Relevance:
    """Tasks that are learnable, peaceful and unlike each other, unless said otherwise."""
    likeness = {frozenset(pair): value for pair, value in (alike or {}).items()}
    made = {}
    for name, changes in scores.items():
        fields: dict[str, Any] = {"c_in": 0.2, "c_theta": 0.1, "learnable": 0.5} | changes
        fields = {"c_in_clean": fields["c_in"], "c_in_attacked": fields["c_in"], "chance": floor} | fields
        made[name] = Score(title=name.title(), derived_from="image", **fields)
    pairwise = {a: {b: 1.0 if a == b else likeness.get(frozenset((a, b)), 0.1) for b in scores} for a in scores}
    return Relevance(scores=made, pairwise=pairwise, noise_floor=floor, cases=32, epsilon=8 / 255, steps=3)


@pytest.fixture
def six() -> Relevance:
    """One of each kind; the median c_in is 0.3."""
    return pool(
        {
            "strong": {"c_in": 0.9},
            "rather_strong": {"c_in": 0.5},
            "weak": {"c_in": 0.2},
            "weaker": {"c_in": 0.1},
            "unrelated": {"c_in": 0.01},
            "middling": {"c_in": 0.4},
        }
    )


def test_the_weakest_relation_above_chance_is_taken_first(six: Relevance) -> None:
    selection = select(six)
    assert selection.chosen == ("weaker", "weak")
    assert selection.reasons == {
        "weaker": "kept: c_in = 0.100, the weakest relation that is left",
        "weak": "kept: c_in = 0.200, the weakest relation that is left",
        "unrelated": "irrelevant: c_in = 0.010 < 0.050, as with segmentation of another case",
        "middling": "strongly relevant: c_in = 0.400 > 0.300, the pool's median",
        "rather_strong": "strongly relevant: c_in = 0.500 > 0.300, the pool's median",
        "strong": "strongly relevant: c_in = 0.900 > 0.300, the pool's median",
    }
    assert selection.summary == "Took weaker and weak by the rule weak."


def test_the_floor_can_be_what_pure_noise_scores(six: Relevance) -> None:
    noisy = six.model_copy(update={"noise_floor": 0.15})
    assert select(noisy).chosen == ("weaker", "weak")
    selection = select(noisy, floor="noise")
    assert selection.chosen == ("weak",)
    assert selection.reasons["weaker"] == "irrelevant: c_in = 0.100 < 0.150, the score of pure noise"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"learnable": 0.19}, "not learnable: u = 0.190 < 0.2"),
        ({"learnable": -1.5}, "not learnable: u = -1.500 < 0.2"),
        ({"c_theta": -0.06}, "fights segmentation: c_θ = -0.060 < -0.05"),
    ],
)
def test_what_cannot_help_is_left_out(changes: dict[str, float], reason: str) -> None:
    relevance = pool({"good": {"c_in": 0.3}, "bad": {"c_in": 0.1} | changes, "strong": {"c_in": 0.9}})
    for rule in ("weak", "strongest", "random"):
        selection = select(relevance, rule, 3)
        assert selection.reasons["bad"] == reason
        assert "bad" not in selection.chosen


def test_limits_themselves_are_allowed() -> None:
    edge = {"learnable": 0.2, "c_theta": -0.05}
    relevance = pool({"floor": {"c_in": 0.05} | edge, "median": {"c_in": 0.3} | edge, "top": {"c_in": 0.4}}, floor=0.05)
    assert select(relevance).chosen == ("floor", "median")


def test_limits_are_options() -> None:
    relevance = pool({"a": {"c_in": 0.1, "learnable": 0.1, "c_theta": -0.3}, "b": {"c_in": 0.2}}, {("a", "b"): 0.6})
    assert select(relevance).chosen == ()
    assert select(relevance, learnable=0.1, conflict=-0.3).chosen == ("a",)


def test_near_repeats_are_passed_over() -> None:
    three = {"first": {"c_in": 0.1}, "twin": {"c_in": 0.11}, "other": {"c_in": 0.2}}
    relevance = pool(three | {f"strong{i}": {"c_in": 0.9} for i in range(3)}, {("first", "twin"): 0.51})
    selection = select(relevance)
    assert selection.chosen == ("first", "other")
    assert selection.reasons["twin"] == "nearly repeats first: cosine 0.510 > 0.5"
    assert select(relevance, repeat=0.51).chosen == ("first", "twin")
    assert select(relevance, repeat=0.51).reasons["other"] == "not needed: first and twin came first"


@pytest.mark.parametrize(("rule", "first"), [("weak", "weak"), ("strongest", "rather_strong"), ("random", None)])
def test_tasks_that_need_a_pass_of_their_own_can_be_left(six: Relevance, rule: Rule, first: str | None) -> None:
    selection = select(six, rule, 1, costly=("weaker", "strong"))
    assert first in (None, *selection.chosen)
    assert selection.reasons["weaker"] == selection.reasons["strong"] == "needs a pass of its own"
    assert select(six, "all", costly=("weaker",)).chosen == select(six, "all").chosen


def test_fewer_than_asked_for_is_said_and_nothing_relaxed(six: Relevance) -> None:
    short = select(six, count=3)
    assert short.chosen == ("weaker", "weak")
    assert short.summary == "Took only weaker and weak by the rule weak: 3 were asked for, and no other task meets it."
    none = select(six, learnable=0.6)
    assert none.chosen == ()
    assert none.summary == "No task meets the rule weak, 2 were asked for: nothing is taken."
    assert set(none.reasons) == set(six.scores)


def test_strongest_begins_at_the_other_end(six: Relevance) -> None:
    selection = select(six, "strongest")
    assert selection.chosen == ("strong", "rather_strong")
    assert selection.reasons["unrelated"] == "not needed: strong and rather_strong came first"


def test_random_is_a_draw_that_its_seed_decides(six: Relevance) -> None:
    draws = {seed: select(six, "random", seed=seed).chosen for seed in range(40)}
    assert draws == {seed: select(six, "random", seed=seed).chosen for seed in range(40)}
    assert {name for chosen in draws.values() for name in chosen} == set(six.scores)
    assert all(len(set(chosen)) == 2 for chosen in draws.values())


def test_all_takes_all_and_says_what_speaks_against() -> None:
    relevance = pool({"b": {"c_in": 0.3}, "a": {"c_in": 0.1, "learnable": 0.0}})
    selection = select(relevance, "all", count=1)
    assert selection.chosen == ("a", "b")
    assert selection.reasons == {
        "a": "kept: every task is taken, although not learnable: u = 0.000 < 0.2",
        "b": "kept: every task is taken",
    }


def test_manual_takes_what_is_named_in_that_order(six: Relevance) -> None:
    selection = select(six, "manual", names=("strong", "unrelated", "strong"))
    assert selection.chosen == ("strong", "unrelated")
    assert selection.reasons["strong"] == "kept: named by hand"
    assert selection.reasons["weak"] == "not named"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rule": "best"}, r"^unknown rule 'best'; choose one of weak, strongest, random, all, manual\.$"),
        ({"count": 0}, r"^the number of tasks to choose is 0; give at least 1\.$"),
        ({"rule": "manual"}, r"^the rule manual needs names of tasks; give some of middling, .*\.$"),
        ({"rule": "manual", "names": ("sobel",)}, r"^task 'sobel' was not measured; choose among middling, .*\.$"),
    ],
)
def test_choices_that_cannot_be_made(six: Relevance, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        select(six, **arguments)


def test_records_come_back_from_json(six: Relevance) -> None:
    assert Relevance.model_validate_json(six.model_dump_json()) == six
    selection = select(six)
    assert Selection.model_validate_json(selection.model_dump_json()) == selection


def test_a_record_compares_every_task_with_every_task(six: Relevance) -> None:
    fields = six.model_dump()
    del fields["pairwise"]["weak"]["strong"]
    with pytest.raises(ValueError, match="every task must be compared with every task"):
        Relevance.model_validate(fields)


def test_the_table_has_every_task_by_rising_c_in(six: Relevance) -> None:
    text = table(six, select(six))
    lines = text.splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:9]]
    assert names == [
        "unrelated",
        "*pure noise*",
        "**weaker**",
        "**weak**",
        "middling",
        "rather_strong",
        "strong",
    ]
    assert {line.count("|") for line in lines[:9]} == {10}
    assert lines[5] == (
        "| **weak** | 0.200 | 0.200 | 0.200 | 0.050 | 0.100 | 0.500 | image "
        "| kept: c_in = 0.200, the weakest relation that is left |"
    )
    assert text.endswith(
        "\nTook weaker and weak by the rule weak. Measured on 32 held-out cases, clean and under PGD-3 at 8/255.\n"
    )


def test_the_figure_shows_every_pair_once_and_marks_the_chosen() -> None:
    relevance = pool({"a<b": {"c_in": 0.11}, "c&d": {"c_in": 0.22}, "e": {"c_in": 0.33}}, {("a<b", "e"): 0.77})
    svg = ElementTree.fromstring(similarity_figure(relevance, select(relevance, "manual", names=("e",))))
    space = "{http://www.w3.org/2000/svg}"
    texts = svg.findall(f"{space}text")
    words = [t.text for t in texts]
    numbers = [w for w in words if w and w.startswith("0.") and len(w) == 4]
    assert numbers == ["0.11", "0.22", "0.10", "0.33", "0.77", "0.10"]
    assert [w for w in words if w in ("Segmentation", "A<B", "C&D", "E")] == [
        *("A<B", "C&D", "E"),
        *("Segmentation", "A<B", "C&D"),
    ]
    bold = [t.text for t in texts if t.get("font-weight") == "bold"]
    assert "E" in bold
    assert "A<B" not in bold
    assert "pure noise: 0.05" in words
    frames = [r for r in svg.findall(f"{space}rect") if r.get("stroke-width") == "3"]
    assert len(frames) == 2  # of the chosen task, and in the legend


# --- The measuring, on constructed gradients --------------------------------------------------------------------------


class Scaled(Backbone):
    """Features are the three input channels, each times a weight; the logit is the first of them."""

    multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, images: Tensor) -> Features:
        return [images * self.weight.view(1, -1, 1, 1)]

    def decode(self, features: Features) -> Tensor:
        return self.gain * features[0][:, :1]


def card(**changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny",
        "architecture": "residual_unet",
        "architecture_args": {"channels": (4, 8)},
        "ndim": 2,
        "channels": 3,
        "classes": (ClassInfo(id=1, name="disc", color="#E69F00"),),
        "mode": "binary",
        "window": WindowRule(kind="fixed", low=0, high=1),
    }
    return ModelCard(**(fields | changes))


class Finest(Head):
    """The finest features as they are."""

    def forward(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        return features[0]


@dataclass(frozen=True, kw_only=True)
class Linear(Task):
    """A loss with the same gradient, ``pull``, at every pixel."""

    title: ClassVar[str] = "Linear"

    pull: tuple[float, float, float]

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return torch.zeros_like(images)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return Finest()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 100 + (prediction * torch.tensor(self.pull).view(1, 3, 1, 1)).flatten(1).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        return torch.zeros_like(targets[:1])


@dataclass(frozen=True, kw_only=True)
class Stretched(Linear):
    """The same on an image whose second channel is four times as large."""

    presents: ClassVar[bool] = True

    def present(self, images: Tensor, draws: Tensor) -> Tensor:
        return images * torch.tensor([1.0, 4.0, 1.0]).view(1, 3, 1, 1)


HEAD = Finest()


def measure_linear(tasks: dict[str, Task], **options: Any) -> Relevance:
    """On uniform images all inside the structure: segmentation pulls the first channel up, evenly."""
    images = torch.full((2, 3, 6, 6), 0.75)  # features are 1
    labels = torch.ones(2, 6, 6, dtype=torch.long)
    model = SegmentationModel(card(), Scaled())
    return measure(model, dict.fromkeys(tasks, HEAD), tasks, images, labels, (0, 1), **({"epsilon": 0.0} | options))


def test_cosines_by_hand() -> None:
    relevance = measure_linear(
        {
            "with": Linear(pull=(-3, -4, 0)),
            "against": Linear(pull=(3, 0, 4)),
            "across": Linear(pull=(0, 5, 12)),
        }
    )
    scores = relevance.scores
    assert [scores[n].c_in for n in ("with", "against", "across")] == pytest.approx([0.6, 0.6, 0.0], abs=1e-6)
    assert [scores[n].c_theta for n in ("with", "against", "across")] == pytest.approx([0.6, -0.6, 0.0], abs=1e-6)
    assert relevance.pairwise["with"]["against"] == pytest.approx(9 / 25, abs=1e-6)
    assert relevance.pairwise["across"]["with"] == pytest.approx(20 / 65, abs=1e-6)
    assert relevance.pairwise["against"]["across"] == pytest.approx(48 / 65, abs=1e-6)
    assert relevance.pairwise["with"]["with"] == 1
    # 100 with a prediction of zero; with the features, which are 1, it is the pulls' mean more.
    assert scores["against"].learnable == pytest.approx(-7 / 3 / 100, abs=1e-6)
    for score in scores.values():
        assert score.c_in == pytest.approx((score.c_in_clean + score.c_in_attacked) / 2, abs=1e-7)
    assert relevance.cases == 2


def test_gradients_go_through_what_a_task_presents() -> None:
    pull = (-3.0, -1.0, 0.0)
    scores = measure_linear({"still": Linear(pull=pull), "changed": Stretched(pull=pull)}).scores
    assert scores["still"].c_in == pytest.approx(3 / 10**0.5, abs=1e-6)
    assert scores["changed"].c_in == pytest.approx(3 / 5, abs=1e-6)


def test_a_gradient_that_vanishes_is_like_no_other() -> None:
    relevance = measure_linear({"flat": Linear(pull=(0, 0, 0)), "with": Linear(pull=(-1, 0, 0))})
    assert relevance.scores["flat"].c_in == 0
    assert relevance.pairwise["flat"]["with"] == 0
    assert relevance.scores["with"].c_in == pytest.approx(1, abs=1e-6)


def test_the_smallest_gradients_have_a_direction_too() -> None:
    scores = measure_linear({"small": Linear(pull=(-3e-25, -4e-25, 0))}).scores
    assert scores["small"].c_in == pytest.approx(0.6, abs=1e-6)


@dataclass(frozen=True, kw_only=True)
class Mask(Task):
    """The mask again, from a mixture of feature channels by segmentation's own loss."""

    title: ClassVar[str] = "Mask"
    derived_from: ClassVar[Literal["image", "mask"]] = "mask"

    mixture: tuple[float, float, float]

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return one_hot(labels, "binary", 1)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return Mixed(self.mixture)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return dice_ce(prediction, target, "binary")

    def constant(self, targets: Tensor) -> Tensor:
        share = targets.mean().clamp(1e-6, 1 - 1e-6)
        return share.logit().expand(1, *targets.shape[1:])


class Mixed(Head):
    def __init__(self, mixture: tuple[float, float, float]) -> None:
        super().__init__()
        self.mixture = torch.tensor(mixture).view(1, 3, 1, 1)

    def forward(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        return (features[0] * self.mixture).sum(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def discs() -> tuple[Tensor, Tensor]:
    """Six noisy images whose first two channels show a disc, and the discs."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    labels = torch.stack([((y - 5 - i) ** 2 + (x - 8) ** 2 < 16 + 4 * i).long() for i in range(6)])
    shown = 0.25 + 0.5 * labels.float()
    images = torch.stack([shown, shown, torch.full_like(shown, 0.5)], dim=1)
    return images + 0.1 * torch.randn(images.shape, generator=generator), labels


@pytest.fixture(scope="module")
def disguised() -> dict[str, Task]:
    """Segmentation in disguise, a task that shares one of its four parts, and noise."""
    return {"disguise": Mask(mixture=(1, 0, 0)), "weak": Mask(mixture=(0.4, 1.6, 0)), "noise": PureNoise(stream=9)}


def heads_of(tasks: dict[str, Task], model: SegmentationModel, ndim: int = 2) -> dict[str, Head]:
    with torch.no_grad():
        features = model.eval().encode(torch.zeros(1, model.card.channels, *(16,) * ndim))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        setting = Setting(ndim, model.card.channels, 1, "binary")
        return {name: task.head(tuple(f.shape[1] for f in features), setting) for name, task in tasks.items()}


def test_the_weakly_related_task_is_chosen(discs: tuple[Tensor, Tensor], disguised: dict[str, Task]) -> None:
    model = SegmentationModel(card(), Scaled())
    relevance = measure(model, heads_of(disguised, model), disguised, *discs, range(6))
    strong, weak, noise = (relevance.scores[n] for n in disguised)
    assert strong.c_in == pytest.approx(1, abs=1e-5)
    assert strong.c_theta == pytest.approx(1, abs=1e-5)
    assert strong.c_in > 2 * weak.c_in > 4 * relevance.noise_floor
    assert weak.c_in > 2 * noise.c_in
    assert noise.learnable < 0.05 < 0.5 < weak.learnable
    assert strong.derived_from == "mask"
    selection = select(relevance, count=1)
    assert selection.chosen == ("weak",)
    assert selection.reasons["disguise"].startswith("strongly relevant")
    assert selection.reasons["noise"].startswith("not learnable")
    assert select(relevance, "strongest", 1).chosen == ("disguise",)


# --- The measuring, on a network --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture(Task):
    """The image again."""

    title: ClassVar[str] = "Picture"

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return images

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, setting.channels)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(prediction, target, reduction="none").flatten(1).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        return torch.full_like(targets[:1], 0.5)


@pytest.fixture
def net() -> SegmentationModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return SegmentationModel(card()).eval()


@pytest.fixture
def two() -> dict[str, Task]:
    return {"picture": Picture(), "noise": PureNoise(stream=9)}


def numbers(relevance: Relevance) -> list[float]:
    rows = [value for row in relevance.pairwise.values() for value in row.values()]
    scores = [v for s in relevance.scores.values() for v in (s.c_in_clean, s.c_in_attacked, s.learnable)]
    return [relevance.noise_floor, *rows, *scores]


def test_a_network_is_measured_case_by_case(
    net: SegmentationModel, two: dict[str, Task], discs: tuple[Tensor, Tensor]
) -> None:
    images, labels = (t[:3, ..., :15] for t in discs)  # a width that the network has to pad
    heads = heads_of(two, net)
    relevance = measure(net, heads, two, images, labels, range(3), batch=2)

    def slope(loss: Tensor, image: Tensor) -> Tensor:
        return torch.autograd.grad(loss.sum(), image)[0].flatten()

    cosines = []
    for i in range(3):
        image = images[i : i + 1].clone().requires_grad_()
        segmentation = slope(main_loss(net, image, labels[i : i + 1]), image)
        picture = slope((heads["picture"](net.encode(image), (16, 15)) - images[i : i + 1]).abs().mean(), image)
        cosines.append(F.cosine_similarity(segmentation, picture, dim=0).abs().item())
    assert relevance.scores["picture"].c_in_clean == pytest.approx(sum(cosines) / 3, abs=1e-5)
    assert relevance.scores["picture"].c_in_attacked != relevance.scores["picture"].c_in_clean
    again = measure(net, heads, two, images, labels, range(3), batch=2)
    assert again == relevance
    whole = measure(net, heads, two, images, labels, range(3), batch=3)
    assert numbers(whole) == pytest.approx(numbers(relevance), abs=1e-4)
    other = measure(net, heads, two, images, labels, (7, 8, 9), batch=2)
    assert other.noise_floor != relevance.noise_floor
    assert other.scores["picture"] == relevance.scores["picture"]


def main_loss(net: SegmentationModel, images: Tensor, labels: Tensor) -> Tensor:
    return dice_ce(net(images), one_hot(labels, "binary", 1), "binary")


def test_the_encoders_weights_alone_make_c_theta(
    net: SegmentationModel, two: dict[str, Task], discs: tuple[Tensor, Tensor]
) -> None:
    images, labels = (t[:2] for t in discs)
    heads = heads_of(two, net)
    relevance = measure(net, heads, two, images, labels, range(2), epsilon=0.0)
    encoder = [p for name, p in net.named_parameters() if not name.startswith("backbone.net.model.2.")]
    assert 0 < len(encoder) < len(list(net.parameters()))

    def slope(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), encoder)])

    segmentation = slope(main_loss(net, images, labels))
    picture = slope((heads["picture"](net.encode(images), (16, 16)) - images).abs().mean())
    expected = F.cosine_similarity(segmentation, picture, dim=0).item()
    assert relevance.scores["picture"].c_theta == pytest.approx(expected, abs=1e-5)


def test_measuring_leaves_everything_as_it_was(
    net: SegmentationModel, two: dict[str, Task], discs: tuple[Tensor, Tensor]
) -> None:
    heads = heads_of(two, net)
    net.train().backbone.requires_grad_(False)
    heads["picture"].train()
    heads["noise"].eval()
    first = next(net.parameters())
    first.requires_grad_(True)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        inside = measure(net, heads, two, *discs, range(6), steps=1)
    assert net.training
    assert all(m.training for m in net.modules())
    assert heads["picture"].training
    assert not heads["noise"].training
    assert [p.requires_grad for p in net.parameters()] == [True] + [False] * (len(list(net.parameters())) - 1)
    assert all(p.grad is None for p in (*net.parameters(), *heads["picture"].parameters()))
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert inside == measure(net.eval(), heads, two, *discs, range(6), steps=1)


def test_volumes_and_several_classes() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = tuple(ClassInfo(id=i, name=str(i), color="#E69F00") for i in (1, 2))
        net = SegmentationModel(card(ndim=3, channels=1, classes=classes, mode="multiclass", downsample=2))
        images = torch.rand(2, 1, 12, 10, 9)
    tasks: dict[str, Task] = {"picture": Picture()}
    relevance = measure(net, heads_of(tasks, net, 3), tasks, images, (images[:, 0] * 2.9).long(), (0, 1), steps=1)
    assert 0 < relevance.scores["picture"].c_in < 1
    assert 0 < relevance.noise_floor < 1


def test_noise_is_told_apart_by_stream_and_case() -> None:
    def draw(stream: int, seed: int) -> Tensor:
        return PureNoise(stream=stream).draw((3, 8, 9), torch.Generator().manual_seed(seed))

    assert draw(0, 1).shape == (1, 8, 9)
    assert torch.equal(draw(1, 4), draw(1, 4))
    assert not torch.equal(draw(0, 4), draw(1, 4))
    assert not torch.equal(draw(0, 4), draw(0, 5))


def test_noise_pulls_as_on_a_head_that_has_learnt_its_median() -> None:
    noise = PureNoise()
    target = torch.tensor([[[-3.0, 0.5, 2.0, -0.5]]])
    answer = torch.full_like(target, 7).requires_grad_()
    loss = noise.loss(answer, target)
    assert loss.tolist() == noise.loss(noise.constant(target), target).tolist() == [1.5]
    assert torch.autograd.grad(loss.sum(), answer)[0].tolist() == [[[0.25, -0.25, -0.25, 0.25]]]


@dataclass(frozen=True, kw_only=True)
class Flat(Picture):
    dims: ClassVar[tuple[int, ...]] = (3,)


@dataclass(frozen=True, kw_only=True)
class Endless(Picture):
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return super().loss(prediction, target) / 0


@pytest.mark.parametrize(
    ("tasks", "changes", "sentence"),
    [
        ({}, {}, r"^the tasks are none, the heads none; give at least one task"),
        ({"p": Picture()}, {"heads": {}}, r"^the tasks are p, the heads none; give .* one head for each"),
        ({"p": Picture()}, {"seeds": (1,)}, r"^there are 6 images and 1 seeds; give images, and a seed for each\.$"),
        ({"p": Picture()}, {"batch": 0}, r"^batch is 0; give at least 1\.$"),
        ({"p": Flat()}, {}, r"^task 'p' is not made for 2-D images; leave it out\.$"),
        ({"p": Endless()}, {}, r"^the loss of p is not finite on a held-out case; lower the learning rate\.$"),
    ],
)
def test_what_cannot_be_measured(
    net: SegmentationModel,
    discs: tuple[Tensor, Tensor],
    tasks: dict[str, Task],
    changes: dict[str, Any],
    sentence: str,
) -> None:
    arguments = {"heads": heads_of(tasks, net), "seeds": range(6), "steps": 1} | changes
    with pytest.raises(CeaseError, match=sentence):
        measure(net, tasks=tasks, images=discs[0], labels=discs[1], **arguments)
    assert not net.training
