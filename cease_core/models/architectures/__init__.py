"""MONAI architectures by name, each split into an encoder and a decoder.

The split is what defences work on: auxiliary heads and contrastive losses read encoder features, and the
deployed model is decoder after encoder, with nothing added. A new family is one file and one entry here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cease_core.errors import CeaseError
from cease_core.models.architectures.attention_unet import attention_unet
from cease_core.models.architectures.base import Backbone, Features
from cease_core.models.architectures.denoising import Denoised
from cease_core.models.architectures.dynunet import dynunet
from cease_core.models.architectures.flexible_unet import flexible_unet
from cease_core.models.architectures.mednext import mednext
from cease_core.models.architectures.segresnet import segresnet
from cease_core.models.architectures.swin_unetr import swin_unetr
from cease_core.models.architectures.unet import residual_unet, unet
from cease_core.models.architectures.unet_plus_plus import unet_plus_plus
from cease_core.models.architectures.unetr import unetr
from cease_core.models.architectures.vnet import vnet

__all__ = ["ARCHITECTURES", "Backbone", "Features", "arguments", "build"]

ARCHITECTURES: dict[str, Callable[..., Backbone]] = {
    "unet": unet,
    "residual_unet": residual_unet,
    "attention_unet": attention_unet,
    "unet_plus_plus": unet_plus_plus,
    "segresnet": segresnet,
    "dynunet": dynunet,
    "vnet": vnet,
    "flexible_unet": flexible_unet,
    "unetr": unetr,
    "swin_unetr": swin_unetr,
    "mednext": mednext,
}


def arguments(name: str) -> dict[str, Any]:
    """Arguments of an architecture with their defaults; each one also takes ``denoise``, a filter of `Denoised`."""
    parameters = list(inspect.signature(ARCHITECTURES[name]).parameters.values())[3:]
    own = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    return {**own, "denoise": None}


def build(name: str, ndim: int, inputs: int, outputs: int, args: dict[str, Any] | None = None) -> Backbone:
    """Build an architecture with random weights.

    Parameters
    ----------
    name
        Key of `ARCHITECTURES`.
    ndim, inputs, outputs
        Spatial dimensions, input channels and logit channels.
    args
        Further arguments, see `arguments`; lists count as tuples, as JSON has no other.

    Raises
    ------
    CeaseError
        If the name or an argument is unknown, or the arguments do not fit.
    """
    if name not in ARCHITECTURES:
        raise CeaseError(f"unknown architecture {name!r}; choose one of {', '.join(sorted(ARCHITECTURES))}.")
    known = arguments(name)
    unknown = [key for key in args or {} if key not in known]
    if unknown:
        raise CeaseError(f"architecture {name!r} has no argument {unknown[0]!r}; choose among {', '.join(known)}.")
    given = {key: _tupled(value) for key, value in (args or {}).items()}
    denoise = given.pop("denoise", None)
    try:
        backbone = ARCHITECTURES[name](ndim, inputs, outputs, **given)
        return backbone if denoise is None else Denoised(backbone, ndim, denoise)
    # Whatever MONAI's constructors raise on numbers that do not fit together.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().rstrip(".")
        raise CeaseError(f"architecture {name!r} cannot be built with {args}: {reason}.") from error


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value
