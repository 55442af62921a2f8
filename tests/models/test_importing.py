"""What a file is, before anything in it is opened, and what becomes of one that does not work."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models import find_model, open_model
from cease_core.models.foreign.classes import build_network
from cease_core.models.foreign.drafts import Choices, Question, refuse
from cease_core.models.foreign.intensities import fit
from cease_core.models.foreign.trust import agreed
from cease_core.models.importing import import_any, source_of
from cease_core.models.library import SHIPPED, user_library


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "library"))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "home"))
    return user_library()


def network() -> nn.Module:
    """Small, with a gradient everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 3, padding=1)).eval()


def script(path: Path, module: nn.Module | None = None) -> Path:
    torch.jit.script(module or network()).save(str(path))
    return path


def yes(_: Question) -> bool:
    return True


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "{}")
    return path


WHAT = Choices(classes=("disc",), mode="binary", normalise="none")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda at: archive(at / "a.zip", "spleen/configs/metadata.json", "spleen/models/model.pt"), "bundle"),
        (lambda at: archive(at / "a.zip", "mine/card.json", "mine/model.safetensors"), "own"),
        (lambda at: archive(at / "a.pt", "net/code/__torch__.py", "net/data.pkl"), "program"),
        (lambda at: archive(at / "a.pt", "net/data.pkl", "net/data/0"), "weights"),
        (lambda at: archive(at / "code.pt", "code/data.pkl", "code/data/0"), "weights"),
        (lambda at: archive(at / "a.zip", "spleen/configs/inference.yaml", "spleen/models/model.pt"), "bundle"),
        (lambda at: script(at / "net.ts"), "program"),
    ],
)
def test_an_archive_is_known_by_the_names_in_it(make: Callable[[Path], Path], kind: str, tmp_path: Path) -> None:
    assert source_of(make(tmp_path)) == kind


def test_an_exported_program_is_known(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(network(), (torch.rand(1, 1, 32, 32),)), str(path))
    assert source_of(path) == "program"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("card.json", "model.safetensors"), "own"),
        (("configs/metadata.json",), "bundle"),
        (("configs/inference.json", "models/model.pt"), "bundle"),
        (("configs/inference.yaml",), "bundle"),
        (("plans.json", "fold_0/checkpoint_final.pth"), "nnunet"),
        (("nnUNetTrainer__nnUNetPlans__2d/plans.json",), "nnunet"),
    ],
)
def test_a_folder_is_known_by_its_files(files: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text("{}")
    assert source_of(tmp_path / "model") == kind


@pytest.mark.parametrize("name", ["notes.txt", "empty.pt2", "picture.zip"])
def test_what_is_no_model_is_refused_with_what_can_be_chosen(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"nothing")
    with pytest.raises(CeaseError, match="no model that can be imported; choose a model folder"):
        source_of(path)


def test_a_file_of_a_model_folder_stands_for_the_folder() -> None:
    done = import_any(SHIPPED / "cardiac-undefended" / "card.json", Choices(name="heart"))
    assert done.folder == user_library() / "heart"


def test_of_a_model_folder_the_card_says_all_but_the_name() -> None:
    with pytest.raises(CeaseError, match=r"classes, spacing mean nothing for a model of this program"):
        import_any(SHIPPED / "cardiac-undefended", Choices(name="heart", classes=("a",), spacing=(1, 1)))


def test_a_small_file_of_weights_cannot_ask_for_a_large_network(tmp_path: Path) -> None:
    args = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    torch.save(build_network("UNet", args).state_dict(), tmp_path / "net.pt")
    said = Choices(architecture="UNet", args=args, classes=("disc",), mode="multiclass", normalise="none")
    folder = import_any(tmp_path / "net.pt", said).folder
    card = json.loads((folder / "card.json").read_text())
    card["foreign"]["args"]["channels"] = [512, 512]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CeaseError, match="values, more than the"):
        open_model(folder)


def test_weights_beside_no_card_are_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CeaseError, match="architecture"):
        import_any(path, WHAT)


def test_a_program_is_not_opened_before_the_user_agrees(tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"net\.ts was not opened"):
        import_any(script(tmp_path / "net.ts"), WHAT)
    assert not list(user_library().glob("*/card.json"))


def test_an_imported_program_is_found_by_its_name_and_answers_as_before(tmp_path: Path) -> None:
    done = import_any(script(tmp_path / "net.ts"), WHAT.model_copy(update={"name": "mine"}), yes)
    assert find_model("mine") == done.folder
    images = torch.rand(1, 1, 40, 40)
    # By itself, the model takes its images to be in its own intensities.
    model = open_model(done.folder)
    assert torch.allclose(model.asked(images), network()(images), atol=1e-6)


def test_a_program_that_somebody_exchanged_in_the_library_is_not_run(tmp_path: Path) -> None:
    folder = import_any(script(tmp_path / "net.ts"), WHAT, yes).folder
    script(folder / "model.ts", nn.Conv2d(1, 1, 3, padding=1))
    with pytest.raises(CeaseError, match=r"model\.ts"):
        open_model(folder)


def test_a_program_exported_from_the_library_asks_again_elsewhere(tmp_path: Path, monkeypatch) -> None:
    folder = import_any(script(tmp_path / "net.ts"), WHAT, yes).folder
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "elsewhere" / "library"))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "elsewhere"))
    with pytest.raises(CeaseError, match=r"model\.ts was not opened"):
        import_any(copied)
    asked: list[Question] = []
    again = import_any(copied, consent=lambda question: not asked.append(question)).folder
    assert len(asked) == 1
    assert agreed(asked[0].sha256)
    assert open_model(again).card == open_model(again).card


class Hard(nn.Module):
    """Decides, so that no gradient passes."""

    def forward(self, images: Tensor) -> Tensor:
        """A mask."""
        return (images > 0.5).float()


class Moody(nn.Module):
    """Forgets to switch its dropout off."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Another answer each time."""
        return nn.functional.dropout(self.inner(images), 0.5, training=True)


class Broken(nn.Module):
    """Divides by nothing."""

    def forward(self, images: Tensor) -> Tensor:
        """Infinite logits."""
        return images / (images - images)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [(Hard(), "gradient"), (Moody(), "differently from call to call"), (Broken(), "no numbers")],
)
def test_what_cannot_be_attacked_is_not_taken_in(module: nn.Module, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=sentence):
        import_any(script(tmp_path / "net.ts", module), WHAT, yes)
    assert not list(user_library().glob("[!.]*"))


def test_nobody_agrees_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match="Agree to it"):
        refuse(Question(tmp_path / "x.ts", "0" * 64, "It may run code."))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"normalise": "none"}, [0.0, 50.0, 100.0]),
        ({"window": {"kind": "fixed", "low": 0, "high": 200}}, [0.0, 0.25, 0.5]),
        ({"normalise": "minmax"}, [0.0, 0.5, 1.0]),
        ({"normalise": "zscore"}, [-(1.5**0.5), 0.0, 1.5**0.5]),
        ({"window": {"kind": "fixed", "low": 0, "high": 200}, "normalise": "none"}, [0.0, 50.0, 100.0]),
    ],
)
def test_the_intensities_that_a_network_is_given(said: dict[str, Any], expected: list[float]) -> None:
    steps = Choices.model_validate(said).intensities("net.ts")
    image = np.array([[[0, 50, 100]]], np.float32)
    values = torch.from_numpy(image)[None]
    for stage in fit(steps, image):
        values = stage(values)
    assert values.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_no_intensities_are_guessed() -> None:
    with pytest.raises(CeaseError, match=r"net\.ts does not say which intensities .* none, unit, zscore or minmax"):
        WHAT.model_copy(update={"normalise": None}).intensities("net.ts")
