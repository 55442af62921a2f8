"""Contrastive losses: all views of a scan alike, and pixels of one class alike across views and scans."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from cease_core.defences.config import ContrastiveTerm
from cease_core.defences.terms.base import TermModule
from cease_core.defences.views import Context, Look, generators
from cease_core.models.architectures import Features
from cease_core.models.segmenter import predict_labels

# Similarities held at a time: 16 MiB. Fewer mean more waiting of threads for each other, more mean more memory.
_BLOCK = 2**22


def supervised_contrastive(rows: Tensor, groups: Tensor, temperature: float, keys: Tensor | None = None) -> Tensor:
    """Mean over anchors of −1/|P(i)| Σ_{j∈P(i)} log( exp(z_i·z_j/τ) / Σ_{a≠i} exp(z_i·z_a/τ) ).

    Parameters
    ----------
    rows
        Unit vectors (M, D).
    groups
        Rows of one group are positives of each other, shape (M,).
    temperature
        τ > 0.
    keys
        Indices of the rows that anchors are compared with, each once; by default all.

    Returns
    -------
    Tensor
        Scalar; anchors without a positive do not count, and without any it is 0.

    References
    ----------
    Khosla et al. 2020, arXiv 2004.11362, the loss with the sum outside the logarithm.
    """
    rows = rows.float()
    at = torch.arange(len(rows), device=rows.device) if keys is None else keys
    among, place = _classes(groups)
    # Where each row stands among the keys; −1 if it is none.
    own = torch.full((len(rows),), -1, device=rows.device).scatter(0, at, torch.arange(len(at), device=rows.device))
    others = torch.zeros(among, dtype=torch.long, device=rows.device).scatter_add(0, place[at], torch.ones_like(at))
    count = others[place] - (own >= 0).long()
    anchors = count.nonzero().flatten()
    if len(anchors) == 0:
        return rows.sum() * 0
    # Σ_j z_i·z_j = z_i·Σ_j z_j: positives need no matrix of all pairs.
    sums = torch.zeros(among, rows.shape[1], device=rows.device).index_add(0, place[at], rows[at])
    z, mine = rows[anchors], (own[anchors] >= 0).float()
    alike = (z * sums[place[anchors]]).sum(dim=1) - mine * z.square().sum(dim=1)
    everyone: Tensor = _MeanLogSum.apply(z, rows[at], own[anchors], temperature)
    return everyone - (alike / count[anchors]).mean() / temperature


def positives_only(rows: Tensor, groups: Tensor) -> Tensor:
    """Mean over pairs of one group of 1 − cosine; ``rows`` are unit vectors (M, D)."""
    rows = rows.float()
    among, place = _classes(groups)
    size = torch.zeros(among, device=rows.device).index_add(0, place, torch.ones(len(rows), device=rows.device))
    pairs = (size * (size - 1)).sum()
    # Σ_{i≠j} z_i·z_j = |Σ z|² − n.
    length = torch.zeros(among, rows.shape[1], device=rows.device).index_add(0, place, rows).square().sum(dim=1)
    return (size.square() - length).sum() / pairs.clamp_min(1) * (pairs > 0)


def _classes(groups: Tensor) -> tuple[int, Tensor]:
    """How many groups there are, and the number of each row's."""
    names, place = groups.unique(return_inverse=True)
    return len(names), place


class _MeanLogSum(torch.autograd.Function):
    """Mean over anchors (M, D) of log Σ_a exp(z·k_a / τ) over keys (K, D), but ``own`` ones (M,), −1 for none.

    Some anchors at a time, values and gradients together: all M × K similarities would take more time to move
    through memory than to compute.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, own: Tensor, temperature: float) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            total = anchors.new_zeros(())
            by_anchor, by_key = torch.empty_like(anchors), torch.zeros_like(keys)
            step = max(1, _BLOCK // len(keys))
            for first in range(0, len(anchors), step):
                part = slice(first, first + step)
                z, itself = anchors[part], own[part]
                known = (itself >= 0).nonzero().flatten()
                similarity = (z @ keys.T).div_(temperature)
                similarity[known, itself[known]] = float("-inf")
                top = similarity.amax(dim=1, keepdim=True)
                share = similarity.sub_(top).exp_()
                mass = share.sum(dim=1, keepdim=True)
                total += (top + mass.log()).sum()
                by_anchor[part] = share @ keys / mass
                by_key.addmm_(share.T, z / mass)
            ctx.scale = 1 / (len(anchors) * temperature)
            ctx.save_for_backward(by_anchor, by_key)
            return total / len(anchors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        by_anchor, by_key = ctx.saved_tensors
        scale = gradients[0] * ctx.scale
        return by_anchor * scale, by_key * scale, None, None


def draw_anchors(classes: Tensor, wrong: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of at most ``count`` pixels a class: half of them ``wrong`` ones as far as there are, then any.

    Parameters
    ----------
    classes, wrong
        Class id of each pixel and whether the attack has turned it, shape (P,).
    count
        At most so many a class.
    generator
        On the CPU.

    References
    ----------
    Wang et al. 2021, arXiv 2101.11939: anchors are half hard, that is wrongly predicted, and half random.
    """
    order = torch.rand(len(classes), generator=generator).to(classes.device).argsort()
    sorted_classes, sorted_wrong = classes[order], wrong[order]
    chosen = []
    for c in classes.unique():
        here = sorted_classes == c
        mine, turned = order[here], sorted_wrong[here]
        first = turned & (turned.cumsum(0) <= count // 2)
        hard = mine[first]
        chosen += [hard, mine[~first][: count - len(hard)]]
    return torch.cat(chosen)


class Contrastive(TermModule):
    """Projectors p (global) and q (dense), and the two losses between views.

    The global loss is that of Khosla et al. (2004.11362) with the views of a scan as positives, one of them attacked
    as in RoCL (Kim et al. 2020, 2006.07589); the dense one takes pixels of a class as positives, as in Wang et al.
    (2101.11939). Drawing pixels from clean, attacked and augmented views together, those first that the attack has
    turned, is ours, as are the weights. Each process draws pixels from its own cases.
    """

    def __init__(self, term: ContrastiveTerm, widths: tuple[int, ...], dense_width: int, ndim: int) -> None:
        super().__init__()
        self.term = term
        self.globally = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]), nn.LeakyReLU(0.1), nn.Linear(widths[-1], term.width)
        )
        conv = Conv[Conv.CONV, ndim]
        self.densely: nn.Module = nn.Identity()
        if term.dense > 0:
            self.densely = nn.Sequential(
                conv(dense_width, dense_width, 1), nn.LeakyReLU(0.1), conv(dense_width, term.width, 1)
            )

    def forward(self, context: Context) -> dict[str, Tensor]:
        ramp = 1.0 if self.term.ramp == 0 else min(1.0, context.progress / self.term.ramp)
        value = context.target.new_zeros(())
        if self.term.instance > 0:
            value = value + self.term.instance * self._instance(context)
        if self.term.dense > 0:
            value = value + self.term.dense * self._dense(context)
        return {"contrastive": ramp * value}

    def project(self, features: Features) -> Tensor:
        """Global projections (N, width), unit vectors."""
        return F.normalize(self.globally(features[-1].flatten(2).mean(dim=2)), dim=1)

    def _looks(self, context: Context) -> list[Look]:
        return [context.looks[v].detach() if v in self.term.still else context.looks[v] for v in self.term.over]

    def _instance(self, context: Context) -> Tensor:
        rows = torch.cat([context.gather(self.project(look.features)) for look in self._looks(context)])
        groups = torch.arange(len(rows) // len(self.term.over), device=rows.device).repeat(len(self.term.over))
        if self.term.positives_only:
            return positives_only(rows, groups)
        return supervised_contrastive(rows, groups, self.term.temperature)

    def _dense(self, context: Context) -> Tensor:
        """Pixels that are no wrong ones are drawn from all views alike."""
        looks = context.looks
        maps = [look.dense for look in self._looks(context)]
        grid = tuple(maps[0].shape[2:]) if maps[0] is not None else ()
        step = context.model.backbone.multiple * context.model.card.downsample
        classes = _at(context.batch.labels, grid, step)
        attacked = looks["adversarial" if "adversarial" in looks else self.term.over[-1]].logits
        wrong = _at(predict_labels(attacked.detach(), context.setting.mode), grid, step) != classes
        projected = [F.normalize(self.densely(m), dim=1).flatten(2).movedim(1, 2) for m in maps if m is not None]
        # Per case: views side by side, so that a pixel's class and place may be drawn from any of them.
        rows_of, views = torch.cat(projected, dim=1), len(projected)
        rows, groups, salts = [], [], generators(context.batch.seeds, salt=3)
        for i, generator in enumerate(salts):
            here = classes[i].repeat(views)
            turned = torch.cat([wrong[i] & (v == "adversarial") for v in self.term.over])
            index = draw_anchors(here, turned, self.term.anchors, generator)
            rows.append(rows_of[i, index])
            groups.append(here[index])
        pool, labels = torch.cat(rows), torch.cat(groups)
        if self.term.positives_only:
            return positives_only(pool, labels)
        keys = None
        if len(pool) > self.term.keys:
            keys = torch.randperm(len(pool), generator=generators(context.batch.seeds[:1], salt=4)[0])
            keys = keys[: self.term.keys].sort().values.to(pool.device)
        return supervised_contrastive(pool, labels, self.term.dense_temperature, keys)


def _at(labels: Tensor, grid: tuple[int, ...], step: int) -> Tensor:
    """Class ids (N, P) on a coarser grid, which covers the image padded to multiples of ``step``, as the model does."""
    pad = [v for size in reversed(labels.shape[1:]) for v in (0, -size % step)]
    whole = F.pad(labels.unsqueeze(1).float(), pad, mode="replicate")
    return F.interpolate(whole, size=grid, mode="nearest-exact").long().flatten(1)
