"""The only place that creates or updates layers.

A pane shows one model: its mask and perturbation, and the adversarial scan, over the scan and the reference.
The left pane lies on the user's own scan and labels layers; the right one gets twins of them, which share their
data, so that napari's grid can show both panes with one camera. Layers are found again by the role in their
metadata; the user's layers are read and never changed.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from cease_core.models import ModelCard
from cease_core.scan import Scan
from napari_cease.geometry import display_array, layer_geometry
from napari_cease.jobs.exploration import Side, View

Role = Literal["scan", "labels", "mask", "perturbation", "adversarial", "scan twin", "labels twin"]

TITLES: dict[Side, str] = {"undefended": "Undefended", "defended": "Defended"}
# Two ends of a blue–red scale, bright enough on grey scans and apart for any common colour vision.
NEGATIVE, POSITIVE = (64, 144, 255), (255, 72, 60)
STRONGEST_ALPHA = 0.6
_BLUE, _RED = np.array(NEGATIVE, np.uint8), np.array(POSITIVE, np.uint8)


def role_of(layer: Layer) -> tuple[str | None, str | None]:
    """Role and side in a layer's metadata; None for a layer that is not ours."""
    mark = layer.metadata.get("cease", {})
    return mark.get("role"), mark.get("side")


def perturbation_rgba(perturbation: NDArray[np.float32], limit: float) -> NDArray[np.uint8]:
    """Colour a perturbation: blue darkens the scan, red brightens it, zero is transparent.

    Parameters
    ----------
    perturbation
        Window fractions, shape (C, *spatial); of several channels the largest change is shown.
    limit
        Magnitude that gets the strongest colour.

    Returns
    -------
    array
        uint8, shape (*spatial, 4).
    """
    channel = np.abs(perturbation).argmax(axis=0)[None]
    value = np.take_along_axis(perturbation, channel, axis=0)[0]
    strength = np.clip(np.abs(value) / limit, 0, 1)
    rgba = np.empty((*value.shape, 4), np.uint8)
    rgba[..., :3] = np.where(value[..., None] < 0, _BLUE, _RED)
    rgba[..., 3] = np.rint(255 * STRONGEST_ALPHA * strength)
    return rgba


class Panes:
    """Our layers in one viewer.

    Parameters
    ----------
    viewer
        Any napari viewer model.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.scan: Scan | None = None
        viewer.events.reset_view.connect(self._fit_panes)

    def find(self, role: Role, side: Side | None = None) -> Any:
        """The layer with this role, or None."""
        for layer in self.viewer.layers:
            if role_of(layer) == (role, side):
                return layer
        return None

    def open(
        self, scan: Scan, scan_layer: Image, labels_layer: Labels | None, cards: dict[Side, ModelCard], *, split: bool
    ) -> None:
        """Lay out the panes for a scan, replacing what was there.

        Parameters
        ----------
        split
            Show two panes side by side; otherwise both models' layers lie over the one scan.
        """
        self.close()
        self.scan = scan
        first = self.viewer.layers.index(scan_layer) + 1
        split = split and len(cards) == 2
        colours = self._colours(labels_layer, cards)
        for side, card in cards.items():
            right = split and side == "defended"
            at = len(self.viewer.layers) if right else first
            if right:
                # The twin is the right pane's floor; its index is also the grid's stride.
                stride = at
                at += self._insert(at, self._twin(scan_layer, "scan twin"))
            new = [
                self._adversarial(side),
                self._perturbation(side),
                self._mask(side, card, colours, over=not split),
            ]
            for layer in new:
                at += self._insert(at, layer)
            if not right:
                first = at
            elif labels_layer is not None:
                self._insert(at, self._twin(labels_layer, "labels twin"))
        grid = self.viewer.canvas.grid
        if split:
            grid.stride, grid.shape, grid.spacing = stride, (1, 2), 8
        if grid.enabled != split:
            grid.enabled = split
        self.viewer.layers.selection = {scan_layer}

    def close(self) -> None:
        """Remove our layers, and only ours."""
        for layer in [x for x in self.viewer.layers if role_of(x)[0] not in (None, "scan", "labels")]:
            self.viewer.layers.remove(layer)
        self.viewer.canvas.grid.enabled = False
        self.scan = None

    def _fit_panes(self) -> None:
        # napari fits the scene to the whole canvas; with the grid on, each pane has only its share of it.
        if self.scan is None or not self.viewer.canvas.grid.enabled or self.viewer.dims.ndisplay != 2:
            return
        rows, columns = self.viewer.canvas.grid.actual_shape(self.viewer.layers)
        height, width = self.viewer.canvas.size
        shown = list(self.viewer.dims.displayed)
        world = self.viewer.layers.extent
        size = (np.ptp(world.world, axis=0) + world.step)[shown]
        self.viewer.camera.zoom = 0.94 * float(min(height / rows / size[0], width / columns / size[1]))

    def release(self) -> None:
        """Take our layers away and stop listening to the viewer."""
        self.close()
        self.viewer.events.reset_view.disconnect(self._fit_panes)

    def show(self, view: View, place: tuple[slice | int, ...], *, limit: float, adversarial: bool, title: str) -> None:
        """Put one model's view into its layers; slices that it does not cover become empty.

        Parameters
        ----------
        place
            Where on the scan's grid the view lies.
        limit
            Perturbation, in window fractions, that gets the strongest colour.
        adversarial
            Whether the adversarial scan is shown.
        title
            Name of the mask layer, which the pane shows.
        """
        mask, perturbation = self.find("mask", view.side), self.find("perturbation", view.side)
        if mask is None or perturbation is None or self.scan is None:
            return
        _fill(mask, place, view.mask)
        _fill(perturbation, place, perturbation_rgba(view.perturbation, limit))
        mask.name = title
        layer = self.find("adversarial", view.side)
        if adversarial and layer is not None:
            image = self.scan.image[(slice(None), *place)]
            # Shown in the units the model's window is in: the perturbation is a share of it.
            changed = image + view.perturbation * np.float32(layer.metadata["cease"]["width"])
            _fill(layer, place, display_array(changed, self.scan))

    def set_visible(self, role: Role, visible: bool) -> None:
        """Show or hide the layers of a role on both sides."""
        for layer in self.viewer.layers:
            if role_of(layer)[0] == role:
                layer.visible = visible

    def set_window_width(self, side: Side, width: float) -> None:
        """Tell the adversarial layer how much of the scan's unit a window fraction is."""
        layer = self.find("adversarial", side)
        if layer is not None:
            layer.metadata["cease"]["width"] = width

    def _insert(self, at: int, layer: Layer) -> int:
        self.viewer.layers.insert(at, layer)
        return 1

    def _mark(self, role: Role, side: Side | None) -> dict[str, Any]:
        return {"cease": {"role": role, "side": side, "scan": self.scan, "width": 1.0}}

    def _mask(self, side: Side, card: ModelCard, colours: DirectLabelColormap, over: bool) -> Labels:
        assert self.scan is not None
        layer = Labels(
            np.zeros(self.scan.shape, np.uint8),
            name=f"{TITLES[side]}: mask",
            opacity=0.55,
            colormap=colours,
            features={"index": [0, *(c.id for c in card.classes)], "class": ["none", *(c.name for c in card.classes)]},
            metadata=self._mark("mask", side),
            **layer_geometry(self.scan),
        )
        layer.name_overlay.visible = True
        layer.editable = False
        if over and side == "defended":
            # Two fills of one colour could not be told apart: over the other mask this one is an outline.
            layer.contour, layer.opacity = 3, 1.0
            layer.name_overlay.position = "top_right"
        return layer

    def _perturbation(self, side: Side) -> Image:
        assert self.scan is not None
        return Image(
            np.zeros((*self.scan.shape, 4), np.uint8),
            rgb=True,
            name=f"{TITLES[side]}: perturbation",
            metadata=self._mark("perturbation", side),
            **layer_geometry(self.scan),
        )

    def _adversarial(self, side: Side) -> Image:
        assert self.scan is not None
        options: dict[str, Any] = {"rgb": self.scan.rgb}
        if not self.scan.rgb:
            options |= {"contrast_limits": tuple(self.scan.window), "colormap": "gray"}
        return Image(
            display_array(self.scan.image, self.scan).copy(),
            name=f"{TITLES[side]}: adversarial scan",
            visible=False,
            metadata=self._mark("adversarial", side),
            **options,
            **layer_geometry(self.scan),
        )

    def _twin(self, layer: Layer, role: Role) -> Layer:
        assert self.scan is not None
        common: dict[str, Any] = {"name": f"{layer.name} (right)", "metadata": self._mark(role, None)}
        if isinstance(layer, Labels):
            twin = Labels(
                layer.data, colormap=layer.colormap, opacity=layer.opacity, **common, **layer_geometry(self.scan)
            )
            twin.contour = layer.contour
            return twin
        options = {} if layer.rgb else {"contrast_limits": layer.contrast_limits, "colormap": layer.colormap.name}
        return Image(layer.data, rgb=layer.rgb, **options, **common, **layer_geometry(self.scan))

    @staticmethod
    def _colours(labels_layer: Labels | None, cards: dict[Side, ModelCard]) -> DirectLabelColormap:
        """One colour a class in every layer: the user's, if there is a reference, else the card's."""
        colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
        for card in cards.values():
            for c in card.classes:
                taken = labels_layer.get_color(c.id) if labels_layer is not None else None
                colours.setdefault(c.id, c.color if taken is None else taken)
        return DirectLabelColormap(color_dict=colours)


def _fill(layer: Any, place: tuple[slice | int, ...], values: NDArray[Any]) -> None:
    # In place and refreshed: half the time of assigning new data.
    data = layer.data
    if values.shape != data.shape:
        data[...] = 0 if layer.metadata["cease"]["role"] != "adversarial" else data
        data[place] = values
    else:
        data[...] = values
    layer.refresh(thumbnail=False, extent=False, highlight=False)
