"""The command: ``python -m benchmarks`` in the repository's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from .cluster import cluster_report
from .derivatives import derivatives_report
from .fusion import fusion_report
from .lowering import lowering_report
from .machine import load_of_others, machine_report
from .mainjob import mainjob_report
from .own import OWN
from .peers import PEERS
from .prediction import prediction_report
from .setting import BATCHES
from .training import measure_training, same_weights, training_table
from .turns import FORCED

RESULTS = Path(__file__).with_name("RESULTS.md")
SUBJECTS = ("training", "lowering", "fusion", "prediction", "derivatives", "mainjob", "cluster")
ABOUT_TRAINING = """\
784-90-10 net, float32, Adam, every epoch in a new order. flowgrad: `Trainer` on threads, grain `round`, the rate from its
history; peers: the loop that their own users would write for speed, the better of one and two threads. All take turns, A B C
A B C, in one run, each in its own process. Rates are those of the best epoch, in brackets the median over the turns; ratios
are flowgrad / peer, in brackets the median of the ratios turn by turn. PyTorch and scikit-learn correct Adam's bias, the
others do not."""


@click.command()
@click.option("--only", "subjects", type=click.Choice(SUBJECTS), multiple=True, help="Measure this; may be repeated.")
@click.option("--peer", "names", type=click.Choice([*PEERS, *OWN]), multiple=True, help="Take part; may be repeated.")
@click.option("--batch", "batches", type=int, multiple=True, help="Batch size; may be repeated.", show_default=True)
@click.option("--turns", default=7, show_default=True, help="How often each takes its turn.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help=(
    "cpu: by the processor's time, one thread each; for a machine on which others work."))  # fmt: skip
@click.option("--write", is_flag=True, help=f"Write the results to {RESULTS.name}.")
def main(
    subjects: tuple[str, ...], names: tuple[str, ...], batches: tuple[int, ...], turns: int, clock: str, write: bool
) -> None:
    """Measure flowgrad beside its peers, and the times of its own parts."""
    if any(name in os.environ for name in FORCED):
        # Read when NumPy is loaded, and it is: start again without them.
        env = {key: value for key, value in os.environ.items() if key not in FORCED}
        raise SystemExit(subprocess.run([sys.executable, "-m", __package__, *sys.argv[1:]], env=env).returncode)

    def tell(text: str) -> None:
        click.echo(text, err=True)

    busy = load_of_others()
    parts = ["# Results\n\nWritten by `python -m benchmarks --write`.", machine_report()]
    if busy > 0.2:
        parts.append(f"* others used {busy:.1f} cores when the run began: times by wall clock are too long")
    wanted = subjects or SUBJECTS
    if "training" in wanted:
        found = measure_training(names, batches or BATCHES, turns, clock, tell)
        told = "" if clock == "wall" else "\n\nBy processor time, one thread each."
        parts += [f"## Training\n\n{ABOUT_TRAINING}{told}", training_table(found), same_weights(found)]
    if "lowering" in wanted:
        parts += ["## Lowering\n\nFrom nodes to dask task graph, gradient included.", lowering_report(tell)]
    if "fusion" in wanted:
        parts += ["## Fusion\n\nSteps at batch 32 by the NumPy kernel, one thread.", fusion_report(tell)]
    if "derivatives" in wanted:
        parts += [
            "## Derivatives\n\n784-90-10 net, float32; other data at every call.",
            derivatives_report(tell, turns, clock),
        ]
    if "mainjob" in wanted:
        parts += ["## The main job\n\n`flowgrad train mnist`: 6 epochs, start-up, report.", mainjob_report(tell)]
    if "prediction" in wanted:
        parts += ["## Prediction\n\nTime per step of 784-n-10 nets, Adam, float32.", prediction_report(tell)]
    if "cluster" in wanted:
        parts += ["## On a cluster\n\nWorker processes on this machine.", cluster_report(tell)]
    text = "\n\n".join(filter(None, parts)) + "\n"
    click.echo(text)
    if write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
