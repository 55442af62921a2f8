"""The command line: ``cease attack``, ``attacks``, ``models``, ``doctor`` and ``train``.

torch and MONAI take seconds to load, so each command imports its work when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cease_core.errors import CeaseError

app = typer.Typer(
    name="cease",
    help="Attack medical image segmentation, and train models that withstand it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def attack(
    scan: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MHA, picture, or folder of DICOM slices.")],
    model: Annotated[str, typer.Option(help="Name of a model (see `cease models`) or its folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if it is missing.")],
    attack: Annotated[str, typer.Option(help="Name of an attack (see `cease attacks`).")] = "pgd",
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Largest change: of the window (8/255, 0.03) or in the scan's unit (20HU, 8levels).",
            show_default="the attack's own, mostly 8/255",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Reference mask; without one, the model's own clean mask.")
    ] = None,
    norm: Annotated[str, typer.Option(help="linf (every voxel) or l2 (root mean square).")] = "linf",
    loss: Annotated[
        str | None,
        typer.Option(
            help="What is ascended: dice_masked, soft_dice, … (see `cease attacks`).", show_default="the attack's own"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps.", show_default="the attack's own")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Mask to reach: a ready target (see `cease attacks`) or a file.", show_default="none: any other"
        ),
    ] = None,
    region: Annotated[
        Path | None, typer.Option(help="Mask outside which nothing changes.", show_default="everywhere")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Model that a transfer attack is made on.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="Any other parameter: restarts=3, queries=2000, …")
    ] = None,
    slice_index: Annotated[
        int | None, typer.Option("--slice", help="Attack this slice alone, counted from 0 as displayed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random start.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
) -> None:
    """Attack one scan; write the adversarial scan, the perturbation, both masks and result.json."""
    from cease_core.cli.attack import AttackRequest, run_attack

    code = run_attack(
        AttackRequest(
            scan=scan,
            model=model,
            out=out,
            attack=attack,
            epsilon=epsilon,
            labels=labels,
            norm=norm,
            loss=loss,
            steps=steps,
            target=target,
            region=region,
            source=source,
            parameters=tuple(parameters or ()),
            slice_index=slice_index,
            seed=seed,
            device=device,
        )
    )
    raise typer.Exit(code)


@app.command()
def attacks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the attacks with their sources and parameters, the losses and the ready targets."""
    from cease_core.cli.listings import list_attacks

    list_attacks(as_json)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the models that came with the package, then your own."""
    from cease_core.cli.listings import list_models

    list_models(as_json)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Check this computer; exit code 1 if something needed is missing."""
    from cease_core.cli.listings import list_findings

    raise typer.Exit(list_findings(as_json))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Training config (JSON), such as those in benchmarks/recipes.")],
    data: Annotated[Path, typer.Option(help="Folder with images/ and labels/, or the folder that holds it.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and the state to resume from.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Train a model; Ctrl-C stops it, and --resume goes on after the last finished epoch."""
    from cease_core.cli.train import run_training

    raise typer.Exit(run_training(config, data, out, resume=resume))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Parameters
    ----------
    arguments
        By default those of the process.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="cease")
    except CeaseError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
