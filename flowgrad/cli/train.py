"""``flowgrad train``: build a net one `Dot` per neuron, train it on a dask cluster, leave a report."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FlowgradError
from .options import Choice, Count, check_place, job_options, option, positive

if TYPE_CHECKING:
    from ..data import DataSet
    from ..optim import Optimizer
    from ..scheduler.training import History, Trainer
    from .models import Model

NEEDS = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib"}


@click.command(short_help="Train a fully connected net, one Dot per neuron.")
@click.argument("dataset")
@job_options
@option("--lr", "Learning rate.", default=0.01, type=float, metavar="RATE", callback=positive)
@option(
    "--schedule",
    "How the rate falls over the whole training: none; cosine, to 0; exponential, to 1 %; step, to a tenth after each third.",
    default="none",
    type=Choice("none", "cosine", "exponential", "step"),
)
@option(
    "--weight-decay",
    "L2: this times the weights is added to the gradient, by AdamW and Lion to the step.  [default: the optimizer's]",
    type=float,
    metavar="X",
)
@option("--clip-norm", "Scale gradients down to this norm.", type=float, metavar="X", callback=positive)
@option("--accumulate", "Mini-batches whose gradients make one update.", default=1, type=Count())
@option("--patience", "Stop when the test loss was not better for N epochs, with the best weights.", type=Count())
@option("--checkpoint", "Write checkpoints to this folder.", metavar="FOLDER", type=click.Path())
@option("--resume", "Go on from the last checkpoint in that folder, bit by bit.", is_flag=True)
@option("--test-size", "Use the first N test samples.  [default: all]", type=Count())
@option("--seed", "Seed of initial values and of the order of samples.", default=0, type=Count(0), metavar="N")
@option("--dashboard/--no-dashboard", "Serve dask's dashboard.", default=True)
@option("--out", "Where results go.  [default: runs/DATASET-<date>-<time>]", metavar="FOLDER", type=click.Path())
def train(**options: Any) -> None:
    """Train a fully connected net on DATASET, one Dot per neuron.

    DATASET is mnist (comes with flowgrad), digits (scikit-learn's), or the path of an .npz file with the
    arrays x_train, y_train, x_test, y_test: samples (N, dim), class indices (N,). uint8 samples are divided
    by 255.

    The net is evaluated on the test samples before the first and after each epoch. At the end the run folder
    holds the trained model, the history as CSV, a picture of the learning curves, the classification report
    and the settings.

    \b
    Examples:
      flowgrad train mnist
      flowgrad train mnist --hidden 90,30 --epochs 3 --lr 0.001
      flowgrad train digits --hidden 32 --epochs 20 --out runs/digits
      flowgrad train mnist --epochs 50 --schedule cosine --patience 5 --checkpoint state --resume
      flowgrad train my.npz --scheduler tcp://10.0.0.1:8786
    """  # noqa: D301
    check_place(options)
    if options["resume"] and options["checkpoint"] is None:
        raise click.UsageError("--resume goes on from a checkpoint: give its folder with --checkpoint")
    missing = [package for module, package in NEEDS.items() if find_spec(module) is None]
    if missing:
        raise FlowgradError(f"`flowgrad train` needs {', '.join(missing)}: pip install 'flowgrad[all]'")
    _run(options)


def _run(options: dict[str, Any]) -> None:
    import flowgrad as fg

    from .build import build_model, cluster, load_data
    from .folder import run_folder
    from .progress import ProgressCallback
    from .report import EarlyImports

    started = time.perf_counter()
    data = load_data(options)
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder(options["out"], data.name))
        model = build_model(options, data, options["seed"])
        optimizer = _optimizer(options, model, len(data.x_train))
        client = stack.enter_context(cluster(options, options["dashboard"]))
        engine = fg.Engine(client, dtype=options["dtype"], grain=options["grain"])
        progress, imports = ProgressCallback(), EarlyImports()
        stack.callback(progress.close)
        callbacks: list[Any] = [progress, imports]
        if options["patience"] is not None:
            callbacks.append(fg.EarlyStopping(patience=options["patience"]))
        trainer = fg.Trainer(
            optimizer, engine, seed=options["seed"], callbacks=callbacks, accumulate=options["accumulate"]
        )
        feeds = {model.x: data.x_train, model.label: data.y_train}
        validation = {model.x: data.x_test, model.label: data.y_test}
        saved = {"checkpoint": options["checkpoint"], "resume": options["resume"]}
        history = trainer.fit(feeds, epochs=options["epochs"], validation=validation, **saved)
        imports.join()
        if history.kept_epoch is not None:
            click.echo(f"weights of epoch {history.kept_epoch}, which had the lowest test loss")
        _report(folder, options, data, model, trainer, history, time.perf_counter() - started)
        final = folder.parent
    click.echo(f"results are in {final}: " + ", ".join(sorted(path.name for path in final.iterdir())))
    click.echo(f"{time.perf_counter() - started:.1f} s in all")


def _optimizer(options: dict[str, Any], model: Model, samples: int) -> Optimizer:
    import flowgrad as fg

    rate, updates = options["lr"], options["epochs"] * -(-samples // (options["batch_size"] * options["accumulate"]))
    schedule = {
        "none": lambda: rate,
        "cosine": lambda: fg.CosineDecay(rate, steps=updates),
        "exponential": lambda: fg.ExponentialDecay(rate, factor=0.01, every=updates),
        "step": lambda: fg.StepDecay(rate, every=-(-updates // 3)),
    }[options["schedule"]]()
    given = {key: options[key] for key in ("batch_size", "weight_decay", "clip_norm")}
    settings = {key: value for key, value in given.items() if value is not None}
    return getattr(fg, options["optimizer"])(model.graph, model.loss, schedule, **settings)


def _report(
    folder: Path,
    options: dict[str, Any],
    data: DataSet,
    model: Model,
    trainer: Trainer,
    history: History,
    seconds: float,
) -> None:
    """Print how good the model is, and write everything to `folder`."""
    import flowgrad as fg

    from .folder import writing
    from .report import classification_text, draw_curves, write_tables

    predicted = trainer.predict(model.probabilities, {model.x: data.x_test}).argmax(axis=1)
    correct = int((predicted == data.y_test).sum())
    result = f"test accuracy {100 * correct / len(predicted):.2f} % ({correct:,} of {len(predicted):,})"
    text = classification_text(data.y_test, predicted, data.classes)
    click.echo(f"\n{result}\n\n{text}")
    settings = {**options, "nodes": len(model.graph.nodes), "plan": history.plan, "seconds": round(seconds, 3)}
    with writing(folder.parent):
        fg.save(folder / "model.safetensors", model.graph, trainer.optimizer)
        write_tables(folder, history)
        draw_curves(folder / "learning_curves.png", history, f"{data.name}: {result}")
        (folder / "report.txt").write_text(f"{result}\n\n{text}", encoding="utf-8")
        (folder / "settings.json").write_text(json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8")
