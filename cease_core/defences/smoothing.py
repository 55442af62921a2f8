"""Randomised smoothing: a model under Gaussian noise, and masks that are certified pixel by pixel.

After SegCertify (Fischer, Baader & Vechev 2021, "Scalable Certified Segmentation via Randomized Smoothing", ICML,
arXiv 2107.00228), which carries the certificate of Cohen, Rosenfeld & Kolter 2019 (arXiv 1902.02918) over to masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from cease_core.defences.ensemble import from_log_probabilities, log_probabilities
from cease_core.defences.input_transforms import at_least, case_codes, expectation, generator
from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.memory import BatchSize, in_batches
from cease_core.models.segmenter import Segmenter

Correction = Literal["holm", "bonferroni"]

Progress = Callable[[int, int], bool | None]
"""Told of the noisy images done and of their total; returning ``False`` stops the certification."""

ABSTAINED = -1

# Keeps the noise of a certificate apart from that of a `Smoothed` model at the same image.
_CERTIFYING = 1


class Smoothed(nn.Module):
    """The mean probabilities of a model under Gaussian noise, as logits; differentiable (EOT, arXiv 1707.07397).

    What an attack needs to see of a smoothed model. What `certify` certifies is the majority of the decisions
    under noise instead, which no gradient passes; the two agree wherever the model is sure.

    Parameters
    ----------
    model
        Any `Segmenter`, unchanged.
    sigma
        Standard deviation of the noise in window fractions; noisy images are not clipped.
    n
        Draws of noise.
    seed
        Of the noise, which depends on the image, too: a moved image meets fresh noise, the same image the same.

    Notes
    -----
    The mean is taken of probabilities but computed in logarithms, draw by draw, in the memory of one. Gradients
    reach the images alone, not the model's weights.

    Raises
    ------
    CeaseError
        If a parameter is out of range.
    """

    model: Segmenter

    def __init__(self, model: Segmenter, *, sigma: float = 0.25, n: int = 16, seed: int = 0) -> None:
        super().__init__()
        _check_sigma(sigma)
        at_least(1, n=n)
        at_least(0, seed=seed)
        self.model = model
        self.mode: Mode = model.mode
        self.sigma = sigma
        self.n = n
        self.seed = seed

    @property
    def exact(self) -> Smoothed:
        """By whom attacks are judged: the model in full precision, under noise that no attack has seen."""
        exact = getattr(self.model, "exact", None)
        model = self.model if exact is None else exact
        return Smoothed(model, sigma=self.sigma, n=self.n, seed=self.seed + 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for images (N, C, *spatial) in window fractions."""
        codes = case_codes(images)

        def under_noise(x: Tensor, draw: int) -> Tensor:
            noise = [_noise(image, self.seed, code, draw) for image, code in zip(images, codes, strict=True)]
            return log_probabilities(self.model(x + self.sigma * torch.stack(noise)), self.mode)

        return from_log_probabilities(expectation(under_noise, images, self.n, logarithmic=True), self.mode)


@dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """A mask that holds against every small perturbation, wherever it does not abstain.

    With a probability of at least 1 − α for each case, over the noise of its making: no perturbation whose ℓ2 norm
    is below ``radius`` changes any of the case's certified decisions of the smoothed model, all of them together.

    Parameters
    ----------
    labels
        Class ids (N, *spatial), or decisions (0, 1) for each class (N, K, *spatial) of a multilabel model; -1 where
        it abstained.
    votes
        How many of the ``n`` noisy images found that label, of the labels' shape; also where it abstained.
    classes
        Foreground classes: ids 1 to ``classes``, or channels.
    values
        Intensities an image has, over all channels.
    mode, sigma, tau, n, alpha
        What it was made with.
    cancelled
        Whether it was stopped; cases that were not finished are abstained from everywhere, with 0 votes.
    """

    labels: Tensor
    votes: Tensor
    classes: int
    values: int
    mode: Mode
    sigma: float
    tau: float
    n: int
    alpha: float
    cancelled: bool = False

    @property
    def radius(self) -> float:
        """Certified ℓ2 norm of the whole perturbation, σ·Φ⁻¹(τ), in window fractions.

        The plain norm, the root of the sum of squares over all pixels and channels: not a size per pixel.
        """
        return self.sigma * float(stats.norm.ppf(self.tau))

    @property
    def epsilon(self) -> float:
        """The largest ε whose ball is certified as a whole, whether ``linf`` or ``l2`` as attacks measure it.

        Both bound the root mean square of the perturbation, so this is the radius over the root of the number of
        intensities; what lies outside may still be certified if it changes few pixels.
        """
        return self.radius / math.sqrt(self.values)

    @property
    def abstained(self) -> Tensor:
        """True where nothing is certified; shape of ``labels``."""
        return self.labels == ABSTAINED

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Of each component's binomial test, before the correction; shape of ``labels``."""
        table = binomial_p_values(self.n, self.tau)
        return table[self.votes.cpu().numpy()]

    def certified_share(self, labels: Tensor) -> Tensor:
        """Share (N,) of pixels that are certified and right; an abstention is wrong.

        Parameters
        ----------
        labels
            The truth, shape of the certificate's labels; for a multilabel model each channel's pixels count.

        Raises
        ------
        CeaseError
            If the shape is another.
        """
        return (self.labels == self._checked(labels)).flatten(1).float().mean(dim=1)

    def dice(self, labels: Tensor) -> Tensor:
        """Dice (N,) of the certified mask, every abstention counted as the wrong answer; mean over the classes.

        It is the lowest Dice that a perturbation inside the radius could leave of the smoothed model. A class absent
        from both masks counts 1.

        Parameters
        ----------
        labels
            The truth, shape of the certificate's labels.

        Raises
        ------
        CeaseError
            If the shape is another.
        """
        truth = self._checked(labels)
        if self.mode == "multilabel":
            there, found = truth == 1, self.labels == 1
        else:
            ids = torch.arange(1, self.classes + 1, device=truth.device).view(-1, *(1,) * (truth.ndim - 1))
            there, found = truth.unsqueeze(1) == ids, self.labels.unsqueeze(1) == ids
        abstained = self.abstained if self.mode == "multilabel" else self.abstained.unsqueeze(1)
        found = torch.where(abstained, ~there, found)
        both, total = (t.flatten(2).sum(dim=2).float() for t in (there & found, there.int() + found.int()))
        return torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0).mean(dim=1)

    def _checked(self, labels: Tensor) -> Tensor:
        if labels.shape != self.labels.shape:
            raise CeaseError(
                f"labels of shape {tuple(labels.shape)} do not fit a certificate of shape "
                f"{tuple(self.labels.shape)}; choose the labels of these images."
            )
        return labels.to(self.labels.device)


@torch.no_grad()
def certify(
    model: Segmenter,
    images: Tensor,
    *,
    sigma: float = 0.25,
    tau: float = 0.75,
    n0: int = 10,
    n: int = 1000,
    alpha: float = 0.001,
    correction: Correction = "holm",
    batch: int = 16,
    seed: int = 0,
    callback: Progress | None = None,
) -> Certificate:
    """Certify the mask of a smoothed model by SegCertify (arXiv 2107.00228, algorithm 2).

    ``n0`` noisy images choose the most frequent label of each pixel, ``n`` others test it: a one-sided binomial test
    against "its probability is at most τ", corrected for the number of pixels of the case. Where the test does not
    reject, the mask abstains. A multilabel model has one such decision for each pixel and class.

    Parameters
    ----------
    model
        The model under the noise, best trained on noisy images; its full-precision version where it has less.
    images
        Window fractions, shape (N, C, *spatial) with two or three spatial axes.
    sigma
        Standard deviation of the noise in window fractions.
    tau
        Probability under noise that a certified label has at least, in [0.5, 1). More abstain with a larger one, and
        the radius σ·Φ⁻¹(τ) grows.
    n0, n
        Noisy images that choose labels, and that test them.
    alpha
        Probability that a case has any wrong certificate, at most.
    correction
        ``"holm"`` (step-down) or ``"bonferroni"``, which certifies less.
    batch
        Noisy images in one forward pass; halved, for good, where they do not fit into memory.
    seed
        Of the noise.
    callback
        Told of the noisy images done; returns ``False`` to stop.

    Raises
    ------
    CeaseError
        If a parameter is out of range, or ``n`` is so small that not even unanimous votes are certified.
    """
    _check_sigma(sigma)
    at_least(1, n0=n0, n=n, batch=batch)
    at_least(0, seed=seed)
    if not 0.5 <= tau < 1:
        raise CeaseError(f"tau is {tau}; give a probability of at least 0.5 and below 1, such as 0.75.")
    if not 0 < alpha < 1:
        raise CeaseError(f"alpha is {alpha}; give a probability between 0 and 1, such as 0.001.")
    if correction not in ("holm", "bonferroni"):
        raise CeaseError(f"unknown correction {correction!r}; choose holm or bonferroni.")
    exact = getattr(model, "exact", None)
    sampler = _Sampler(model if exact is None else exact, sigma, seed, BatchSize(batch), callback, len(images), n0 + n)
    table = binomial_p_values(n, tau)
    labels, votes = [], []
    for number, (case, code) in enumerate(zip(images.split(1), case_codes(images), strict=True), start=1):
        chosen = sampler.counts(case, code, range(n0)).argmax(dim=0)
        _check_enough(n, chosen.numel(), tau, alpha)
        agreed = sampler.counts(case, code, range(n0, n0 + n), chosen)[0]
        if sampler.done < number * (n0 + n):
            agreed = torch.zeros_like(agreed)
        certain = reject(table[agreed.cpu().numpy()], alpha, correction)
        labels.append(chosen.masked_fill(~torch.from_numpy(certain).to(chosen.device), ABSTAINED))
        votes.append(agreed)
    return Certificate(
        labels=torch.stack(labels),
        votes=torch.stack(votes),
        classes=sampler.outputs - (model.mode == "multiclass"),
        values=images[0].numel(),
        mode=model.mode,
        sigma=sigma,
        tau=tau,
        n=n,
        alpha=alpha,
        cancelled=sampler.done < len(images) * (n0 + n),
    )


def binomial_p_values(n: int, tau: float) -> NDArray[np.float64]:
    """For 0 to ``n`` votes of ``n``: how likely as many or more are if the label's probability is only τ; (n + 1,)."""
    return np.asarray(stats.binom.sf(np.arange(n + 1) - 1, n, tau), dtype=np.float64)


def reject(p_values: NDArray[np.float64], alpha: float, correction: Correction = "holm") -> NDArray[np.bool_]:
    """Which null hypotheses fall if not even one shall do so wrongly, with probability 1 − α.

    Parameters
    ----------
    p_values
        One a hypothesis, any shape; m in all.
    alpha
        Family-wise error rate.
    correction
        ``"bonferroni"``: those up to α / m. ``"holm"`` (1979): in ascending order against α / m, α / (m − 1), … α,
        up to the first that fails.
    """
    flat = p_values.ravel()
    if correction == "bonferroni":
        return p_values <= alpha / len(flat)
    order = np.argsort(flat, kind="stable")
    passes = flat[order] <= alpha / np.arange(len(flat), 0, -1)
    rejected = np.zeros(len(flat), dtype=np.bool_)
    rejected[order] = np.logical_and.accumulate(passes)
    return rejected.reshape(p_values.shape)


@dataclass
class _Sampler:
    """Decisions under noise, counted; knows how far it is and whether it was told to stop."""

    model: Segmenter
    sigma: float
    seed: int
    batch: BatchSize
    callback: Progress | None
    cases: int
    draws: int
    done: int = 0
    stopped: bool = False
    outputs: int = 0

    def counts(self, case: Tensor, code: int, draws: range, chosen: Tensor | None = None) -> Tensor:
        """How often each decision was made (decisions, *shape), or only the ``chosen`` one (1, *shape)."""

        def one(part: slice) -> Tensor | None:
            if self.stopped:
                return None
            noise = [_noise(case[0], self.seed, code, draw, _CERTIFYING) for draw in draws[part]]
            decided = self._decide(self.model(case + self.sigma * torch.stack(noise)))
            counted = _tally(decided, self._decisions, chosen)
            # Last of all: what did not fit into memory is asked again.
            self._tell(len(noise))
            return counted

        found = [counted for counted in in_batches(one, len(draws), self.batch) if counted is not None]
        if found:
            return torch.stack(found).sum(dim=0)
        # Told to stop before the first: only the shape is needed.
        shape = self._decide(self.model(case))
        return torch.zeros_like(_tally(shape, self._decisions, chosen))

    @property
    def _decisions(self) -> int:
        return self.outputs if self.model.mode == "multiclass" else 2

    def _decide(self, logits: Tensor) -> Tensor:
        """Class ids (B, *spatial); for multilabel 0 or 1 for each class (B, K, *spatial)."""
        self.outputs = logits.shape[1]
        if self.model.mode == "multiclass":
            return logits.argmax(dim=1)
        positive = (logits > 0).long()
        return positive if self.model.mode == "multilabel" else positive[:, 0]

    def _tell(self, count: int) -> None:
        self.done += count
        if self.callback is not None and self.callback(self.done, self.cases * self.draws) is False:
            self.stopped = True


def _tally(decided: Tensor, decisions: int, chosen: Tensor | None) -> Tensor:
    if chosen is not None:
        return (decided == chosen).sum(dim=0, keepdim=True)
    return torch.stack([(decided == d).sum(dim=0) for d in range(decisions)])


def _noise(like: Tensor, *numbers: int) -> Tensor:
    source = generator(like.device, *numbers)
    return torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)


def _check_sigma(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise CeaseError(f"sigma is {sigma}; give a standard deviation above 0 in window fractions, such as 0.25.")


def _check_enough(n: int, components: int, tau: float, alpha: float) -> None:
    needed = math.ceil(math.log(alpha / components) / math.log(tau))
    if n < needed:
        raise CeaseError(
            f"n is {n}, but among {components} decisions even unanimous votes are only certified from {needed} on; "
            "give a larger n."
        )
