"""Options of the commands, and those that the commands about a training share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

OPTIMIZERS = ("Adam", "AdamW", "AMSGrad", "Lion", "RMSProp", "AdaGrad", "Nesterov", "Momentum", "GradientDescent")
GRAINS = ("auto", "node", "sample", "shard", "round", "collective")


def hidden_sizes(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Return the sizes of the hidden layers."""
    if value.strip().lower() in ("", "none"):
        return ()
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is not a list of layer sizes: give for example 90, 90,30 or none")
    return sizes


def positive(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Return a number that is above zero, or None where none is given."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value:g} is not a positive number: give for example 0.01")
    return value


class Count(click.ParamType):
    """An integer from `low` on."""

    name = "N"

    def __init__(self, low: int = 1):
        self.low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            number = int(value)
        except ValueError:
            number = self.low - 1
        if number < self.low:
            self.fail(f"{value!r} is not an integer from {self.low} on", param, ctx)
        return number


def option(name: str, help: str, **more: Any) -> Any:
    """Return a decorator that adds an option and shows its default."""
    return click.option(name, help=help, show_default=more.get("default") is not None, **more)


class Choice(click.ParamType):
    """One of some names, in upper or lower case."""

    name = "NAME"

    def __init__(self, *values: str):
        self.values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is written here."""
        for known in self.values:
            if known.lower() == str(value).lower():
                return known
        self.fail(f"{value!r} is not one of {', '.join(self.values)}", param, ctx)


def job_options(command: F) -> F:
    """Add what a training is: data set, net, batch, optimizer, and where it runs."""
    for decorate in reversed(_JOB):
        command = decorate(command)
    return command


def check_place(options: dict[str, Any]) -> None:
    """Refuse a running cluster and workers of one's own at once."""
    if options["scheduler"] is not None and options["workers"] is not None:
        raise click.UsageError(
            "--workers starts workers here, --scheduler uses those that run already: give one of them"
        )


_JOB = (
    option(
        "--hidden",
        "Units of each hidden layer, e.g. 90,30; none for softmax regression.",
        default="90",
        metavar="SIZES",
        callback=hidden_sizes,
    ),
    option("--epochs", "How often to go through the data.", default=6, type=Count()),
    option("--batch-size", "Samples per update.", default=32, type=Count()),
    option("--optimizer", f"One of {', '.join(OPTIMIZERS)}.", default="Adam", type=Choice(*OPTIMIZERS)),
    option("--dtype", "Arithmetic: float32 or float64.", default="float32", type=Choice("float32", "float64")),
    option("--train-size", "Use the first N training samples.  [default: 55000 of mnist, else all]", type=Count()),
    option(
        "--workers", "Worker processes on this machine.  [default: 2, or 1 on one CPU and at grain node]", type=Count()
    ),
    option("--threads-per-worker", "Threads in each worker.  [default: 1, or 2 at grain node]", type=Count()),
    option("--scheduler", "Use a running cluster, e.g. tcp://10.0.0.1:8786; start no workers.", metavar="ADDRESS"),
    option(
        "--grain",
        "Work per task: node, sample, shard, round, collective, or auto, which decides by measured cost.",
        default="auto",
        type=Choice(*GRAINS),
    ),
)
