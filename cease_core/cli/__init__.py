"""The command line: attacks on scans, data sets, and the training of models; ``cease --help`` lists the commands.

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


_Classes = Annotated[
    str | None,
    typer.Option(
        help="Class of each id in the masks' files: 1=1,2=1,4=2, or 255=1,*=0 (* for all others).",
        show_default="ids are classes",
    ),
]


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
    classes: _Classes = None,
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
    frame: Annotated[
        int | None, typer.Option(help="Volume of a time series to attack, counted from 0.", show_default="none")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Interpolate a tilted or uneven DICOM series onto an even grid.")
    ] = False,
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
            frame=frame,
            seed=seed,
            device=device,
            classes=classes,
            resample=resample,
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


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="MONAI bundle, TorchScript, torch.export, nnU-Net folder, weights, or a model of this program."
        ),
    ],
    about: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with what is said by the options below.", show_default="none")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the library.", show_default="from the file")] = None,
    title: Annotated[str | None, typer.Option(help="As it is shown.", show_default="from the file")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Foreground classes in order: liver,tumour.", show_default="from the file")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="binary, multiclass or multilabel.", show_default="from the file")
    ] = None,
    ndim: Annotated[str | None, typer.Option(help="2 or 3.", show_default="found out")] = None,
    channels: Annotated[str | None, typer.Option(help="Of the image.", show_default="found out")] = None,
    window: Annotated[
        str | None, typer.Option(help="Intensities that count as 0 and 1: -160,240.", show_default="percentiles")
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="What the network is given: none (as in the file), unit (0 to 1 over the window), zscore or minmax.",
            show_default="unit with --window, else from the file",
        ),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Voxels in mm that scans are resampled to: 1.5,1.5,2.", show_default="the scan's")
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Of the network's axes: RAS, xyz, zyx, display.", show_default="from the file")
    ] = None,
    roi: Annotated[str | None, typer.Option(help="Window that is seen at once: 96,96,96.", show_default="all")] = None,
    output: Annotated[
        str | None, typer.Option(help="Entry of the answer that holds the logits: out or 0.", show_default="found out")
    ] = None,
    outputs: Annotated[str | None, typer.Option(help="Channels of it, in order: 0,2.", show_default="all")] = None,
    activation: Annotated[
        str | None, typer.Option(help="none, sigmoid or softmax, if it is in the network.", show_default="found out")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="For weights alone: one of ours, or a class of MONAI.", show_default="none")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--arg", help="Of the architecture: channels=[16,32,64].")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="Of an nnU-Net folder.", show_default="the first")] = None,
    agree: Annotated[bool, typer.Option("--agree", help="Open files that may run code without asking.")] = False,
) -> None:
    """Take a model that was made elsewhere into the library, once it has shown that it works."""
    from cease_core.cli.importing import ImportRequest, run_import

    options = {
        "name": name, "title": title, "classes": classes, "mode": mode, "ndim": ndim, "channels": channels,
        "window": window, "normalise": normalise, "spacing": spacing, "orientation": orientation, "roi": roi,
        "output": output, "outputs": outputs, "activation": activation, "architecture": architecture, "fold": fold,
    }  # fmt: skip
    request = ImportRequest(
        source=source,
        about=about,
        options={key: value for key, value in options.items() if value is not None},
        arguments=tuple(arguments or ()),
        agree=agree,
    )
    raise typer.Exit(run_import(request))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Check this computer; exit code 1 if something needed is missing."""
    from cease_core.cli.listings import list_findings

    raise typer.Exit(list_findings(as_json))


@app.command()
def data(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder with images/ and labels/ or a dataset.json (Decathlon, nnU-Net); or a CSV or JSONL list."
        ),
    ],
    classes: _Classes = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of patients to choose checkpoints by.", show_default="none")
    ] = None,
    test: Annotated[float, typer.Option(help="Share of patients to report on; put aside first.")] = 0.0,
    patients: Annotated[
        str | None,
        typer.Option(
            help=r"Pattern with one group that finds the patient in a case's name: '^(scd_\d+)'.",
            show_default="each case is one",
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds of a cross-validation.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which of the folds, counted from 0.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Look for errors; exit code 1 if there are any.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the split (JSON).", show_default="not written")] = None,
) -> None:
    """Describe the cases of a data set, check them, and split them by patient."""
    from cease_core.cli.data import DataRequest, run_data

    code = run_data(
        DataRequest(
            folder=folder,
            validation=validation,
            test=test,
            patients=patients,
            folds=folds,
            fold=fold,
            check=check,
            as_json=as_json,
            out=out,
            classes=classes,
        )
    )
    raise typer.Exit(code)


@app.command()
def presets(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the presets of `cease train` with their terms, their cost and their sources."""
    from cease_core.cli.listings import list_presets

    list_presets(as_json)


@app.command()
def tasks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the auxiliary tasks that a model can be trained with."""
    from cease_core.cli.listings import list_tasks

    list_tasks(as_json)


_Config = Annotated[
    Path | None,
    typer.Argument(help="Training config (YAML or JSON).", show_default="made from the data"),
]
_Data = Annotated[
    Path | None,
    typer.Option(help="Data set (see `cease data`), or the folder that holds the one a config names."),
]
_Preset = Annotated[
    str | None, typer.Option(help="Defence (see `cease presets`).", show_default="the config's, else cease")
]
_Model = Annotated[
    str | None,
    typer.Option(help="Architecture: unet, residual_unet, …", show_default="the config's, else residual_unet"),
]
_Epochs = Annotated[int | None, typer.Option(help="Passes over the data.", show_default="the config's, else 50")]
_Budget = Annotated[
    int | None,
    typer.Option(help="Gradient computations in all, instead of --epochs: costly defences get fewer epochs."),
]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other entry: learning_rate=1e-3, patch=[64,64], defence.inner.steps=3, …"),
]
_Seed = Annotated[int | None, typer.Option(help="Of everything random.", show_default="the config's, else 0")]
_Start = Annotated[str | None, typer.Option(help="Model whose weights are the starting point.", show_default="none")]
_Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.", show_default="the config's, else fp32")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
_Validation = Annotated[
    float | None,
    typer.Option(help="Share of patients to choose the checkpoint by.", show_default="the config's, else 0.2"),
]
_Test = Annotated[
    float | None, typer.Option(help="Share of patients put aside, unseen.", show_default="the config's, else 0")
]
_Patients = Annotated[
    str | None,
    typer.Option(
        help=r"Pattern with one group that finds the patient in a case's name: '^(scd_\d+)'.",
        show_default="each case is one",
    ),
]
_Folds = Annotated[int | None, typer.Option(help="Number of folds of a cross-validation.")]
_Fold = Annotated[int | None, typer.Option(help="Which of the folds validates, counted from 0.")]
_Split = Annotated[Path | None, typer.Option(help="Split to use, as `cease data --out` writes it.")]


@app.command()
def train(
    config: _Config = None,
    data: _Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model and the state to resume from; made if it is missing.")
    ] = None,
    preset: _Preset = None,
    model: _Model = None,
    epochs: _Epochs = None,
    budget: _Budget = None,
    changes: _Changes = None,
    seed: _Seed = None,
    start: _Start = None,
    precision: _Precision = None,
    device: _Device = "auto",
    validation: _Validation = None,
    test: _Test = None,
    patients: _Patients = None,
    folds: _Folds = None,
    fold: _Fold = None,
    split: _Split = None,
    classes: _Classes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out; nothing else needs to be repeated.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the config and what the run would cost, and stop.")
    ] = False,
) -> None:
    """Train a model, from a config or from a preset and the data alone; Ctrl-C stops it, --resume goes on."""
    from cease_core.cli.recipe import RunRequest
    from cease_core.cli.train import run_training

    request = RunRequest(
        config=config,
        data=data,
        preset=preset,
        model=model,
        epochs=epochs,
        budget=budget,
        changes=tuple(changes or ()),
        seed=seed,
        start=start,
        precision=precision,
        device=device,
        validation=validation,
        test=test,
        patients=patients,
        folds=folds,
        fold=fold,
        split=split,
        classes=classes,
    )
    raise typer.Exit(run_training(request, out, resume=resume, dry_run=dry_run))


@app.command()
def relevance(
    out: Annotated[Path, typer.Option(help="Folder for the scores, or one that holds them, to choose again.")],
    config: _Config = None,
    data: _Data = None,
    rule: Annotated[
        str | None, typer.Option(help="weak, strongest, random or all.", show_default="the config's, else weak")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="How many tasks to choose.", show_default="the config's, else 2", min=1)
    ] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="Share of the training that warms the tasks up.", show_default="0.1")
    ] = None,
    model: _Model = None,
    epochs: _Epochs = None,
    budget: _Budget = None,
    changes: _Changes = None,
    seed: _Seed = None,
    start: _Start = None,
    device: _Device = "auto",
    validation: _Validation = None,
    test: _Test = None,
    patients: _Patients = None,
    folds: _Folds = None,
    fold: _Fold = None,
    split: _Split = None,
    classes: _Classes = None,
) -> None:
    """Measure how auxiliary tasks relate to segmentation, and choose; again from --out alone, without training."""
    from cease_core.cli.recipe import RunRequest
    from cease_core.cli.relevance import run_relevance

    request = RunRequest(
        config=config,
        data=data,
        model=model,
        epochs=epochs,
        budget=budget,
        changes=tuple(changes or ()),
        seed=seed,
        start=start,
        device=device,
        validation=validation,
        test=test,
        patients=patients,
        folds=folds,
        fold=fold,
        split=split,
        classes=classes,
    )
    raise typer.Exit(run_relevance(request, out, rule=rule, count=count, warm_up=warm_up))


@app.command()
def audit(
    models: Annotated[
        list[str], typer.Argument(help="Models with the same classes: names (see `cease models`) or folders.")
    ],
    data: Annotated[Path, typer.Option(help="Data set with labels (see `cease data`).")],
    out: Annotated[
        Path, typer.Option(help="Folder for table and report; one that holds a part of it is gone on with.")
    ],
    tier: Annotated[
        str, typer.Option(help="quick (a minute or two), standard (an ensemble of losses, too), full (all cases).")
    ] = "quick",
    split: Annotated[
        Path | None, typer.Option(help="Split as `cease data --out` writes it; its test side is audited.")
    ] = None,
    side: Annotated[str, typer.Option(help="Side of the split: training, validation or test.")] = "test",
    classes: _Classes = None,
    patients: _Patients = None,
    cases: Annotated[
        int | None, typer.Option(help="At most so many cases; 0 for all.", show_default="the tier's", min=0)
    ] = None,
    epsilons: Annotated[
        str | None, typer.Option(help="Of the curve, such as 2/255,4/255,8/255.", show_default="the tier's")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="A further model that transfers are made on; those under audit are, for each other."),
    ] = None,
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Also audit on cases that a model was trained on.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: steps=40, restarts=5, queries=2000, …")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Dask scheduler, such as tcp://host:8786, whose workers see the same files."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine.", min=1)] = 1,
    device: _Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="0")] = None,
) -> None:
    """Find out how robust models are and whether the figures can be trusted; the same command goes on after a stop."""
    from cease_core.cli.audit import AuditRequest, run_audit

    code = run_audit(
        AuditRequest(
            models=tuple(models),
            data=data,
            out=out,
            tier=tier,
            split=split,
            side=side,
            patients=patients,
            cases=cases,
            epsilons=epsilons,
            sources=tuple(source or ()),
            keep_seen=keep_seen,
            changes=tuple(changes or ()),
            scheduler=scheduler,
            workers=workers,
            device=device,
            seed=seed,
            classes=classes,
        )
    )
    raise typer.Exit(code)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of an audit, finished or not.")]) -> None:
    """Write the report of an audit again from its table."""
    from cease_core.cli.audit import finish

    finish(folder)


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
