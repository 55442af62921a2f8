"""Models of nnU-Net v2 (Isensee et al., 2021): a results folder with plans, data set and checkpoint.

What nnU-Net does to a scan is read from its plans, and done here by steps that a gradient passes through. The network
is built from the plans, too. Of the checkpoint only the weights are used; they are stored without a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from cease_core.errors import CeaseError, first_fault
from cease_core.io.files import reading
from cease_core.models.card import Mode, WindowRule
from cease_core.models.foreign.cards import SCAN_WINDOW, card_name, class_infos, make_card
from cease_core.models.foreign.drafts import Choices, Consent, Draft, refuse_idle
from cease_core.models.foreign.nnunet_network import build_nnunet, nnunet_name
from cease_core.models.foreign.pickles import read_checkpoint, state_of
from cease_core.models.foreign.spec import Clip, Percentiles, Scale, Standardise, Step
from cease_core.models.foreign.trust import ask

PLANS, DATASET = "plans.json", "dataset.json"
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")

WHY = (
    "nnU-Net's checkpoints are pickles, which can hold code; only tensors and numbers are read from it, "
    "and anything else is refused."
)

# Array axes of what each reader of nnU-Net returns.
READERS = {
    "SimpleITKIO": "zyx",
    "NibabelIO": "zyx",
    "NaturalImage2DIO": "zyx",
    "Tiff3DIO": "zyx",
    "NibabelIOWithReorient": "SAR",
    "SimpleITKIOWithReorient": "SAR",
}

_IDLE = frozenset(("mode", "architecture", "args", "divisor", "output", "outputs", "activation", "normalise"))
_MOST = 64 * 2**20
_TRAINER = "nnUNetTrainer"
_LEAST = 1e-8
_Model = TypeVar("_Model", bound=BaseModel)


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Intensities(_Read):
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class _Plans(_Read):
    configurations: dict[str, dict[str, Any]]
    transpose_forward: tuple[int, ...] = (0, 1, 2)
    image_reader_writer: str = "SimpleITKIO"
    dataset_name: str = ""
    foreground_intensity_properties_per_channel: dict[str, _Intensities] = Field(
        default_factory=dict,
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"
        ),
    )


class _Architecture(_Read):
    network_class_name: str
    arch_kwargs: dict[str, Any]


class _Configuration(_Read):
    patch_size: tuple[int, ...] = Field(min_length=2, max_length=3)
    spacing: tuple[float, ...]
    normalization_schemes: tuple[str, ...] = Field(min_length=1)
    use_mask_for_norm: tuple[bool, ...] = ()
    previous_stage: str | None = None
    architecture: _Architecture


class _OldArchitecture(_Read):
    UNet_class_name: str
    UNet_base_num_features: int = Field(ge=1, le=2**16)
    unet_max_num_features: int = Field(ge=1, le=2**16)
    n_conv_per_stage_encoder: tuple[int, ...] = Field(max_length=16)
    n_conv_per_stage_decoder: tuple[int, ...] = Field(max_length=16)
    conv_kernel_sizes: tuple[tuple[int, ...], ...]
    pool_op_kernel_sizes: tuple[tuple[int, ...], ...]


class _Dataset(_Read):
    labels: dict[str, int | tuple[int, ...]]
    channel_names: dict[str, str] = Field(default_factory=dict)
    modality: dict[str, str] = Field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    licence: str = ""
    license: str = ""

    @property
    def channels(self) -> int:
        return len(self.channel_names or self.modality)


@dataclass(frozen=True)
class Results:
    """What of a results folder is read.

    Parameters
    ----------
    folder
        With plans and data set; its name is ``trainer__plans__configuration``.
    checkpoint
        Of the fold that is taken.
    fold
        Its name.
    others
        Names of the other folds.
    """

    folder: Path
    checkpoint: Path
    fold: str
    others: tuple[str, ...] = ()


def draft_nnunet(source: Path, choices: Choices, consent: Consent) -> Draft:
    """Read a model of nnU-Net v2, once the user agrees to its checkpoint.

    Parameters
    ----------
    source
        The folder of a trained configuration (``…/nnUNetTrainer__nnUNetPlans__3d_fullres``), of a fold in it, or of
        the data set above it if there is only one configuration.
    choices
        ``fold`` chooses a fold; the first one by default. Names, title, licence and window go before what is read.
    consent
        Asked before the checkpoint is opened.

    Raises
    ------
    CeaseError
        If something is missing or damaged, the user does not agree, or the model needs what is not done here: another
        network than nnU-Net's own, the cascade's second stage, or normalisations that differ between channels.
    """
    found = find_results(source, choices.fold)
    refuse_idle(choices, found.folder.name, "an nnU-Net folder, whose plans say it", _IDLE)
    plans = _read(found.folder / PLANS, _Plans)
    dataset = _read(found.folder / DATASET, _Dataset)
    ask(found.checkpoint, WHY, consent)
    checkpoint = read_checkpoint(found.checkpoint)
    name = _configuration_name(found, plans, checkpoint)
    configuration = _configuration(plans, name, found.folder / PLANS)
    labels = _labels(dataset, found.folder / DATASET)
    channels, ndim = dataset.channels, len(configuration.patch_size)
    if not channels:
        raise CeaseError(f"{found.folder / DATASET} names no channel; add channel_names as nnU-Net writes them.")
    target, args = _network(configuration, channels, labels.outputs)
    state = state_of(checkpoint, found.checkpoint)
    network = _filled(build_nnunet(target, args, most=sum(t.numel() for t in state.values())), state, found)
    steps = choices.steps
    if steps is None:
        steps = normalisation(configuration, plans, channels, found.folder / PLANS)
    title = f"{plans.dataset_name or found.folder.parent.name} {name}"
    orientation, transpose = _axes(plans, ndim, found.folder / PLANS)
    card = make_card(
        name=choices.name or card_name(title),
        title=choices.title or f"{title} (nnU-Net, fold {found.fold})",
        architecture=target.rpartition(".")[2],
        ndim=ndim,
        channels=channels,
        classes=class_infos(choices.classes or labels.names),
        mode=labels.mode,
        window=choices.window or _window(steps),
        licence=choices.licence or dataset.licence or dataset.license or "unknown",
        foreign={
            "kind": "nnunet",
            "target": target,
            "args": args,
            "steps": steps,
            "orientation": choices.orientation or orientation,
            "transpose": transpose,
            "spacing": choices.spacing or configuration.spacing,
            "align": "edges",
            "resampled": "last",
            "window": choices.roi or configuration.patch_size,
            "overlap": 0.5,
        },
    )
    return Draft(card, network, remarks=tuple(_remarks(found, checkpoint, labels, steps, ndim)))


def find_results(source: Path, fold: str | None = None) -> Results:
    """The configuration, the fold and the checkpoint that a path means.

    Raises
    ------
    CeaseError
        If there is none, or several configurations to choose from.
    """
    source = source.resolve()
    with reading(source, "a folder"):
        if source.is_file():
            source = source.parent
        if not (source / PLANS).is_file() and (source.parent / PLANS).is_file():
            fold = fold or source.name.removeprefix("fold_")
            source = source.parent
        elif not (source / PLANS).is_file():
            inner = sorted(p for p in source.iterdir() if (p / PLANS).is_file()) if source.is_dir() else []
            if len(inner) > 1:
                names = ", ".join(p.name for p in inner[:6])
                raise CeaseError(f"{source.name} holds several trained configurations; choose one of {names}.")
            if not inner:
                raise CeaseError(f"{source} holds no {PLANS}; choose the results folder of a trained configuration.")
            (source,) = inner
        folds = {p.name.removeprefix("fold_"): p for p in sorted(source.glob("fold_*")) if _checkpoint(p)}
    if not folds:
        raise CeaseError(f"{source} holds no fold with {CHECKPOINTS[0]}; copy the whole results folder.")
    chosen = next(iter(folds)) if fold is None else fold.removeprefix("fold_")
    if chosen not in folds:
        raise CeaseError(f"{source.name} has no fold {chosen!r} with a checkpoint; choose among {', '.join(folds)}.")
    checkpoint = _checkpoint(folds[chosen])
    assert checkpoint is not None
    return Results(source, checkpoint, chosen, tuple(name for name in folds if name != chosen))


def normalisation(configuration: _Configuration, plans: _Plans, channels: int, where: Path) -> tuple[Step, ...]:
    """What the plans do to intensities, as steps.

    Raises
    ------
    CeaseError
        If a scheme is unknown, or channels are normalised differently.
    """
    schemes = configuration.normalization_schemes
    masks = configuration.use_mask_for_norm or (False,) * len(schemes)
    if len({*zip(schemes, masks, strict=False)}) > 1 or len(schemes) != channels or len(masks) != channels:
        raise CeaseError(
            f"{where} normalises {channels} channels by {', '.join(schemes)}, which is not done here; give the steps "
            "yourself, or export the network alone with torch.export."
        )
    scheme, mask = schemes[0], masks[0]
    if scheme == "ZScoreNormalization":
        return (Standardise(over="nonzero", only_there=True) if mask else Standardise(over="box"),)
    if scheme == "CTNormalization":
        return _ct(plans, channels, where)
    if scheme == "RescaleTo01Normalization":
        return (Percentiles(channelwise=True),)
    if scheme == "RGBTo01Normalization":
        return (Scale(factor=(1 / 255,)),)
    if scheme == "NoNormalization":
        return ()
    raise CeaseError(f"{where} normalises by {scheme!r}, which is not known here; give the steps yourself.")


def _ct(plans: _Plans, channels: int, where: Path) -> tuple[Step, ...]:
    """Clip to the foreground's percentiles and standardise by its figures, each channel by its own."""
    known = plans.foreground_intensity_properties_per_channel
    try:
        each = [known[str(c)] for c in range(channels)]
    except KeyError as error:
        raise CeaseError(f"{where} lacks the intensities of channel {error}; copy the plans of the training.") from None
    low, high = [e.percentile_00_5 for e in each], [e.percentile_99_5 for e in each]
    if any(b <= a for a, b in zip(low, high, strict=True)):
        raise CeaseError(f"{where} clips intensities to nothing; copy the plans of the training.")
    mean, deviation = [e.mean for e in each], [max(e.std, _LEAST) for e in each]
    if len({*zip(low, high, strict=True)}) == 1:
        factor = tuple(1 / d for d in deviation)
        offset = tuple(-m / d for m, d in zip(mean, deviation, strict=True))
        return Clip(low=low[0], high=high[0]), Scale(factor=factor, offset=offset)
    width = [b - a for a, b in zip(low, high, strict=True)]
    return (
        Scale(factor=tuple(1 / w for w in width), offset=tuple(-a / w for a, w in zip(low, width, strict=True))),
        Clip(low=0, high=1),
        Scale(
            factor=tuple(w / d for w, d in zip(width, deviation, strict=True)),
            offset=tuple((a - m) / d for a, m, d in zip(low, mean, deviation, strict=True)),
        ),
    )


@dataclass(frozen=True)
class _Labels:
    names: tuple[str, ...]
    mode: Mode

    @property
    def outputs(self) -> int:
        return len(self.names) + (self.mode == "multiclass")


def _labels(dataset: _Dataset, where: Path) -> _Labels:
    """The classes in the order of the network's channels; regions overlap, so each is a yes or no of its own."""
    labels = {name: value for name, value in dataset.labels.items() if name != "ignore"}
    if any(isinstance(value, tuple) and len(value) > 1 for value in labels.values()):
        regions = [name for name, value in labels.items() if value not in (0, (0,))]
        if len(regions) != len(dataset.regions_class_order):
            raise CeaseError(f"{where} has {len(regions)} regions, but another number in regions_class_order.")
        return _Labels(tuple(regions), "multilabel")
    ids = {name: value[0] if isinstance(value, tuple) and value else value for name, value in labels.items()}
    if sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str) or len(ids) < 2:
        raise CeaseError(f"{where}: labels must be numbered 0 (background), 1, 2, … as nnU-Net demands; correct them.")
    by_id = {value: name for name, value in ids.items()}
    return _Labels(tuple(by_id[i] for i in range(1, len(ids))), "multiclass")


def _configuration_name(found: Results, plans: _Plans, checkpoint: Any) -> str:
    """Which of the planned configurations was trained."""
    started = checkpoint.get("init_args") if isinstance(checkpoint, Mapping) else None
    said = started.get("configuration") if isinstance(started, Mapping) else None
    candidates = (
        said,
        found.folder.name.rpartition("__")[2],
        *list(plans.configurations)[: len(plans.configurations) == 1],
    )
    name = next((c for c in candidates if isinstance(c, str) and c in plans.configurations), None)
    if name is None:
        raise CeaseError(
            f"{found.folder.name} does not say which of {', '.join(list(plans.configurations)[:6])} was trained; "
            "name the folder as nnU-Net does, such as nnUNetTrainer__nnUNetPlans__3d_fullres."
        )
    return name


def _configuration(plans: _Plans, name: str, where: Path) -> _Configuration:
    """One configuration with all it inherits, in the newer of the two forms that plans have had."""
    merged: dict[str, Any] = {}
    visited: list[str] = []
    following: Any = name
    while following is not None:
        if following in visited or following not in plans.configurations:
            raise CeaseError(f"{where}: the configuration {name!r} inherits from {following!r}, which cannot be.")
        visited.append(following)
        own = plans.configurations[following]
        merged = own | merged
        following = own.get("inherits_from")
    try:
        if "architecture" not in merged:
            merged["architecture"] = _translated(_OldArchitecture.model_validate(merged))
        configuration = _Configuration.model_validate(merged)
    except ValidationError as error:
        raise CeaseError(f"{where} is not what nnU-Net v2 writes ({name}: {first_fault(error, 'plans')}).") from error
    if configuration.previous_stage is not None:
        raise CeaseError(
            f"{where}: {name} is the second stage of a cascade, which wants a mask beside the scan; choose 2d, "
            "3d_lowres or 3d_fullres."
        )
    if len(configuration.spacing) != len(configuration.patch_size):
        raise CeaseError(f"{where}: {name} has a spacing and a patch size of different lengths; copy the plans again.")
    return configuration


def _translated(old: _OldArchitecture) -> dict[str, Any]:
    """What plans before version 2.4 say of a network, as later ones do."""
    ndim, stages = len(old.conv_kernel_sizes[0]) if old.conv_kernel_sizes else 3, len(old.n_conv_per_stage_encoder)
    residual = old.UNet_class_name != "PlainConvUNet"
    features = [min(old.UNet_base_num_features * 2**i, old.unet_max_num_features) for i in range(stages)]
    return {
        "network_class_name": old.UNet_class_name,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": features,
            "conv_op": f"torch.nn.Conv{ndim}d",
            "kernel_sizes": [list(k) for k in old.conv_kernel_sizes],
            "strides": [list(s) for s in old.pool_op_kernel_sizes],
            "n_blocks_per_stage" if residual else "n_conv_per_stage": list(old.n_conv_per_stage_encoder),
            "n_conv_per_stage_decoder": list(old.n_conv_per_stage_decoder),
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{ndim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }


def _network(configuration: _Configuration, channels: int, outputs: int) -> tuple[str, dict[str, Any]]:
    target = configuration.architecture.network_class_name
    args = {"input_channels": channels, "num_classes": outputs}
    return nnunet_name(target) or target, configuration.architecture.arch_kwargs | args


def _filled(network: nn.Module, state: Mapping[str, Tensor], found: Results) -> nn.Module:
    """The network with the checkpoint's weights."""
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape:
            has = f"the shape {tuple(state[name].shape)}" if name in state else "no such tensor"
            raise CeaseError(
                f"{found.checkpoint.name} does not fit the plans: {name!r} needs the shape {tuple(tensor.shape)}, but "
                f"there is {has}; copy plans and checkpoint of the same training."
            )
    further = next((name for name in state if name not in expected), None)
    if further is not None:
        raise CeaseError(
            f"{found.checkpoint.name} does not fit the plans: the network has no {further!r}; copy plans and "
            "checkpoint of the same training."
        )
    network.load_state_dict(dict(state))
    return network


def _axes(plans: _Plans, ndim: int, where: Path) -> tuple[str, tuple[int, ...]]:
    """Orientation and permutation of the network's axes."""
    orientation = READERS.get(plans.image_reader_writer)
    if orientation is None:
        raise CeaseError(
            f"{where}: scans were read by {plans.image_reader_writer!r}, whose axes are not known here; known are "
            f"{', '.join(READERS)}."
        )
    order = plans.transpose_forward
    if sorted(order) != [0, 1, 2]:
        raise CeaseError(
            f"{where}: transpose_forward is {list(order)}, which orders no three axes; copy the plans again."
        )
    if ndim == 3:
        return orientation, () if order == (0, 1, 2) else order
    if order[0] != 0:
        raise CeaseError(
            f"{where}: this 2-D network sees slices across the display's, along axis {order[0]} of the file; choose a "
            "3-D configuration."
        )
    return orientation, () if order == (0, 1, 2) else (1, 0)


def _window(steps: Sequence[Step]) -> WindowRule:
    """The intensities that the network tells apart, where the plans name them."""
    if steps and isinstance(steps[0], Clip) and steps[0].low is not None and steps[0].high is not None:
        return WindowRule(kind="fixed", low=steps[0].low, high=steps[0].high)
    if steps and isinstance(steps[0], Scale) and len(steps) == 1:
        return WindowRule(kind="fixed", low=0, high=255)
    return SCAN_WINDOW


def _remarks(found: Results, checkpoint: Any, labels: _Labels, steps: Sequence[Step], ndim: int) -> Iterator[str]:
    yield "Scans are resampled by linear interpolation, where nnU-Net uses splines of third order."
    if any(isinstance(step, Standardise | Percentiles) for step in steps):
        yield "Figures for the normalisation are taken of the clean scan once, and an attack does not change them."
    started = checkpoint if isinstance(checkpoint, Mapping) else {}
    if started.get("inference_allowed_mirroring_axes"):
        yield "Each part of a scan is seen once, where nnU-Net averages over mirrored copies by default."
    if found.others:
        others = ", ".join(found.others)
        yield f"Fold {found.fold} is used alone, where nnU-Net averages over folds; there is also {others}."
    if labels.mode == "multilabel":
        yield "Its regions overlap, so each is a class of its own; where several are seen, the last one is shown."
    if ndim == 2:
        yield "The 2-D network sees the slices of the display, where nnU-Net gives it those of the file."
    trainer = started.get("trainer_name")
    if isinstance(trainer, str) and trainer != _TRAINER:
        yield f"It was trained by {trainer[:80]}; what that changes besides weights and plans is not known here."


def _checkpoint(fold: Path) -> Path | None:
    return next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)


def _read(path: Path, kind: type[_Model]) -> _Model:
    """A file of JSON, bounded, as far as it is needed."""
    if not path.is_file():
        raise CeaseError(f"{path.parent} holds no {path.name}; copy the whole results folder.")
    with reading(path, "a file of JSON"):
        if path.stat().st_size > _MOST:
            raise CeaseError(f"{path} is larger than {_MOST // 2**20} MiB, which nnU-Net's never are; copy it again.")
        content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise CeaseError(
            f"{path} is not what nnU-Net v2 writes ({first_fault(error, 'file')}); copy it again."
        ) from error
