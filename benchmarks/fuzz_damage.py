"""Ways to damage a file: bytes of any kind, and fields where each format has its numbers, names and lengths.

Everything that is drawn comes from the generator that is passed in, so that one seed always makes the same file.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from pydicom import DataElement, dcmread
from pydicom.filereader import data_element_generator

Draw = random.Random
Damage = Callable[[bytes, Draw], bytes]

WHOLE = (
    0, 1, -1, 2, 3, 4, 7, 16, 64, 127, 128, 255, 256, 512, 1024, 4096, 32767, 32768, 65535, 65536, 2**24,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**15), -(2**31), -(2**63),
)  # fmt: skip
"""Whole numbers at which lengths, sizes and codes go wrong."""

REAL = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e-300, 1e30, 1e300, 2.0**31, 2.0**63, float("nan"), float("inf"), -float("inf"))

WORDS = (
    "", " ", "0", "-1", "1", "3.7", "nan", "inf", "-inf", "1e308", "2147483648", "99999999999999999999", "true", "None",
    "null", "[]", "{}", "\x00", "\x1b[31m", "\n", "é", "日本", "\ufeff", "\u202e", "a" * 300, "9" * 5000, "../../x",
    "/etc/passwd", "C:\\x", "$import os", "$__import__('os').getcwd()", "@net", "%s%n", "LOCAL", "short", "double",
    "gzip", "raw", "*", "1 2 3", "(1,0,0)", "big", "image", "unet", "2=1,1=2",
)  # fmt: skip

_FEW = 64
_DEEP = (50, 900, 5_000, 100_000)
_HOLE = "hole-for-the-nesting"


def damaged(name: str, content: bytes, draw: Draw) -> bytes:
    """The content of a file with one to three faults.

    Parameters
    ----------
    name
        Of the file: its suffix says where its fields are.
    content
        What it holds.
    draw
        Source of all choices.
    """
    known = _of(name)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        ways = (*known, scratched) if known and draw.random() < 0.7 else (scratched,)
        try:
            content = draw.choice(ways[:-1] or ways)(content, draw)
        except Exception:  # a file that is damaged already may be beyond its own format's faults
            content = scratched(content, draw)
    return content


def _of(name: str) -> tuple[Damage, ...]:
    lower = PurePosixPath(name).name.lower()
    if lower.endswith(".nii.gz"):
        return (inside_gzip(nifti),)
    return _KNOWN.get(PurePosixPath(lower).suffix, ())


# --- any bytes ----------------------------------------------------------------------------------------------------


def scratched(content: bytes, draw: Draw) -> bytes:
    """Bytes cut, flipped, exchanged, repeated, or replaced by numbers at which lengths go wrong."""
    if not content:
        return draw.randbytes(draw.choice((0, 1, 16, 400)))
    data, at = bytearray(content), draw.randrange(len(content))
    length = draw.choice((1, 2, 4, 16, _FEW, len(content) // 4 + 1))
    match draw.randrange(10):
        case 0:
            return bytes(data[:at])
        case 1:
            return bytes(data[: draw.choice((0, 1, 8, 100, len(data) - 1))])
        case 2 | 3:
            for _ in range(draw.choice((1, 1, 2, 8, _FEW))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 4:
            data[at : at + length] = draw.randbytes(length)
        case 5:
            data[at : at + length] = draw.choice((b"\x00", b"\xff", b"\x80")) * length
        case 6:
            source = draw.randrange(len(data))
            data[at : at + length] = data[source : source + length]
        case 7:
            source = draw.randrange(len(data))
            data[at:at] = data[source : source + length]
        case 8:
            del data[at : at + length]
        case _:
            return with_number(content, at, draw.choice("bhiqfd"), draw)
    return bytes(data)


def with_number(content: bytes, at: int, kind: str, draw: Draw) -> bytes:
    """A number of the type ``kind`` (of `struct`) at an offset, in either order of bytes."""
    order = draw.choice("<<<>")
    size = struct.calcsize(f"<{kind}")
    if kind in "fd":
        value: Any = draw.choice(REAL if kind == "d" else [v for v in REAL if not 1e38 < abs(v) < float("inf")])
        written = struct.pack(order + kind, value)
    else:
        written = (draw.choice(WHOLE) % 2 ** (8 * size)).to_bytes(size, "little" if order == "<" else "big")
    return (content[:at] + written + content[at + size :])[: max(len(content), at + size)]


def inside_gzip(inner: Damage) -> Damage:
    """Damage to what a gzip file holds, compressed again, so that its checksum is right."""

    def damage(content: bytes, draw: Draw) -> bytes:
        change = draw.choice((inner, inner, scratched))
        return gzip.compress(change(gzip.decompress(content), draw), compresslevel=1, mtime=0)

    return damage


# --- scans --------------------------------------------------------------------------------------------------------

_NIFTI1 = (
    *(
        (0, "i"),
        (70, "h"),
        (72, "h"),
        (74, "h"),
        (108, "f"),
        (112, "f"),
        (116, "f"),
        (123, "b"),
        (252, "h"),
        (254, "h"),
    ),
    *((40 + 2 * k, "h") for k in range(8)),
    *((76 + 4 * k, "f") for k in range(8)),
    *((256 + 4 * k, "f") for k in range(18)),
    (344, "i"),
)
_NIFTI2 = (
    *((0, "i"), (4, "i"), (12, "h"), (14, "h"), (168, "q"), (176, "d"), (184, "d"), (344, "i"), (348, "i"), (500, "i")),
    *((16 + 8 * k, "q") for k in range(8)),
    *((104 + 8 * k, "d") for k in range(8)),
    *((352 + 8 * k, "d") for k in range(18)),
)
_TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)


def nifti(content: bytes, draw: Draw) -> bytes:
    """A field of a NIfTI header, of version 1 or 2, or another type of voxels."""
    second = content[:2] == (540).to_bytes(2, "little")
    if draw.random() < 0.15:
        at = 12 if second else 70
        return content[:at] + draw.choice(_TYPES).to_bytes(2, "little") + content[at + 2 :]
    return with_number(content, *draw.choice(_NIFTI2 if second else _NIFTI1), draw)


def text_header(content: bytes, draw: Draw) -> bytes:
    """A line of an NRRD or MetaImage header: another value, gone, repeated, or in another place."""
    head, data = _split(content)
    lines = head.split(b"\n")
    at = draw.randrange(len(lines))
    match draw.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(draw.randrange(len(lines)), lines[at])
        case 2:
            key, mark, _ = _field(lines[at])
            lines[at] = key + mark + draw.choice(WORDS).encode()
        case _:
            lines[at] = _other_number(lines[at], draw)
    return b"\n".join(lines) + data


def _split(content: bytes) -> tuple[bytes, bytes]:
    if content.startswith(b"NRRD"):
        head, blank, data = content.partition(b"\n\n")
        return head, blank + data
    before, key, rest = content.partition(b"ElementDataFile")
    value, end, data = rest.partition(b"\n")
    return before + key + value, end + data


def _field(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b": ") if b": " in line else line.partition(b" = ")


def _other_number(line: bytes, draw: Draw) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", line))
    if not found:
        return line + draw.choice(WORDS).encode()
    one = draw.choice(found)
    value = draw.choice((*WHOLE, *REAL))
    return line[: one.start()] + str(value).encode() + line[one.end() :]


_DICOM_WORDS = (
    *WORDS[:24],
    "1\\2",
    "1\\0\\0\\0\\1\\0",
    "0\\0",
    "MONOCHROME1",
    "RGB",
    "PALETTE COLOR",
    "YBR_FULL",
    "1.2.840.10008.1.2",
)


def dicom(content: bytes, draw: Draw) -> bytes:
    """An element of a DICOM file, also within sequences: gone, with another value, or of another length."""
    if draw.random() < 0.5:
        spans = _dicom_spans(content)
        start, length = draw.choice(spans)
        if draw.random() < 0.2:  # the length itself, in the four or two bytes before the value
            return with_number(content, start - 4, draw.choice("ih"), draw)
        if length in (2, 4, 8):
            return with_number(content, start, {2: "h", 4: draw.choice("if"), 8: draw.choice("qd")}[length], draw)
        length = min(length, len(content) - start)
        word = draw.choice(_DICOM_WORDS).encode()[:length].ljust(length, b" ")
        return content[:start] + word + content[start + length :]
    with warnings.catch_warnings(action="ignore"):
        header = dcmread(io.BytesIO(content), force=True)
        place = header
        while True:
            tag = draw.choice(list(place.keys()))
            element = place[tag]
            if element.VR != "SQ" or not element.value or draw.random() < 0.3:
                break
            place = element.value[draw.randrange(len(element.value))]
        match draw.randrange(4):
            case 0:
                del place[tag]
            case 1 if element.VR == "SQ":
                element.value = [*element.value, *element.value][draw.randrange(len(element.value) + 1) :]
            case _ if element.VR in ("US", "SS", "UL", "SL", "FD", "FL"):
                size = {"US": 16, "SS": 15, "UL": 32, "SL": 31}.get(element.VR, 0)
                element.value = draw.choice(WHOLE) % 2**size if size else draw.choice(REAL[:9])
            case _ if element.VR != "SQ":
                word = draw.choice(_DICOM_WORDS)
                place[tag] = DataElement(tag, "LO" if len(word) <= _FEW else "LT", "")
                place[tag].VR = element.VR
                place[tag]._value = word if element.VR not in ("OB", "OW", "UN") else word.encode()
        out = io.BytesIO()
        header.save_as(out, enforce_file_format=False)
    return out.getvalue()


def _dicom_spans(content: bytes) -> list[tuple[int, int]]:
    """Where the values of a file's elements lie, and their lengths; those of sequences are walked by `dicom`."""
    stream = io.BytesIO(content)
    stream.seek(132)
    spans = []
    explicit = True
    for element in data_element_generator(stream, False, True, stop_when=lambda tag, *_: tag.group > 2):
        spans.append((element.value_tell, element.length))
        if element.tag == 0x00020010:
            explicit = element.value.rstrip(b"\x00") != b"1.2.840.10008.1.2"
    for raw in data_element_generator(stream, not explicit, True):
        if getattr(raw, "length", None) not in (None, 0xFFFFFFFF) and hasattr(raw, "value_tell"):
            spans.append((raw.value_tell, raw.length))
    return spans


# --- pictures -----------------------------------------------------------------------------------------------------


def png(content: bytes, draw: Draw) -> bytes:
    """A chunk of a PNG: another size or value with the right checksum, gone, or repeated."""
    chunks = []
    at = 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += length + 12
    k = draw.randrange(len(chunks))
    match draw.randrange(6):
        case 0:
            del chunks[k]
        case 1:
            chunks.insert(draw.randrange(len(chunks)), chunks[k])
        case 2:
            chunks[k][1] = scratched(chunks[k][1], draw)
        case 3:
            at = draw.choice((8, 9, 10, 11, 12))  # depth, kind of colours, compression, filter, interlace
            chunks[0][1] = with_number(chunks[0][1], at, "b", draw)
        case _:
            size = (draw.choice((1, 25, 4000, 40_000, *WHOLE)) % 2**32).to_bytes(4, "big")
            at = draw.choice((0, 4))
            chunks[0][1] = chunks[0][1][:at] + size + chunks[0][1][at + 4 :]
    written = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return content[:8] + b"".join(written)


def tiff(content: bytes, draw: Draw) -> bytes:
    """A tag of a TIFF: its number, type, count or value."""
    order = "<" if content[:2] == b"II" else ">"
    places = []
    (at,) = struct.unpack(f"{order}I", content[4:8])
    while at and len(places) < 500:
        (count,) = struct.unpack(f"{order}H", content[at : at + 2])
        places += [at + 2 + 12 * k for k in range(count)]
        (at,) = struct.unpack(f"{order}I", content[at + 2 + 12 * count : at + 6 + 12 * count])
    field, kind = draw.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"), (8, "H")))
    size = struct.calcsize(kind)
    value = draw.choice((*WHOLE, 5, 8, 32, 32773, 34925, 50_000)) % 2 ** (8 * size)
    spot = draw.choice(places) + field
    return content[:spot] + struct.pack(order + kind, value) + content[spot + size :]


def jpeg(content: bytes, draw: Draw) -> bytes:
    """A marker segment of a JPEG: its length or its first values, sizes and tables among them."""
    spots = [m.start() for m in re.finditer(rb"\xff[\xc0-\xfe]", content)]
    return with_number(content, draw.choice(spots) + draw.randrange(2, 12), draw.choice("bh"), draw)


# --- text ---------------------------------------------------------------------------------------------------------


def as_json(content: bytes, draw: Draw) -> bytes:
    """A JSON file with another value somewhere, one too few or too many, an endless nesting, or invalid letters."""
    tree = json.loads(content)
    holders = list(_holders(tree))
    if not holders or draw.random() < 0.05:
        return _json_text(_value(draw), draw)
    holder = draw.choice(holders)
    key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    match draw.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(WORDS)] = holder[key]
        case 1:
            holder.append(holder[key])
        case 2 if isinstance(holder, dict):
            holder[draw.choice(WORDS)] = holder.pop(key)
        case 3 if isinstance(holder[key], int | float):
            holder[key] = draw.choice((*WHOLE, *REAL))
        case 4:
            other = draw.choice(holders)
            if other:
                holder[key] = json.loads(
                    json.dumps(next(iter(other.values())) if isinstance(other, dict) else other[0])
                )
        case _:
            holder[key] = _value(draw)
    return _json_text(tree, draw)


def _holders(tree: Any) -> Any:
    if isinstance(tree, dict | list) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _holders(value)


def _value(draw: Draw) -> Any:
    plain = (None, True, False, [], {}, {"": ""}, [0], [[]], 0, -1, 10**30, "\ud800", _HOLE)
    return draw.choice((*plain, draw.choice(WHOLE), draw.choice(REAL), draw.choice(WORDS), ["a"] * 1000, [2**16] * 5))


def _json_text(tree: Any, draw: Draw) -> bytes:
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.7)
    depth = draw.choice(_DEEP)
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}")))
    nested = opening * depth + "0" + closing * depth
    return text.replace(f'"{_HOLE}"', nested).encode("utf-8", "surrogatepass")


def lines(inner: Damage) -> Damage:
    """A line of a text: damaged by ``inner``, gone, repeated, or with another line's end."""

    def damage(content: bytes, draw: Draw) -> bytes:
        rows = content.split(b"\n")
        at = draw.randrange(len(rows))
        match draw.randrange(6):
            case 0:
                del rows[at]
            case 1:
                rows.insert(draw.randrange(len(rows)), rows[at])
            case 2:
                rows[at] += draw.choice((b"\r", b'"', b"\x00", b"\xff", b",,,", b"\xe2\x80\xa8"))
            case _:
                rows[at] = inner(rows[at], draw)
        return b"\n".join(rows)

    return damage


def cells(row: bytes, draw: Draw) -> bytes:
    """A cell of a CSV line."""
    mark = draw.choice((b",", b",", b";", b"\t"))
    found = row.split(b",")
    found[draw.randrange(len(found))] = draw.choice(WORDS).encode()
    return mark.join(found)


# --- archives and weights -----------------------------------------------------------------------------------------


def archive(content: bytes, draw: Draw) -> bytes:
    """A zip with an entry that is damaged, gone, doubled or misnamed, written with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        entries = [(member.filename, source.read(member), member.compress_type) for member in source.infolist()]
    at = draw.randrange(len(entries))
    name, held, way = entries[at]
    folder = name.rpartition("/")[0]
    match draw.randrange(12):
        case 0:
            del entries[at]
        case 1:
            entries.append((name, damaged(name, held, draw), way))
        case 2:
            other = draw.choice(
                ("../../x", "/x", "C:\\x", "a" * 300, f"{folder}/", f"{name}/x", "\x00", "card.json", "data.pkl")
            )
            entries[at] = (other, held, way)
        case 3:
            entries[at] = (name, held, draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
        case 4:
            entries[at] = (name, entries[draw.randrange(len(entries))][1], way)
        case 5:
            entries.append((f"{folder}/{draw.choice(('card.json', 'data.pkl', 'constants.pkl', 'x.json'))}", held, way))
        case 6:
            entries[at] = (name, bytes(2**24), zipfile.ZIP_DEFLATED)
        case _:
            entries[at] = (name, damaged(name, held, draw), way)
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w") as target:
        for each, bytes_, compression in entries:
            target.writestr(zipfile.ZipInfo(each), bytes_, compression)
    return out.getvalue()


_RECORDS = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")


def directory(content: bytes, draw: Draw) -> bytes:
    """A number in one of the records by which a zip finds its entries: sizes, offsets, methods, flags."""
    spots = [m.start() for mark in _RECORDS for m in re.finditer(re.escape(mark), content)]
    return with_number(content, draw.choice(spots) + draw.randrange(4, 46), draw.choice("bhi"), draw)


def safetensors(content: bytes, draw: Draw) -> bytes:
    """The header of a safetensors file, with its length kept right, or wrong on purpose."""
    (length,) = struct.unpack("<Q", content[:8])
    head, data = content[8 : 8 + length], content[8 + length :]
    match draw.randrange(6):
        case 0:
            return with_number(content, 0, "q", draw)
        case 1:
            return content[: 8 + length] + data[: draw.randrange(len(data) + 1)]
        case 2:
            numbers = struct.pack("<f", draw.choice((float("nan"), float("inf"), 1e30)))
            at = 4 * draw.randrange(len(data) // 4)
            return content[: 8 + length] + data[:at] + numbers + data[at + 4 :]
        case 3:
            kinds = (b"F16", b"BF16", b"I64", b"F64", b"BOOL", b"F8_E4M3", b"C64", b"U64", b"F4")
            changed = head.replace(b'"F32"', b'"' + draw.choice(kinds) + b'"', draw.choice((1, 10**6)))
        case _:
            changed = as_json(head, draw)
    return struct.pack("<Q", len(changed)) + changed + data


_OPERATIONS = b"(.012FGIJKLMNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x8e\x94"


def pickle(content: bytes, draw: Draw) -> bytes:
    """An operation of a pickle, a number in it, or a name of a type of tensor."""
    data = bytearray(content)
    match draw.randrange(4):
        case 0:
            data[draw.randrange(len(data))] = draw.choice(_OPERATIONS)
        case 1:  # small numbers are sizes, strides and offsets
            spots = [m.start() for m in re.finditer(rb"[KMJ].", content, re.DOTALL)]
            spot = draw.choice(spots)
            width = {75: 1, 77: 2, 74: 4}[data[spot]]
            data[spot + 1 : spot + 1 + width] = (draw.choice(WHOLE) % 256**width).to_bytes(width, "little")
        case 2:
            small = re.search(rb"K.", content, re.DOTALL)
            large = b"J" + (draw.choice(WHOLE) % 2**32).to_bytes(4, "little")
            return content if small is None else content[: small.start()] + large + content[small.end() :]
        case _:
            kinds = (b"DoubleStorage", b"HalfStorage", b"LongStorage", b"BoolStorage", b"ComplexFloatStorage")
            return content.replace(b"FloatStorage", draw.choice(kinds))
    return bytes(data)


_KNOWN: dict[str, tuple[Damage, ...]] = {
    ".nii": (nifti,),
    ".nrrd": (text_header,),
    ".mha": (text_header,),
    ".dcm": (dicom,),
    ".png": (png,),
    ".tif": (tiff,),
    ".jpg": (jpeg,),
    ".json": (as_json,),
    ".jsonl": (lines(as_json),),
    ".csv": (lines(cells),),
    ".zip": (archive, archive, directory),
    ".pt": (archive, archive, directory),
    ".pth": (archive, archive, directory),
    ".ts": (archive, archive, directory),
    ".pt2": (archive, archive, directory),
    ".safetensors": (safetensors,),
    ".pkl": (pickle,),
}
