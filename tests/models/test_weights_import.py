"""Weights without a network: the user names it, and what does not belong together is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai_bundles import UNET, network_of
from safetensors.torch import save_file
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models import ForeignModel, SegmentationModel, WindowRule
from cease_core.models.architectures import Backbone, build
from cease_core.models.foreign.classes import NETWORKS, build_network, count_values, divisor, facts, network_name
from cease_core.models.foreign.drafts import Choices
from cease_core.models.foreign.trial import try_model
from cease_core.models.foreign.weights import draft_weights

ARGS = {key: value for key, value in UNET.items() if key != "_target_"} | {"spatial_dims": 2}
OURS = Choices(architecture="unet", args={"channels": [4, 8]}, classes=("disc",))
MONAI = Choices(architecture="UNet", args=ARGS, classes=("disc",), mode="multiclass", normalise="none")


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    def store(content: Any, name: str = "disc.pt") -> Path:
        path = tmp_path / name
        (save_file if name.endswith("safetensors") else torch.save)(content, path)
        return path

    return store


@pytest.fixture
def ours(make_model) -> SegmentationModel:
    return make_model(seed=3)


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("net."): value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "as it is": dict,
    "a network of MONAI by itself": plain_names,
    "a whole model": lambda state: {f"backbone.{key}": value for key, value in state.items()},
    "a checkpoint": lambda state: {"epoch": 7, "state_dict": plain_names(state)},
    "of several devices": lambda state: {
        "model": {f"module.{key}": value for key, value in plain_names(state).items()}
    },
    "in 16 bits": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_of_ours_become_an_ordinary_model(stored, ours: SegmentationModel, name: str, suffix: str) -> None:
    content = WRAPPINGS[name](ours.backbone.state_dict())
    if suffix == "safetensors":  # which has no wrappers
        content = next((value for value in content.values() if isinstance(value, dict)), content)
    draft = draft_weights(stored(content, f"disc.{suffix}"), OURS)
    assert (draft.card.foreign, draft.card.mode, draft.card.name) == (None, "binary", "disc")
    assert isinstance(draft.network, Backbone)
    images = torch.rand(1, 1, 24, 20)
    close = 1e-5 if name != "in 16 bits" else 2e-2
    assert torch.allclose(SegmentationModel(draft.card, draft.network).eval()(images), ours(images), atol=close)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("segresnet", {"filters": 8, "levels": 2, "denoise": "mean"}),
        ("attention_unet", {"channels": [4, 8]}),
        ("dynunet", {"channels": [4, 8, 8]}),
    ],
)
@pytest.mark.parametrize("by_itself", [False, True])
def test_other_architectures_too(stored, name: str, args: dict[str, Any], by_itself: bool) -> None:
    state = build(name, 2, 3, 2, args).state_dict()
    path = stored(plain_names(state) if by_itself else state)
    draft = draft_weights(path, Choices(architecture=name, args=args, classes=("a", "b"), mode="multilabel"))
    assert (draft.card.ndim, draft.card.channels) == (2, 3)
    assert all(torch.equal(tensor, state[key]) for key, tensor in draft.network.state_dict().items())
    assert bool(draft.remarks) == (by_itself and all(key.startswith("net.") for key in state))


def test_weights_of_a_class_of_monai_become_a_foreign_model(stored) -> None:
    network = network_of({**UNET, "spatial_dims": 2})
    choices = MONAI.model_copy(update={"window": WindowRule(kind="fixed", low=0, high=1), "orientation": "display"})
    draft = draft_weights(stored(network.state_dict()), choices)
    model = ForeignModel(draft.card, draft.network)
    foreign = model.foreign
    assert (foreign.kind, foreign.target, foreign.divisor) == ("monai", "monai.networks.nets.UNet", 2)
    images = torch.rand(1, 1, 24, 20)
    with torch.no_grad():
        assert torch.allclose(model(images), network(images), atol=1e-6)
    try_model(model)


def test_a_network_of_fixed_size_is_asked_about_no_other(stored) -> None:
    args: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 2,
        "img_size": [32, 32],
        "spatial_dims": 2,
        "hidden_size": 24,
    }
    args |= {"mlp_dim": 24, "num_heads": 2, "feature_size": 4}
    state = network_of({"_target_": "UNETR", **args}).state_dict()
    draft = draft_weights(stored(state), Choices(architecture="UNETR", args=args, classes=("disc",), normalise="none"))
    foreign = ForeignModel(draft.card, draft.network).foreign
    assert (foreign.window, foreign.fixed) == ((32, 32), True)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"normalise": "zscore"}, "normalise means"),
        ({"orientation": "RAS", "activation": "sigmoid"}, "orientation, activation mean"),
        ({"steps": (), "output": (0,), "outputs": (0,)}, "output, outputs, steps mean"),
        ({"roi": (32, 32), "divisor": 2, "fold": "0"}, "roi, divisor, fold mean"),
    ],
)
def test_nothing_that_is_said_of_a_network_of_ours_is_ignored(
    stored, ours: SegmentationModel, said: dict[str, Any], names: str
) -> None:
    with pytest.raises(CeaseError, match=rf"disc\.pt: {names} nothing for unet, which"):
        draft_weights(stored(ours.backbone.state_dict()), OURS.model_copy(update=said))


@pytest.mark.parametrize(("orientation", "remarked"), [(None, True), ("display", False), ("xyz", False)])
def test_a_2d_network_of_monai_is_given_columns_first_unless_the_user_says_otherwise(
    stored, orientation: str | None, remarked: bool
) -> None:
    path = stored(network_of({**UNET, "spatial_dims": 2}).state_dict())
    draft = draft_weights(path, MONAI.model_copy(update={"orientation": orientation}))
    assert draft.card.foreign is not None
    assert draft.card.foreign.orientation == (orientation or "xyz")
    assert any("columns before rows" in remark for remark in draft.remarks) == remarked


@pytest.mark.parametrize(
    ("mode", "classes", "found"),
    [(None, ("a",), "multiclass"), (None, ("a", "b"), "multilabel"), ("multilabel", ("a", "b"), "multilabel")],
)
def test_channels_tell_the_mode_unless_the_user_does(stored, mode: Any, classes: tuple[str, ...], found: str) -> None:
    path = stored(network_of({**UNET, "spatial_dims": 2}).state_dict())
    choices = Choices(architecture="UNet", args=ARGS, classes=classes, mode=mode, normalise="none")
    draft = draft_weights(path, choices)
    assert draft.card.mode == found
    assert any("taken as" in remark for remark in draft.remarks) == (mode is None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": None}, "name their architecture: one of unet"),
        ({"architecture": "unett"}, "not one that is built here by its name"),
        ({"architecture": "os.system"}, "not one that is built here by its name"),
        ({"classes": None}, "name the classes in the order of its channels"),
        ({"args": {"channels": [4, 8, 8]}}, r"lacks 'net\..* and \d+ more tensors"),
        ({"args": {"channels": [6, 8]}}, "has shape .* but the network needs"),
        ({"args": {"channels": [60000, 60000]}}, "size cannot be built|has shape"),
        ({"args": {"channels": [4, 10**12]}}, "beyond 65536"),
        ({"args": {"colour": 3}}, "no argument 'colour'"),
        ({"args": {"norm": "$__import__('os')"}}, "would have to be evaluated"),
        ({"architecture": "attention_unet"}, "lacks .* also holds"),
        ({"mode": "multilabel", "classes": ("a", "b", "c")}, "channels and classes above all"),
        ({"channels": 2}, "channels and classes above all"),
    ],
)
def test_what_does_not_belong_together_is_said_in_one_sentence(
    stored, ours: SegmentationModel, change: dict[str, Any], sentence: str
) -> None:
    path = stored(ours.backbone.state_dict())
    with pytest.raises(CeaseError, match=sentence) as said:
        draft_weights(path, OURS.model_copy(update=change))
    assert "\n" not in str(said.value)


# --- the list of networks ---


@pytest.mark.parametrize("target", ["UNet", "Unet", "monai.networks.nets.UNet", "monai.networks.nets.unet.UNet"])
def test_a_network_goes_by_the_names_that_monai_gives_it(target: str) -> None:
    assert network_name(target) == "monai.networks.nets.UNet"


@pytest.mark.parametrize(
    "target",
    [
        "",
        "unet.",
        "monai.networks.nets.unet",
        "monai.networks.nets.vnet.UNet",
        "torch.nn.Linear",
        "UNet.__init__",
        "nets",
    ],
)
def test_no_other_name_is_looked_up(target: str) -> None:
    with pytest.raises(CeaseError, match="not one that is built here by its name"):
        network_name(target)


def test_every_listed_network_exists() -> None:
    assert [network_name(name).rpartition(".")[2] for name in NETWORKS] == list(NETWORKS)


def test_building_draws_no_random_number_of_the_callers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_network("UNet", ARGS)
    assert torch.equal(torch.rand(3), expected)


def test_values_are_counted_without_making_any() -> None:
    made = build_network("UNet", ARGS)
    values = sum(tensor.numel() for tensor in made.state_dict().values())
    assert count_values(lambda: made) == values
    assert build_network("UNet", ARGS, most=values)
    with pytest.raises(CeaseError, match="more than the"):
        build_network("UNet", ARGS, most=values - 1)
    with pytest.raises(CeaseError, match=r"size cannot be built|more than the"):
        build_network("UNet", ARGS | {"channels": [65536, 65536]})


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", never)
    args = {"in_channels": 1, "out_channels": 2, "backbone": "resnet18", "pretrained": True}
    assert facts("FlexibleUNet", args).outputs == 2
    build_network("FlexibleUNet", args)


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        ("UNet", ARGS, 2),
        ("UNet", ARGS | {"channels": [4, 4, 4, 4], "strides": [2, 2, 2]}, 8),
        ("HighResNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, 1),
    ],
)
def test_the_divisor_is_found_by_asking(target: str, args: dict[str, Any], expected: int) -> None:
    assert divisor(target, args, 2, 1) == expected
