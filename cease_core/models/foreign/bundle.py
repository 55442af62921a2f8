"""MONAI bundles: network, preparation, windows and classes from their files, of which none is run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.foreign.bundle_files import opened
from cease_core.models.foreign.cards import SCAN_WINDOW, card_name, class_infos, make_card
from cease_core.models.foreign.classes import Facts, divisor, facts, network_maker, network_name
from cease_core.models.foreign.configs import LIMIT, Config, NotPlainError, parse
from cease_core.models.foreign.drafts import Choices, Draft, refuse_idle
from cease_core.models.foreign.pickles import read_state
from cease_core.models.foreign.transforms import Preparation, preparation, transforms
from cease_core.models.foreign.weights import filled

METADATA = "configs/metadata.json"
CONFIGS = tuple(f"configs/{job}.{kind}" for job in ("inference", "train") for kind in ("json", "yaml", "yml"))
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "docs/LICENSE", "docs/LICENSE.txt", "docs/LICENSE.md")

_AFTERWARDS = frozenset(("Activations", "AsDiscrete", "Invert", "SaveImage", "EnsureType", "ToTensor"))
"""Transforms after the network that tell what its logits mean, or nothing."""

_WEIGHTS = (".safetensors", ".pt", ".pth")
_PROGRAMS = (".ts", ".pt2")
_TEXT = 20_000
_CHUNK = 2**20
_BACKGROUND = re.compile(r"(?i)background|bg|other|everything else")
_MULTIPLE = re.compile(r"(\d+)\s*\*\s*[a-z]")


def draft_bundle(source: Path, choices: Choices) -> Draft:
    """Read a MONAI bundle.

    Parameters
    ----------
    source
        Its folder, or a zip of it.
    choices
        What the user says goes before what the bundle says.

    Returns
    -------
    Draft
        The remarks say what of the bundle is left out or was guessed.

    Raises
    ------
    CeaseError
        If something is missing, damaged or unsafe, or would have to be evaluated or done in a way that cannot be.
    """
    with opened(source) as files:
        metadata = parse(files.read(METADATA, LIMIT), METADATA) if METADATA in files.names else {}
        name = next((n for n in CONFIGS if n in files.names), None)
        if name is None:
            raise CeaseError(f"{source.name} holds no {CONFIGS[0]} that says how the network is asked; add it.")
        config = Config(parse(files.read(name, LIMIT), name) | {"_meta_": metadata}, name)
        target, args = _definition(config, choices)
        known = facts(target, args)
        weights = _weights_name(source, files.names, config)
        state = read_state(files.path(weights))
        licence = next((files.read(n, LIMIT).decode(errors="replace") for n in LICENCES if n in files.names), "")
    return _draft(source, choices, config, metadata, (target, args, known), state, licence)


def _draft(
    source: Path,
    choices: Choices,
    config: Config,
    metadata: Mapping[str, Any],
    network: tuple[str, dict[str, Any], Facts],
    state: Mapping[str, Tensor],
    licence: str,
) -> Draft:
    target, args, known = network
    refuse_idle(choices, source.name, "a bundle", ("fold",))
    image, seen = _port(metadata, "inputs")
    _, answered = _port(metadata, "outputs")
    ndim = known.ndim or choices.ndim
    channels = known.inputs or _count(seen.get("num_channels")) or choices.channels
    outputs = known.outputs or _count(answered.get("num_channels"))
    if ndim is None or channels is None or outputs is None:
        raise CeaseError(
            f"{source.name}: {target} does not say its dimensions and channels; write them into {METADATA}."
        )
    prepared = _prepared(config, choices, ndim, image, source.name)
    remarks = prepared.remarks
    mode, classes, chosen = _meaning(config, choices, answered, outputs, remarks)
    where = _windows(config, choices, known, prepared, seen, ndim, remarks)
    if "window" not in where and "divisor" not in where:
        where["divisor"] = divisor(target, args, ndim, channels)
    title = choices.title or _line(metadata.get("name")) or _line(metadata.get("task")) or source.stem
    card = make_card(
        name=card_name(choices.name or _line(metadata.get("name")) or source.stem),
        title=title,
        architecture=target.rpartition(".")[2],
        ndim=ndim,
        channels=channels,
        classes=class_infos(classes),
        mode=mode,
        window=choices.window or prepared.window or SCAN_WINDOW,
        licence=choices.licence or _headline(licence),
        notes=_notes(metadata, licence),
        foreign={
            "kind": "monai",
            "target": target,
            "args": args,
            "steps": prepared.steps,
            "orientation": choices.orientation or prepared.orientation,
            "spacing": choices.spacing if choices.spacing is not None else prepared.spacing,
            "align": prepared.align,
            "size": () if choices.spacing is not None else prepared.size,
            "resampled": prepared.resampled,
            "output": known.way if choices.output is None else choices.output,
            "outputs": choices.outputs or chosen,
            "activation": choices.activation or "none",
            **where,
        },
    )
    made = filled(network_maker(target, args), state, f"{source.name}'s weights file")
    return Draft(card, made, remarks=tuple(remarks))


def _definition(config: Config, choices: Choices) -> tuple[str, dict[str, Any]]:
    """The network's class and arguments."""
    if choices.architecture is not None:
        return network_name(choices.architecture), dict(choices.args or {})
    found: Any = None
    for id in ("network_def", "network", "net"):
        try:
            found = config.find(id)
        except NotPlainError:  # "$@network_def.to(@device)"
            continue
        if isinstance(found, Mapping) and "_target_" in found:
            break
    if not isinstance(found, Mapping) or not isinstance(found.get("_target_"), str):
        raise CeaseError(
            f"{config.name} does not define its network by a _target_ under network_def; add that, or name the "
            "architecture and its arguments."
        )
    target = network_name(found["_target_"])
    args = {key: value for key, value in found.items() if not str(key).startswith("_")}
    return target, (config.plain(args, "network_def") | (choices.args or {}))


def _prepared(config: Config, choices: Choices, ndim: int, image: str | None, name: str) -> Preparation:
    without = set()
    # A bundle knows its intensities, so that a window by itself says no more than what ε is a share of.
    steps = choices.steps if choices.normalise is None else choices.intensities(name)
    if choices.orientation is not None:
        without.add("Orientation")
    if choices.spacing is not None:
        without |= {"Spacing", "Resize"}
    id = _first(config, "preprocessing", "validate#preprocessing", "pre_transforms", "val_transforms")
    if id is None:
        said = steps is not None or choices.window is not None
        found = Preparation(ndim, steps=list(choices.intensities(name) if said else ()))
        seen = "turned and resampled only as you say" if said else "seen as their files hold them"
        found.remark(f"{config.name} names no preprocessing, so scans are {seen}.")
        return found
    chain = transforms(config, config.find(id), id, None)
    loaded = next((t.get("keys") for t in chain if t.name == "LoadImage"), None)
    keys = loaded if isinstance(loaded, list) else [loaded]
    if not keys:
        raise CeaseError(f"{config.name}: {id} loads no image; name its keys.")
    key = image if image in keys else keys[0]
    return preparation(transforms(config, config.find(id), id, key), ndim, steps=steps, without=frozenset(without))


def _meaning(
    config: Config, choices: Choices, answered: Mapping[str, Any], outputs: int, remarks: list[str]
) -> tuple[Mode, list[str], tuple[int, ...]]:
    """Mode, names of the classes, and the channels that are theirs; () for all in order."""
    mode = choices.mode or _mode(config, outputs, remarks)
    named = answered.get("channel_def")
    named = named if isinstance(named, Mapping) else {}
    names = [_line(named.get(str(i))) or f"class {i}" for i in range(outputs)]
    if mode == "binary":
        names = [_line(named.get("0")) or "foreground"]
    if mode != "binary" and choices.outputs is None:
        ground = next((i for i, name in enumerate(names) if _BACKGROUND.fullmatch(name)), None)
        if mode == "multiclass":
            ground = ground or 0
            order = (ground, *(i for i in range(outputs) if i != ground))
        else:
            order = tuple(i for i in range(outputs) if i != ground)
        names = [names[i] for i in (order[1:] if mode == "multiclass" else order)]
        chosen = () if order == tuple(range(outputs)) else order
        return mode, list(choices.classes or names), chosen
    if choices.outputs is not None and choices.classes is None:
        names = [names[i] for i in choices.outputs if i < outputs][1 if mode == "multiclass" else 0 :]
    return mode, list(choices.classes or names), ()


def _mode(config: Config, outputs: int, remarks: list[str]) -> Mode:
    """What the logits mean, by what the bundle does to them afterwards."""
    softmax = sigmoid = False
    id = _first(config, "postprocessing", "validate#postprocessing", "post_transforms")
    for transform in transforms(config, config.find(id), id, None) if id else ():
        if transform.name == "Activations":
            softmax, sigmoid = softmax or bool(transform.one("softmax")), sigmoid or bool(transform.one("sigmoid"))
        elif transform.name == "AsDiscrete":
            softmax = softmax or bool(transform.one("argmax"))
            sigmoid = sigmoid or transform.one("threshold") is not None
        elif transform.name not in _AFTERWARDS:
            remarks.append(f"What the bundle does to masks afterwards ({transform.name}) is left out.")
    if outputs == 1:
        return "binary"
    if softmax == sigmoid:
        remarks.append(
            f"Nothing says what its {outputs} channels mean; they are taken as classes that exclude each other."
        )
        return "multiclass"
    return "multiclass" if softmax else "multilabel"


def _windows(
    config: Config,
    choices: Choices,
    known: Facts,
    prepared: Preparation,
    seen: Mapping[str, Any],
    ndim: int,
    remarks: list[str],
) -> dict[str, Any]:
    """Fields of the card about what the network is asked at once."""
    found: dict[str, Any] = {} if choices.divisor is None else {"divisor": choices.divisor}
    id = _first(config, "inferer", "validate#inferer")
    inferer = config.find(id) if id else None
    kind = str(inferer.get("_target_", "")).rpartition(".")[2] if isinstance(inferer, Mapping) else ""
    if isinstance(inferer, Mapping) and kind in ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer"):
        found |= _sliding(config, inferer, str(id), ndim, remarks)
        if kind == "SliceInferer":
            remarks.append(
                "The bundle segments a volume slice by slice along an axis of its file; here along the slices shown."
            )
    elif kind not in ("", "SimpleInferer"):
        remarks.append(f"The bundle asks its network by {kind}; here it is asked in one piece, or window by window.")
    if choices.roi is not None:
        found["window"] = choices.roi
    if known.fixed:
        return found | {"window": known.fixed, "fixed": True}
    if "window" not in found:
        if prepared.size:
            found["window"] = prepared.size
        elif ndim == 3:
            remarks.append("The bundle segments a volume in one piece; here it is asked window by window.")
        shape = seen.get("spatial_shape")
        multiples = [_MULTIPLE.fullmatch(str(n)) for n in shape] if isinstance(shape, Sequence) else []
        if multiples and all(multiples) and "window" not in found:
            found.setdefault("divisor", min(1024, math.lcm(*(max(1, int(m[1])) for m in multiples if m))))
    return found


def _sliding(config: Config, inferer: Mapping[str, Any], id: str, ndim: int, remarks: list[str]) -> dict[str, Any]:
    def get(name: str, default: Any = None) -> Any:
        return config.plain(inferer[name], f"{id}.{name}") if name in inferer else default

    found: dict[str, Any] = {"blend": "floored" if get("mode", "constant") == "gaussian" else "constant"}
    roi = get("roi_size")
    edges = roi if isinstance(roi, list) else [roi] * ndim
    if len(edges) == ndim and all(isinstance(n, int) and 0 < n <= 4096 for n in edges):
        found["window"] = tuple(edges)
    elif all(n is None or (isinstance(n, int) and n <= 0) for n in edges):
        remarks.append("The bundle's windows span whole scans; here windows of our own size are used for volumes.")
    else:
        raise CeaseError(f"{config.name}: {id}.roi_size is {roi!r}, no edge of a window for each axis; correct it.")
    overlap = get("overlap", 0.25)
    shares = overlap if isinstance(overlap, list) else [overlap]
    if not shares or not all(isinstance(s, int | float) and 0 <= s < 1 for s in shares):
        raise CeaseError(f"{config.name}: {id}.overlap is {overlap!r}, no share of a window; correct it.")
    found["overlap"] = float(max(shares))
    if len(set(shares)) > 1:
        remarks.append(
            "The bundle's windows overlap differently along each axis; here the largest overlap is used for all."
        )
    padding = get("padding_mode", "constant")
    found["padding"] = "edge" if padding == "replicate" else "zeros"
    if padding not in ("constant", "replicate") or get("cval", 0):
        remarks.append("The bundle pads small scans in another way; here zeros lie around them.")
    if found["blend"] == "floored" and get("sigma_scale", 0.125) != 0.125:
        remarks.append(
            "The bundle weighs its windows' middles in another way; here by a Gaussian of an eighth of their edge."
        )
    return found


def _weights_name(source: Path, names: Sequence[str], config: Config) -> str:
    """The file of weights: the one that the configuration loads, or the only one."""
    held = [n for n in names if n.startswith("models/") and n.endswith(_WEIGHTS)]
    loaded = {m for text in _texts(config.tree) for m in re.findall(r"models/([\w.-]+\.(?:pt|pth|safetensors))", text)}
    for name in ("models/model.safetensors", *(f"models/{n}" for n in sorted(loaded)), "models/model.pt"):
        if name in held:
            return name
    if len(held) == 1:
        return held[0]
    programs = [n for n in names if n.startswith("models/") and n.endswith(_PROGRAMS)]
    if held:
        raise CeaseError(
            f"{source.name} holds several files of weights ({', '.join(held[:4])}); name one of them model.pt."
        )
    if programs:
        raise CeaseError(
            f"{source.name} holds no weights, but the program {programs[0]}; import that file by itself, and agree to "
            "run it if you trust where it is from."
        )
    raise CeaseError(f"{source.name} holds no models/model.pt; download the bundle's weights into that folder first.")


def _texts(tree: Any) -> Iterator[str]:
    """All texts in a tree whose branches may be the same objects many times over, as aliases in YAML are."""
    visited: set[int] = set()
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list) and id(value) not in visited:
            visited.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)


def _first(config: Config, *ids: str) -> str | None:
    """The first of ``ids`` that there is."""
    return next((id for id in ids if config.find(id) is not None), None)


def _port(metadata: Mapping[str, Any], side: str) -> tuple[str | None, Mapping[str, Any]]:
    """Name and description of the network's image, or of its answer."""
    data = metadata.get("network_data_format")
    ports = data.get(side) if isinstance(data, Mapping) else None
    if isinstance(ports, Mapping):
        for name, port in ports.items():
            if isinstance(port, Mapping):
                return str(name), port
    return None, {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _line(value: Any) -> str:
    """A text as one short line."""
    return " ".join(value.split())[:200] if isinstance(value, str) else ""


def _headline(licence: str) -> str:
    """What a licence calls itself."""
    lines = [line.strip(" #*") for line in licence.splitlines() if line.strip(" #*-=")]
    if not lines:
        return "unknown"
    more = lines[1:2] if lines[1:] and lines[1].startswith("Version") else []
    return ", ".join([lines[0], *more])[:200]


def _notes(metadata: Mapping[str, Any], licence: str) -> str:
    keys = ("description", "version", "authors", "copyright", "data_source", "intended_use")
    said = [f"{key.replace('_', ' ').capitalize()}: {text}" for key in keys if (text := _line(metadata.get(key)))]
    return "\n\n".join(["\n".join(said), licence.strip()[:_TEXT]]).strip()
