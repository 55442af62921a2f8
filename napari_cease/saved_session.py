"""What a window shows, as a value that can be written and read: the user's layers, the explorer's choices, the view.

Scans are named by their files, since those do not change here; masks and whatever has no file go along, each in a file
of its own. A saved session is a folder of such files, or the same folder as one zip. Nothing is ever unpickled, and
what a file claims is checked before memory is asked for. No Qt here.
"""

from __future__ import annotations

import gzip
import logging
import math
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Image, Labels, Layer, Shapes
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cease_core.errors import CeaseError, first_fault
from cease_core.io.files import write_atomically, write_text
from cease_core.scan import Scan, check_labels
from napari_cease.history import Choices
from napari_cease.layers import role_of
from napari_cease.readers import LayerData, open_scan, scan_layers
from napari_cease.samples import labels_layer, sample_root
from napari_cease.units import LEVELS

log = logging.getLogger(__name__)

SUFFIX = ".cease"
DESCRIPTION, ARRAY = "session.json", ".npy.gz"
MAX_DESCRIPTION = 16 * 2**20
"""Bytes of a description; drawn shapes are in it."""
MAX_VALUES = 4 * 2**30
"""Bytes of all masks and images of a session in memory."""
MAX_LAYERS = 200
MAX_EFFORT = 1000
"""Steps or restarts that an attack is given without being asked for by hand."""
MAX_UNNAMED = 256 * 2**20
"""Bytes of an image that no file holds; a larger one is not kept."""
_IDS = np.iinfo(np.int32)
_DEFLATE_RATIO = 1032
"""No deflate stream expands further (RFC 1951)."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=1000)]
Which = Annotated[int, Field(ge=0)]
"""A layer, by its place among those that were kept."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SavedShape(_Part):
    """One drawn shape; vertices in the layer's own coordinates, colours as RGBA."""

    kind: Literal["line", "rectangle", "ellipse", "path", "polygon"]
    vertices: tuple[tuple[Finite, ...], ...]
    edge: tuple[Finite, ...]
    face: tuple[Finite, ...]
    width: Finite


class SavedLayer(_Part):
    """A layer of the user's.

    Parameters
    ----------
    path, sample
        The scan's file or folder; relative to the sample data if it is among them. Of a mask, if no layer shows its
        scan.
    frame
        Which volume of a series.
    channel
        Which channel of the scan.
    scan
        The layer of the scan that a mask belongs to.
    array
        Name of the file that holds the values, where no other file does.
    drawn
        Whether the user has made or changed it.
    """

    kind: Literal["image", "labels", "shapes"]
    name: Name
    visible: bool = True
    opacity: float = Field(default=1.0, ge=0, le=1)
    path: Name | None = None
    sample: bool = False
    frame: int | None = Field(default=None, ge=0)
    channel: int | None = Field(default=None, ge=0)
    scan: Which | None = None
    classes: dict[int, Name] = Field(default_factory=dict)
    array: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}\.npy\.gz$")
    rgb: bool = False
    scale: tuple[Finite, ...] = ()
    translate: tuple[Finite, ...] = ()
    limits: tuple[Finite, Finite] | None = None
    contour: int = Field(default=0, ge=0, le=100)
    ndim: int = Field(default=2, ge=2, le=6)
    shapes: tuple[SavedShape, ...] = ()
    drawn: bool = False


class SavedChoices(_Part):
    """What the explorer was asked for; layers by their place among those kept."""

    scan: Which | None = None
    labels: Which | None = None
    undefended: Name | None = None
    defended: Name | None = None
    attack: Name
    parameters: dict[str, Any] = Field(default_factory=dict)
    target: Name | Which | None = None
    region: Which | None = None
    top: int = Field(ge=1, le=LEVELS)
    level: int = Field(ge=0, le=LEVELS)
    index: int = Field(ge=0)
    gain: float = Field(gt=0, allow_inf_nan=False)
    show_perturbation: bool
    show_adversarial: bool
    show_critical: bool
    side_by_side: bool


class SavedView(_Part):
    """Camera and position."""

    center: tuple[Finite, ...] = Field(min_length=2, max_length=3)
    zoom: float = Field(gt=0, allow_inf_nan=False)
    angles: tuple[Finite, Finite, Finite]
    ndisplay: Literal[2, 3]
    point: tuple[Finite, ...]


class SavedLook(_Part):
    """How one of the explorer's own layers was shown."""

    role: Name
    side: Name | None
    visible: bool
    opacity: float = Field(ge=0, le=1)


class SavedSession(_Part):
    """All of it.

    Parameters
    ----------
    when
        Local time with its zone.
    layers
        From the bottom to the top.
    """

    version: Literal[1] = 1
    when: datetime
    layers: tuple[SavedLayer, ...] = Field(max_length=MAX_LAYERS)
    choices: SavedChoices
    view: SavedView
    looks: tuple[SavedLook, ...] = ()

    @field_validator("layers")
    @classmethod
    def _own_values(cls, layers: tuple[SavedLayer, ...]) -> tuple[SavedLayer, ...]:
        arrays = [layer.array for layer in layers if layer.array is not None]
        if len(set(arrays)) < len(arrays):
            raise ValueError("two layers have the same values")
        return layers

    @property
    def told(self) -> str:
        """What it would open, in words: ``scd_15, ε 8/255, 2 drawn layers, from 14:32``."""
        scan, drawn = self.choices.scan, sum(layer.drawn for layer in self.layers)
        named = scan is not None and scan < len(self.layers)
        parts = [self.layers[scan].name if named and scan is not None else "no scan chosen"]
        if named:
            parts.append(f"ε {self.choices.level}/{LEVELS}")
        if drawn:
            parts.append(f"{drawn} drawn {'layer' if drawn == 1 else 'layers'}")
        today = self.when.date() == datetime.now(self.when.tzinfo).date()
        return ", ".join([*parts, f"from {self.when:%H:%M}" if today else f"of {self.when:%d %B %Y, %H:%M}"])

    @property
    def arrays(self) -> frozenset[str]:
        """Names of the files beside the description."""
        return frozenset(layer.array for layer in self.layers if layer.array is not None)


# --- from a window -------------------------------------------------------------------------------------------


class Revisions:
    """Under which name a layer's values are kept: a new one after every edit."""

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[Layer, str] = WeakKeyDictionary()
        self._edited: WeakKeyDictionary[Layer, bool] = WeakKeyDictionary()

    def edited(self, layer: Layer) -> None:
        """The values have changed."""
        self._names.pop(layer, None)
        self._edited[layer] = True

    def name(self, layer: Layer) -> str:
        """Of the file for the present values."""
        return self._names.setdefault(layer, uuid.uuid4().hex + ARRAY)

    def is_drawn(self, layer: Layer) -> bool:
        """Whether the user has made or changed a layer."""
        return layer in self._edited or role_of(layer)[0] is None


def snapshot(
    viewer: Any, explorer: Any, revisions: Revisions, have: frozenset[str] | set[str] = frozenset()
) -> tuple[SavedSession, dict[str, NDArray[Any]]]:
    """What a window shows now.

    Parameters
    ----------
    viewer, explorer
        A napari viewer and its `napari_cease.explorer.Explorer`.
    have
        Names of files that are written already, so that no values are copied for them.

    Returns
    -------
    session, arrays
        The values by the name of their file, copied: the layers may change meanwhile.

    Raises
    ------
    CeaseError
        If there are more layers than a session holds.
    """
    layers = [layer for layer in viewer.layers if _is_kept(layer)]
    if len(layers) > MAX_LAYERS:
        raise CeaseError(
            f"this window shows {len(layers)} layers, and a session holds {MAX_LAYERS}; remove those not needed."
        )
    place = {layer: i for i, layer in enumerate(layers)}
    arrays: dict[str, NDArray[Any]] = {}
    saved = []
    for layer in layers:
        described = _describe(layer, place, revisions)
        if described.array is not None and described.array not in have:
            arrays[described.array] = np.array(layer.data)
        saved.append(described)
    chosen, s = explorer.choices(), explorer.session
    choices = SavedChoices(
        scan=place.get(chosen.scan),
        labels=place.get(chosen.labels),
        undefended=None if chosen.undefended is None else str(chosen.undefended),
        defended=None if chosen.defended is None else str(chosen.defended),
        attack=chosen.attack,
        parameters=dict(chosen.parameters),
        target=chosen.target if isinstance(chosen.target, str) else place.get(chosen.target),
        region=place.get(chosen.region),
        **{name: getattr(s, name) for name in ("top", "level", "index", *SHOWN)},
    )
    looks = [
        SavedLook(role=role, side=side, visible=layer.visible, opacity=layer.opacity)
        for layer in viewer.layers
        if layer not in place and (role := (mark := role_of(layer))[0]) in LOOKS and (side := mark[1] or None)
    ]
    camera, dims = viewer.camera, viewer.dims
    view = SavedView(
        center=tuple(camera.center),
        zoom=camera.zoom,
        angles=tuple(camera.angles),
        ndisplay=dims.ndisplay,
        point=tuple(float(x) for x in dims.point),
    )
    now = datetime.now().astimezone().replace(microsecond=0)
    return SavedSession(when=now, layers=tuple(saved), choices=choices, view=view, looks=tuple(looks)), arrays


SHOWN = ("gain", "show_perturbation", "show_adversarial", "show_critical", "side_by_side")
"""Fields of the explorer's session that say how results are shown."""
LOOKS = ("mask", "perturbation", "adversarial", "critical")
"""The explorer's own layers of which it is kept how they are shown."""


def _is_kept(layer: Layer) -> bool:
    if role_of(layer)[0] not in (None, "scan", "labels") or type(layer) not in (Image, Labels, Shapes):
        return False
    if isinstance(layer, Shapes):
        return True
    if layer.multiscale or not isinstance(layer.data, np.ndarray):
        return False
    return isinstance(layer, Labels) or _scan_path(layer) is not None or layer.data.nbytes <= MAX_UNNAMED


def _scan_path(layer: Layer) -> Path | None:
    mark = layer.metadata.get("cease", {})
    scan = mark.get("scan")
    return scan.path if mark.get("role") == "scan" and isinstance(scan, Scan) and scan.path is not None else None


def _describe(layer: Any, place: Mapping[Layer, int], revisions: Revisions) -> SavedLayer:
    common: dict[str, Any] = {
        "kind": layer._type_string,
        "name": layer.name[:1000],
        "visible": layer.visible,
        "opacity": layer.opacity,
        "scale": tuple(layer.scale),
        "translate": tuple(layer.translate),
        "ndim": layer.ndim,
    }
    if isinstance(layer, Shapes):
        return SavedLayer(**common, shapes=_shapes(layer), drawn=True)
    mark = layer.metadata.get("cease", {})
    if isinstance(layer, Labels):
        owner = _owner(layer, place)
        return SavedLayer(
            **common,
            **(_file_of(mark.get("scan")) if owner is None else {}),
            array=revisions.name(layer),
            scan=owner,
            classes=mark.get("classes", {}),
            contour=layer.contour,
            drawn=revisions.is_drawn(layer),
        )
    limits = None if layer.rgb else tuple(layer.contrast_limits)
    if _scan_path(layer) is None:
        return SavedLayer(**common, array=revisions.name(layer), rgb=layer.rgb, limits=limits)
    return SavedLayer(**common, **_file_of(mark["scan"]), channel=mark.get("channel"), rgb=layer.rgb, limits=limits)


def _file_of(scan: Any) -> dict[str, Any]:
    """How a scan is named, if a file holds it."""
    if not isinstance(scan, Scan) or scan.path is None:
        return {}
    path, sample = scan.path.absolute(), False
    with suppress(CeaseError, ValueError):
        path, sample = path.relative_to(sample_root()), True
    return {"path": str(path), "sample": sample, "frame": scan.metadata.get("frame")}


def _owner(mask: Layer, place: Mapping[Layer, int]) -> int | None:
    """Place of the layer that shows a mask's scan; of a series it may by now be another frame."""
    scan = mask.metadata.get("cease", {}).get("scan")
    if not isinstance(scan, Scan):
        return None
    marks = {i: layer.metadata.get("cease", {}) for layer, i in place.items() if layer is not mask}
    shown = {i: mark["scan"] for i, mark in marks.items() if mark.get("role") == "scan" and "scan" in mark}
    same = [i for i, other in shown.items() if other is scan]
    return next(iter([*same, *(i for i, other in shown.items() if _same_place(scan, other))]), None)


def _same_place(one: Scan, other: Scan) -> bool:
    grid = one.shape == other.shape and np.array_equal(one.affine, other.affine)
    return grid and one.path is not None and one.path == other.path


def _shapes(layer: Shapes) -> tuple[SavedShape, ...]:
    rows = zip(layer.shape_type, layer.data, layer.edge_color, layer.face_color, layer.edge_width, strict=True)
    return tuple(
        SavedShape(
            kind=kind,
            vertices=tuple(tuple(map(float, vertex)) for vertex in vertices),
            edge=tuple(map(float, edge)),
            face=tuple(map(float, face)),
            width=float(width),
        )
        for kind, vertices, edge, face, width in rows
    )


# --- to files ------------------------------------------------------------------------------------------------


def write_folder(folder: Path, session: SavedSession, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a session into a folder; whatever was there before is whole until this one is.

    Parameters
    ----------
    arrays
        Values that the folder does not hold yet, by the name of their file.

    Raises
    ------
    CeaseError
        If it cannot be written.
    """
    for name, array in arrays.items():
        write_atomically(folder / name, ARRAY, lambda part, array=array: _write_array(part, array))  # type: ignore[misc]
    write_text(folder / DESCRIPTION, session.model_dump_json())
    for file in folder.glob(f"*{ARRAY}"):
        if file.name not in session.arrays:
            with suppress(OSError):
                file.unlink(missing_ok=True)


def write_file(path: Path, session: SavedSession, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a session as one file.

    Raises
    ------
    CeaseError
        If it cannot be written.
    """

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
            file.writestr(DESCRIPTION, session.model_dump_json())
            for name, array in arrays.items():
                with file.open(name, "w", force_zip64=True) as member:
                    _pack(member, array)

    write_atomically(path, SUFFIX, write)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        _pack(file, array)


def _pack(file: IO[bytes], array: NDArray[Any]) -> None:
    if array.dtype.kind in "iu" and array.size:
        # A mask of a few classes is most of the time kept as 32 bits.
        array = array.astype(np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
        np.lib.format.write_array(packed, array, allow_pickle=False)


# --- from files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A session that was written, and where its values lie."""

    session: SavedSession
    source: Path


def read_session(source: Path) -> Kept:
    """Read what a saved session describes; its values are read by `rebuild`.

    Parameters
    ----------
    source
        A folder or a file.

    Raises
    ------
    CeaseError
        If it is missing, damaged, or not a session.
    """
    try:
        with _opened(source, DESCRIPTION) as (file, _):
            text = file.read(MAX_DESCRIPTION + 1)
        if len(text) > MAX_DESCRIPTION:
            raise ValueError("too large")
        return Kept(SavedSession.model_validate_json(text), source)
    except FileNotFoundError as error:
        raise CeaseError(f"{source} is not there any more; choose another session.") from error
    except ValidationError as error:
        fault = first_fault(error, "the description")
        raise CeaseError(
            f"{source.name} is not a session that can be opened ({fault[:200]}); choose another one."
        ) from error
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise CeaseError(f"{source.name} is damaged or no session at all; choose another one.") from error


@contextmanager
def _opened(source: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file of a session, and its size as it is stored."""
    if source.is_dir():
        with (source / name).open("rb") as file:
            yield file, (source / name).stat().st_size
        return
    with zipfile.ZipFile(source) as whole:
        info = whole.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile("values that were packed twice may be of any size")
        with whole.open(info) as file:
            yield file, min(info.compress_size, source.stat().st_size)


def _damaged(layer: SavedLayer) -> str:
    return f"{layer.name} is damaged in the session; everything else was restored."


class _Budget:
    """Bytes of memory that the values of a session may still take."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def take(self, layer: SavedLayer, size: int) -> None:
        if size > self.left:
            raise CeaseError(
                f"{layer.name} was left out: the session takes more than {MAX_VALUES / 2**30:.3g} GiB of memory; "
                "save fewer layers in one session."
            )
        self.left -= size


def _read_array(kept: Kept, layer: SavedLayer, budget: _Budget) -> NDArray[Any]:
    """Values of a layer, of which the header is believed only as far as the file can hold it."""
    assert layer.array is not None
    damaged = _damaged(layer)
    try:
        with _opened(kept.source, layer.array) as (file, stored), gzip.GzipFile(fileobj=file) as packed:
            version = np.lib.format.read_magic(packed)
            if version != (1, 0):
                raise CeaseError(damaged)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(packed)
            size = math.prod(shape) * dtype.itemsize
            kinds = "iub" if layer.kind == "labels" else "iubf"
            if dtype.kind not in kinds or len(shape) > 5 or not 0 < size <= stored * _DEFLATE_RATIO:
                raise CeaseError(damaged)
            # Labels grow to 32 bits.
            budget.take(layer, math.prod(shape) * max(dtype.itemsize, 4 if layer.kind == "labels" else 1))
            values = np.frombuffer(packed.read(size), dtype)
            if values.nbytes != size:
                raise CeaseError(damaged)
    except CeaseError:
        raise
    except Exception as error:
        # gzip, zlib, zipfile and numpy raise many a kind on damaged bytes.
        raise CeaseError(damaged) from error
    array = values.reshape(shape, order="F" if fortran else "C")
    if layer.kind == "labels" and not (_IDS.min <= array.min() and array.max() <= _IDS.max):
        raise CeaseError(damaged)
    # As napari's own labels are: classes that were not there when it was written can be painted.
    return array.astype(np.int32) if layer.kind == "labels" else array.copy()


@dataclass(frozen=True)
class Rebuilt:
    """The layers of a session, as napari makes them.

    Parameters
    ----------
    layers
        In their order; None where one could not be had.
    faults
        Why, a sentence for each.
    """

    session: SavedSession
    layers: Sequence[LayerData | None]
    faults: tuple[str, ...]


def rebuild(kept: Kept, stopped: Callable[[], bool] = lambda: False) -> Rebuilt:
    """Read scans and values of a session again; slow, so best beside the window's thread.

    What is missing or damaged is left out and said; the rest is there.
    """
    scans: dict[tuple[Path, int | None], Scan] = {}
    saved = kept.session.layers
    made: list[LayerData | None] = [None] * len(saved)
    faults: list[str] = []
    budget = _Budget()
    # Masks come after the scans that they belong to, wherever they lie in the list.
    for place in sorted(range(len(saved)), key=lambda i: saved[i].kind != "image"):
        if stopped():
            break
        layer = saved[place]
        try:
            made[place], fault = _remake(kept, layer, made, scans, budget)
        except CeaseError as error:
            fault = str(error)
        except Exception as error:
            log.exception("a layer of a session could not be made")
            fault = f"{layer.name} could not be restored ({type(error).__name__}); everything else was."
        faults += [fault] if fault else []
    return Rebuilt(kept.session, tuple(made), tuple(dict.fromkeys(faults)))


def _remake(
    kept: Kept,
    layer: SavedLayer,
    made: Sequence[LayerData | None],
    scans: dict[tuple[Path, int | None], Scan],
    budget: _Budget,
) -> tuple[LayerData, str]:
    """A layer, and what is not as it was, if anything."""
    shown: dict[str, Any] = {"name": layer.name, "visible": layer.visible, "opacity": layer.opacity}
    if layer.limits is not None and layer.limits[0] < layer.limits[1]:
        shown["contrast_limits"] = layer.limits
    placed = {"scale": layer.scale or None, "translate": layer.translate or None}
    if layer.kind == "shapes":
        return (_remade_shapes(layer), shown | placed | _styles(layer), "shapes"), ""
    if layer.kind == "image" and layer.path is not None:
        scan = _scan_again(layer, scans)
        channels = scan_layers(scan)
        if (layer.channel or 0) >= len(channels):
            raise CeaseError(f"{scan.name} has no channel {layer.channel} any more; open the scan by hand.")
        data, options, kind = channels[layer.channel or 0]
        return (data, options | shown, kind), ""
    if layer.array is None:
        raise CeaseError(_damaged(layer))
    array = _read_array(kept, layer, budget)
    ndim = array.ndim - int(layer.rgb and layer.kind == "image")
    places = {len(layer.scale), len(layer.translate)} <= {0, ndim}
    if ndim < 2 or not places or (layer.rgb and array.shape[-1] not in (3, 4)):
        raise CeaseError(_damaged(layer))
    if layer.kind == "image":
        return (array, shown | placed | {"rgb": layer.rgb}, "image"), ""
    try:
        owner = _owner_again(layer, made, scans)
        if owner is not None:
            array = check_labels(array, owner, layer.name)
    except CeaseError:
        # Where it lay is known, but no more on which voxels of which file.
        fault = f"{layer.name} came back without the scan that it was drawn on; compare its place before you use it."
        return (array, shown | placed, "labels"), fault
    if owner is None:
        return (array, shown | placed, "labels"), ""
    labels, options, kind = labels_layer(array, owner, layer.classes)
    options["metadata"]["cease"]["contour"] = layer.contour
    return (labels, options | shown, kind), ""


def _scan_again(layer: SavedLayer, scans: dict[tuple[Path, int | None], Scan]) -> Scan:
    assert layer.path is not None
    path = sample_root() / layer.path if layer.sample else Path(layer.path)
    key = (path, layer.frame)
    if key not in scans:
        scans[key] = open_scan(*key)
    return scans[key]


def _owner_again(
    layer: SavedLayer, made: Sequence[LayerData | None], scans: dict[tuple[Path, int | None], Scan]
) -> Scan | None:
    """The scan that a mask belongs to, None if it never had one from a file; `CeaseError` if it cannot be had."""
    if layer.path is not None:
        return _scan_again(layer, scans)
    if layer.scan is None:
        return None
    owner = made[layer.scan] if layer.scan < len(made) else None
    if owner is None:
        raise CeaseError("its scan is not there")
    mark = owner[1].get("metadata", {}).get("cease", {})
    scan = mark.get("scan") if mark.get("role") == "scan" else None
    return scan if isinstance(scan, Scan) else None


def _remade_shapes(layer: SavedLayer) -> list[NDArray[np.float64]]:
    drawn = [np.asarray(shape.vertices, float) for shape in layer.shapes if len(shape.vertices) > 1]
    if len(drawn) != len(layer.shapes) or any(v.ndim != 2 or v.shape[1] != layer.ndim for v in drawn):
        raise CeaseError(_damaged(layer))
    return drawn


def _styles(layer: SavedLayer) -> dict[str, Any]:
    if not layer.shapes:
        return {"ndim": layer.ndim}
    return {
        "shape_type": [shape.kind for shape in layer.shapes],
        "edge_color": np.array([_rgba(shape.edge) for shape in layer.shapes]),
        "face_color": np.array([_rgba(shape.face) for shape in layer.shapes]),
        "edge_width": [max(shape.width, 0.0) for shape in layer.shapes],
    }


def _rgba(colour: Sequence[float]) -> list[float]:
    return [min(max(part, 0.0), 1.0) for part in (*colour, 0, 0, 0, 1)[:4]]


# --- to a window ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faults:
    """What is not as it was, a sentence for each.

    Parameters
    ----------
    layers
        Of the user's layers.
    choices
        Of models and settings, which can be chosen anew.
    """

    layers: tuple[str, ...]
    choices: tuple[str, ...]


def show_again(viewer: Any, explorer: Any, rebuilt: Rebuilt) -> Faults:
    """Add the layers of a session to a viewer and choose again what was chosen.

    Layers that are there stay.
    """
    layers, lost = _add_again(viewer, rebuilt)
    try:
        missed = _choose_again(viewer, explorer, rebuilt.session, layers)
    except Exception as error:
        log.exception("what a session has chosen could not be chosen")
        missed = [f"what was chosen could not be restored ({type(error).__name__}); choose anew."]
    return Faults(tuple(dict.fromkeys([*rebuilt.faults, *lost])), tuple(dict.fromkeys(missed)))


def _add_again(viewer: Any, rebuilt: Rebuilt) -> tuple[list[Any], list[str]]:
    layers: list[Any] = []
    faults: list[str] = []
    with viewer.layers.batched_update():
        for described, data in zip(rebuilt.session.layers, rebuilt.layers, strict=True):
            layer = None
            if data is not None:
                try:
                    layer = Layer.create(*data)
                except Exception:
                    # napari raises many a kind on values that do not go together.
                    log.exception("a layer of a session could not be created")
                    faults.append(_damaged(described))
            if layer is not None:
                viewer.layers.append(layer)
                if isinstance(layer, Labels):
                    layer.contour = described.contour
            layers.append(layer)
    return layers, faults


def _choose_again(viewer: Any, explorer: Any, saved: SavedSession, layers: Sequence[Any]) -> list[str]:
    faults: list[str] = []

    def at(place: Any) -> Any:
        return layers[place] if isinstance(place, int) and place < len(layers) else None

    wanted, s = saved.choices, explorer.session
    models: dict[str, Path | None] = {}
    for side in ("undefended", "defended"):
        folder = getattr(wanted, side)
        there = folder is not None and Path(folder).is_dir()
        if folder is not None and not there:
            faults.append(f"the model {Path(folder).name} is no longer in {Path(folder).parent}; choose another one.")
        models[side] = Path(folder) if there else None
    scan, labels, region = at(wanted.scan), at(wanted.labels), at(wanted.region)
    target = wanted.target if isinstance(wanted.target, str) else at(wanted.target)
    if scan is None:
        return faults
    parameters = dict(wanted.parameters)
    for name in {"steps", "restarts"} & set(parameters):
        if isinstance(parameters[name], int | float) and parameters[name] > MAX_EFFORT:
            faults.append(f"the attack had {parameters[name]} {name}; it has {MAX_EFFORT} now, set more by hand.")
            parameters[name] = MAX_EFFORT
    try:
        for name in SHOWN:
            setattr(s, name, getattr(wanted, name))
        chosen = Choices(
            scan=scan if isinstance(scan, Image) else None,
            labels=labels if isinstance(labels, Labels) else None,
            undefended=models["undefended"],
            defended=models["defended"],
            attack=wanted.attack,
            parameters=parameters,
            target=target if isinstance(target, str | Labels) else None,
            region=region if isinstance(region, Labels | Shapes) else None,
            top=wanted.top,
            level=wanted.level,
            index=wanted.index,
        )
        explorer.restore(chosen)
    except ValidationError as error:
        faults.append(f"what was chosen cannot be chosen any more ({first_fault(error, 'the session')}); choose anew.")
    except CeaseError as error:
        faults.append(str(error))
    _look_again(viewer, explorer, saved)
    return faults


def _look_again(viewer: Any, explorer: Any, saved: SavedSession) -> None:
    """Where the camera was, and how our own layers were shown."""
    for look in saved.looks:
        for layer in viewer.layers:
            if role_of(layer) == (look.role, look.side):
                layer.opacity = look.opacity
                if layer.visible != look.visible:
                    layer.visible = look.visible
    explorer.hold_view()
    view, dims, camera = saved.view, viewer.dims, viewer.camera
    dims.ndisplay = view.ndisplay
    for axis, value in enumerate(view.point[-dims.ndim :]):
        dims.set_point(axis, value)
    camera.center, camera.zoom, camera.angles = view.center, view.zoom, view.angles
