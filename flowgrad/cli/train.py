"""``flowgrad train``: build a net one `Dot` per neuron, train it on a dask cluster, leave a report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, FlowgradError

if TYPE_CHECKING:
    from distributed import Client

    from ..data import DataSet
    from ..optimizers import Optimizer
    from ..scheduler.train import History, Trainer
    from .models import Model

OPTIMIZERS = ("Adam", "RMSProp", "AdaGrad", "Momentum", "GradientDescent")
GRAINS = ("auto", "node", "sample", "shard", "round")
MNIST_TRAIN_SIZE = 55_000
NEEDS = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib"}


def _hidden(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    if value.strip().lower() in ("", "none"):
        return ()
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is not a list of layer sizes: give for example 90, 90,30 or none")
    return sizes


def _positive(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value:g} is not a positive number: give for example 0.01")
    return value


class _Count(click.ParamType):
    """An integer from `low` on."""

    name = "N"

    def __init__(self, low: int = 1):
        self.low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.low - 1
        if number < self.low:
            self.fail(f"{value!r} is not an integer from {self.low} on", param, ctx)
        return number


def _option(name: str, help: str, **more: Any) -> Any:
    return click.option(name, help=help, show_default=more.get("default") is not None, **more)


class _Choice(click.ParamType):
    """One of some names, in upper or lower case."""

    name = "NAME"

    def __init__(self, *values: str):
        self.values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for known in self.values:
            if known.lower() == str(value).lower():
                return known
        self.fail(f"{value!r} is not one of {', '.join(self.values)}", param, ctx)


@click.command(short_help="Train a fully connected net, one Dot per neuron.")
@click.argument("dataset")
@_option(
    "--hidden",
    "Units of each hidden layer, e.g. 90,30; none for softmax regression.",
    default="90",
    metavar="SIZES",
    callback=_hidden,
)
@_option("--epochs", "How often to go through the data.", default=6, type=_Count())
@_option("--batch-size", "Samples per update.", default=32, type=_Count())
@_option("--optimizer", f"One of {', '.join(OPTIMIZERS)}.", default="Adam", type=_Choice(*OPTIMIZERS))
@_option("--lr", "Learning rate.", default=0.01, type=float, metavar="RATE", callback=_positive)
@_option(
    "--schedule",
    "How the rate falls over the whole training: none; cosine, to 0; exponential, to 1 %; step, to a tenth after each third.",
    default="none",
    type=_Choice("none", "cosine", "exponential", "step"),
)
@_option("--weight-decay", "L2: this times the weights is added to the gradient.", default=0.0, type=float, metavar="X")
@_option("--clip-norm", "Scale gradients down to this norm.", type=float, metavar="X", callback=_positive)
@_option("--accumulate", "Mini-batches whose gradients make one update.", default=1, type=_Count())
@_option("--patience", "Stop when the test loss was not better for N epochs, with the best weights.", type=_Count())
@_option("--checkpoint", "Write checkpoints to this folder.", metavar="FOLDER", type=click.Path())
@_option("--resume", "Go on from the last checkpoint in that folder, bit by bit.", is_flag=True)
@_option("--dtype", "Arithmetic: float32 or float64.", default="float32", type=_Choice("float32", "float64"))
@_option("--train-size", "Use the first N training samples.  [default: 55000 of mnist, else all]", type=_Count())
@_option("--test-size", "Use the first N test samples.  [default: all]", type=_Count())
@_option("--workers", "Worker processes on this machine.  [default: 2, or 1 on one CPU]", type=_Count())
@_option("--threads-per-worker", "Threads in each worker.", default=1, type=_Count())
@_option("--scheduler", "Use a running cluster, e.g. tcp://10.0.0.1:8786; start no workers.", metavar="ADDRESS")
@_option(
    "--grain",
    "Work per task: node, sample, shard, round, or auto, which decides by measured cost.",
    default="auto",
    type=_Choice(*GRAINS),
)
@_option("--seed", "Seed of initial values and of the order of samples.", default=0, type=_Count(0), metavar="N")
@_option("--dashboard/--no-dashboard", "Serve dask's dashboard.", default=True)
@_option("--out", "Where results go.  [default: runs/DATASET-<date>-<time>]", metavar="FOLDER", type=click.Path())
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
    if options["scheduler"] is not None and options["workers"] is not None:
        raise click.UsageError(
            "--workers starts workers here, --scheduler uses those that run already: give one of them"
        )
    if options["resume"] and options["checkpoint"] is None:
        raise click.UsageError("--resume goes on from a checkpoint: give its folder with --checkpoint")
    missing = [package for module, package in NEEDS.items() if find_spec(module) is None]
    if missing:
        raise FlowgradError(f"`flowgrad train` needs {', '.join(missing)}: pip install 'flowgrad[all]'")
    _run(options)


def _run(options: dict[str, Any]) -> None:
    import flowgrad as fg

    from .folder import run_folder
    from .models import multilayer_perceptron
    from .progress import ProgressCallback
    from .report import EarlyImports

    started = time.perf_counter()
    data = _load(options)
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder(options["out"], data.name))
        click.echo(
            f"{data.name}: {len(data.x_train):,} training and {len(data.x_test):,} test samples "
            f"of length {data.dim}, {data.classes} classes"
        )
        model = multilayer_perceptron(data.dim, options["hidden"], data.classes, options["seed"])
        layers = [data.dim, *options["hidden"], data.classes]
        click.echo(f"graph: {' - '.join(map(str, layers))}, {model}")
        optimizer = _optimizer(options, model, len(data.x_train))
        client = stack.enter_context(_cluster(options))
        engine = fg.Engine(client, dtype=options["dtype"], grain=options["grain"])
        progress, imports = ProgressCallback(options["epochs"]), EarlyImports()
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
    made: Optimizer = getattr(fg, options["optimizer"])(
        model.graph,
        model.loss,
        learning_rate=schedule,
        batch_size=options["batch_size"],
        weight_decay=options["weight_decay"],
        clip_norm=options["clip_norm"],
    )
    return made


def _load(options: dict[str, Any]) -> DataSet:
    from ..data import load

    data = load(options["dataset"], options["dtype"])
    train_size = options["train_size"]
    if train_size is None and options["dataset"] == "mnist":
        train_size = MNIST_TRAIN_SIZE
    data = data.head(train_size, options["test_size"])
    whole = options["batch_size"] * options["accumulate"]
    if whole > len(data.x_train):
        times = f" times --accumulate {options['accumulate']}" if options["accumulate"] > 1 else ""
        raise DataError(
            f"the batch size {options['batch_size']}{times} is larger than the {len(data.x_train)} training samples "
            f"of {data.name}: give --batch-size {len(data.x_train)} or less"
        )
    return data


@contextmanager
def _cluster(options: dict[str, Any]) -> Iterator[Client]:
    from .cluster import dashboard_address, default_workers, existing_cluster, local_cluster

    address, workers, threads = options["scheduler"], options["workers"], options["threads_per_worker"]
    if address is None:
        workers = workers or default_workers()
        cluster = local_cluster(workers, threads, options["dashboard"])
        click.echo(f"cluster: {workers} x {threads} (worker processes x threads) on this machine")
    else:
        cluster = existing_cluster(address)
        click.echo(f"cluster: {address}")
    with cluster as client:
        link = dashboard_address(client) if options["dashboard"] else None
        click.echo(f"dashboard: {link or 'none'}")
        yield client


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

    from .report import classification_text, draw_curves, write_tables

    predicted = trainer.predict(model.probabilities, {model.x: data.x_test}).argmax(axis=1)
    correct = int((predicted == data.y_test).sum())
    result = f"test accuracy {100 * correct / len(predicted):.2f} % ({correct:,} of {len(predicted):,})"
    text = classification_text(data.y_test, predicted, data.classes)
    click.echo(f"\n{result}\n\n{text}")
    settings = {
        **options,
        "nodes": len(model.graph.nodes),
        "plan": history.plan,
        "seconds": round(seconds, 3),
    }
    try:
        fg.save(folder / "model.safetensors", model.graph, trainer.optimizer)
        write_tables(folder, history)
        draw_curves(folder / "learning_curves.png", history, f"{data.name}: {result}")
        (folder / "report.txt").write_text(f"{result}\n\n{text}", encoding="utf-8")
        (folder / "settings.json").write_text(json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {folder.parent}: {error.strerror or error}") from error
