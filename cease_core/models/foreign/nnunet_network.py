"""The networks of nnU-Net v2, built from what its plans say of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from cease_core.errors import CeaseError, one_line
from cease_core.models.foreign.classes import MOST_VALUES, check_plain, count_values, made

PLACE = "dynamic_network_architectures.architectures.unet"
NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")

_LAYERS = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": ("Dropout", "Dropout2d", "Dropout3d"),
    "nonlin": ("LeakyReLU", "ReLU", "ELU", "GELU", "SiLU", "Mish", "PReLU"),
}
_BLOCKS = ("BasicBlockD", "BottleneckD")


def nnunet_name(target: str) -> str | None:
    """The full name under which a network of nnU-Net is stored; None for any other name."""
    place, _, name = target.rpartition(".")
    ours = place == "" or place.startswith("dynamic_network_architectures.architectures")
    return f"{PLACE}.{name}" if ours and name in NETWORKS else None


def build_nnunet(target: str, args: Mapping[str, Any], *, most: int = MOST_VALUES) -> nn.Module:
    """Build a network of nnU-Net with random weights, in evaluation mode and without deep supervision.

    Parameters
    ----------
    target
        Name of one of `NETWORKS`, as plans have it.
    args
        Its arguments, where layers are named by their words, such as ``"torch.nn.LeakyReLU"``.
    most
        Values that its tensors may hold together.

    Raises
    ------
    CeaseError
        If the name or an argument is not on the list, the network would be larger than ``most``, or the library that
        has these networks is not installed.
    """
    name = nnunet_name(target)
    if name is None:
        raise CeaseError(
            f"the network {target!r} is none that nnU-Net plans by itself ({', '.join(NETWORKS)}); export it with "
            "torch.export or TorchScript, and import that."
        )
    check_plain(args, "the plans' architecture")
    maker = getattr(_library(), name.rpartition(".")[2])
    given = {key: _part(key, value) for key, value in args.items()} | {"deep_supervision": False}

    def make() -> nn.Module:
        try:
            network: nn.Module = maker(**given)
        # Whatever constructors raise on arguments that do not fit together.
        except (AssertionError, ArithmeticError, AttributeError, IndexError, KeyError) as error:
            raise _unfit(target, error) from error
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, CeaseError):
                raise
            raise _unfit(target, error) from error
        return network

    values = count_values(make)
    if values > most:
        raise CeaseError(
            f"the plans describe a network of {values} values, more than the {most} that its weights hold or are "
            "allowed; plans and checkpoint belong to different trainings."
        )
    return made(make)


def _unfit(target: str, error: Exception) -> CeaseError:
    return CeaseError(
        f"the network {target!r} cannot be built as the plans say ({one_line(error, 80)}); plan and train it again."
    )


def _part(key: str, value: Any) -> Any:
    """A layer for its name; everything else as it is."""
    if value is None or (key not in _LAYERS and key != "block"):
        return value
    place, _, name = str(value).rpartition(".")
    if key == "block" and name in _BLOCKS:
        from dynamic_network_architectures.building_blocks import residual  # type: ignore[import-untyped]

        return getattr(residual, name)
    if name in _LAYERS.get(key, ()) and place.startswith("torch.nn"):
        return getattr(nn, name)
    known = ", ".join(_LAYERS.get(key, _BLOCKS))
    raise CeaseError(f"the plans name {str(value)[:80]!r} as {key}, which is not built here; only {known} are.")


@cache
def _library() -> Any:
    try:
        from dynamic_network_architectures.architectures import unet  # type: ignore[import-untyped]
    except ImportError as error:
        raise CeaseError(
            "networks of nnU-Net need a library that is not installed; run: pip install 'napari-cease[nnunet]'"
        ) from error
    return unet
