"""The training that a command is about: data, net, optimizer, cluster; each is told in a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dask.system import CPU_COUNT

from ..data import DataSet, load
from ..errors import DataError
from ..scheduler import executors
from ..scheduler.kernels import load_kernels
from ..scheduler.telling import page_address
from .models import Model, multilayer_perceptron
from .tell import Tell

if TYPE_CHECKING:
    from distributed import Client

MNIST_TRAIN_SIZE = 55_000


def load_data(options: dict[str, Any]) -> DataSet:
    """Return the data set of a command, cut to size."""
    data = load(options["dataset"], options["dtype"])
    train_size = options["train_size"]
    if train_size is None and options["dataset"] == "mnist":
        train_size = MNIST_TRAIN_SIZE
    data = data.head(train_size, options["test_size"])
    accumulate = options.get("accumulate", 1)
    if options["batch_size"] * accumulate > len(data.x_train):
        times = f" times --accumulate {accumulate}" if accumulate > 1 else ""
        raise DataError(
            f"the batch size {options['batch_size']}{times} is larger than the {len(data.x_train)} training samples "
            f"of {data.name}: give --batch-size {len(data.x_train)} or less"
        )
    return data


@contextmanager
def cluster(options: dict[str, Any], dashboard: bool, tell: Tell) -> Iterator[Client]:
    """Start or find the cluster of a command, and say what it is."""
    # Workers take a second to start; what they and this process need compiled, the first time, takes several.
    Thread(target=load_kernels, args=(options["dtype"], tell), daemon=True).start()
    address, workers, threads = options["scheduler"], options["workers"], options["threads_per_worker"]
    by_nodes = options["grain"] == "node"
    if address is None:
        # Node by node one process: on two, tasks would mostly wait for each other's values.
        threads = threads or (2 if by_nodes and workers is None else 1)
        workers = workers or (1 if by_nodes else min(2, CPU_COUNT))
        context = executors.local_cluster(workers, threads, dashboard)
        tell(
            f"cluster: {workers} x {threads} (worker processes x threads) on this machine",
            "cluster",
            workers=workers,
            threads=threads,
        )
    else:
        context = executors.existing_cluster(address)
        tell(f"cluster: {address}", "cluster", address=address)
    with context as client:
        link = executors.dashboard_address(client) if dashboard else None
        usual = executors.DASHBOARD_PORT
        taken = f" (port {usual} is taken)" if address is None and link and urlsplit(link).port != usual else ""
        tell(f"dashboard: {link or 'none'}{taken}", "dashboard", address=link)
        if link and by_nodes:
            tell(
                f"look at: {link}, page Status, where the task stream has a bar for each node and edge: the `dot` of a layer "
                f"lie side by side; page Graph has a square for each, click on it to read its name"
            )
        if link and (page := page_address(client)) is not None:
            short = "" if options.get("stay") else " (while it runs; --stay keeps it)"
            tell(f"this training: {page}{short}", "page", address=page)
        yield client


def build_model(options: dict[str, Any], data: DataSet, seed: int = 0, tell: Tell | None = None) -> Model:
    """Build the net for the data, and say what it is."""
    tell = tell or Tell()
    sizes = {"train": len(data.x_train), "test": len(data.x_test), "dim": data.dim, "classes": data.classes}
    tell(
        f"{data.name}: {len(data.x_train):,} training and {len(data.x_test):,} test samples "
        f"of length {data.dim}, {data.classes} classes",
        "data",
        name=data.name,
        **sizes,
    )
    model = multilayer_perceptron(data.dim, options["hidden"], data.classes, seed)
    layers = [data.dim, *options["hidden"], data.classes]
    tell(f"graph: {' - '.join(map(str, layers))}, {model}", "graph", layers=layers, nodes=len(model.graph.nodes))
    return model
