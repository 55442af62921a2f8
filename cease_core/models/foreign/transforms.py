"""What a bundle does to an image before its network, from MONAI's transforms to a network's card.

Each transform is read, none is run. One that a card cannot say is refused, or left out with a remark where that does no
more than show the network another part of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cease_core.errors import CeaseError, first_fault
from cease_core.models.card import WindowRule
from cease_core.models.foreign.configs import Config
from cease_core.models.foreign.spec import Clip, Percentiles, Scale, Standardise, Step

_NOTHING = frozenset(
    (
        "AddChannel",
        "AsChannelFirst",
        "CastToType",
        "CopyItems",
        "DataStats",
        "DeleteItems",
        "EnsureChannelFirst",
        "EnsureType",
        "FromMetaTensor",
        "Identity",
        "RemoveRepeatedChannel",
        "SelectItems",
        "SimulateDelay",
        "ToCupy",
        "ToDevice",
        "ToMetaTensor",
        "ToNumpy",
        "ToTensor",
    )
)
"""Transforms after which an image is the same for a network."""

_CROPS = frozenset(
    (
        "BorderPad",
        "CenterSpatialCrop",
        "CropForeground",
        "DivisiblePad",
        "ResizeWithPadOrCrop",
        "SpatialCrop",
        "SpatialPad",
    )
)
"""Transforms after which a network sees more or less of the same image."""

_LINEAR = frozenset(("bilinear", "trilinear", "linear", 1, "1"))
_STRAIGHT = (("L", "R"), ("P", "A"), ("I", "S"))
_THIRD = {frozenset(pair): pair[1] for pair in _STRAIGHT}


@dataclass
class Preparation:
    """What was read so far.

    Parameters
    ----------
    steps, orientation, spacing, align, size, resampled
        As in `Foreign`.
    window
        Intensities that the bundle itself maps to a fixed range, if it does.
    remarks
        What is left out.
    cropped
        How many steps there were when scans were cropped to what is above zero; -1 if they were to something else, and
        None if they were not.
    """

    ndim: int
    steps: list[Step] = field(default_factory=list)
    orientation: str = "xyz"
    spacing: tuple[float, ...] = ()
    align: str = "centres"
    size: tuple[int, ...] = ()
    resampled: str = "first"
    window: WindowRule | None = None
    remarks: list[str] = field(default_factory=list)
    cropped: int | None = None

    def step(self, *steps: Step) -> None:
        """Add steps that work on intensities."""
        self.steps.extend(steps)

    def remark(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def resampling(self, name: str) -> None:
        """Note that a scan is resampled now."""
        if self.steps:
            self.resampled = "last"
        if self.spacing or self.size:
            self.remark(f"The bundle resamples scans more than once; here only its last way ({name}) is followed.")


@dataclass(frozen=True)
class Transform:
    """One transform of a configuration; its arguments are looked up when they are asked for.

    Parameters
    ----------
    name
        Without the place and the letter of dictionary transforms: ``"Spacing"``.
    entry
        Its arguments.
    config
        That it stands in.
    where
        Its place there, for sentences.
    at
        Which of its keys is the image.
    """

    name: str
    entry: Mapping[str, Any]
    config: Config
    where: str
    at: int = 0

    def get(self, name: str, default: Any = None) -> Any:
        """An argument; of a list with one for each key, when that is meant, use `one`."""
        if name not in self.entry:
            return default
        return self.config.plain(self.entry[name], f"{self.where}.{name}")

    def one(self, name: str, default: Any = None) -> Any:
        """An argument that may be given for each key."""
        value = self.get(name, default)
        return value[min(self.at, len(value) - 1)] if isinstance(value, list) and value else value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number.

        Raises
        ------
        CeaseError
            If it is none.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, value, "a number")
        return float(value)

    def optional(self, name: str) -> float | None:
        """A finite number, or None."""
        return None if self.get(name) is None else self.number(name)

    def numbers(self, name: str) -> list[float]:
        """One finite number or several."""
        value = self.get(name)
        found = value if isinstance(value, list) else [value]
        if not found or not all(isinstance(v, int | float) and math.isfinite(v) for v in found):
            raise self.wrong(name, value, "numbers")
        return [float(v) for v in found]

    def wrong(self, name: str, value: Any, wanted: str) -> CeaseError:
        """The sentence about an argument."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
        return CeaseError(f"{self.config.name}: {self.where}.{name} is {shown} where {wanted} is needed; correct it.")

    def unknown(self) -> CeaseError:
        """The sentence about a transform that cannot be said on a card."""
        return CeaseError(
            f"{self.config.name}: {self.where} is a {self.name!r}, which cannot be done inside an attack; say yourself "
            "with steps what intensities the network wants, or import a bundle without it."
        )


def transforms(config: Config, chain: Any, where: str, image: str | None) -> list[Transform]:
    """The transforms of a chain that concern the image.

    Parameters
    ----------
    chain
        A ``Compose``, or a list.
    image
        Its key; None for all transforms.
    """
    chain = config.followed(chain, where)
    if isinstance(chain, Mapping) and _short(chain.get("_target_")) == "Compose":
        where = f"{where}.transforms"
        chain = config.followed(chain.get("transforms"), where)
    if not isinstance(chain, list):
        raise CeaseError(f"{config.name}: {where} is no list of transforms; correct it.")
    found = []
    for i, entry in enumerate(chain):
        place = f"{where}[{i}]"
        entry = config.followed(entry, place)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
            raise CeaseError(f"{config.name}: {place} is no transform with a _target_; correct it.")
        if _short(entry["_target_"]) == "Compose":
            found += transforms(config, entry, place, image)
            continue
        if config.plain(entry.get("_disabled_", False), f"{place}._disabled_") in (True, "true", "True"):
            continue
        keys = config.plain(entry.get("keys", image), f"{place}.keys")
        keys = keys if isinstance(keys, list) else [keys]
        if image is None or image in keys:
            found.append(Transform(_short(entry["_target_"]), entry, config, place, keys.index(image) if image else 0))
    return found


def preparation(
    chain: Sequence[Transform], ndim: int, *, steps: Sequence[Step] | None = None, without: Collection[str] = ()
) -> Preparation:
    """What a card must say so that a network sees scans as its bundle shows them to it.

    Parameters
    ----------
    chain
        As `transforms` returns it.
    ndim
        Spatial dimensions of the network.
    steps
        The user's own; the chain's are then not read.
    without
        Transforms that are not read either, as the user said what they would.

    Raises
    ------
    CeaseError
        If a transform cannot be said, or an argument is none.
    """
    found = Preparation(ndim)
    for transform in chain:
        if transform.name in _NOTHING or transform.name in without:
            continue
        if transform.name in _CROPS:
            found.remark(f"The bundle crops or pads scans ({transform.name}); here the whole scan is segmented.")
            if transform.name == "CropForeground":
                found.cropped = len(found.steps) if _above_zero(transform) else -1
        elif transform.name in _PLACE:
            _PLACE[transform.name](transform, found)
        elif transform.name in _INTENSITY:
            if steps is None:
                _intensities(transform, found)
        elif steps is None:
            raise transform.unknown()
        else:
            found.remark(f"The bundle's {transform.name} is left out, as steps were given.")
    if steps is not None:
        found.steps = list(steps)
    return found


def _short(target: Any) -> str:
    """``"monai.transforms.Spacingd"`` as ``"Spacing"``; a target of another library in full."""
    if not isinstance(target, str):
        return ""
    place, _, name = target.rpartition(".")
    if place and not place.startswith("monai.transforms"):
        return target
    for suffix in ("Dict", "d", "D"):
        base = name.removesuffix(suffix)
        if base != name and base in _KNOWN:
            return base
    return name


def _above_zero(transform: Transform) -> bool:
    """Whether a `CropForeground` leaves the smallest box around what is above zero in the image."""
    keys = transform.get("keys")
    image = keys[transform.at] if isinstance(keys, list) else keys
    usual = {"select_fn": None, "channel_indices": None, "margin": 0, "k_divisible": 1}
    return transform.get("source_key") == image and all(transform.entry.get(k, v) == v for k, v in usual.items())


def _of_the_crop(found: Preparation, first: int) -> None:
    """Take figures of what scans are cropped to, in the steps from ``first`` on, where that can be said."""
    for i, step in enumerate(found.steps[first:], first):
        if isinstance(step, Standardise) and step.over == "all" and found.cropped == i:
            found.steps[i] = step.model_copy(update={"over": "box"})
            found.remark(
                "Mean and deviation are taken of the box around what is not zero, where the bundle crops scans to what "
                "is above zero."
            )
        elif isinstance(step, Percentiles) or (isinstance(step, Standardise) and step.over == "all"):
            found.remark("Figures for intensities are taken of the whole scan, not of what the bundle crops it to.")


def _intensities(transform: Transform, found: Preparation) -> None:
    first = len(found.steps)
    try:
        _INTENSITY[transform.name](transform, found)
    except ValidationError as error:
        fault = first_fault(error, transform.name)
        raise CeaseError(f"{transform.config.name}: {transform.where} cannot be so ({fault}); correct it.") from error
    if found.cropped is not None:
        _of_the_crop(found, first)


def _load(transform: Transform, found: Preparation) -> None:
    # Pillow's reader exchanges rows and columns unless it is told not to, the others the other way round.
    pillow = transform.get("reader") == "PILReader"
    reverse = transform.get("reverse_indexing", pillow)
    found.orientation = "xyz" if bool(reverse) == pillow else "zyx"


def _orient(transform: Transform, found: Preparation) -> None:
    codes = "RAS" if transform.get("as_closest_canonical") else transform.get("axcodes")
    labels = transform.get("labels")
    if labels is not None and tuple(map(tuple, labels)) != _STRAIGHT:
        raise transform.wrong("labels", labels, "no other naming of directions than left-right, back-front, feet-head")
    if not isinstance(codes, str) or len(codes) not in (2, 3):
        raise transform.wrong("axcodes", codes, "a word such as RAS")
    if len(codes) == 2:
        codes += next((last for pair, last in _THIRD.items() if not pair & set(codes)), "")
    if found.spacing and len(set(found.spacing)) > 1:
        raise CeaseError(
            f"{transform.config.name}: {transform.where} turns scans after they were resampled to different edges of "
            "voxels along each axis; exchange the two and permute pixdim, or say orientation and spacing yourself."
        )
    found.orientation = codes


def _space(transform: Transform, found: Preparation) -> None:
    found.resampling(transform.name)
    edges = [max(edge, 0.0) for edge in transform.numbers("pixdim")][: found.ndim]
    found.spacing = tuple(edges + [edges[-1]] * (found.ndim - len(edges)))
    found.align = "edges" if transform.get("scale_extent") else "centres"
    found.size = ()
    if transform.get("diagonal"):
        found.remark("The bundle turns oblique scans straight while it resamples them; here they keep their axes.")
    if any(transform.get(name) is not None for name in ("min_pixdim", "max_pixdim")):
        found.remark("The bundle leaves some voxel sizes as they are; here every scan is resampled.")
    _linear(transform, found, "bilinear")


def _resize(transform: Transform, found: Preparation) -> None:
    found.resampling(transform.name)
    size = transform.numbers("spatial_size")
    size = size * found.ndim if len(size) == 1 else size
    if transform.get("size_mode", "all") != "all" or len(size) != found.ndim or min(size) < 1:
        raise transform.wrong("spatial_size", transform.get("spatial_size"), "an edge for each axis")
    found.size, found.spacing, found.align = tuple(int(edge) for edge in size), (), "edges"
    _linear(transform, found, "area")


def _linear(transform: Transform, found: Preparation, default: str) -> None:
    mode = transform.one("mode", default)
    if mode not in _LINEAR:
        found.remark(f"The bundle resamples scans by {mode!r}; here they are interpolated linearly.")


def _range(transform: Transform, found: Preparation) -> None:
    start, end = transform.number("a_min"), transform.number("a_max")
    if not end > start:
        raise transform.wrong("a_max", end, "more than a_min")
    low, high = transform.optional("b_min"), transform.optional("b_max")
    mapped = low is not None and high is not None
    factor = (high - low if low is not None and high is not None else 1.0) / (end - start)
    if not found.steps:
        found.window = WindowRule(kind="fixed", low=start, high=end)
    found.step(Scale(factor=(factor,), offset=((low if mapped and low is not None else 0.0) - start * factor,)))
    if transform.get("clip") and (low is not None or high is not None):
        found.step(Clip(low=low, high=high))


def _percentiles(transform: Transform, found: Preparation) -> None:
    lower, upper = transform.number("lower"), transform.number("upper")
    low, high = transform.optional("b_min"), transform.optional("b_max")
    low, high = (0.0, 1.0) if low is None or high is None else (low, high)
    if transform.get("relative"):
        low, high = low + (high - low) * lower / 100, low + (high - low) * upper / 100
    found.step(
        Percentiles(
            lower=lower,
            upper=upper,
            low=low,
            high=high,
            clip=bool(transform.get("clip")),
            channelwise=bool(transform.get("channel_wise")),
        )
    )


def _scale(transform: Transform, found: Preparation) -> None:
    low, high = (transform.get(name, default) for name, default in (("minv", 0.0), ("maxv", 1.0)))
    if low is None or high is None:
        found.step(Scale(factor=(1.0 + transform.number("factor"),)))
        return
    low, high = transform.number("minv", 0.0), transform.number("maxv", 1.0)
    found.step(Percentiles(low=low, high=high, channelwise=bool(transform.get("channel_wise"))))


def _normalise(transform: Transform, found: Preparation) -> None:
    nonzero, channelwise = bool(transform.get("nonzero")), bool(transform.get("channel_wise"))
    given = [transform.get(name) is not None for name in ("subtrahend", "divisor")]
    if not any(given):
        found.step(Standardise(over="nonzero" if nonzero else "all", only_there=nonzero, channelwise=channelwise))
        return
    if nonzero or not all(given):
        raise transform.unknown()
    means, deviations = transform.numbers("subtrahend"), [d or 1.0 for d in transform.numbers("divisor")]
    if len(means) != len(deviations):
        raise transform.wrong("divisor", deviations, "as many numbers as in subtrahend")
    found.step(
        Scale(
            factor=tuple(1 / d for d in deviations),
            offset=tuple(-m / d for m, d in zip(means, deviations, strict=True)),
        )
    )


def _shift(transform: Transform, found: Preparation) -> None:
    found.step(Scale(offset=(transform.number("offset"),)))


def _threshold(transform: Transform, found: Preparation) -> None:
    edge = transform.number("threshold")
    if transform.number("cval", 0.0) != edge:  # a jump, which no gradient crosses
        raise transform.unknown()
    found.step(Clip(low=edge) if transform.get("above", True) else Clip(high=edge))


_Reader = Callable[[Transform, Preparation], None]

_PLACE: dict[str, _Reader] = {"LoadImage": _load, "Orientation": _orient, "Resize": _resize, "Spacing": _space}
_INTENSITY: dict[str, _Reader] = {
    "NormalizeIntensity": _normalise,
    "ScaleIntensity": _scale,
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "ShiftIntensity": _shift,
    "ThresholdIntensity": _threshold,
}
_AFTERWARDS = frozenset(("Activations", "AsDiscrete", "Invert", "SaveImage", "Lambda"))
_KNOWN = frozenset((*_NOTHING, *_CROPS, *_PLACE, *_INTENSITY, *_AFTERWARDS))
