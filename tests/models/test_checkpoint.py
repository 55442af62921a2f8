"""A model comes back from disk as it was, and whatever is wrong on disk is one sentence."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cease_core.errors import CeaseError
from cease_core.models import load_model, save_model
from cease_core.models.card import DataInfo
from cease_core.models.checkpoint import load_card, read_heads

IMAGES = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(make_model, tmp_path: Path) -> Path:
    return save_model(make_model(seed=1), tmp_path / "models" / "tiny")


@pytest.fixture
def contents(folder: Path) -> Callable[[], dict[str, bytes]]:
    return lambda: {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("architecture", ["unet", "residual_unet", "segresnet"])
def test_round_trip(make_model, tmp_path: Path, architecture: str) -> None:
    args = {"filters": 8, "levels": 2} if architecture == "segresnet" else {"channels": (4, 8)}
    model = make_model(
        architecture=architecture,
        architecture_args=args,
        data=DataInfo(name="discs", source="drawn", licence="CC0", train=("a", "b")),
        training={"epochs": 3},
        metrics={"validation_clean_dice": 0.5},
        notes="naïve ε",
    )
    loaded = load_model(save_model(model, tmp_path))
    assert not loaded.training
    assert loaded.card.model_dump(mode="json") == model.card.model_dump(mode="json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "model.safetensors"]
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_a_new_model_replaces_the_old_one(make_model, folder: Path) -> None:
    new = make_model(seed=2, title="New")
    save_model(new, folder)
    loaded = load_model(folder)
    assert loaded.card.title == "New"
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), new(IMAGES))


def test_channels_last_models_are_saved(make_model, tmp_path: Path) -> None:
    model = make_model()
    model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(load_model(save_model(model, tmp_path))(IMAGES), model(IMAGES))


def _entry(folder: Path, **changes: object) -> None:
    card = folder / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no card": (lambda f: (f / "card.json").unlink(), "holds no card.json; .* choose such a folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors; copy the whole model"),
    "card cut": (
        lambda f: (f / "card.json").write_text('{"name": "ti'),
        "is not valid JSON .*; export the model again",
    ),
    "card in bytes": (lambda f: (f / "card.json").write_bytes(b"\xff\xfe\x00"), "is not valid JSON"),
    "card a list": (lambda f: (f / "card.json").write_text("[]"), r"is not a valid model card \(card: "),
    "card a folder": (lambda f: [(f / "card.json").unlink(), (f / "card.json").mkdir()], "cannot read .*permissions"),
    "mode": (lambda f: _entry(f, mode="ternary"), r"is not a valid model card \(mode: .*; correct that entry"),
    "unknown entry": (lambda f: _entry(f, colour="red"), r"\(colour: Extra inputs are not permitted\)"),
    "architecture": (lambda f: _entry(f, architecture="vit"), "unknown architecture 'vit'"),
    "other widths": (
        lambda f: _entry(f, architecture_args={"channels": [8, 16]}),
        "has shape .* needs .*; the card and the weights belong to different models",
    ),
    "other channels": (lambda f: _entry(f, channels=3), "belong to different models"),
    "tensor missing": (
        lambda f: _tensors(f, lambda t: t.pop(next(iter(t)))),
        "lacks the tensor .*; export the model again",
    ),
    "weights cut": (_cut, "model.safetensors is damaged .*; copy or download the model again"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "is damaged"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("Git LFS"), "is damaged"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence(folder: Path, damage: Callable[[Path], object], sentence: str) -> None:
    damage(folder)
    with pytest.raises(CeaseError, match=sentence) as said:
        load_model(folder)
    assert "\n" not in str(said.value)


HEADS = {"task.weight": torch.arange(6.0).view(2, 3).T, "task.bias": torch.ones(2)}


def test_heads_lie_beside_the_model_they_belong_to(make_model, folder: Path) -> None:
    assert read_heads(folder) is None
    save_model(make_model(seed=1), folder, half=True, heads=HEADS)
    heads = read_heads(folder)
    assert heads is not None
    assert {k: v.tolist() for k, v in heads.items()} == {k: v.tolist() for k, v in HEADS.items()}
    save_model(make_model(seed=1), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]


def _cut_heads(folder: Path) -> None:
    heads = folder / "heads.safetensors"
    heads.write_bytes(heads.read_bytes()[:-4])


HEAD_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (_cut_heads, "heads.safetensors is damaged .*; copy the whole model folder again, or delete it"),
    "text": (lambda f: (f / "heads.safetensors").write_text("Git LFS"), "heads.safetensors is damaged"),
    "a folder": (
        lambda f: [(f / "heads.safetensors").unlink(), (f / "heads.safetensors").mkdir()],
        "heads.safetensors is damaged",
    ),
    "of other weights": (
        lambda f: _tensors(f, lambda t: next(iter(t.values())).add_(1)),
        "belongs to other weights than the model.safetensors beside it; copy the whole model folder",
    ),
    "of nobody": (
        lambda f: save_file(HEADS | {"task.weight": torch.ones(1)}, f / "heads.safetensors"),
        "belongs to other weights",
    ),
    "alone": (lambda f: (f / "model.safetensors").unlink(), "holds no readable model.safetensors; copy the whole"),
}


@pytest.mark.parametrize(("damage", "sentence"), HEAD_DAMAGE.values(), ids=HEAD_DAMAGE)
def test_damaged_heads_are_one_sentence_and_no_hindrance_to_the_model(
    make_model, folder: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    save_model(make_model(seed=1), folder, heads=HEADS)
    damage(folder)
    with pytest.raises(CeaseError, match=sentence) as said:
        read_heads(folder)
    assert "\n" not in str(said.value)
    if (folder / "model.safetensors").is_file():
        load_model(folder)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(CeaseError, match=r"cannot read|holds no card\.json"):
        load_model(folder / "model.safetensors")
    with pytest.raises(CeaseError, match=r"holds no card\.json"):
        load_card(folder / "none")


@contextmanager
def no_permission(folder: Path) -> Iterator[None]:
    """The folder is read-only, for root too: root steps down for as long as it lasts."""
    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_no_write_permission(make_model, folder: Path, contents) -> None:
    before = contents()
    sentence = r"cannot write the model to .*tiny: Permission denied; choose another folder\.$"
    with no_permission(folder), pytest.raises(CeaseError, match=sentence):
        save_model(make_model(seed=2), folder)
    assert contents() == before


def test_a_parent_that_is_a_file(make_model, folder: Path, contents) -> None:
    before = contents()
    for target in (folder / "card.json", folder / "card.json" / "inside"):
        with pytest.raises(CeaseError, match=r"cannot write the model to .*; choose another folder\.$"):
            save_model(make_model(seed=2), target)
    assert contents() == before


def test_a_full_disk_loses_nothing_of_the_old_model(make_model, folder: Path, contents) -> None:
    before = contents()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(CeaseError, match=r"cannot write the model to .*File too large.*; choose another folder\.$"):
            save_model(make_model(seed=2), folder, heads=HEADS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents() == before
    load_model(folder)
