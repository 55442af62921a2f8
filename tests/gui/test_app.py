"""The console script, as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from PIL import Image

from cease_core.models.library import SHIPPED

SCREENLESS = {"DISPLAY", "WAYLAND_DISPLAY"}


def call(*arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in SCREENLESS} | environment
    # One thread for each process: the suite may run beside others.
    kept |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "napari_cease.app", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=kept,
        timeout=150,
        check=False,
    )


def test_the_demo_draws_its_picture_without_a_display(tmp_path):
    picture = tmp_path / "demo.png"
    # The library holds small models under the names of the shipped ones; those come first where they exist.
    said = call("demo", "polyp", "--picture", picture)
    assert said.returncode == 0, said.stderr
    assert str(picture) in said.stdout
    with Image.open(picture) as image:
        assert image.width > 1000
        colours = image.convert("RGB").resize((200, 120)).getcolors(24_000)
    assert len(colours) > 500, "the picture is blank"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "moon"], "there is no scene 'moon'"),
        (["open", "nowhere.nii.gz"], "nowhere.nii.gz"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(arguments, sentence):
    said = call(*arguments)
    assert said.returncode == 2
    assert sentence in said.stderr
    assert "Traceback" not in said.stderr


def test_what_does_not_fit_is_said_before_a_window_opens(tmp_path, capsys, monkeypatch, library):
    from napari_cease import app

    scan, small = tmp_path / "scan.png", tmp_path / "small.png"
    Image.radial_gradient("L").convert("RGB").save(scan)
    Image.new("L", (9, 9)).save(small)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for arguments, sentence in (
        (["--labels", small], "shape"),
        (["--model", "no-such-model"], "no model called 'no-such-model'"),
        (["--model", library / "cardiac-undefended"], "expects 1 channel"),
        ([], "no display"),
    ):
        monkeypatch.setattr("sys.argv", ["napari-cease", "open", str(scan), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err


def test_the_shipped_models_come_first(library):
    from cease_core.models import find_model

    folder = find_model("polyp-undefended")
    assert folder.parent in (SHIPPED, library)
