"""Input transforms as a defence, and the gradients by which attacks see through them.

A `Transformed` model squeezes what it is shown: its answer is the true one, PIL's JPEG and all. Where a transform
has no useful gradient it passes the gradient on as it is (BPDA: Athalye, Carlini & Wagner 2018, arXiv 1802.00420);
where it is random, the answer is a mean over draws (EOT: Athalye et al. 2018, arXiv 1707.07397). Without the two, a
transform only hides the gradient, and what looks like robustness is none.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cease_core.attacks.features import Encoder
from cease_core.errors import CeaseError
from cease_core.models.architectures import Features
from cease_core.models.card import Mode
from cease_core.models.segmenter import Segmenter

Draw = Callable[[Tensor, int], Tensor]
"""From images (N, C, *spatial) and the number of a draw to values (N, K, *spatial), with a graph."""


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """What is done to images before the model sees them.

    A parameter given as a pair is drawn anew for every image and draw, uniformly between its two ends.
    """

    differentiable: ClassVar[bool] = False

    @property
    def random(self) -> bool:
        """Whether two draws may differ."""
        return any(isinstance(value, tuple) for value in vars(self).values())

    @abstractmethod
    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """The transform itself.

        Parameters
        ----------
        images
            Window fractions, shape (N, C, *spatial). A pair is drawn once for all of them.
        draws
            Source of everything random, on the images' device.
        """

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """The transformed images, with a gradient: the transform's own, or that of the identity."""
        if self.differentiable:
            return self.apply(images, draws)
        return straight_through(lambda x: self.apply(x, draws), images)


@dataclass(frozen=True, kw_only=True)
class JPEG(Transform):
    """Through a JPEG file and back (Guo et al. 2018, arXiv 1711.00117).

    Three channels are one RGB picture, with the colours at half resolution as PIL does by default; any others are
    grey pictures. Volumes are compressed slice by slice along the first axis. A file holds 8 bits of the
    window: intensities outside [0, 1] come back as its ends, or near them.

    Parameters
    ----------
    quality
        PIL's, 1 to 95.

    Examples
    --------
    >>> JPEG(quality=(50, 95)).random
    True
    """

    quality: int | tuple[int, int] = 75

    def __post_init__(self) -> None:
        _check_range("quality", self.quality, 1, 95)

    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """As `Transform.apply`."""
        quality = _whole(self.quality, draws)
        # Slices (N, D, C, rows, columns); an image is one slice.
        slices = images.unsqueeze(2) if images.ndim == 4 else images
        slices = slices.transpose(1, 2)
        colour = slices.shape[2] == 3
        pictures = slices.movedim(2, -1).flatten(0, 1) if colour else slices.flatten(0, 2)
        eight_bits = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        coded = torch.from_numpy(np.stack([_through_jpeg(p, quality) for p in eight_bits]))
        whole = coded.to(images) / 255
        rows, columns = images.shape[-2:]
        if colour:
            whole = whole.view(*slices.shape[:2], rows, columns, 3).movedim(-1, 1)
        else:
            whole = whole.view(slices.shape).transpose(1, 2)
        return whole.reshape(images.shape)


@dataclass(frozen=True, kw_only=True)
class BitDepth(Transform):
    """Fewer grey levels (feature squeezing: Xu, Evans & Qi 2018, arXiv 1704.01155).

    The levels divide the window evenly, both ends among them; intensities outside [0, 1] become its ends.

    Parameters
    ----------
    bits
        2 ** bits levels; 1 to 16.
    """

    bits: int | tuple[int, int] = 5

    def __post_init__(self) -> None:
        _check_range("bits", self.bits, 1, 16)

    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """As `Transform.apply`."""
        steps = 2 ** _whole(self.bits, draws) - 1
        return (images.clamp(0, 1) * steps).round() / steps


@dataclass(frozen=True, kw_only=True)
class Median(Transform):
    """The median of each pixel's neighbourhood (feature squeezing: Xu, Evans & Qi 2018, arXiv 1704.01155).

    A square of an image, a cube of a volume, with the border repeated; channels are kept apart. Its gradient is
    its own: that of the pixel which is the median. Intensities outside [0, 1] are treated like all others.

    Parameters
    ----------
    window
        Edge of the neighbourhood, odd.
    """

    differentiable: ClassVar[bool] = True

    window: int = 3

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise CeaseError(f"window is {self.window}; give an odd number of pixels such as 3.")

    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """As `Transform.apply`."""
        del draws
        axes = images.ndim - 2
        around = F.pad(images, (self.window // 2,) * 2 * axes, mode="replicate")
        for axis in range(2, images.ndim):
            around = around.unfold(axis, self.window, 1)
        return around.flatten(-axes).median(dim=-1).values


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Transform):
    """Total-variation denoising (Guo et al. 2018, arXiv 1711.00117), by Chambolle's projection (2004).

    The same iteration as scikit-image's ``denoise_tv_chambolle``, of a fixed length, so that its gradient is its own:
    with the identity's an attack wastes itself on what is smoothed away. Of the paper's method this is the
    minimisation alone, without its random choice of pixels. Channels are denoised one by one, volumes as volumes.
    Intensities outside [0, 1] are treated like all others.

    Parameters
    ----------
    weight
        Above 0; larger is smoother.
    steps
        Iterations; a gradient keeps all of them in memory.
    """

    differentiable: ClassVar[bool] = True

    weight: float | tuple[float, float] = 0.05
    steps: int = 20

    def __post_init__(self) -> None:
        _check_range("weight", self.weight, 1e-6, math.inf)
        at_least(1, steps=self.steps)

    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """As `Transform.apply`."""
        low, high = _ends(self.weight)
        weight = low if low == high else low + (high - low) * float(_uniform(draws))
        axes = range(2, images.ndim)
        pace = 1 / (2 * len(axes))
        dual = [torch.zeros_like(images) for _ in axes]
        for _ in range(self.steps):
            slopes = [_slope(images - _divergence(dual), axis) for axis in axes]
            # A flat place has no slope, but the root needs a derivative.
            steepness = (torch.stack(slopes).square().sum(dim=0) + 1e-20).sqrt()
            dual = [(p - pace * g) / (1 + pace / weight * steepness) for p, g in zip(dual, slopes, strict=True)]
        return images - _divergence(dual)


@dataclass(frozen=True, kw_only=True)
class Noise(Transform):
    """Gaussian noise, new in every draw.

    Parameters
    ----------
    sigma
        Standard deviation in window fractions; nothing is clipped.
    """

    differentiable: ClassVar[bool] = True

    sigma: float = 0.05

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma, 0, math.inf)

    @property
    def random(self) -> bool:
        """Whether two draws may differ."""
        return self.sigma > 0

    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """As `Transform.apply`."""
        return images + self.sigma * torch.randn(images.shape, generator=draws, device=draws.device).to(images)


class Transformed(nn.Module):
    """A model behind input transforms, open to every attack.

    Parameters
    ----------
    model
        Any `Segmenter`, unchanged.
    transforms
        Applied in their order.
    draws
        Samples whose logits are averaged, if any transform is random; else the model is asked once.
    seed
        Of the draws. They also depend on the image: a moved image meets fresh draws, the same image the same ones,
        whatever batch or window it comes in. So an attack is repeatable, and cannot wait for a lucky draw.

    Notes
    -----
    Random draws pass one at a time, both ways, so that memory stays at one; gradients then reach the images alone,
    not the model's weights. A model that shows its features still does, unless its answer is a mean over draws.

    Raises
    ------
    CeaseError
        If there is no transform, ``draws`` is below 1 or ``seed`` below 0.
    """

    model: Segmenter
    encode: Callable[[Tensor], Features]
    decode: Callable[[Features, tuple[int, ...]], Tensor]

    def __init__(self, model: Segmenter, transforms: Sequence[Transform], *, draws: int = 1, seed: int = 0) -> None:
        super().__init__()
        if not transforms:
            raise CeaseError("there is no transform; give at least one, such as JPEG().")
        at_least(1, draws=draws)
        at_least(0, seed=seed)
        self.model = model
        self.mode: Mode = model.mode
        self.transforms = tuple(transforms)
        self.draws = draws
        self.seed = seed
        # Attacks on features ask whether a model has the two, so a wrapper of one without them must not.
        if isinstance(model, Encoder) and (draws == 1 or not self.random):
            self.encode, self.decode = self._encode, model.decode

    @property
    def random(self) -> bool:
        """Whether any transform is random."""
        return any(t.random for t in self.transforms)

    @property
    def exact(self) -> Transformed | None:
        """By whom attacks are judged: the model in full precision, on draws that no attack has seen; else None."""
        exact = getattr(self.model, "exact", None)
        if exact is None and not self.random:
            return None
        model = self.model if exact is None else exact
        return Transformed(model, self.transforms, draws=self.draws, seed=self.seed + 1)

    def transform(self, images: Tensor, draw: int = 0) -> Tensor:
        """What the model is shown of images (N, C, *spatial) in one draw; differentiable."""
        if not self.random:
            return self._chain(images, generator(images.device, self.seed))
        # One by one: a draw must not depend on the company an image comes in.
        codes = case_codes(images)
        shown = [
            self._chain(image, generator(images.device, self.seed, code, draw))
            for image, code in zip(images.split(1), codes, strict=True)
        ]
        return torch.cat(shown)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for images (N, C, *spatial) in window fractions."""
        if not self.random:
            return self.model(self.transform(images))
        return expectation(lambda x, draw: self.model(self.transform(x, draw)), images, self.draws)

    def _encode(self, images: Tensor) -> Features:
        assert isinstance(self.model, Encoder)
        return self.model.encode(self.transform(images))

    def _chain(self, images: Tensor, draws: torch.Generator) -> Tensor:
        for transform in self.transforms:
            images = transform(images, draws)
        return images


def straight_through(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The function's value with the gradient of the identity (BPDA, arXiv 1802.00420, section 4.1.1).

    Also where the function clips: a pixel that has left the window can be led back.

    Parameters
    ----------
    function
        Keeps the shape; its own gradient is never asked for.
    images
        Any shape.
    """
    moved: Tensor = _StraightThrough.apply(images, function)
    return moved


def expectation(draw: Draw, images: Tensor, draws: int, *, logarithmic: bool = False) -> Tensor:
    """Mean over draws, with its gradient, in the memory of a single one (EOT, arXiv 1707.07397).

    The backward pass draws again. ``draw`` has to be a function of its two arguments alone.

    Parameters
    ----------
    draw
        What is averaged.
    images
        Shape (N, C, *spatial).
    draws
        How many.
    logarithmic
        Whether the draws are logarithms; then the logarithm of the mean is returned.
    """
    mean: Tensor = _Expectation.apply(images, draw, draws, logarithmic)
    return mean


def case_codes(images: Tensor) -> list[int]:
    """A number for each image (N, C, *spatial) that changes with any of its bits, and with nothing else."""
    bits = images.detach().float().contiguous().flatten(1).view(torch.int32).long()
    # Odd factors, so that no bit is lost, and one for each place, so that order counts; int64 wraps around.
    place = torch.arange(bits.shape[1], device=bits.device) * 0x9E3779B97F4A7C1 + 1
    return [code % 2**64 for code in (bits * (place | 1)).sum(dim=1).tolist()]


def generator(device: torch.device, *numbers: int) -> torch.Generator:
    """A source of random numbers that a few whole numbers ≥ 0 determine."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed) >> 1)


def at_least(low: int, **numbers: int) -> None:
    """Raise a `CeaseError` that names the first of some numbers below ``low``, if there is one."""
    for name, number in numbers.items():
        if number < low:
            raise CeaseError(f"{name} is {number}; give at least {low}.")


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(images)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


class _Expectation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, draw: Draw, draws: int, logarithmic: bool) -> Tensor:
        join = torch.logaddexp if logarithmic else torch.add
        total = draw(images, 0)
        for number in range(1, draws):
            total = join(total, draw(images, number))
        mean = total - math.log(draws) if logarithmic else total / draws
        ctx.draw, ctx.draws, ctx.logarithmic = draw, draws, logarithmic
        ctx.save_for_backward(images, mean)
        return mean

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        images, mean = ctx.saved_tensors
        gradient = torch.zeros_like(images)
        share = upstream[0] / ctx.draws
        for number in range(ctx.draws):
            with torch.enable_grad():
                again = images.detach().requires_grad_()
                values = ctx.draw(again, number)
            weight = (values.detach() - mean).exp() if ctx.logarithmic else 1.0
            gradient += torch.autograd.grad(values, again, share * weight)[0]
        return gradient, None, None, None


def _through_jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _slope(images: Tensor, axis: int) -> Tensor:
    """Differences to the next pixel along an axis; 0 at the last."""
    return images.diff(dim=axis, append=images.narrow(axis, -1, 1))


def _divergence(field: list[Tensor]) -> Tensor:
    """Minus the transpose of `_slope`, summed over the spatial axes."""
    parts = [
        part.diff(dim=axis, prepend=torch.zeros_like(part.narrow(axis, 0, 1))) for axis, part in enumerate(field, 2)
    ]
    return torch.stack(parts).sum(dim=0)


def _ends(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _uniform(draws: torch.Generator) -> Tensor:
    return torch.rand((), generator=draws, device=draws.device)


def _whole(value: int | tuple[int, int], draws: torch.Generator) -> int:
    """The number itself, or one between its two ends, both included."""
    if not isinstance(value, tuple):
        return value
    return int(torch.randint(value[0], value[1] + 1, (), generator=draws, device=draws.device))


def _check_range(name: str, value: float | tuple[float, float], low: float, high: float) -> None:
    first, last = _ends(value)
    if not (low <= first <= last <= high and math.isfinite(last)):
        limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise CeaseError(f"{name} is {value}; give a number {limits}, or a pair of them in ascending order.")
