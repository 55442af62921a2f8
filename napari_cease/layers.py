"""The only place that creates or updates layers.

A pane shows one model: its mask and perturbation, and the adversarial scan, over the scan and the reference.
The left pane lies on the user's own scan and labels layers; the right one gets twins of them, which share their
data, so that napari's grid can show both panes with one camera. Layers are found again by the role in their
metadata; the user's layers are read and never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Shapes
from napari.utils.colormaps import Colormap, DirectLabelColormap, ensure_colormap
from numpy.typing import NDArray
from qtpy.QtCore import QTimer

from cease_core.models import ModelCard
from cease_core.scan import Scan
from napari_cease.geometry import display_array, layer_geometry
from napari_cease.jobs.exploration import SIDES, Opened, Side, View
from napari_cease.jobs.training import Preview
from napari_cease.samples import class_colours
from napari_cease.units import LEVELS

Role = Literal["scan", "labels", "mask", "perturbation", "adversarial", "critical", "scan twin", "labels twin"]
OURS: tuple[Role, ...] = ("mask", "perturbation", "adversarial")
TRAINING = "training"
"""Role of the layers that show a training's validation case; the side says which of them."""

TITLES: dict[Side, str] = {"undefended": "Undefended", "defended": "Defended"}
# Okabe–Ito vermillion and bluish green: apart in any common colour vision, and on dark or light ground.
COLOURS: dict[Side, str] = {"undefended": "#D55E00", "defended": "#009E73"}
MARKS: dict[Side, str] = {"undefended": "●", "defended": "■"}
"""In text, what the curves' symbols are in a plot."""
# Two ends of a blue–red scale, bright enough on grey scans and apart for any common colour vision.
NEGATIVE, POSITIVE = (64, 144, 255), (255, 72, 60)
STRONGEST_ALPHA = 0.6
LETTER = 1.1
"""Width of a letter on the canvas, in pixels for each point of its font."""
MARGIN = 24
"""Room in pixels that a title leaves on both sides of its pane together."""
SMALLEST, LARGEST = 7.0, 10.0
"""Font sizes, in points, between which a pane's title fits the pane."""
CRITICAL_ALPHA = 0.85


def _scale() -> NDArray[np.uint32]:
    # The 511 colours from -1 to 1, one number each: a look-up is many times faster than colouring voxel by voxel.
    steps = np.arange(-255, 256)
    rgba = np.empty((len(steps), 4), np.uint8)
    rgba[:, :3] = np.where(steps[:, None] < 0, NEGATIVE, POSITIVE)
    rgba[:, 3] = np.rint(STRONGEST_ALPHA * np.abs(steps))
    return rgba.view(np.uint32)[:, 0]


_SCALE = _scale()


def fragile_first() -> Colormap:
    """Perceptually uniform, bright where little is needed; NaN, never flipped, is transparent."""
    # Without its darkest tenth, which would look like a hole in the scan.
    colours = ensure_colormap("viridis").colors
    return Colormap(colours[len(colours) // 10 :][::-1], name="critical ε", nan_color="transparent")


def role_of(layer: Layer) -> tuple[str | None, str | None]:
    """Role and side in a layer's metadata; None for a layer that is not ours."""
    mark = layer.metadata.get("cease", {})
    return mark.get("role"), mark.get("side")


def is_mask(layer: Layer) -> bool:
    """Whether a labels or shapes layer is the user's, not one of ours; a scan that was converted to labels is."""
    return role_of(layer)[0] in (None, "labels", "scan")


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
    value = perturbation[0]
    for channel in perturbation[1:]:
        value = np.where(np.abs(channel) > np.abs(value), channel, value)
    step = np.rint(np.clip(value * np.float32(255 / limit), -255, 255)).astype(np.int16)
    rgba: NDArray[np.uint8] = _SCALE[step + 255].view(np.uint8).reshape(*value.shape, 4)
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
        self._shown: dict[Side, tuple[View, Opened, float, str]] = {}
        self._critical: dict[Side, NDArray[np.float32]] = {}
        self._twins: list[tuple[Layer, Layer]] = []
        self._lit: Image | None = None
        viewer.events.reset_view.connect(self._fit_panes)
        viewer.canvas.events.size.connect(self._fit_titles)
        viewer.layers.events.removed.connect(self._on_removed)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.reordered):
            event.connect(self._keep_stride)

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
        # napari builds its scene once a batch, and not once a layer.
        with self.viewer.layers.batched_update():
            self._open(scan, scan_layer, labels_layer, cards, split)
        self.viewer.layers.selection = {scan_layer}

    def _open(
        self, scan: Scan, scan_layer: Image, labels_layer: Labels | None, cards: dict[Side, ModelCard], split: bool
    ) -> None:
        self._remove()
        self.scan = scan
        self._lit = scan_layer
        scan_layer.events.contrast_limits.connect(self._follow_contrast)
        first = self.viewer.layers.index(scan_layer) + 1
        split = split and len(cards) == 2
        colours = self._colours(labels_layer, cards)
        for side, card in cards.items():
            right = split and side == "defended"
            at = len(self.viewer.layers) if right else first
            if right:
                at += self._insert(at, self._twin(scan_layer, "scan twin"))
            new = [
                self._adversarial(side, scan_layer),
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
            grid.shape, grid.spacing = (1, 2), 8
        if grid.enabled != split:
            grid.enabled = split
        self._keep_stride()

    def close(self) -> None:
        """Remove our layers, and only ours."""
        with self.viewer.layers.batched_update():
            self._remove()
            self.viewer.canvas.grid.enabled = False

    def _remove(self) -> None:
        self.scan = None
        self._shown.clear()
        self._critical.clear()
        for layer, _ in self._twins:
            for event in edits(layer):
                event.disconnect(self._follow)
        self._twins.clear()
        if self._lit is not None:
            self._lit.events.contrast_limits.disconnect(self._follow_contrast)
            self._lit = None
        for layer in [x for x in self.viewer.layers if role_of(x)[0] not in (None, "scan", "labels", TRAINING)]:
            self.viewer.layers.remove(layer)

    def _on_removed(self, event: Any) -> None:
        self._twins = [pair for pair in self._twins if event.value not in pair]

    def _keep_stride(self, _: Any = None) -> None:
        """Start the right pane at its floor, whatever layers were added, moved or deleted since."""
        grid = self.viewer.canvas.grid
        if self.scan is None or not grid.enabled:
            return
        floor = self.find("scan twin")
        if floor is None:
            grid.enabled = False
        elif (stride := self.viewer.layers.index(floor)) > 0 and grid.stride != stride:
            grid.stride = stride

    def _follow(self, _: Any = None) -> None:
        """Show the user's edits of scan and reference in the right pane too."""
        for layer, twin in self._twins:
            if twin.data is layer.data:
                twin.refresh(thumbnail=False)
            else:
                twin.data = layer.data

    def _follow_contrast(self, _: Any = None) -> None:
        """Show the same intensities everywhere as the user's scan does."""
        for layer in self.viewer.layers:
            if role_of(layer)[0] in ("scan twin", "adversarial") and self._lit is not None and not layer.rgb:
                layer.contrast_limits = self._lit.contrast_limits

    def _fit_titles(self, _: Any = None) -> None:
        for layer in self.viewer.layers:
            if role_of(layer)[0] == "mask":
                fit_title(self.viewer, layer)

    @property
    def letters(self) -> int:
        """How long a title may be that can still be read."""
        return letters(self.viewer)

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
        self.viewer.canvas.events.size.disconnect(self._fit_titles)
        layers = self.viewer.layers.events
        layers.removed.disconnect(self._on_removed)
        for event in (layers.inserted, layers.removed, layers.reordered):
            event.disconnect(self._keep_stride)

    def show(self, view: View, opened: Opened, *, limit: float, title: str) -> None:
        """Put one model's view into its visible layers; slices that it does not cover become empty.

        Parameters
        ----------
        opened
            Where on the scan's grid the view lies, and the model's window.
        limit
            Perturbation, in window fractions, that gets the strongest colour.
        title
            Name of the mask layer, which the pane shows.
        """
        now = (view, opened, limit, title)
        if self.scan is None or self._shown.get(view.side) == now:
            return
        self._shown[view.side] = now
        for role in OURS:
            layer = self.find(role, view.side)
            if layer is None:
                continue
            if role == "mask":
                layer.name = title
                fit_title(self.viewer, layer)
            if layer.visible:
                self._fill(layer, opened.place, self._values(role, view, opened, limit))

    def set_critical(self, shown: bool, sides: Sequence[Side]) -> None:
        """Add the layers of the critical ε, over the masks, or take them away."""
        selected = set(self.viewer.layers.selection)
        with self.viewer.layers.batched_update():
            for side in SIDES:
                layer = self.find("critical", side)
                if layer is not None and not shown:
                    self._critical.pop(side, None)
                    self.viewer.layers.remove(layer)
                elif layer is None and shown and side in sides and self.scan is not None:
                    mask = self.find("mask", side)
                    at = len(self.viewer.layers) if mask is None else self.viewer.layers.index(mask) + 1
                    self._insert(at, self._critical_map(side))
            self._keep_stride()
        self.viewer.layers.selection = {layer for layer in selected if layer in self.viewer.layers}

    def show_critical(self, side: Side, opened: Opened, values: NDArray[np.float32], top: int) -> None:
        """Put the critical ε of one part of the scan into its layer.

        Parameters
        ----------
        values
            Of every voxel, in 1/255, shape (*part); NaN where nothing flipped it. Told apart by identity.
        top
            Largest ε that was tried, in 1/255.
        """
        layer = self.find("critical", side)
        if layer is None or self._critical.get(side) is values:
            return
        self._critical[side] = values
        if layer.contrast_limits[1] != top:
            layer.contrast_limits_range = layer.contrast_limits = (0, top)
        self._fill(layer, opened.place, values)

    def _values(self, role: Role, view: View, opened: Opened, limit: float) -> NDArray[Any]:
        assert self.scan is not None
        if role == "mask":
            return view.mask
        if role == "perturbation":
            return perturbation_rgba(view.perturbation, limit)
        # In the scan's unit: the perturbation is a share of the window of this side's model.
        changed = self._clean(opened.place) + view.perturbation * np.float32(opened.window.width)
        return display_array(changed, self.scan)

    def _clean(self, place: tuple[slice | int, ...]) -> NDArray[np.float32]:
        assert self.scan is not None
        return self.scan.image[(slice(None), *place)]

    def _fill(self, layer: Any, place: tuple[slice | int, ...], values: NDArray[Any]) -> None:
        mark = layer.metadata["cease"]
        if mark.pop("borrowed", False):
            layer.data = np.array(layer.data)
        before = mark.get("place", place)
        if before != place:
            assert self.scan is not None
            if mark["role"] == "adversarial":
                layer.data[before] = display_array(self._clean(before), self.scan)
            else:
                layer.data[before] = np.nan if mark["role"] == "critical" else 0
        # In place and refreshed: half the time of assigning new data.
        layer.data[place] = values
        mark["place"] = place
        layer.refresh(thumbnail=False, extent=False, highlight=False)

    def _on_visible(self, event: Any) -> None:
        # A hidden layer is not kept up to date.
        layer = event.source
        if layer.visible and (now := self._shown.pop(role_of(layer)[1], None)):  # type: ignore[call-overload]
            view, opened, limit, title = now
            self.show(view, opened, limit=limit, title=title)

    def set_visible(self, role: Role, visible: bool) -> None:
        """Show or hide the layers of a role on both sides."""
        for layer in self.viewer.layers:
            # Even a visibility that stays the same makes napari build its scene anew.
            if role_of(layer)[0] == role and layer.visible != visible:
                layer.visible = visible

    def _insert(self, at: int, layer: Layer) -> int:
        self.viewer.layers.insert(at, layer)
        layer.events.visible.connect(self._on_visible)
        return 1

    def _mark(self, role: Role, side: Side | None) -> dict[str, Any]:
        return {"cease": {"role": role, "side": side, "scan": self.scan}}

    def _mask(self, side: Side, card: ModelCard, colours: DirectLabelColormap, over: bool) -> Labels:
        assert self.scan is not None
        layer = Labels(
            np.zeros(self.scan.shape, np.min_scalar_type(len(card.classes))),
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

    def _adversarial(self, side: Side, scan_layer: Image) -> Image:
        assert self.scan is not None
        options: dict[str, Any] = {"rgb": self.scan.rgb}
        if not self.scan.rgb:
            options |= {"contrast_limits": scan_layer.contrast_limits, "colormap": "gray"}
        mark = self._mark("adversarial", side)
        # The scan's own values until there is something to show: a copy of a large volume can wait for that.
        mark["cease"]["borrowed"] = True
        return Image(
            display_array(self.scan.image, self.scan),
            name=f"{TITLES[side]}: adversarial scan",
            visible=False,
            metadata=mark,
            **options,
            **layer_geometry(self.scan),
        )

    def _critical_map(self, side: Side) -> Image:
        assert self.scan is not None
        layer = Image(
            np.full(self.scan.shape, np.nan, np.float32),
            name=f"critical ε in 1/255 ({side})",
            colormap=fragile_first(),
            contrast_limits=(0, 1),
            opacity=CRITICAL_ALPHA,
            metadata=self._mark("critical", side),
            **layer_geometry(self.scan),
        )
        layer.colorbar.visible = True
        layer.colorbar.position = "bottom_left"
        return layer

    def _twin(self, layer: Layer, role: Role) -> Layer:
        assert self.scan is not None
        common: dict[str, Any] = {"name": f"{layer.name} (right)", "metadata": self._mark(role, None)}
        common |= layer_geometry(self.scan)
        if isinstance(layer, Labels):
            twin = Labels(layer.data, colormap=layer.colormap, opacity=layer.opacity, **common)
            twin.contour = layer.contour
        else:
            options = {} if layer.rgb else {"contrast_limits": layer.contrast_limits, "colormap": layer.colormap.name}
            twin = Image(layer.data, rgb=layer.rgb, **options, **common)
        for event in edits(layer):
            event.connect(self._follow)
        self._twins.append((layer, twin))
        return twin

    @staticmethod
    def _colours(labels_layer: Labels | None, cards: dict[Side, ModelCard]) -> DirectLabelColormap:
        """One colour a class in every layer: the user's, if there is a reference, else the card's."""
        colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
        for card in cards.values():
            for c in card.classes:
                taken = labels_layer.get_color(c.id) if labels_layer is not None else None
                colours.setdefault(c.id, c.color if taken is None else taken)
        return DirectLabelColormap(color_dict=colours)


def pane_width(viewer: ViewerModel) -> float:
    """What a title has of one pane, in pixels."""
    return float(viewer.canvas.size[1]) / (2 if viewer.canvas.grid.enabled else 1) - MARGIN


def letters(viewer: ViewerModel) -> int:
    """How long the title of a pane may be that can still be read."""
    return int(pane_width(viewer) / (LETTER * SMALLEST))


def fit_title(viewer: ViewerModel, layer: Layer) -> None:
    """Write a layer's name on the canvas as large as its pane has room for."""
    fitting = pane_width(viewer) / (LETTER * max(len(layer.name), 1))
    layer.name_overlay.font_size = min(max(fitting, SMALLEST), LARGEST)


class TrainingLayers:
    """A training's validation case under attack, as layers that are brought up to date in place.

    They lie below whatever else is shown, as wide as that, so that neither covers the other.

    Parameters
    ----------
    viewer
        Any napari viewer model.
    gone
        Called when the user has removed one of them; the others go with it.
    """

    TITLES: ClassVar = {
        "scan": "Training: scan",
        "clean": "Training: mask, clean",
        "mask": "Training: mask under attack",
        "truth": "Training: truth",
    }

    def __init__(self, viewer: ViewerModel, gone: Callable[[], None]) -> None:
        self.viewer = viewer
        self._gone = gone
        self._changing = False
        self._leaving = False
        viewer.layers.events.removed.connect(self._on_removed)

    def find(self, which: str) -> Any:
        """One of the layers, by its key in `TITLES`, or None."""
        return next((x for x in self.viewer.layers if role_of(x) == (TRAINING, which)), None)

    def show(self, preview: Preview) -> None:
        """Show the newest picture: new layers at first, later the same with other values."""
        if self._leaving:
            return
        place = self._place(preview)
        first = self.find("scan") is None
        alone = not self.viewer.layers
        most = max(int(mask.max()) for mask in (preview.labels, preview.clean, preview.attacked))
        colours = class_colours(range(1, most + 1))
        values = {
            "scan": _picture(preview),
            "clean": preview.clean,
            "mask": preview.attacked,
            "truth": preview.labels,
        }
        with self._at_work():
            if first:
                selected = set(self.viewer.layers.selection)
                with self.viewer.layers.batched_update():
                    for at, (which, data) in enumerate(values.items()):
                        self.viewer.layers.insert(at, self._make(which, data, place))
                self.viewer.layers.selection = selected
            for which, data in values.items():
                layer = self.find(which)
                layer.data = data
                layer.scale, layer.translate = place["scale"], place["translate"]
                if which != "scan":
                    layer.colormap = colours
            told = f"epoch {preview.epoch} · ε {preview.epsilon * LEVELS:.3g}/{LEVELS} · Dice {preview.dice[1]:.2f}"
            title = f"{self.TITLES['mask']} · {told}"
            mask = self.find("mask")
            mask.name = title if len(title) <= letters(self.viewer) else f"Training · Dice {preview.dice[1]:.2f}"
            fit_title(self.viewer, mask)
            self.find("scan").name = f"{self.TITLES['scan']} ({preview.case})"
        if alone:
            self.viewer.reset_view()

    def close(self) -> None:
        """Take them away."""
        ours = [x for x in self.viewer.layers if role_of(x)[0] == TRAINING]
        if not ours:
            return
        with self._at_work(), self.viewer.layers.batched_update():
            for layer in ours:
                self.viewer.layers.remove(layer)

    def release(self) -> None:
        """Take them away and stop listening to the viewer."""
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        self._leaving = False
        self.close()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """What is removed meanwhile is not the user's doing."""
        self._changing = True
        try:
            yield
        finally:
            self._changing = False

    def _on_removed(self, event: Any) -> None:
        if self._changing or self._leaving or role_of(event.value)[0] != TRAINING:
            return
        # Later: of several layers that were selected, the user may be about to remove the others as well.
        self._leaving = True
        QTimer.singleShot(0, self._leave)

    def _leave(self) -> None:
        if self._leaving:
            self._leaving = False
            self.close()
            self._gone()

    def _place(self, preview: Preview) -> dict[str, Any]:
        others = [x for x in self.viewer.layers if role_of(x)[0] != TRAINING]
        place: dict[str, Any] = {"scale": (1.0, 1.0), "translate": (0.0, 0.0), "units": ("pixel", "pixel")}
        # Layers that hold nothing, such as new shapes, lie nowhere.
        corners = [c for x in others if np.isfinite(c := x.extent.world[:, -2:]).all()]
        if corners:
            low, high = np.min(corners, axis=(0, 1)), np.max(corners, axis=(0, 1))
            spacing = max(float(high[1] - low[1]), 1e-6) / preview.image.shape[-1]
            gap = 0.04 * float(high[1] - low[1])
            place["scale"] = (spacing, spacing)
            place["translate"] = (high[0] + gap + spacing / 2, low[1] + spacing / 2)
        if others:
            # Layers that disagree would leave the viewer without units.
            place["units"] = tuple(others[0].units[-2:])
        return place

    def _make(self, which: str, data: NDArray[Any], place: dict[str, Any]) -> Layer:
        common: dict[str, Any] = {
            "name": self.TITLES[which],
            "metadata": {"cease": {"role": TRAINING, "side": which}},
            "axis_labels": ("y", "x"),
            **place,
        }
        if which == "scan":
            rgb = data.ndim == 3
            return Image(data, rgb=rgb, **({} if rgb else {"contrast_limits": (0, 1), "colormap": "gray"}), **common)
        layer = Labels(data, opacity=0.55 if which != "truth" else 1.0, visible=which != "clean", **common)
        layer.editable = False
        if which == "truth":
            layer.contour = 1
        if which == "mask":
            layer.name_overlay.visible = True
            # Below the panes, where their own names are on top.
            layer.name_overlay.position = "bottom_left"
        return layer


def _picture(preview: Preview) -> NDArray[Any]:
    """The image as a layer takes it: colours as 8 bits with the channel last, else the first channel."""
    if len(preview.image) == 3:
        return np.rint(255 * np.clip(np.moveaxis(preview.image, 0, -1), 0, 1)).astype(np.uint8)
    first: NDArray[np.float32] = preview.image[0]
    return first


def edits(layer: Layer) -> list[Any]:
    """What a layer emits when its values change, or where they lie."""
    moves = [getattr(layer.events, name) for name in ("scale", "translate", "rotate", "shear", "affine")]
    return [
        layer.events.data,
        *([layer.events.paint] if isinstance(layer, Labels) else []),
        *(moves if isinstance(layer, Shapes) else []),
    ]


def show_frame(layer: Image, scan: Scan) -> None:
    """Put another volume of a series into the layer that shows one of them, in the same contrast."""
    layer.metadata = {**layer.metadata, "affine": scan.affine, "cease": {**layer.metadata["cease"], "scan": scan}}
    layer.name = scan.name
    layer.data = display_array(scan.image, scan)
