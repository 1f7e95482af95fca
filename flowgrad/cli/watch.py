"""``flowgrad watch``: a page that plays one step of one sample."""

from __future__ import annotations

from typing import Any

import click

from .options import Count, hidden_sizes, option


@click.command(short_help="Write a page that plays one step, forward and back.")
@click.argument("dataset", default="mnist")
@option("--hidden", "Units of each hidden layer, e.g. 90,30.", default="90", metavar="SIZES", callback=hidden_sizes)
@option("--sample", "Which test sample, from 0.", default=0, type=Count(0), metavar="N")
@option("--model", "Watch a trained net, the model.safetensors of a run.", metavar="FILE", type=click.Path())
@option("--seed", "Seed of initial values.", default=0, type=Count(0), metavar="N")
@option("--out", "The page.", default="watch.html", metavar="FILE", type=click.Path())
def watch(**options: Any) -> None:
    """Write a page that plays one step of a net on one sample of DATASET, node by node forward, edge by edge back.

    It shows the values, the local Jacobians, the cotangents and their sums, in the order in which the tasks ran on
    two threads here. Nothing is trained. The page is one file that needs no network.

    \b
    Examples:
      flowgrad watch
      flowgrad watch mnist --hidden 30 --sample 7 --out seven.html
      flowgrad watch digits --model runs/digits/model.safetensors
    """  # noqa: D301
    import flowgrad as fg

    from ..errors import DataError
    from .build import build_model, load_data

    data = load_data({**options, "dtype": "float64", "train_size": None, "test_size": None, "batch_size": 1})
    if options["model"] is None:
        model = build_model(options, data, options["seed"])
        x, label, loss = model.x, model.label, model.loss
    else:
        graph = fg.load(options["model"])[0]
        x, label, loss = graph["x"], graph["label"], graph["loss"]
    sample = options["sample"]
    if sample >= len(data.x_test):
        raise DataError(
            f"--sample {sample}: {data.name} has {len(data.x_test)} test samples, give one from 0 to {len(data.x_test) - 1}"
        )
    logits = fg.Engine("sync").forward(loss.parents[0], {x: data.x_test[sample : sample + 1]})
    net = "an untrained net" if options["model"] is None else "the net"
    title = f"{data.name}, test sample {sample}: class {data.y_test[sample]}, {net} says {logits.argmax()}"
    page = fg.watch(loss, {x: data.x_test, label: data.y_test}, options["out"], sample=sample, title=title)
    click.echo(f"{title}\n{page}")
