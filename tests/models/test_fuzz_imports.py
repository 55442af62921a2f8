"""Damage that nobody thought of: a model is taken in and works, or is refused in one sentence and leaves no trace.

The same examples in every run; ``benchmarks/fuzz.py`` draws many more, in processes that may die.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from safetensors.torch import save as save_tensors
from torch import nn

from cease_core.errors import CeaseError
from cease_core.models import SegmentationModel, open_model
from cease_core.models.checkpoint import save_model
from cease_core.models.foreign.drafts import Choices, Question
from cease_core.models.importing import import_any
from cease_core.models.library import user_library

ARGS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]}
WEIGHTS = Choices(classes=("disc",), mode="binary", normalise="none", architecture="UNet", args=ARGS)
PROGRAM = Choices(classes=("disc",), mode="binary", normalise="none", ndim=2, channels=1)

VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 3, 2**16, 2**31, 10**30, float("nan"), 1e308, "", "x", "a\x1b", "$import os", "@net", [], {}]
)

some = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "home" / "library"))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "home"))
    return user_library()


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return UNet(**ARGS).state_dict()


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def script() -> bytes:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 3, padding=1)).eval()
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(network), out)
    return out.getvalue()


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(held: dict[str, bytes]) -> bytes:
    """A zip as torch writes it, with the right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return out.getvalue()


def settle(path: Path, choices: Choices) -> str:
    """Import it: what is taken in opens again; the sentence of what is refused, which leaves nothing, is returned."""
    try:
        folder = import_any(path, choices, lambda question: isinstance(question, Question)).folder
    except CeaseError as error:
        assert not list(user_library().glob("[!.]*"))
        return str(error)
    assert open_model(folder).card.name == folder.name
    for part in folder.iterdir():
        part.unlink()
    folder.rmdir()
    return ""


@st.composite
def faults(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut, with a flipped byte, or with a number at which lengths go wrong."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "flip", "number"]))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    number = draw(st.sampled_from([0, 1, 2**15, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
    return content[:at] + number + content[at + 4 :]


@pytest.mark.parametrize(
    ("name", "make", "choices"),
    [
        ("net.safetensors", lambda: save_tensors(state()), WEIGHTS),
        ("net.pt", lambda: saved(state()), WEIGHTS),
        ("net.ts", script, PROGRAM),
    ],
)
def test_damaged_bytes(name: str, make: Callable[[], bytes], choices: Choices, tmp_path: Path) -> None:
    content = make()
    path = tmp_path / name
    path.write_bytes(content)
    assert settle(path, choices) == ""

    @some
    @given(faults(content))
    def damage(changed: bytes) -> None:
        path.write_bytes(changed)
        assert settle(path, choices).isprintable()

    damage()


@pytest.mark.parametrize(("name", "choices"), [("net.pt", WEIGHTS), ("net.ts", PROGRAM)])
def test_damaged_entries_with_the_right_checksum(name: str, choices: Choices, tmp_path: Path) -> None:
    held = entries(script() if name == "net.ts" else saved(state()))
    path = tmp_path / name
    chosen = sorted(entry for entry in held if entry.endswith(("data.pkl", "data/0", "data/1")))

    @some
    @given(st.data(), st.sampled_from(chosen))
    def damage(data: st.DataObject, entry: str) -> None:
        path.write_bytes(packed(held | {entry: data.draw(faults(held[entry]))}))
        assert settle(path, choices).isprintable()

    damage()


@pytest.mark.parametrize(("name", "choices"), [("net.pt", WEIGHTS), ("net.ts", PROGRAM)])
def test_tensors_that_claim_more_than_the_file_holds(name: str, choices: Choices, tmp_path: Path) -> None:
    """Torch believes the pickle, and would read beyond the end."""
    held = entries(script() if name == "net.ts" else saved(state()))
    first = next(entry for entry in held if entry.endswith("data/0"))
    (tmp_path / name).write_bytes(packed(held | {first: b""}))
    assert "holds less than its tensors need" in settle(tmp_path / name, choices)


@pytest.mark.parametrize(("name", "choices"), [("net.pt", WEIGHTS), ("net.ts", PROGRAM)])
def test_a_single_wrong_bit_in_the_weights_is_noticed(name: str, choices: Choices, tmp_path: Path) -> None:
    content = script() if name == "net.ts" else saved(state())
    weights = next(held for entry, held in entries(content).items() if entry.endswith("data/0"))
    at = content.index(weights)
    (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "checksum" in settle(tmp_path / name, choices)


@pytest.fixture
def own(make_model: Callable[..., SegmentationModel], tmp_path: Path) -> Path:
    return save_model(make_model(), tmp_path / "mine")


def test_cards_with_other_values(own: Path) -> None:
    card = json.loads((own / "card.json").read_text())

    @some
    @given(st.sampled_from(sorted(card)), VALUES)
    def damage(key: str, value: Any) -> None:
        (own / "card.json").write_text(json.dumps(card | {key: value}))
        assert "\n" not in settle(own, Choices())

    damage()


@pytest.mark.parametrize("depth", [500, 100_000])
def test_nesting_without_end(depth: int, own: Path) -> None:
    card = json.loads((own / "card.json").read_text())
    nested = json.dumps(card | {"training": {"deep": "here"}}).replace('"here"', "[" * depth + "]" * depth)
    (own / "card.json").write_text(nested)
    assert "\n" not in settle(own, Choices())


def test_bundles_with_other_values(tmp_path: Path) -> None:
    configs = tmp_path / "bundle" / "configs"
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    configs.mkdir()
    (tmp_path / "bundle" / "models" / "model.pt").write_bytes(saved(state()))
    (configs / "metadata.json").write_text('{"name": "disc"}')
    clip = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 9, "b_min": 0, "b_max": 1}
    config: dict[str, Any] = {
        "network_def": {"_target_": "UNet", **ARGS},
        "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": "image"}, clip]},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32], "sw_batch_size": 1},
    }
    (configs / "inference.json").write_text(json.dumps(config))
    assert settle(tmp_path / "bundle", Choices()) == ""
    places = [("network_def", key) for key in config["network_def"]] + [("inferer", key) for key in config["inferer"]]

    @some
    @given(st.sampled_from([*places, ("preprocessing", "transforms"), ("preprocessing", "_target_")]), VALUES)
    def damage(place: tuple[str, str], value: Any) -> None:
        part, key = place
        (configs / "inference.json").write_text(json.dumps(config | {part: config[part] | {key: value}}))
        assert settle(tmp_path / "bundle", Choices()).isprintable()

    damage()
