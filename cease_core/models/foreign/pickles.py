"""Weights from files that others wrote, without running anything that stands in them.

A file of torch is a zip with one pickle that says how tensors lie in its other entries. The pickle is read twice:
first as a list of instructions, none of which is followed, to see that it names nothing but tensors; then by torch
with ``weights_only=True``. Sizes are compared with the file's before anything is allocated.
"""

from __future__ import annotations

import math
import pickletools
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cease_core.errors import CeaseError, one_line
from cease_core.io.files import reading

LIMIT = 4 * 2**30
"""Bytes that a file of weights, and what it unpacks to, may have."""

PICKLE_LIMIT = 64 * 2**20
"""Bytes of the pickle inside, which holds names and numbers, while tensors lie beside it."""

ENTRIES = 100_000
"""Entries of a zip: as many tensors as no segmentation network has."""

CONVERT = (
    "from safetensors.torch import save_file; "
    'save_file({k: v.clone() for k, v in network.state_dict().items()}, "model.safetensors")'
)
"""The line of Python that saves a network's weights without a pickle."""

WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "network", "net", "model_state", "weights")
"""Names under which training loops keep the weights."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""

_NESTED = 8
_ZIP, _TORCH_PICKLE = b"PK\x03\x04", b"\x80"
_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class Skipped:
    """Stands for a number or an array of NumPy in a checkpoint: figures of a training, which nobody needs here."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_NUMPY = tuple(
    f"{module}.{name}"
    for module, names in {
        "numpy": ("dtype", "ndarray"),
        "numpy.core.multiarray": ("scalar", "_reconstruct"),
        "numpy._core.multiarray": ("scalar", "_reconstruct"),
    }.items()
    for name in names
)
# Not all that torch allows: `bytearray`, for one, takes as much memory as it is told.
_NEEDED = frozenset(
    {
        *_NUMPY,
        "_codecs.encode",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        *(str(dtype) for dtype in _STORAGES.values()),
        *(f"torch.{kind}Storage" for kind in _STORAGES),
    }
)


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights of a network, by name, on the CPU.

    Parameters
    ----------
    path
        A safetensors file, or a file of ``torch.save`` that holds a state dict, by itself or within a checkpoint.

    Raises
    ------
    CeaseError
        If the file is missing, damaged or too large, if it holds more than tensors, or none, or values that are no
        numbers.
    """
    tensors = _read_safetensors(path) if _kind(path) == "safetensors" else _state(read_checkpoint(path), path)
    _check_tensors(tensors, path)
    return _unprefixed(tensors)


def read_checkpoint(path: Path) -> Any:
    """What ``torch.save`` wrote, of tensors, numbers, strings and containers alone; NumPy's values are `Skipped`.

    Raises
    ------
    CeaseError
        As `read_state`, which also looks at the tensors.
    """
    kind = _kind(path)
    if kind != "torch":
        raise CeaseError(f"{path.name} is no file of torch.save; choose the checkpoint itself.")
    _check_zip(path)
    with (
        reading(path, "a file of weights"),
        torch.serialization.safe_globals([(Skipped, name) for name in _NUMPY]),
    ):
        return torch.load(path, map_location="cpu", weights_only=True)


def state_of(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """The weights within a checkpoint of `read_checkpoint`, checked as those of `read_state`."""
    tensors = _state(checkpoint, path)
    _check_tensors(tensors, path)
    return _unprefixed(tensors)


def check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a zip that unpacks to more than `LIMIT`, or that points outside.

    Raises
    ------
    CeaseError
        In one sentence.
    """
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > LIMIT or len(members) > ENTRIES:
        raise CeaseError(
            f"{path.name} unpacks to {total / 2**30:.2g} GiB in {len(members)} entries, more than the "
            f"{LIMIT / 2**30:.2g} GiB allowed; choose another model."
        )
    for member in members:
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in member.filename:
            raise CeaseError(
                f"{path.name} is not safe to open: its entry {member.filename!r} points outside; "
                "ask for another file from somebody you trust."
            )
        if member.flag_bits & 1:
            raise CeaseError(f"{path.name} is encrypted, which torch never does; choose the file as it was saved.")


def check_sums(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a zip of which an entry is not what was written: torch does not look, and may crash on it.

    Only after `check_entries`, since every entry is unpacked.

    Raises
    ------
    CeaseError
        The sentence names the entry.
    """
    with reading(path, "a zip archive"):
        damaged = archive.testzip()
    if damaged is not None:
        raise CeaseError(f"{path.name} is damaged: its entry {damaged!r} has another checksum; copy it again.")


def check_storages(path: Path, archive: zipfile.ZipFile, pickle: str, what: str = "a file of weights") -> None:
    """Refuse a pickle whose tensors claim more bytes than lie beside it: torch believes it, and reads beyond them.

    Parameters
    ----------
    pickle
        Name of the entry, such as ``net/data.pkl``, whose tensors lie in ``net/data/``.
    what
        The file is, for the sentence.

    Raises
    ------
    CeaseError
        The sentence names the entry of the tensor.
    """
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    with reading(path, what):
        claims = list(_claims(archive.read(pickle)))
    for key, claimed in claims:
        place = f"{pickle.removesuffix('.pkl')}/{key}"
        if claimed > sizes.get(place, 0):
            raise CeaseError(f"{path.name} is damaged: {place!r} holds less than its tensors need; copy it again.")


def _claims(pickle: bytes) -> Iterator[tuple[str, int]]:
    """Key and bytes of each storage that a pickle refers to, as torch writes it: a tuple of five before BINPERSID."""
    said: deque[str | int] = deque(maxlen=5)
    last: str | int | None = None
    memo: dict[Any, str | int | None] = {}
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = last
            continue
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = last
            continue
        elif operation.name in ("BINGET", "LONG_BINGET"):
            last = memo.get(argument)
        elif operation.name.startswith("TUPLE"):
            last = None
        elif operation.name == "BINPERSID":
            _, kind, key, _, values = said
            name = str(kind).rpartition(" ")[2].removesuffix("Storage")
            yield str(key), int(values) * (_STORAGES[name].itemsize if name in _STORAGES else 1)
            continue
        elif isinstance(argument, str | int):
            last = argument
        else:
            continue
        if last is not None:
            said.append(last)


def _kind(path: Path) -> str:
    """``"safetensors"`` or ``"torch"``, by the file's beginning.

    Raises
    ------
    CeaseError
        If it is neither; the sentence says how to convert older pickles.
    """
    with reading(path, "a file of weights"):
        if not path.is_file():
            raise CeaseError(f"{path} is not a file; choose the file that holds the weights.")
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(16)
    if not size:
        raise CeaseError(f"{path.name} is empty; copy or download it again.")
    if size > LIMIT:
        raise CeaseError(
            f"{path.name} is {size / 2**30:.2g} GiB large, more than the {LIMIT / 2**30:.2g} GiB allowed; "
            "save the weights alone, without the optimiser's state."
        )
    if start.startswith(_ZIP):
        return "torch"
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    with reading(path, "a file of weights"):
        old = start.startswith(_TORCH_PICKLE) or tarfile.is_tarfile(path)
    if old:
        raise CeaseError(
            f"{path.name} is a pickle of an old format, which is not opened; where it comes from, load it and run: "
            f"{CONVERT}"
        )
    raise CeaseError(f"{path.name} is no file of weights; choose a safetensors file, or one that torch.save wrote.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with reading(path, "a safetensors file"):
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except SafetensorError as error:
            raise CeaseError(f"{path.name} is damaged ({one_line(error)}); copy or download it again.") from error


def _check_zip(path: Path) -> None:
    with reading(path, "a file of weights"), zipfile.ZipFile(path) as archive:
        check_entries(path, archive)
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise CeaseError(f"{path.name} is a TorchScript program, not weights alone; import it as a program.")
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise CeaseError(f"{path.name} is compressed, which torch never does; choose the file as it was saved.")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CeaseError(
                f"{path.name} is a zip archive but no file of torch.save; choose a safetensors file, or one that "
                "torch.save wrote."
            )
        check_sums(path, archive)
        if archive.getinfo(pickles[0]).file_size > PICKLE_LIMIT:
            raise CeaseError(f"{path.name} holds more than tensors; where it comes from, run: {CONVERT}")
        check_storages(path, archive, pickles[0])
        named = _named(archive.read(pickles[0]))
    further = [name for name in named if name not in _NEEDED]
    if further:
        raise CeaseError(
            f"{path.name} holds more than tensors ({', '.join(further[:3])}{', …' if further[3:] else ''}), and making "
            f"these could run anything, so it is not opened; where it comes from, load it and run: {CONVERT}"
        )


def _named(pickle: bytes) -> list[str]:
    """What a pickle would import, the outermost first."""
    found: dict[str, None] = {}
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name in ("GLOBAL", "INST"):
            found[str(argument).replace(" ", ".")] = None
        elif operation.name == "STACK_GLOBAL" or operation.name.startswith("EXT"):
            found["names that are made up while it is read"] = None
    return list(found)


def _state(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, which training loops wrap in various ways."""
    held = checkpoint
    for _ in range(_NESTED):
        if not isinstance(held, Mapping) or all(isinstance(v, Tensor) for v in held.values()):
            break
        inner = next((held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if inner is None:
            break
        held = inner
    if not isinstance(held, Mapping):
        raise CeaseError(f"{path.name} holds no weights by name; where it comes from, run: {CONVERT}")
    tensors = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        entries = ", ".join(repr(key)[:40] for key in list(held)[:5]) or "nothing"
        raise CeaseError(f"{path.name} holds no weights (but {entries}); where it comes from, run: {CONVERT}")
    return tensors


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what a file cannot hold, before anybody copies it, and what is no number."""
    total = 0
    if not tensors:
        raise CeaseError(f"{path.name} holds no tensor; choose the file that holds the weights.")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _STORAGES.values():
            raise CeaseError(
                f"{path.name}: the tensor {name!r} is of an unusual kind ({tensor.dtype}, {tensor.layout}, "
                f"{tensor.device}); where it comes from, run: {CONVERT}"
            )
        size = math.prod(tensor.shape) * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes() or total > LIMIT:
            raise CeaseError(
                f"{path.name}: the tensor {name!r} claims the shape {tuple(tensor.shape)}, which is more than the "
                "file holds; copy or export it again."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CeaseError(
                f"{path.name}: the tensor {name!r} has values that are no numbers (NaN or infinite); choose an earlier "
                "checkpoint of the training."
            )


def _unprefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached tensors, without prefixes that all names share."""
    found = {name: tensor.detach() for name, tensor in tensors.items()}
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) and n != p for n in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
