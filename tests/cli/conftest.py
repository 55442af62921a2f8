"""Small untrained models on disk, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cease_core.cli import main
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule, save_model

SAMPLES = Path(__file__).parents[2] / "sample_data"


@dataclass(frozen=True)
class Said:
    """What a run of the command line left."""

    code: int
    out: str
    err: str


Cease = Callable[..., Said]


@pytest.fixture
def cease(capsys: pytest.CaptureFixture[str]) -> Cease:
    def call(*arguments: object) -> Said:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return Said(int(stop.value.code or 0), said.out, said.err)

    return call


def _card(name: str, ndim: int, channels: int, classes: int, window: WindowRule) -> ModelCard:
    return ModelCard(
        name=name,
        title=name.title(),
        architecture="unet",
        architecture_args={"channels": (4, 8), "norm": "instance"},
        ndim=ndim,
        channels=channels,
        classes=tuple(ClassInfo(id=i + 1, name=f"part {i + 1}", color="#E69F00") for i in range(classes)),
        mode="binary" if classes == 1 else "multiclass",
        window=window,
    )


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the models ``tiny-picture``, ``tiny-slice``, ``tiny-volume`` and ``tiny-ct``."""
    folder = tmp_path_factory.mktemp("models")
    percentile = WindowRule(kind="percentile", low=0.5, high=99.5)
    cards = [
        _card("tiny-picture", 2, 3, 1, WindowRule(kind="fixed", low=0, high=255)),
        _card("tiny-slice", 2, 1, 2, percentile),
        _card("tiny-volume", 3, 1, 2, percentile),
        _card("tiny-ct", 2, 1, 1, WindowRule(kind="fixed", low=-150, high=250)),
    ]
    for card in cards:
        torch.manual_seed(0)
        save_model(SegmentationModel(card), folder / card.name)
    return folder


@pytest.fixture(autouse=True)
def _own_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEASE_MODELS", str(library))
