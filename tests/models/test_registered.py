"""Any network of this process is a model, once it has shown that it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.errors import CeaseError
from cease_core.models import available_models, find_model, open_model, prepare
from cease_core.models.foreign.registered import (
    PLACE,
    register_model,
    registered,
    registered_model,
    unregister_model,
)
from cease_core.models.foreign.spec import Scale
from cease_core.scan import Scan


class Bright(nn.Module):
    """What is brighter than 100 is an object; the answer is of any kind."""

    def __init__(self, ndim: int = 2, wrap: Any = lambda logits: logits) -> None:
        super().__init__()
        self.smooth = (nn.Conv2d if ndim == 2 else nn.Conv3d)(1, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.smooth.weight, 1 / 3**ndim)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap((self.smooth(images) - 100) / 10)


GOOD: dict[str, Any] = {
    "name": "bright",
    "classes": ["object"],
    "ndim": 2,
    "channels": 1,
    "mode": "binary",
    "window": (0, 200),
}


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path))
    yield
    for place in registered():
        unregister_model(place.name)


@pytest.fixture
def disc() -> Scan:
    rows, columns = np.indices((48, 40))
    inside = (rows - 24) ** 2 + (columns - 20) ** 2 < 144
    return Scan(np.where(inside, 140, 60).astype(np.float32)[None], np.eye(4), name="disc")


def test_a_registered_model_is_found_opened_and_forgotten() -> None:
    model = register_model(Bright(), **GOOD)
    assert find_model("bright") == PLACE / "bright"
    assert available_models()[PLACE / "bright"] == model.card == registered()[PLACE / "bright"]
    assert open_model(PLACE / "bright") is model is registered_model(PLACE / "bright")
    unregister_model("bright")
    assert registered() == {}
    with pytest.raises(CeaseError, match="no model called 'bright'"):
        find_model("bright")


def test_another_folder_is_none_and_another_process_is_told(tmp_path: Path) -> None:
    assert registered_model(tmp_path) is None
    with pytest.raises(CeaseError, match="not registered in this Python process"):
        open_model(PLACE / "bright")


def test_the_same_name_replaces() -> None:
    register_model(Bright(), **GOOD)
    register_model(Bright(), **GOOD, title="Second")
    assert [card.title for card in registered().values()] == ["Second"]


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "logits": (lambda x: x, {}),
    "a tuple": (lambda x: (x, None), {"output": (0,)}),
    "heads of a deep supervision": (lambda x: [x[..., ::2, ::2], x], {"output": (-1,)}),
    "a dict": (lambda x: {"aux": [], "seg": [x]}, {"output": ("seg", 0)}),
    "a sigmoid head": (torch.sigmoid, {"activation": "sigmoid"}),
    "a softmax head": (
        lambda x: torch.cat([-x, x], 1).softmax(1),
        {"activation": "softmax", "mode": "multiclass"},
    ),
    "channels in another order": (lambda x: torch.cat([x, -x], 1), {"outputs": (1, 0), "mode": "multiclass"}),
    "logits at half the resolution": (lambda x: nn.functional.avg_pool2d(x, 2), {"divisor": 2}),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_network_returns_it_can_be_attacked(disc: Scan, way: str) -> None:
    wrap, fields = WAYS[way]
    model = prepare(register_model(Bright(wrap=wrap), **GOOD | fields))
    subject = pose_on_scan(model, disc)
    with torch.no_grad():
        clean = subject.mask(subject.model(subject.images))
    assert clean.sum() == pytest.approx((disc.image > 100).sum(), rel=0.1)
    assert float(PGD(epsilon=0.25, steps=5).run(subject.problem("dice_ce")).score) < 0.5


def test_steps_stand_between_the_scan_and_the_network(disc: Scan) -> None:
    halved = register_model(Bright(), **GOOD, steps=(Scale(factor=(0.5,)),))
    plain = register_model(Bright(), **GOOD)
    images = torch.from_numpy(disc.image)[None] / 200
    with torch.no_grad():
        assert torch.allclose(halved.on(disc)(images), plain.on(disc)(images / 2), atol=1e-4)


class Unsteady(Bright):
    def forward(self, images: Tensor) -> Tensor:
        return self.smooth(images) * torch.rand(1)


class Hard(Bright):
    def forward(self, images: Tensor) -> Tensor:
        return (self.smooth(images) > 100).float()


class Blind(Bright):
    def forward(self, images: Tensor) -> Tensor:
        return images * 0 + 1


class Failing(Bright):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("network", "change", "sentence"),
    [
        (Unsteady(), {}, "differently from call to call"),
        (Hard(), {}, "no gradient reaches the image"),
        (Blind(), {}, "answers every image alike"),
        (Failing(), {}, r"fails on an image .*\(no kernel\)"),
        (Bright(wrap=lambda x: x * torch.nan), {}, "values that are no numbers"),
        (Bright(wrap=lambda x: [x]), {}, "name the entry that holds the logits"),
        (Bright(wrap=lambda x: {"seg": x}), {"output": ("mask",)}, "no entry 'mask', only the entries 'seg'"),
        (Bright(), {"channels": 3}, "fails on an image"),
        (Bright(), {"mode": "multilabel", "classes": ["a", "b"]}, "answers with 1 channels"),
        (Bright(), {"classes": ["a", "b"]}, "a binary model has exactly one"),
        (Bright(), {"window": (5, 5)}, "high must be above low"),
        (Bright(), {"name": "no name"}, "name"),
        (Bright(), {"color": 3}, "knows no 'color'; choose among"),
        (Bright(), {"kind": "monai"}, "knows no 'kind'; choose among"),
        (Bright(), {"roi": (0, 4)}, "edges are at least 1"),
    ],
)
def test_a_network_that_does_not_do_what_it_says_is_not_registered(
    network: nn.Module, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CeaseError, match=sentence) as said:
        register_model(network, **GOOD | change)
    assert registered() == {}
    assert "\n" not in str(said.value)


def test_what_was_never_registered_cannot_be_forgotten() -> None:
    with pytest.raises(CeaseError, match="no model called 'other' is registered"):
        unregister_model("other")
