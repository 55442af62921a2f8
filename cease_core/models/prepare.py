"""A copy of a model made for attacking: frozen, simplified, memory laid out for convolutions.

Measured on one CPU core (``benchmarks/attack_speed.py``), this is where an attack's time is won; the loop around
the model has next to nothing left to gain.
"""

from __future__ import annotations

import copy
import logging
from typing import Literal, overload

import torch
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.foreign.spec import PROGRAMS
from cease_core.models.graphed import Graphed
from cease_core.models.reduced import Reduced
from cease_core.models.segmenter import SegmentationModel
from cease_core.models.simplify import simplify

log = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]

# Relative to the largest logit: simplifying reorders float32 sums, it must not do more.
TOLERANCE = 1e-4
# Relative to the gradient's norm: rounding alone moves single units across the kink of an activation.
GRADIENT_TOLERANCE = 1e-2


def best_device() -> torch.device:
    """The fastest device that torch finds here: CUDA, Apple's MPS, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@overload
def prepare(
    model: SegmentationModel,
    device: torch.device | str = "cpu",
    *,
    precision: Precision = "float32",
    graphs: bool = False,
) -> SegmentationModel: ...
@overload
def prepare(
    model: ForeignModel, device: torch.device | str = "cpu", *, precision: Precision = "float32", graphs: bool = False
) -> ForeignModel: ...
@overload
def prepare(
    model: SegmentationModel | ForeignModel,
    device: torch.device | str = "cpu",
    *,
    precision: Precision = "float32",
    graphs: bool = False,
) -> SegmentationModel | ForeignModel: ...
def prepare(
    model: SegmentationModel | ForeignModel,
    device: torch.device | str = "cpu",
    *,
    precision: Precision = "float32",
    graphs: bool = False,
) -> SegmentationModel | ForeignModel:
    """Return a frozen, faster copy of ``model`` with the same logits and input gradients.

    Batch norms that directly follow a convolution are folded into it, PReLUs with one slope become leaky ReLUs,
    and dropouts go. The copy is compared with the original on a random image; if logits or gradients differ, the
    unsimplified copy is returned.

    Parameters
    ----------
    model
        Left as it is. One that was made elsewhere is simplified in the same way, unless it is a program.
    device
        Where the copy shall run.
    precision
        ``"bfloat16"`` attacks in reduced precision: the copy then has an attribute ``exact``, the same model in
        float32, by which attacks judge their result. Worth it only on hardware made for it.
    graphs
        Whether to replay captured CUDA graphs, one a shape of input (see `Graphed`); without CUDA it does nothing.

    Raises
    ------
    CeaseError
        If the precision is unknown, or not for models that were made elsewhere.
    """
    if precision not in ("float32", "bfloat16"):
        raise CeaseError(f"unknown precision {precision!r}; choose float32 or bfloat16.")
    device = torch.device(device)
    if isinstance(model, ForeignModel):
        if precision != "float32":
            raise CeaseError(f"{model.card.title} was made elsewhere and is attacked in float32 only; choose that.")
        return _foreign(model, device)
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    simple = copy.deepcopy(plain)
    simplify(simple, cpu=device.type == "cpu")
    edge = plain.minimum
    # As small as norms over few values allow: an architecture that halves five times takes long for a volume.
    shape = (2 * edge, 2 * edge) if model.card.ndim == 2 else (2 * edge, edge, edge - 1)
    if not _same(plain, simple, (model.card.channels, *shape)):
        log.warning("%s: simplifying it changed its answer; it runs unsimplified", model.card.name)
        simple = plain
    layout = torch.channels_last if model.card.ndim == 2 else torch.channels_last_3d
    prepared: SegmentationModel = simple.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    if precision == "bfloat16":
        prepared = Reduced(prepared, torch.bfloat16)
    if graphs and device.type == "cuda":
        prepared = Graphed(prepared)
    return prepared


def _foreign(model: ForeignModel, device: torch.device) -> ForeignModel:
    if model.foreign.kind in PROGRAMS:
        # Nothing in a program can be exchanged, and not every one can be copied.
        return model.to(device).requires_grad_(False)
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    simple = copy.deepcopy(plain)
    simplify(simple, cpu=device.type == "cpu")
    return (simple if _alike(plain, simple) else plain).to(device)


def _alike(plain: ForeignModel, simple: ForeignModel) -> bool:
    """Whether two networks answer alike on the first image that the plain one takes: a small one, or its window."""
    foreign, card = plain.foreign, plain.card
    small = (2 * max(foreign.divisor, 16),) * card.ndim
    for shape in filter(None, dict.fromkeys((() if foreign.fixed else small, foreign.window))):
        try:
            # The network alone: around it stand only windows and what no simplification touches.
            return _same(plain.asked, simple.asked, (card.channels, *shape))
        except Exception as error:
            # A network of others raises what it likes, for example where its norms see a single value.
            log.info("%s: no comparison at %s (%s)", card.name, shape, error)
    log.warning("%s: it could not be compared with a simplified copy; it runs unsimplified", card.name)
    return False


def _same(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(1, *shape, generator=generator)
    probe = probe.to(next(a.parameters(), probe).device)
    first, slope = _answer(a, probe)
    try:
        second, other = _answer(b, probe)
    except RuntimeError as error:
        # A layer needs what another now overwrites.
        log.info("%s", error)
        return False
    alike = (first - second).abs().max() <= TOLERANCE * first.abs().max().clamp_min(1.0)
    return bool(alike and (slope - other).norm() <= GRADIENT_TOLERANCE * slope.norm())


def _answer(model: nn.Module, probe: Tensor) -> tuple[Tensor, Tensor]:
    images = probe.clone().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach(), gradient
