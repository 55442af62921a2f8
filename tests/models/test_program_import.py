"""TorchScript and ``torch.export``: networks of torch and MONAI go out, come in again and answer as before."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.errors import CeaseError
from cease_core.models import ForeignModel, open_model, prepare
from cease_core.models.checkpoint import load_card
from cease_core.models.foreign.drafts import Choices, Question, refuse
from cease_core.models.foreign.model import chosen
from cease_core.models.foreign.programs import Program, draft_program, program_kind
from cease_core.models.foreign.trust import AGREED, agreed, file_hash
from cease_core.models.importing import import_any
from cease_core.scan import Scan

TWO = Choices(classes=("liver", "tumour"), mode="multiclass", normalise="none")
ONE = Choices(classes=("lesion",), mode="binary", normalise="none")
SEVERAL = Choices(classes=("core", "oedema"), mode="multilabel", normalise="none")


def unet(ndim: int, channels: int, outputs: int) -> nn.Module:
    """MONAI's U-Net, which wants edges to be multiples of four."""
    return UNet(ndim, channels, outputs, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)


class Plain(nn.Module):
    """Two convolutions, which take any image."""

    def __init__(self, ndim: int, channels: int, outputs: int) -> None:
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.first, self.last = conv(channels, 4, 3, padding=1), conv(4, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(images)))


class Sigmoids(nn.Module):
    """A dict with probabilities of overlapping classes beside what else a training looks at."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.network(images)
        return {"mean": logits.mean(), "seg": torch.sigmoid(logits), "ids": logits.argmax(1)}


class Softmaxes(nn.Module):
    """A list in a tuple: the finest map first, coarser ones for deep supervision, and a classification."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        logits = self.network(images)
        coarse = logits[..., ::2, ::2]
        return [coarse.softmax(1), logits.softmax(1)], logits.flatten(2).mean(2)


@dataclass(frozen=True)
class Case:
    """A network, how it leaves, and what is found when it comes back."""

    network: Callable[[], nn.Module]
    way: str
    shape: tuple[int, ...]
    choices: Choices
    output: tuple[int | str, ...] = ()
    activation: str = "none"
    divisor: int = 1
    fixed: bool = False


CASES = {
    "scripted, 2-D": Case(lambda: Plain(2, 1, 1), "script", (1, 1, 20, 28), ONE),
    "scripted, probabilities in a dict, 3-D": Case(
        lambda: Sigmoids(Plain(3, 4, 2)), "script", (1, 4, 9, 8, 7), SEVERAL, ("seg",), "sigmoid"
    ),
    "traced, MONAI, 3-D": Case(lambda: unet(3, 1, 3), "trace", (1, 1, 16, 16, 16), TWO, divisor=4),
    "traced, colour, MONAI, 2-D": Case(lambda: unet(2, 3, 1), "trace", (1, 3, 32, 24), ONE, divisor=4),
    "exported for one size, MONAI, 2-D": Case(lambda: unet(2, 1, 3), "export", (1, 1, 32, 24), TWO, fixed=True),
    "exported, nested, 2-D": Case(
        lambda: Softmaxes(Plain(2, 1, 3)), "export", (1, 1, 24, 32), TWO, (0, 1), "softmax", fixed=True
    ),
    "exported for any size, 3-D": Case(lambda: Plain(3, 2, 3), "dynamic", (2, 2, 9, 10, 11), TWO),
}


def written(case: Case, path: Path) -> tuple[nn.Module, Path]:
    """The network of a case, and the file that it left as."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = case.network().eval()
        images = torch.rand(case.shape)
        if case.way in ("script", "trace"):
            path = path.with_suffix(".pt")
            done = torch.jit.script(network) if case.way == "script" else torch.jit.trace(network, images)
            done.save(path)
        else:
            path = path.with_suffix(".pt2")
            free = dict.fromkeys((0, *range(2, len(case.shape))), torch.export.Dim.DYNAMIC)
            shapes = (free,) if case.way == "dynamic" else None
            torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), path)
    return network, path


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, nn.Module, Path]:
    """A case, its network and its file."""
    case = CASES[request.param]
    return case, *written(case, tmp_path_factory.mktemp("programs") / "network")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file."""
    return written(CASES["scripted, 2-D"], tmp_path_factory.mktemp("programs") / "network")[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ``torch.export``."""
    return written(Case(lambda: Plain(2, 1, 1), "export", (1, 1, 8, 8), ONE), tmp_path_factory.mktemp("p") / "net")[1]


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's library; it does not exist yet."""
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "home" / "models"))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def yes(_: Question) -> bool:
    return True


def opened(folder: Path) -> ForeignModel:
    model = open_model(folder)
    assert isinstance(model, ForeignModel)
    return model


# --- there and back -----------------------------------------------------------------------------------------------


def test_the_same_logits_and_a_working_attack(case: tuple[Case, nn.Module, Path]) -> None:
    expected, network, path = case
    model = opened(import_any(path, expected.choices, yes).folder)
    foreign = model.foreign
    assert (foreign.output, foreign.activation, foreign.fixed) == (
        expected.output,
        expected.activation,
        expected.fixed,
    )
    assert (model.card.ndim, model.card.channels) == (len(expected.shape) - 2, expected.shape[1])
    assert foreign.window == (expected.shape[2:] if expected.fixed else ())
    assert expected.fixed or foreign.divisor == expected.divisor

    images = torch.rand((1, *expected.shape[1:]), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, answer = model.asked(images), chosen(network(images), expected.output)
    undone = {"none": logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(1)}[expected.activation]
    torch.testing.assert_close(undone, answer, rtol=0, atol=1e-5)

    size = (40, 36) if model.card.ndim == 2 else (12, 16, 20)
    scan = Scan(np.random.default_rng(0).random((model.card.channels, *size), np.float32), np.eye(4))
    subject = pose_on_scan(prepare(model), scan)
    problem = subject.problem("soft_dice")
    result = PGD(epsilon=0.1, steps=3).run(problem)
    assert problem.look(torch.zeros_like(problem.images))[2].item() == pytest.approx(1)
    assert problem.look(result.perturbation)[2].item() < 0.9


def test_the_library_holds_the_very_file(script: Path) -> None:
    folder = import_any(script, ONE, yes).folder
    card = load_card(folder)
    assert card.foreign is not None
    assert card.foreign.sha256 == file_hash(script) == file_hash(folder / "model.ts")
    assert (card.name, card.architecture) == ("network", "TorchScript")


@pytest.mark.parametrize("ending", [".bin", ".pt"])
def test_a_file_is_known_by_what_it_holds(script: Path, exported: Path, ending: str, tmp_path: Path) -> None:
    for path, kind in ((script, "torchscript"), (exported, "exported")):
        other = tmp_path / f"renamed{ending}"
        shutil.copy(path, other)
        assert program_kind(other) == kind
        assert draft_program(other, ONE, yes).card.channels == 1


def test_what_was_found_is_said(script: Path, exported: Path) -> None:
    said = " ".join(draft_program(script, ONE, yes).remarks)
    assert "1 channel in 2-D" in said
    assert "8 × 8 alone" in " ".join(draft_program(exported, ONE, yes).remarks)


def test_what_the_user_says_comes_first(tmp_path: Path) -> None:
    _, path = written(Case(lambda: Sigmoids(Plain(2, 1, 2)), "script", (1, 1, 8, 8), SEVERAL), tmp_path / "net")
    choices = SEVERAL.model_copy(
        update={"activation": "none", "roi": (24, 24), "divisor": 8, "name": "mine", "orientation": "RAS", "ndim": 2}
    )
    card = draft_program(path, choices, yes).card
    assert card.foreign is not None
    assert (card.name, card.foreign.activation, card.foreign.window) == ("mine", "none", (24, 24))
    assert (card.foreign.divisor, card.foreign.orientation) == (8, "RAS")


def test_some_channels_of_many(tmp_path: Path) -> None:
    network, path = written(Case(lambda: Plain(2, 1, 5), "script", (1, 1, 8, 8), TWO), tmp_path / "net")
    model = opened(import_any(path, TWO.model_copy(update={"outputs": (0, 4, 2)}), yes).folder)
    images = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(model.asked(images), network(images)[:, [0, 4, 2]], rtol=0, atol=1e-5)


# --- as a network -------------------------------------------------------------------------------------------------


def test_a_program_is_frozen_and_stays_in_evaluation_mode(script: Path, exported: Path) -> None:
    for path in (script, exported):
        program = draft_program(path, ONE, yes).network
        assert not any(p.requires_grad for p in program.parameters())
        assert not program.train().training
        images = torch.rand(1, 1, 8, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(program(images).sum(), images)
        assert gradient.any()


class OneByOne(nn.Module):
    """Cannot take two images at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> Any:
        self.asked.append(len(images))
        if len(images) > 1:
            raise RuntimeError("shape '[1, 1]' is invalid")
        return {"seg": images * 2, "more": (images + 1, 3), "mean": images.mean()}


def test_a_batch_is_asked_one_by_one_where_it_must_be(exported: Path) -> None:
    network = OneByOne()
    program = Program(network, torch.float32)
    images = torch.rand(3, 1, 4, 4)
    for _ in range(2):
        answer = program(images)
        torch.testing.assert_close(answer["seg"], images * 2)
        torch.testing.assert_close(answer["more"][0], images + 1)
    assert network.asked == [3, 1, 1, 1, 1, 1, 1]

    real = draft_program(exported, ONE, yes).network  # exported for a batch of one
    batch = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(real(batch), torch.cat([real(image[None]) for image in batch]))


def test_half_precision_is_asked_in_its_own(tmp_path: Path) -> None:
    _, path = written(Case(lambda: Plain(2, 1, 1).double(), "script", (1, 1, 8, 8), ONE), tmp_path / "net")
    assert draft_program(path, ONE, yes).network(torch.rand(1, 1, 8, 8)).dtype == torch.float64


def sized(path: Path, network: nn.Module, **limits: int) -> Path:
    """A network exported for images up to a size."""
    dims = {axis: torch.export.Dim(name, **kept) for axis, (name, kept) in enumerate(_dims(limits), 2)}
    exported = torch.export.export(network.eval(), (torch.rand(1, 1, 40, 48),), dynamic_shapes=(dims,))
    torch.export.save(exported, path)
    return path


def _dims(limits: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
    return [(name, {"max": limits[name]} if name in limits else {}) for name in ("rows", "columns")]


@pytest.mark.parametrize(
    ("limits", "window"),
    [
        ({"rows": 96, "columns": 64}, (96, 64)),
        ({"rows": 96}, (96, 96)),
        ({"rows": 96, "columns": 2048}, (96, 512)),
        ({"rows": 2048, "columns": 2048}, ()),
        ({}, ()),
    ],
)
def test_a_network_for_images_up_to_a_size_sees_larger_ones_by_windows(
    limits: dict[str, int], window: tuple[int, ...], tmp_path: Path
) -> None:
    draft = draft_program(sized(tmp_path / "net.pt2", Plain(2, 1, 1), **limits), ONE, yes)
    assert draft.card.foreign is not None
    assert draft.card.foreign.window == window
    assert any("images up to" in remark for remark in draft.remarks) == bool(limits)
    if window:
        model = ForeignModel(draft.card, draft.network)
        assert model(torch.rand(1, 1, 300, 300)).shape == (1, 1, 300, 300)


def test_an_image_that_is_too_large_is_one_sentence(tmp_path: Path) -> None:
    program = draft_program(sized(tmp_path / "net.pt2", Plain(2, 1, 1), rows=600, columns=600), ONE, yes).network
    with pytest.raises(CeaseError, match=r"failed on images of shape .*; it takes images up to 600 × 600, so") as said:
        program(torch.rand(1, 1, 601, 40))
    assert "\n" not in str(said.value)


class Failing(nn.Module):
    """Raises what it is given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AssertionError(), r"\(AssertionError\); import it again with a roi"),
        (KeyError("seg"), r"\('seg'\); import it again with a roi"),
        (RuntimeError("in code:\n  x\nRuntimeError: no size 3"), r"\(RuntimeError: no size 3\); import it again"),
        (RuntimeError("all tensors must be on the same device, cuda:0 and cpu!"), r"so use --device cpu\.$"),
    ],
)
def test_whatever_a_program_raises_is_one_sentence(error: Exception, sentence: str, count: int) -> None:
    with pytest.raises(CeaseError, match=sentence) as said:
        Program(Failing(error), torch.float32)(torch.rand(count, 1, 8, 8))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_is_no_fault_of_the_program(error: Exception) -> None:
    program = Program(Failing(error), torch.float32)
    with pytest.raises(type(error), match=str(error)):
        program(torch.rand(2, 1, 8, 8))
    assert not program.alone


def test_a_program_has_neither_folds_nor_an_architecture(script: Path) -> None:
    with pytest.raises(CeaseError, match="architecture, fold mean nothing for a program"):
        draft_program(script, ONE.model_copy(update={"architecture": "unet", "fold": "0"}), yes)


# --- what is missing or does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (Choices(), r"does not say its classes and mode; give --classes liver,tumour --mode multiclass"),
        (Choices(classes=("a",)), "does not say its mode"),
        (Choices(mode="binary"), "does not say its classes"),
        (TWO, r"answers with one map \(1 channels\), but its classes and mode make 3"),
        (ONE.model_copy(update={"output": ("seg",)}), r"no output \['seg'\]; choose among one map"),
        (ONE.model_copy(update={"channels": 2}), "took none of the images"),
        (ONE.model_copy(update={"ndim": 3}), "took none of the images"),
        (ONE.model_copy(update={"name": "my model"}), "cannot be described so .name"),
    ],
)
def test_one_sentence_for_what_does_not_fit(script: Path, choices: Choices, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        draft_program(script, choices, yes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 2}, "exported for channels=1, not 2"),
        ({"ndim": 3}, "exported for ndim=2, not 3"),
        ({"roi": (16, 16)}, r"for images of \(8, 8\) alone"),
    ],
)
def test_an_export_says_its_images_itself(exported: Path, changes: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        draft_program(exported, ONE.model_copy(update=changes), yes)


class Twins(nn.Module):
    """Two maps that look alike."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images * 2, images * 3


def test_what_is_ambiguous_is_asked_and_not_guessed(tmp_path: Path) -> None:
    _, twins = written(Case(Twins, "script", (1, 1, 8, 8), ONE), tmp_path / "twins")
    with pytest.raises(CeaseError, match=r"any of these may be meant; say which one, for example output=\[0\]"):
        draft_program(twins, ONE, yes)
    second = ONE.model_copy(update={"output": (1,)})
    assert draft_program(twins, second, yes).card.foreign.output == (1,)  # type: ignore[union-attr]
    _, sums = written(Case(lambda: Sigmoids(Plain(2, 1, 3)), "script", (1, 1, 8, 8), TWO), tmp_path / "sums")
    with pytest.raises(CeaseError, match=r"do not add up to 1.*say activation"):
        draft_program(sums, TWO, yes)


def test_exports_that_cannot_be_asked_about_an_image(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, images: Tensor, others: Tensor) -> Tensor:
            return images + others

    image = torch.rand(1, 1, 8, 8)
    for network, images, sentence in (
        (Pair(), (image, image), "takes other inputs than one batch"),
        (nn.BatchNorm2d(1).train(), (image,), "exported in training mode"),
        (nn.Dropout(0.5).train(), (image,), "exported in training mode"),
        (Plain(2, 1, 1), (torch.rand(2, 1, 8, 8),), "batches of 2 images alone"),
    ):
        torch.export.save(torch.export.export(network, images), tmp_path / "net.pt2")
        with pytest.raises(CeaseError, match=sentence):
            draft_program(tmp_path / "net.pt2", ONE, yes)


# --- trust --------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_the_user_agrees(
    script: Path, exported: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.jit, "load", loaded)
    monkeypatch.setattr(torch.export, "load", loaded)
    for path in (script, exported):
        with pytest.raises(CeaseError, match="was not opened"):
            import_any(path, ONE, lambda _: False)
        with pytest.raises(CeaseError, match="Agree to it if you trust"):
            import_any(path, ONE, refuse)
        assert not agreed(file_hash(path))
    assert not library.exists() or not list(library.iterdir())


def test_a_user_is_asked_once_on_a_machine(script: Path, library: Path) -> None:
    questions: list[Question] = []

    def ask(question: Question) -> bool:
        questions.append(question)
        return True

    folder = import_any(script, ONE, ask).folder
    import_any(script, ONE.model_copy(update={"name": "again"}), ask)
    assert [(q.path.name, q.sha256) for q in questions] == [(script.name, file_hash(script))]
    assert "read and write files" in questions[0].why
    opened(folder)
    (library.parent / AGREED).unlink()  # as on another machine
    with pytest.raises(CeaseError, match=r"nobody has agreed to run on this machine; import the file"):
        open_model(folder)


def test_a_program_that_was_exchanged_is_not_run(script: Path, tmp_path: Path) -> None:
    folder = import_any(script, ONE, yes).folder
    _, other = written(Case(Twins, "script", (1, 1, 8, 8), ONE), tmp_path / "other")
    shutil.copy(other, folder / "model.ts")
    with pytest.raises(CeaseError, match="is not the program that was imported"):
        open_model(folder)
    (folder / "model.ts").unlink()
    with pytest.raises(CeaseError, match="is not a file"):
        open_model(folder)


# --- hostile files ------------------------------------------------------------------------------------------------


def rezipped(source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            new.writestr(*change(member.filename, old.read(member)))
        new.writestr(*change("further", b""))
    return target


def test_entries_cannot_point_outside(script: Path, tmp_path: Path) -> None:
    path = rezipped(script, tmp_path / "net.pt", lambda name, data: (name.replace("further", "../../x"), data))
    with pytest.raises(CeaseError, match="points outside"):
        draft_program(path, ONE, refuse)


def test_bombs_are_refused_before_anybody_is_asked(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt"
    shutil.copy(script, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("network/data/9", bytes(2**24))
    assert path.stat().st_size < 2**17
    monkeypatch.setattr("cease_core.models.foreign.pickles.LIMIT", 2**20)
    with pytest.raises(CeaseError, match=r"unpacks to 0\.016 GiB"):
        draft_program(path, ONE, refuse)


def test_compiled_libraries_are_not_loaded(exported: Path, tmp_path: Path) -> None:
    path = rezipped(
        exported, tmp_path / "net.pt2", lambda n, d: (n.replace("further", "net/data/aotinductor/model/a.so"), d)
    )
    with pytest.raises(CeaseError, match="compiled without gradients"):
        draft_program(path, ONE, refuse)


@pytest.mark.parametrize("kept", [0, 4, 300, -400, -1])
def test_truncated_files(script: Path, exported: Path, kept: int, tmp_path: Path) -> None:
    for path in (script, exported):
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CeaseError):
            draft_program(cut, ONE, yes)
        with pytest.raises(CeaseError):
            import_any(cut, ONE, yes)


def test_damaged_programs_are_one_sentence(
    script: Path, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path, endings in ((script, ("data.pkl", "constants.pkl")), (exported, ("models/model.json", "weight_0"))):
        for ending in endings:
            broken = rezipped(
                path, tmp_path / path.name, lambda n, d, e=ending: (n, b"\x80broken" if n.endswith(e) else d)
            )
            with pytest.raises(CeaseError, match="could not be read as a program"):
                draft_program(broken, ONE, yes)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
