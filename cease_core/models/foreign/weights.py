"""Weights without a network: a state dict, for one of our architectures or for a class of MONAI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.architectures import ARCHITECTURES, build
from cease_core.models.card import Mode
from cease_core.models.foreign.cards import SCAN_WINDOW, card_name, class_infos, make_card
from cease_core.models.foreign.classes import check_plain, divisor, facts, made, network_maker, network_name, sketch
from cease_core.models.foreign.drafts import Choices, Draft, refuse_idle
from cease_core.models.foreign.pickles import read_state

_IDLE = frozenset(("orientation", "roi", "divisor", "output", "outputs", "activation", "steps", "normalise", "fold"))

# What our backbones put before the names of a network of MONAI, and a whole model before those of its backbone.
_BACKBONE, _MODEL = "net.", "backbone."


def draft_weights(source: Path, choices: Choices) -> Draft:
    """Read weights for a network that the user names.

    Parameters
    ----------
    source
        A safetensors file, or one of ``torch.save``.
    choices
        ``architecture`` and ``classes`` are needed, and ``args`` where they differ from the architecture's own.

    Returns
    -------
    Draft
        Of one of our architectures the backbone, with a card like that of a trained model; of a class of MONAI the
        network.

    Raises
    ------
    CeaseError
        If the file is unsafe or damaged, the network is unknown, or the two do not belong together.
    """
    if choices.architecture is None:
        raise CeaseError(
            f"{source.name} holds weights alone; name their architecture: one of {', '.join(ARCHITECTURES)}, or a "
            "network of MONAI such as monai.networks.nets.UNet."
        )
    state = read_state(source)
    return (_ours if choices.architecture in ARCHITECTURES else _monai)(source, choices, state)


def filled(make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str) -> nn.Module:
    """A network with weights that must be exactly its own; 16-bit ones become its own type.

    Parameters
    ----------
    make
        Builds the network; only once a `sketch` of it has shown that it is no larger than the weights.
    state
        The weights.
    name
        Of their file.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    CeaseError
        The sentence names the first tensors that are missing or too many, or the first of another shape.
    """
    own = sketch(make).state_dict()
    # Older releases of torch did not count batches, and only a training needs to know.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    further = [key for key in state if key not in own]
    if missing or further:
        said = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("also holds", further)) if keys]
        raise CeaseError(
            f"{name} does not belong to this network: it {' and '.join(said)}; choose the architecture and arguments "
            "that it was trained with."
        )
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise CeaseError(
                f"{name}: the tensor {key!r} has shape {tuple(tensor.shape)}, but the network needs "
                f"{tuple(own[key].shape)}; choose the arguments that it was trained with, channels and classes above "
                "all."
            )
    network = made(make)
    network.load_state_dict({**network.state_dict(), **state})
    return network


def mode_of(outputs: int | None, classes: Sequence[str] | None, mode: Mode | None) -> Mode:
    """What logits mean where nobody says so, as far as their number tells."""
    if mode is not None:
        return mode
    if outputs is None:
        return "multiclass" if classes is None or len(classes) > 1 else "binary"
    if outputs == 1:
        return "binary"
    return "multilabel" if classes is not None and len(classes) == outputs else "multiclass"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys[:3]) + (f" and {len(keys) - 3} more tensors" if keys[3:] else "")


def _ours(source: Path, choices: Choices, state: dict[str, Tensor]) -> Draft:
    architecture, args = str(choices.architecture), choices.args or {}
    refuse_idle(choices, source.name, f"{architecture}, which sees scans as it is trained here", _IDLE)
    check_plain(args, "args")
    classes = _classes(source, choices)
    mode = mode_of(None, classes, choices.mode)
    ndim = choices.ndim or _ndim(source, state)
    outputs = len(classes) + (mode == "multiclass")

    def maker(channels: int) -> Callable[[], nn.Module]:
        return lambda: build(architecture, ndim, channels, outputs, args)

    own = sketch(maker(choices.channels or 1)).state_dict()
    state, remarks = _as_ours(state, own)
    channels = choices.channels or _channels(state, own)
    card = make_card(
        name=card_name(choices.name or source.stem),
        title=choices.title or source.stem,
        architecture=architecture,
        architecture_args=args,
        ndim=ndim,
        channels=channels,
        classes=class_infos(classes),
        mode=mode,
        window=choices.window or SCAN_WINDOW,
        spacing=choices.spacing,
        licence=choices.licence or "unknown",
    )
    return Draft(card, filled(maker(channels), state, source.name), remarks=remarks)


def _as_ours(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights by the names that our backbone gives them, and a remark if they were a network's of MONAI by itself."""
    if all(key.startswith(_MODEL) for key in state):
        state = {key.removeprefix(_MODEL): tensor for key, tensor in state.items()}
    if not all(key.startswith(_BACKBONE) for key in own) or any(key.startswith(_BACKBONE) for key in state):
        return state, ()
    remark = (
        "The network sees intensities as this program's own networks do, the window from -2 to 2; if it was trained "
        "on others, import it by its class of MONAI, with its steps."
    )
    return {_BACKBONE + key: tensor for key, tensor in state.items()}, (remark,)


def _channels(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int:
    """Channels of the image: where a kernel of the network for one channel sees one, and the weights' sees more."""
    pairs = ((tensor.shape, state[key].shape) for key, tensor in own.items() if key in state)
    more = (b[1] for a, b in pairs if len(a) == len(b) and len(a) in (4, 5) and a[1] == 1 and b[1] > 1)
    return int(next(more, 1))


def _monai(source: Path, choices: Choices, state: dict[str, Tensor]) -> Draft:
    target, args = network_name(str(choices.architecture)), choices.args or {}
    refuse_idle(choices, source.name, "weights alone", ("fold",))
    classes = _classes(source, choices)
    known = facts(target, args)
    ndim, channels = known.ndim or choices.ndim, known.inputs or choices.channels
    if ndim is None or channels is None:
        raise CeaseError(f"{source.name}: {target} does not say what it sees; choose dimensions and channels.")
    mode = mode_of(known.outputs, classes, choices.mode)
    network = filled(network_maker(target, args), state, source.name)
    window = known.fixed or choices.roi or ()
    foreign: dict[str, Any] = {
        "kind": "monai",
        "target": target,
        "args": dict(args),
        "steps": choices.intensities(source.name),
        "orientation": choices.orientation or "xyz",
        "spacing": choices.spacing or (),
        "align": "centres",
        "window": window,
        "fixed": bool(known.fixed),
        "divisor": choices.divisor or (1 if known.fixed else divisor(target, args, ndim, channels)),
        "output": known.way if choices.output is None else choices.output,
        "outputs": choices.outputs or (),
        "activation": choices.activation or "none",
    }
    card = make_card(
        name=card_name(choices.name or source.stem),
        title=choices.title or source.stem,
        architecture=target.rpartition(".")[2],
        ndim=ndim,
        channels=channels,
        classes=class_infos(classes),
        mode=mode,
        window=choices.window or SCAN_WINDOW,
        licence=choices.licence or "unknown",
        foreign=foreign,
    )
    remarks = []
    if ndim == 2 and choices.orientation is None:
        remarks.append(
            "It is given columns before rows, as MONAI's readers load files; say orientation=display if it was trained "
            "on rows before columns."
        )
    if choices.mode is None:
        remarks.append(f"Its {known.outputs or 'logit'} channels are taken as {mode}; say mode if that is wrong.")
    return Draft(card, network, remarks=tuple(remarks))


def _classes(source: Path, choices: Choices) -> tuple[str, ...]:
    if not choices.classes:
        raise CeaseError(f"{source.name} does not say what it segments; name the classes in the order of its channels.")
    return choices.classes


def _ndim(source: Path, state: Mapping[str, Tensor]) -> int:
    """Spatial dimensions by the first kernel."""
    found = next((tensor.ndim - 2 for tensor in state.values() if tensor.ndim in (4, 5)), None)
    if found is None:
        raise CeaseError(f"{source.name} holds no convolution that tells its dimensions; choose another file.")
    return found
