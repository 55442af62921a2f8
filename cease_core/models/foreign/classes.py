"""Networks built from the name of a class and plain arguments, and from nothing that could run code.

Only classes on a list are built, only with what JSON can say, and only after their values were counted without making
any. A name that is not on the list is not even looked up.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cease_core.errors import CeaseError

NETWORKS = (
    "AHNet",
    "AttentionUnet",
    "AutoEncoder",
    "BasicUNet",
    "BasicUNetPlusPlus",
    "DynUNet",
    "FlexibleUNet",
    "HighResNet",
    "MedNeXt",
    "SegResNet",
    "SegResNetDS",
    "SegResNetVAE",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)
"""Classes of ``monai.networks.nets`` that make a map of an image."""

MOST_VALUES = 2**30
"""Values that a network may have: 4 GiB of float32."""

MOST_CALLS = 20_000
"""Calls of torch that building a network may take: several times those of the largest on the list."""

LARGEST = 2**16
"""Largest whole number among a network's arguments."""

MOST_ENTRIES = 10**4
"""Numbers and words that the arguments of a network may hold."""

_PLACE = "monai.networks.nets"

# Deep supervision's list ends with the finest map; a variational branch is None in evaluation mode.
_OUTPUTS: dict[str, tuple[int, ...]] = {"BasicUNetPlusPlus": (-1,), "SegResNetVAE": (0,)}

# Arguments that configurations of earlier releases name and that make no difference to the weights.
_GONE = {"SwinUNETR": ("img_size",)}

_EDGES = (1, 2, 4, 8, 16, 32, 64)

Maker = Callable[..., nn.Module]


def network_name(target: str) -> str:
    """The full name under which a network is stored.

    Parameters
    ----------
    target
        ``"UNet"``, ``"monai.networks.nets.UNet"`` or ``"monai.networks.nets.unet.UNet"``.

    Raises
    ------
    CeaseError
        If it is not in `NETWORKS`.
    """
    place, _, name = target.rpartition(".")
    known = _names().get(name)
    if known is not None:
        module = str(getattr(_nets(), known).__module__)
        if place in ("", "monai.networks", _PLACE, module):
            return f"{_PLACE}.{known}"
    raise CeaseError(
        f"the network {target!r} is not one that is built here by its name ({', '.join(NETWORKS)}); "
        "export it with torch.export or TorchScript, and import that."
    )


def build_network(target: str, args: Mapping[str, Any], *, most: int = MOST_VALUES) -> nn.Module:
    """Build a network with random weights, in evaluation mode.

    Parameters
    ----------
    target
        As `network_name` takes it.
    args
        Arguments by name: numbers, words, lists and dicts of these. What would download weights is left out.
    most
        Values that its tensors may hold together, such as those of the file that it is built for.

    Raises
    ------
    CeaseError
        If the name is not on the list, an argument is not plain, too large or unknown, or the network would be
        larger than ``most``; nothing of its size has been allocated then.
    """
    if target.startswith("dynamic_network_architectures."):
        from cease_core.models.foreign.nnunet_network import build_nnunet

        return build_nnunet(target, args, most=most)
    make = network_maker(target, args)
    values = count_values(make)
    if values > most:
        raise CeaseError(
            f"the network {target!r} with these arguments has {values} values, more than the {most} that its weights "
            "hold or are allowed; weights and arguments belong to different networks, or the file is cut short."
        )
    return made(make)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` builds, in evaluation mode; its values are drawn, to be overwritten."""
    # The caller's random numbers shall not depend on it.
    with torch.random.fork_rng(devices=[]):
        return make().eval()


def network_maker(target: str, args: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What builds a network with random weights each time it is called, of any size: look at a `sketch` first.

    Raises
    ------
    CeaseError
        If the name is not on the list, or an argument is not plain; when called, if the arguments do not fit.
    """
    maker, given = _maker(target), _given(target, args)
    return lambda: _made(maker, target, given)


def sketch(make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` builds, on the meta device: names and shapes of tensors without any values.

    Raises
    ------
    CeaseError
        If it goes on and on, or asks for more than any network needs.
    """
    with torch.device("meta"), _Counting():
        return make().eval()


def count_values(make: Callable[[], nn.Module]) -> int:
    """Values in all tensors of what ``make`` builds, counted without making any; `CeaseError` as `sketch`."""
    return sum(tensor.numel() for tensor in sketch(make).state_dict().values())


@dataclass(frozen=True)
class Facts:
    """What a network's class and arguments tell of it; None where they do not.

    Parameters
    ----------
    ndim, inputs, outputs
        Spatial dimensions, channels of its image and of its answer.
    way
        To the logits in its answer.
    fixed
        The only image size that it takes; empty for any.
    """

    ndim: int | None
    inputs: int | None
    outputs: int | None
    way: tuple[int, ...]
    fixed: tuple[int, ...] = ()


def facts(target: str, args: Mapping[str, Any]) -> Facts:
    """What the class of a network and its arguments tell of it.

    Raises
    ------
    CeaseError
        As `build_network`.
    """
    maker, given = _maker(target), _given(target, args)
    name = network_name(target).rpartition(".")[2]
    # A network's defaults count like what is given.
    known = {p.name: p.default for p in inspect.signature(maker).parameters.values()} | given
    ndim = _whole(known.get("spatial_dims"))
    fixed: tuple[int, ...] = ()
    if name in ("UNETR", "SegResNetVAE"):
        size = known["img_size" if name == "UNETR" else "input_image_size"]
        fixed = tuple(size) if isinstance(size, list | tuple) else (size,) * (ndim or 3)
    return Facts(
        ndim=ndim,
        inputs=_whole(known.get("in_channels")),
        outputs=_whole(known.get("out_channels")),
        way=_OUTPUTS.get(name, ()),
        fixed=fixed,
    )


def divisor(target: str, args: Mapping[str, Any], ndim: int, inputs: int) -> int:
    """Smallest power of two whose multiples a network takes as edges and gives back; 1 if none is found.

    Parameters
    ----------
    ndim, inputs
        Spatial dimensions and channels of its image.

    Raises
    ------
    CeaseError
        As `build_network`.
    """
    network = sketch(network_maker(target, args))
    for edge in _EDGES:
        if all(_returns(network, (1, inputs, *(n * edge,) * ndim)) for n in (3, 5)):
            return edge
    return 1


def check_plain(value: Any, where: str) -> None:
    """Refuse what JSON could not say, what is meant to be evaluated, and numbers beyond any network's.

    Raises
    ------
    CeaseError
        The sentence names the entry.
    """
    _check(value, where, [MOST_ENTRIES])


def _check(value: Any, where: str, left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise CeaseError(f"{where} holds more entries than any network has; check the network's definition.")
    if isinstance(value, str):
        if value[:1] in ("$", "@", "%") or len(value) > 256:
            raise CeaseError(
                f"{where} is {_short(value)}, which would have to be evaluated; nothing is evaluated here, so write "
                "its plain value instead."
            )
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str) or key.startswith("_"):
                raise CeaseError(f"{where} holds the entry {_short(key)}, which is no plain argument; remove it.")
            _check(entry, f"{where}.{key}", left)
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            _check(entry, f"{where}[{i}]", left)
    elif isinstance(value, int | float):
        if not abs(value) <= LARGEST:
            raise CeaseError(
                f"{where} is {value}, beyond {LARGEST}; no network is built with such numbers, correct it."
            )
    elif value is not None:
        raise CeaseError(f"{where} is of type {type(value).__name__}; use numbers, words and lists of these.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


@cache
def _nets() -> ModuleType:
    import monai.networks.nets

    nets: ModuleType = monai.networks.nets
    return nets


@cache
def _names() -> dict[str, str]:
    """Every name that MONAI gives a listed class, to the class's own."""
    nets = _nets()
    listed = {id(getattr(nets, name)): name for name in NETWORKS}
    return {name: listed[id(value)] for name, value in vars(nets).items() if id(value) in listed}


def _maker(target: str) -> Maker:
    maker: Maker = getattr(_nets(), network_name(target).rpartition(".")[2])
    return maker


def _given(target: str, args: Mapping[str, Any]) -> dict[str, Any]:
    check_plain(args, "the network's definition")
    gone = _GONE.get(network_name(target).rpartition(".")[2], ())
    given = {key: copy.deepcopy(value) for key, value in args.items() if key not in gone}
    for key in given:
        if key.startswith("pretrained"):  # would download other weights than these
            given[key] = False
    return given


def _made(maker: Maker, target: str, given: Mapping[str, Any]) -> nn.Module:
    try:
        return maker(**copy.deepcopy(dict(given)))
    except CeaseError:
        raise
    # Whatever constructors raise on arguments that do not fit together.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CeaseError(
            f"the network {target!r} cannot be built with these arguments ({_short(reason)[1:-1]}); correct them."
        ) from error


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _returns(network: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            answer = network(torch.empty(shape, device="meta"))
    except Exception:  # a size that does not fit shows in many ways
        return False
    while isinstance(answer, list | tuple) and answer:
        answer = answer[0]
    return isinstance(answer, Tensor) and answer.shape[2:] == shape[2:]


class _Counting(TorchFunctionMode):
    """Ends a construction that has no end, and lets numbers be read back that constructors make on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.values = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.calls += 1
        if func is torch.linspace:
            steps = kwargs.get("steps", args[2] if len(args) > 2 else 0)
            self.values += steps
            kwargs["device"] = "cpu"
        if func is torch.empty:
            self.values += _numel(args)
        if self.calls > MOST_CALLS or self.values > 4 * MOST_VALUES:
            raise CeaseError("a network of this size cannot be built here; check the network's definition.")
        return func(*args, **kwargs)


def _numel(size: tuple[Any, ...]) -> int:
    flat = size[0] if len(size) == 1 and isinstance(size[0], list | tuple) else size
    number = 1
    for edge in flat:
        number *= int(edge)
    return number
