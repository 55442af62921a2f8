"""Networks that come as programs: TorchScript and ``torch.export``.

Both bring code. TorchScript's may read and write files; ``torch.export.load`` unpickles what a file tells it to
(torch 2.13: ``torch/export/pt2_archive/_package.py``). So neither is opened before the user has agreed to that very
file.
"""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cease_core.errors import CeaseError, one_line
from cease_core.io.files import reading
from cease_core.models.card import ModelCard
from cease_core.models.foreign.cards import SCAN_WINDOW, card_name, class_infos, make_card
from cease_core.models.foreign.drafts import Choices, Consent, Draft, refuse_idle
from cease_core.models.foreign.pickles import check_entries, check_storages, check_sums
from cease_core.models.foreign.probing import Takes, choose_entry, entries, find_takes, guess_activation
from cease_core.models.foreign.spec import PROGRAMS
from cease_core.models.foreign.trust import agreed, ask, file_hash
from cease_core.models.memory import is_out_of_memory

ProgramKind = Literal["torchscript", "exported"]

NAMES: dict[str, str] = {"torchscript": "TorchScript", "exported": "torch.export"}

WHY: dict[str, str] = {
    "torchscript": "A TorchScript file is a program, which can read and write files as you can.",
    "exported": "Opening a file of torch.export may run code that somebody put into it.",
}

_IDLE = frozenset(("architecture", "args", "fold"))
_DEVICES = re.compile(r"(?i)\bdevices?\b|\b(cuda|mps|xpu|meta)\b")

# Images are padded to a window, so the largest image that a program takes makes one only if it is no larger than this.
_WHOLE = {2: 512, 3: 96}
_LARGE = 2**16

_EXAMPLE = (
    '--classes liver,tumour --mode multiclass (in Python: Choices(classes=("liver", "tumour"), mode="multiclass"))'
)

# Operations that work otherwise in training, and which of their arguments says so.
_TRAINING = {
    "aten.batch_norm.default": 5,
    "aten.dropout.default": 2,
    "aten.feature_dropout.default": 2,
    "aten.alpha_dropout.default": 2,
}


class Program(nn.Module):
    """A program as a frozen network that is always in evaluation mode.

    Parameters
    ----------
    program
        The loaded program.
    dtype
        Of the images that it wants.
    alone
        Whether it takes one image at a time.
    largest
        Edges of the largest image that it takes, 0 where there is no limit; empty if no limit is known.

    Notes
    -----
    Some programs know one batch size alone. Where a batch fails, its images are asked one by one.
    """

    def __init__(
        self, program: nn.Module, dtype: torch.dtype, *, alone: bool = False, largest: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.program = program
        self.dtype = dtype
        self.alone = alone
        self.largest = largest
        self.training = False
        for parameter in program.parameters():
            parameter.requires_grad = False

    def train(self, mode: bool = True) -> Program:
        """Nothing: what a program does in training was decided when it was exported."""
        return self

    def forward(self, images: Tensor) -> Any:
        """The program's answer to images (N, C, *spatial).

        Raises
        ------
        CeaseError
            If it fails, whatever it raised; but what torch raises when it runs out of memory is let through.
        """
        try:
            return self._answer(images)
        except CeaseError:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            raise CeaseError(self._fault(error, images)) from error

    def _answer(self, images: Tensor) -> Any:
        images = images.to(self.dtype)
        if len(images) == 1:
            return self.program(images)
        if not self.alone:
            try:
                return self.program(images)
            except (RuntimeError, AssertionError) as error:
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self.alone = True
        return _together([self.program(image[None]) for image in images])

    def _fault(self, error: Exception, images: Tensor) -> str:
        """The sentence about what the program raised."""
        # TorchScript puts a traceback before its reason.
        reason = one_line(str(error).strip().rpartition("\n")[2] or type(error).__name__)[:200]
        if _DEVICES.search(reason):
            advice = "it may be bound to the device that it was made on, so use --device cpu"
        elif self.largest:
            limit = " × ".join(str(n or "any") for n in self.largest)
            advice = f"it takes images up to {limit}, so import it again with a roi of that size or less"
        else:
            advice = "import it again with a roi, the size of images that it takes, or try another scan"
        return f"the program failed on images of shape {tuple(images.shape)} ({reason}); {advice}."


def program_kind(path: Path) -> ProgramKind | None:
    """What kind of program a file is, by the names of its entries; None if it is none.

    Raises
    ------
    CeaseError
        If the file cannot be read.
    """
    with reading(path, "a program"):
        if not path.is_file() or not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()} | set(archive.namelist())
    if "models/model.json" in names or "serialized_exported_program.json" in names or _compiled(names):
        return "exported"
    return "torchscript" if {"constants.pkl", "data.pkl"} <= names else None


def open_program(folder: Path, card: ModelCard) -> Program:
    """The program of a model of the library, if it is the one that the user agreed to.

    Parameters
    ----------
    folder
        Of the model.
    card
        Its card, with the file's hash.

    Raises
    ------
    CeaseError
        If the file is missing, another one, or was not agreed to on this machine.
    """
    assert card.foreign is not None
    kind: ProgramKind = "torchscript" if card.foreign.kind == "torchscript" else "exported"
    path = folder / PROGRAMS[kind]
    sha256 = file_hash(path)
    if sha256 != card.foreign.sha256:
        raise CeaseError(f"{path} is not the program that was imported; import the original file again.")
    if not agreed(sha256):
        raise CeaseError(
            f"{path} is a program that nobody has agreed to run on this machine; import the file yourself, if you "
            "trust where it is from."
        )
    return _load(path, kind)[0]


def draft_program(source: Path, choices: Choices, consent: Consent) -> Draft:
    """Read a program once the user agrees, and find out by trial how it wants to be asked.

    Parameters
    ----------
    source
        A file of ``torch.jit.save`` or ``torch.export.save``.
    choices
        Classes and mode are needed, since no program says them.
    consent
        Asked before the file is loaded.

    Raises
    ------
    CeaseError
        If it is no program, the user does not agree, something needed is missing, or it takes no image that was tried.
    """
    kind = program_kind(source)
    if kind is None:
        raise CeaseError(f"{source.name} is no program; choose a file of torch.jit.save or torch.export.save.")
    refuse_idle(choices, source.name, "a program", _IDLE)
    classes, mode = choices.classes, choices.mode
    missing = [name for name, value in (("classes", classes), ("mode", mode)) if not value]
    if not classes or mode is None:
        raise CeaseError(f"{source.name}: a program does not say its {' and '.join(missing)}; give {_EXAMPLE}.")
    steps = choices.intensities(source.name)
    _check_file(source)
    sha256 = ask(source, WHY[kind], consent)
    network, known = _load(source, kind)
    title = choices.title or source.stem
    takes = _takes(network, known, choices, title)
    expected, outputs = len(classes) + (mode == "multiclass"), choices.outputs or ()
    answers = [entries(network, (1, takes.channels, *takes.size), scale=scale) for scale in (1.0, 1e3)]
    chosen = choose_entry(answers[0], expected, title, way=choices.output, outputs=outputs)
    seen = [entry.values for answer in answers for entry in answer if entry.way == chosen.way]
    if outputs and max(outputs) < chosen.channels:
        seen = [values[:, list(outputs)] for values in seen]
    activation, remark = (choices.activation, "") if choices.activation else guess_activation(seen, mode, title)
    card = make_card(
        name=choices.name or card_name(source.stem),
        title=title,
        architecture=NAMES[kind],
        ndim=takes.ndim,
        channels=takes.channels,
        classes=class_infos(classes),
        mode=mode,
        window=choices.window or SCAN_WINDOW,
        licence=choices.licence or "unknown",
        foreign={
            "kind": kind,
            "sha256": sha256,
            "steps": steps,
            "orientation": choices.orientation or "display",
            "spacing": choices.spacing or (),
            "window": choices.roi or (takes.size if takes.fixed else _window(takes, network.largest)),
            "divisor": 1 if takes.fixed else choices.divisor or takes.divisor,
            "fixed": takes.fixed,
            "output": chosen.way,
            "outputs": outputs,
            "activation": activation,
        },
    )
    remarks = _remarks(takes, network.largest, choices, chosen.way, remark, answers)
    return Draft(card, network, program=source, remarks=tuple(remarks))


def _takes(network: Program, known: Takes | None, choices: Choices, title: str) -> Takes:
    roi = choices.roi or ()
    if known is not None:
        for name, said, found in (("ndim", choices.ndim, known.ndim), ("channels", choices.channels, known.channels)):
            if said not in (None, found):
                raise CeaseError(f"{title} was exported for {name}={found}, not {said}; leave {name} out.")
        if known.fixed and roi and roi != known.size:
            raise CeaseError(f"{title} was exported for images of {known.size} alone; leave roi out.")
        roi = known.size if known.fixed else roi
        takes = find_takes(network, ndim=known.ndim, channels=known.channels, size=roi, fixed=known.fixed)
    else:
        takes = find_takes(network, ndim=choices.ndim, channels=choices.channels, size=roi)
    if takes is None:
        raise CeaseError(
            f"{title} took none of the images that were tried; say what it takes, for example --channels 1 --roi 96,96 "
            "(in Python: Choices(channels=1, roi=(96, 96)))."
        )
    return takes


def _window(takes: Takes, largest: tuple[int, ...]) -> tuple[int, ...]:
    """What is seen at once of a program that takes images up to a size; () where that is all that is usually seen."""
    limits, most = [n for n in largest if n], _WHOLE[takes.ndim]
    if not limits or min(limits) > most:
        return ()
    edges = (min(n or max(limits), most) for n in largest)
    return tuple(max(n - n % takes.divisor, 1) for n in edges)


def _remarks(
    takes: Takes,
    largest: tuple[int, ...],
    choices: Choices,
    way: tuple[int | str, ...],
    activation: str,
    answers: Sequence[Sequence[Any]],
) -> list[str]:
    found = [f"It takes images of {takes.channels} channel{'s' if takes.channels > 1 else ''} in {takes.ndim}-D."]
    if takes.fixed:
        found.append(f"It takes images of {' × '.join(map(str, takes.size))} alone, so scans are seen by windows.")
    elif largest:
        limit = " × ".join(str(n or "any") for n in largest)
        found.append(f"It takes images up to {limit}; roi is the size of the windows that larger ones are seen by.")
    if way and choices.output is None and len(answers[0]) > 1:
        found.append(f"Of its outputs, {list(way)} is taken; say output if another one holds the logits.")
    if activation:
        found.append(f"{activation[:-1]}; say activation if it is wrong.")
    return found


def _check_file(path: Path) -> None:
    with reading(path, "a program"), zipfile.ZipFile(path) as archive:
        check_entries(path, archive)
        if _compiled(archive.namelist()):
            raise CeaseError(
                f"{path.name} holds code that was compiled without gradients; save the network with torch.export.save."
            )
        check_sums(path, archive)
        for name in archive.namelist():
            if name.count("/") == 1 and name.endswith(("/data.pkl", "/constants.pkl")):
                check_storages(path, archive, name, "a program")


def _compiled(names: Sequence[str] | set[str]) -> bool:
    return any("data/aotinductor/" in name for name in names)


def _load(path: Path, kind: ProgramKind) -> tuple[Program, Takes | None]:
    """The program on the CPU, and what it says of its images."""
    _check_file(path)
    with reading(path, f"a program of {NAMES[kind]} by this version of torch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load_exported(path) if kind == "exported" else (_load_script(path), None)


def _load_script(path: Path) -> Program:
    script = torch.jit.load(path, map_location="cpu")
    script.eval()
    dtypes = [p.dtype for p in script.parameters() if p.is_floating_point()]
    return Program(script, dtypes[0] if dtypes else torch.float32)


def _load_exported(path: Path) -> tuple[Program, Takes]:
    with path.open("rb") as stream, _quiet("torch.export"):
        exported = torch.export.load(stream)
    signature = exported.graph_signature
    if signature.buffers_to_mutate or any(_trains(node) for node in exported.graph.nodes):
        raise CeaseError(f"{path.name} was exported in training mode; call eval() on the network and export it again.")
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    images = [nodes[name].meta.get("val") for name in signature.user_inputs if name in nodes]
    if len(images) != 1 or not isinstance(images[0], Tensor) or images[0].ndim not in (4, 5):
        raise CeaseError(f"{path.name} takes other inputs than one batch of images; export a network that takes one.")
    batch, channels, *edges = images[0].shape
    if isinstance(batch, int) and batch > 1:
        raise CeaseError(f"{path.name} takes batches of {batch} images alone; export it with a single image.")
    if not isinstance(channels, int):
        raise CeaseError(f"{path.name} leaves the number of channels open; export it with that number fixed.")
    fixed = any(isinstance(edge, int) for edge in edges)
    # Of edges that are open beside fixed ones, the example's size is as good as any.
    size = tuple(int(edge) for edge in exported.example_inputs[0][0].shape[2:]) if fixed else ()
    largest = () if fixed else tuple(_limit(edge, exported.range_constraints) for edge in edges)
    if not any(largest):
        largest = ()
    program = Program(exported.module(), images[0].dtype, alone=isinstance(batch, int), largest=largest)
    return program, Takes(len(edges), channels, size, fixed=fixed)


def _limit(edge: Any, ranges: Mapping[Any, Any]) -> int:
    """The most that an open edge may be; 0 if there is no limit."""
    known = None if isinstance(edge, int) else ranges.get(edge.node.expr)
    return int(known.upper) if known is not None and known.upper <= _LARGE else 0


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's log from printing the traceback of what becomes one sentence."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _trains(node: torch.fx.Node) -> bool:
    """Whether an operation was written down as it works in training."""
    at = _TRAINING.get(str(node.target))
    return at is not None and len(node.args) > at and node.args[at] is True


def _together(answers: Sequence[Any]) -> Any:
    """Answers to single images as one to the batch."""
    first = answers[0]
    if isinstance(first, Tensor):
        return torch.cat(list(answers)) if first.ndim else first
    if isinstance(first, Mapping):
        return {key: _together([answer[key] for answer in answers]) for key in first}
    if isinstance(first, list | tuple):
        return [_together(list(parts)) for parts in zip(*answers, strict=True)]
    return first
