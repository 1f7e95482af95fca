"""``flowgrad explain``: what a training would do and cost, without training."""

from __future__ import annotations

from typing import Any

import click

from .options import check_place, job_options


@click.command(short_help="Say what a training would do and cost, without training.")
@click.argument("dataset", default="mnist")
@job_options
def explain(**options: Any) -> None:
    """Say what `flowgrad train` with the same options would do and cost, without training.

    Printed are the plan, what each other way to cut the work into tasks would cost, and the batch sizes from
    which on 2, 4 and 16 workers pay. The training's own step is run here to be timed, at several sizes, and what
    tasks cost on the workers is measured: about a second, after the step was compiled for the first time.
    What `train` does after each epoch, above all the evaluation, comes on top.

    \b
    Examples:
      flowgrad explain
      flowgrad explain mnist --hidden 1024 --batch-size 4096
      flowgrad explain my.npz --grain node --scheduler tcp://10.0.0.1:8786
    """  # noqa: D301
    check_place(options)

    import flowgrad as fg

    from .build import build_model, cluster, load_data
    from .tell import Tell

    data = load_data({**options, "test_size": None})
    model = build_model(options, data)
    optimizer = getattr(fg, options["optimizer"])(model.graph, model.loss, batch_size=options["batch_size"])
    with cluster(options, dashboard=False, tell=Tell()) as client:
        click.echo("measuring the workers ...", err=True)
        trainer = fg.Trainer(optimizer, fg.Engine(client, dtype=options["dtype"], grain=options["grain"]))
        feeds = {model.x: data.x_train, model.label: data.y_train}
        click.echo("\n" + trainer.explain(feeds, epochs=options["epochs"]))
