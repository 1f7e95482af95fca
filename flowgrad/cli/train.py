"""``flowgrad train``: build a net one `Dot` per neuron, train it on a dask cluster, leave a report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..errors import FlowgradError
from .facts import facts_of_graph, timeline
from .options import Choice, Count, check_place, job_options, option, positive

if TYPE_CHECKING:
    from distributed import Client

    from ..data import DataSet
    from ..optim import Optimizer
    from ..scheduler.executors import Executor
    from ..scheduler.training import History, Trainer
    from .models import Model
    from .tell import Tell

NEEDS = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib", "PIL": "pillow"}


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
@option("--stay", "Keep the dashboard after the training, until Ctrl-C.", is_flag=True)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one object a line, and nothing else.")
@option("--performance-report", "Keep dask's performance report beside the results.", is_flag=True)
@option("--out", "Where results go.  [default: runs/DATASET-<date>-<time>]", metavar="FOLDER", type=click.Path())
def train(**options: Any) -> None:
    """Train a fully connected net on DATASET, one Dot per neuron.

    DATASET is mnist (comes with flowgrad), digits (scikit-learn's), or the path of an .npz file with the
    arrays x_train, y_train, x_test, y_test: samples (N, dim), class indices (N,). uint8 samples are divided
    by 255.

    The net is evaluated on the test samples before the first and after each epoch. At the end the run folder
    holds the trained model, the history as CSV, a picture of the learning curves, the classification report,
    the settings, and report.html, a page that shows all of it.

    \b
    Examples:
      flowgrad train mnist
      flowgrad train mnist --hidden 90,30 --epochs 3 --lr 0.001
      flowgrad train digits --hidden 32 --epochs 20 --out runs/digits
      flowgrad train mnist --epochs 50 --schedule cosine --patience 5 --checkpoint state --resume
      flowgrad train my.npz --scheduler tcp://10.0.0.1:8786
    """  # noqa: D301
    check_place(options)
    if options["quiet"] and options["as_json"]:
        raise click.UsageError("--quiet prints nothing, --json prints events: give one of them")
    if options["resume"] and options["checkpoint"] is None:
        raise click.UsageError("--resume goes on from a checkpoint: give its folder with --checkpoint")
    if options["stay"] and not options["dashboard"]:
        raise click.UsageError("--stay keeps the dashboard, --no-dashboard serves none: give one of them")
    missing = [package for module, package in NEEDS.items() if find_spec(module) is None]
    if missing:
        raise FlowgradError(f"`flowgrad train` needs {', '.join(missing)}: pip install 'flowgrad[all]'")
    _run(options)


def _run(options: dict[str, Any]) -> None:
    import flowgrad as fg

    from .build import build_model, cluster, load_data
    from .folder import run_folder
    from .report import EarlyImports
    from .tell import Tell

    started, since = time.perf_counter(), time.time()
    tell = Tell("quiet" if options["quiet"] else "json" if options["as_json"] else "text")
    data = load_data(options)
    with ExitStack() as longest, ExitStack() as stack:
        folder = stack.enter_context(run_folder(options["out"], data.name))
        model = build_model(options, data, options["seed"], tell)
        optimizer = _optimizer(options, model, len(data.x_train))
        client = longest.enter_context(cluster(options, options["dashboard"], tell))
        client.get_task_stream(count=0)  # from now on the scheduler notes what workers do
        engine = fg.Engine(client, dtype=options["dtype"], grain=options["grain"])
        imports, noted = EarlyImports(), Noted(engine.executor)
        callbacks: list[Any] = [*_shown(tell, stack), imports, noted]
        if options["patience"] is not None:
            callbacks.append(fg.EarlyStopping(patience=options["patience"]))
        trainer = fg.Trainer(
            optimizer, engine, seed=options["seed"], callbacks=callbacks, accumulate=options["accumulate"]
        )
        feeds = {model.x: data.x_train, model.label: data.y_train}
        validation = {model.x: data.x_test, model.label: data.y_test}
        saved = {"checkpoint": options["checkpoint"], "resume": options["resume"]}
        with _performance_report(options, folder, client):
            history = trainer.fit(feeds, epochs=options["epochs"], validation=validation, **saved)
        imports.join()
        if history.kept_epoch is not None:
            kept = history.kept_epoch
            tell(f"weights of epoch {kept}, which had the lowest test loss", "kept", epoch=kept)
        facts = _results(folder, options, data, model, trainer, history, tell)
        facts["timeline"] = timeline(client, since, noted.epochs)
        facts |= {
            "hint": noted.hint,
            "places": noted.places,
            "costs": _costs(trainer, feeds, options["epochs"], history),
        }
        facts |= facts_of_graph(model, facts["costs"].get("parts"))
        _page(folder, facts)
        final = folder.parent
        stack.close()  # the results are there, whatever happens to the cluster
        files = sorted(path.name for path in final.iterdir())
        tell(f"results are in {final}: " + ", ".join(files), "results", folder=str(final), files=files)
        seconds = time.perf_counter() - started
        spent = history.epochs[-1]["seconds"]
        tell(f"{spent:.1f} s of training, {seconds:.1f} s in all", "end", seconds=round(seconds, 3))
        if options["stay"]:
            _stay(tell)


def _stay(tell: Tell) -> None:
    tell("the dashboard stays until Ctrl-C", "stay")
    try:
        Event().wait()
    except KeyboardInterrupt:
        tell("")


def _costs(trainer: Trainer, feeds: Any, epochs: int, history: History) -> dict[str, Any]:
    """Return what the plan and others cost; a cluster that ends now takes no results with it."""
    # A command knows what wings keep to themselves.
    from ..scheduler.training import costs_of

    try:
        return costs_of(trainer.settings, feeds, epochs, history.plan)
    except FlowgradError as error:
        return {"explained": f"what else would have cost could not be measured: {error}"}


class Noted:
    """A trainer's callback that keeps what the report needs and the history has not."""

    hint = ""

    def __init__(self, executor: Executor):
        self.executor, self.epochs = executor, list[float]()
        self.places: list[int] = []

    def on_train_begin(self, info: dict[str, Any]) -> None:
        """Keep which workers are idle, and how many threads each has."""
        self.hint = info["hint"]
        self.places = [worker.threads for worker in self.executor.workers()]

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Keep when an epoch ended."""
        self.epochs.append(time.time())


def _shown(tell: Tell, stack: ExitStack) -> list[Any]:
    """Return the callbacks that show the course of a training."""
    from .progress import ProgressCallback
    from .tell import JsonLines

    if tell.mode == "json":
        return [JsonLines(tell)]
    if tell.mode == "quiet":
        return []
    progress = ProgressCallback()
    stack.callback(progress.close)
    return [progress]


@contextmanager
def _performance_report(options: dict[str, Any], folder: Path, client: Client) -> Iterator[None]:
    if not options["performance_report"]:
        yield
        return
    from distributed import performance_report

    with client.as_current(), performance_report(filename=str(folder / "performance-report.html")):
        yield


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


def _results(
    folder: Path,
    options: dict[str, Any],
    data: DataSet,
    model: Model,
    trainer: Trainer,
    history: History,
    tell: Tell,
) -> dict[str, Any]:
    """Tell how good the model is, write it and its tables to `folder`, and return what the page needs of them."""
    import flowgrad as fg

    from ..scheduler.machine import read_facts
    from .facts import facts_of_history, facts_of_samples, filters_of
    from .folder import writing
    from .report import classification_text, write_tables

    probabilities = trainer.predict(model.probabilities, {model.x: data.x_test})
    active = None
    if model.first is not None:
        active = (trainer.predict(model.first, {model.x: data.x_test}) > 0).mean(axis=0)
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == data.y_test).sum())
    accuracy = correct / len(predicted)
    result = f"test accuracy {100 * accuracy:.2f} % ({correct:,} of {len(predicted):,})"
    text = classification_text(data.y_test, predicted, data.classes)
    tell(f"\n{result}\n\n{text}", "result", accuracy=accuracy, correct=correct, samples=len(predicted))
    nodes, seconds = len(model.graph.nodes), history.epochs[-1]["seconds"]
    settings = {**options, "nodes": nodes, "plan": history.plan, "seconds": round(seconds, 3)}
    title = f"{data.name}: {result}"
    with writing(folder.parent):
        fg.save(folder / "model.safetensors", model.graph, trainer.optimizer)
        write_tables(folder, history)
        history.plot(title).savefig(folder / "learning_curves.png", dpi=160)
        np.savez_compressed(
            folder / "predictions.npz",
            label=data.y_test,
            predicted=predicted,
            probabilities=probabilities.astype(np.float32),
        )
        (folder / "report.txt").write_text(f"{result}\n\n{text}", encoding="utf-8")
        (folder / "settings.json").write_text(json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8")
    layers = " - ".join(map(str, (data.dim, *options["hidden"], data.classes)))
    return {
        "title": f"{data.name}, {layers}",
        "result": result,
        "accuracy": accuracy,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "parameters": sum(v.dim for v in trainer.optimizer.variables()),
        "settings": options,
        "machine": read_facts().as_dict(),
        "history": facts_of_history(history),
        **facts_of_samples(data, probabilities),
        "filters": filters_of(model.x, active),
        "inputs": data.dim,
        "sizes": {"training": len(data.x_train), "test": len(data.x_test)},
    }


def _page(folder: Path, facts: dict[str, Any]) -> None:
    """Write what the report needs, and the report as ``flowgrad report`` would."""
    from .facts import FILE, facts_in, write_facts
    from .folder import writing
    from .page import report_page
    from .report import PAGE

    facts["files"] = sorted([*(file.name for file in folder.iterdir()), FILE, PAGE])
    with writing(folder.parent):
        write_facts(folder, facts)
        (folder / PAGE).write_text(report_page(facts_in(folder)), encoding="utf-8")
