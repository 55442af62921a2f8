"""Files of weights that others wrote: tensors come out, and nothing else ever happens."""

from __future__ import annotations

import io
import os
import pickle
import resource
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from safetensors.torch import save, save_file
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models.foreign import pickles
from cease_core.models.foreign.pickles import CONVERT, read_checkpoint, read_state, state_of


@pytest.fixture
def network() -> UNet:
    """A small network of MONAI."""
    return UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), num_res_units=1)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes something by ``torch.save``."""

    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    return write


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a zip like one of ``torch.save`` around any pickle."""

    def write(data: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
        path = tmp_path / "weights.pt"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in {"w/data.pkl": data, "w/version": b"3\n", "w/byteorder": b"little"}.items():
                archive.writestr(name, content)
            for name, content in (entries or {}).items():
                archive.writestr(name, content)
        return path

    return write


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- what is read -------------------------------------------------------------------------------------------------


def test_a_safetensors_file(network: UNet, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    assert same(read_state(tmp_path / "weights.safetensors"), network.state_dict())


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "alone": lambda state: state,
    "of parameters": lambda state: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()},
    "beside the epoch": lambda state: {"epoch": 5, "best": np.float64(0.9), "loss": [0.1], "state_dict": state},
    "beside a NumPy array": lambda state: {"curve": np.arange(3.0), "model": state, "device": torch.device("cuda:3")},
    "in a wrapper in a wrapper": lambda state: {"network": {"model_state_dict": state}},
    "of several devices": lambda state: {"module." + k: v for k, v in state.items()},
    "of a compiled network on several": lambda state: {"module._orig_mod." + k: v for k, v in state.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_state_dict(wrap: Callable[[dict[str, Tensor]], Any], network: UNet, saved: Callable[[Any], Path]) -> None:
    assert same(read_state(saved(wrap(network.state_dict()))), network.state_dict())


def test_a_training_with_its_optimiser(network: UNet, saved: Callable[[Any], Path]) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.rand(1, 1, 8, 8)).sum().backward()
    optimiser.step()
    path = saved({"net": network.state_dict(), "optimiser": optimiser.state_dict()})
    assert same(read_state(path), network.state_dict())
    assert same(state_of(read_checkpoint(path), path), network.state_dict())


def test_weights_know_no_gradient(saved: Callable[[Any], Path]) -> None:
    state = read_state(saved({"w": torch.nn.Parameter(torch.ones(3))}))
    assert not state["w"].requires_grad


def test_a_name_that_a_wrapper_shares_is_kept(saved: Callable[[Any], Path]) -> None:
    """MONAI's `UNet` calls all its tensors ``model.…``."""
    assert set(read_state(saved({"model.0.weight": torch.ones(2)}))) == {"model.0.weight"}


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_whole_network_says_how_to_save_its_weights(
    network: UNet, saved: Callable[[Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(CeaseError, match=r"more than tensors \(monai\.networks\.nets\.unet\.UNet") as refused:
        read_state(saved(network))
    assert CONVERT in str(refused.value)
    scope = {"network": network}
    exec(CONVERT.replace('"model.safetensors"', repr(str(tmp_path / "model.safetensors"))), scope)  # as the user would
    assert same(read_state(tmp_path / "model.safetensors"), network.state_dict())


def test_code_in_a_pickle_never_runs(
    saved: Callable[[Any], Path], written: Callable[..., Path], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"state_dict": {"w": Canary(canary)}}, protocol)
        with pytest.raises(CeaseError):
            read_state(written(data))
        (tmp_path / "old.pt").write_bytes(data)
        with pytest.raises(CeaseError):
            read_state(tmp_path / "old.pt")
    with pytest.raises(CeaseError, match=r"more than tensors \(posix.mkdir\)"):
        read_state(saved({"state_dict": OrderedDict(w=torch.ones(2)), "hyper_parameters": Canary(canary)}))
    assert not canary.exists()


@pytest.mark.parametrize("ending", ["pickle", "tar"])
def test_files_of_old_formats_say_how_to_convert(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    if ending == "pickle":
        torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    with pytest.raises(CeaseError, match="old format") as refused:
        read_state(path)
    assert CONVERT in str(refused.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "holds no weights"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights.*'epoch', 'lr'"),
        ([torch.ones(2)], "no weights by name"),
        (torch.ones(2), "no weights by name"),
        ({"w": torch.tensor([1.0, torch.nan])}, "'w' has values that are no numbers"),
        ({"w": torch.tensor([torch.inf])}, "'w' has values that are no numbers"),
        ({"w": torch.ones(1).expand(2**40)}, "'w' claims the shape"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "torch.ComplexFloatStorage|unusual kind"),
        ({"w": torch.ones(2).to_sparse()}, "more than tensors"),
        ({"w": torch.empty(2**40, device="meta")}, "more than tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_network(content: Any, sentence: str, saved: Callable[[Any], Path]) -> None:
    with pytest.raises(CeaseError, match=sentence):
        read_state(saved(content))


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content, sentence in ((b"", "is empty"), (b"hello, world", "no file of weights")):
        path.write_bytes(content)
        with pytest.raises(CeaseError, match=sentence):
            read_state(path)
    with pytest.raises(CeaseError, match="not a file"):
        read_state(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CeaseError, match=r"zip archive but no file of torch\.save"):
        read_state(path)


def test_a_program_is_no_file_of_weights(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Conv2d(1, 2, 3)).save(tmp_path / "network.pt")
    with pytest.raises(CeaseError, match="TorchScript program"):
        read_state(tmp_path / "network.pt")


def storage_claim(numel: int) -> bytes:
    """A pickled tensor whose storage claims ``numel`` values."""

    class Claim:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (numel,), (1,), False, OrderedDict())

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"w": Claim()})
    return out.getvalue()


NESTED = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
DICTS = b"\x80\x02" + b"}X\x05\x00\x00\x00model" * 5_000 + b"}" + b"s" * 5_000 + b"."
BYTES = b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + (2**40).to_bytes(8, "little") + b"\x85R."


@pytest.mark.parametrize(
    ("data", "entries"),
    [
        (NESTED, {}),
        (DICTS, {}),
        (BYTES, {}),
        (storage_claim(2**40), {"w/data/0": bytes(8)}),
        (storage_claim(2), {}),
        (storage_claim(2), {"../data/0": bytes(8)}),
        (storage_claim(2), {"/data/0": bytes(8)}),
        (b"\x80\x02", {}),
        (b"", {}),
    ],
    ids=["lists", "dicts", "bytes", "huge", "missing", "up", "root", "cut", "nothing"],
)
def test_hostile_pickles_cost_one_sentence_and_no_memory(
    data: bytes, entries: dict[str, bytes], written: Callable[..., Path]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CeaseError):
        read_state(written(data, entries))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_claims_are_counted_in_one_pass() -> None:
    one = b"(U\x07storageU\x0cFloatStorageU\x010U\x03cpuK\x02tQ"
    many = b"\x80\x02" + 10_000 * one + b"."
    start = time.process_time()
    assert list(pickles._claims(many)) == [("0", 8)] * 10_000
    assert time.process_time() - start < 1.5


def test_zip_bombs_are_not_unpacked(
    written: Callable[..., Path], saved: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CeaseError, match="compressed"):
        read_state(written(storage_claim(2**20), {"w/data/0": bytes(2**22)}, zipfile.ZIP_DEFLATED))
    path = saved({"w": torch.ones(1000)})
    monkeypatch.setattr(pickles, "LIMIT", 1000)
    with pytest.raises(CeaseError, match=r"more than the .* GiB allowed"):
        read_state(path)


@pytest.fixture(scope="module")
def samples() -> tuple[bytes, bytes]:
    """A file of torch and one of safetensors, whole."""
    state = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3), "steps": torch.tensor(7)}
    plain = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 1}, plain)
    return plain.getvalue(), save(state)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, samples: tuple[bytes, bytes], tmp_path: Path) -> None:
    whole = data.draw(st.sampled_from(samples))
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4)):
        content[at % max(len(content), 1) : at % max(len(content), 1) + 1] = bytes([value])
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with suppress(CeaseError):  # nothing else may come out
        assert all(tensor.isfinite().all() for tensor in read_state(path).values())
