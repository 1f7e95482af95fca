"""The command: ``python -m benchmarks`` in the repository's folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.cluster import cluster_report
from benchmarks.collective import collective_report
from benchmarks.dashboard import dashboard_report
from benchmarks.derivatives import derivatives_report
from benchmarks.fusion import fusion_report
from benchmarks.interpreter import interpreter_report
from benchmarks.lines import PAGE as LINES
from benchmarks.lines import lines_report
from benchmarks.lowering import lowering_report
from benchmarks.machine import load_of_others, machine_report
from benchmarks.mainjob import mainjob_report
from benchmarks.nets import nets_report
from benchmarks.ops import ops_report
from benchmarks.own import OWN
from benchmarks.peers import PEERS
from benchmarks.prediction import prediction_report
from benchmarks.scaling import PAGE as SCALING
from benchmarks.scaling import scaling_report, with_tables
from benchmarks.setting import BATCHES
from benchmarks.sizes import sizes_report
from benchmarks.training import measure_training, own_ratios, same_weights, training_table
from benchmarks.turns import FORCED
from flowgrad.scheduler.machine.facts import read_facts

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADS = {
    "training": "Training",
    "nets": "Other nets",
    "sizes": "Whole trainings",
    "lowering": "Lowering",
    "fusion": "Fusion",
    "interpreter": "The interpreter",
    "prediction": "Prediction",
    "derivatives": "Derivatives",
    "ops": "Ops beside PyTorch's",
    "mainjob": "The main job",
    "collective": "Steps that workers share",
    "cluster": "On a cluster",
    "dashboard": "The live page",
    "scaling": "Many workers",
    "lines": "Lines of code",
}
SUBJECTS = tuple(HEADS)
# Parts whose tables are in pages of their own.
PAGES = {"scaling": SCALING, "lines": LINES}
TITLE = """\
# Results

Written by `python -m benchmarks --write`, part by part: each tells on which processor it was measured. The latest one's machine:"""
ABOUT = {
    "nets": "float32, Adam, samples in a new order every epoch; graphs that flowgrad was not tuned for.",
    "sizes": "float32, Adam, batches of 32; random graphs, wide ones and chains.",
    "lowering": "From nodes to dask task graph, gradient included.",
    "fusion": "Steps at batch 32 by the NumPy kernel, one thread.",
    "interpreter": "Sample by sample, float64, Adam at batch 32, one thread; medians.",
    "prediction": "Time per step of 784-n-10 nets, Adam, float32.",
    "derivatives": "784-90-10 net, float32; other data at every call.",
    "ops": "Values and derivatives, not times.",
    "mainjob": "`flowgrad train mnist`: 6 epochs, start-up, report.",
    "collective": "On a cluster as dask makes it.",
    "cluster": "Worker processes on this machine.",
    "dashboard": "A page that is open, painted by nobody, against none.",
    "scaling": "Four workers share the cores, and those of the switch between them.",
    "lines": "One seed each, one thread.",
}
REPORTS: dict[str, Callable[[Callable[[str], None]], str]] = {
    "nets": nets_report,
    "sizes": sizes_report,
    "lowering": lowering_report,
    "fusion": fusion_report,
    "interpreter": interpreter_report,
    "prediction": prediction_report,
    "ops": ops_report,
    "mainjob": mainjob_report,
    "collective": collective_report,
    "cluster": cluster_report,
    "dashboard": dashboard_report,
    "scaling": scaling_report,
    "lines": lines_report,
}
ABOUT_TRAINING = """\
784-90-10 net, float32, Adam, every epoch in a new order. flowgrad: `Trainer` on threads, grain `round`, the rate from its
history; peers: the loop that their own users would write for speed, the better of one and two threads. All take turns, A B C
A B C, in one run, each in its own process. Rates are medians over the turns, in brackets the best epoch; ratios are those of
medians, flowgrad / peer, in brackets the median of the ratios turn by turn. PyTorch and scikit-learn correct Adam's bias, the
others do not."""


@click.command()
@click.option("--only", "subjects", type=click.Choice(SUBJECTS), multiple=True, help="Measure this; may be repeated.")
@click.option("--peer", "names", type=click.Choice([*PEERS, *OWN]), multiple=True, help="Take part; may be repeated.")
@click.option("--batch", "batches", type=int, multiple=True, help="Batch size; may be repeated.", show_default=True)
@click.option("--turns", default=7, show_default=True, help="How often each takes its turn.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help=(
    "cpu: by the processor's time, one thread each; for a machine on which others work."))  # fmt: skip
@click.option(
    "--write", is_flag=True, help=f"Write the results to {RESULTS.name}, docs/{SCALING.name}, docs/{LINES.name}."
)
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
    facts = read_facts()
    when = f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {facts.cpu}, {facts.usable_cores} cores."
    if busy > 0.2:
        when += f" Others used {busy:.1f} cores when the run began: times by wall clock are too long."
    parts: dict[str, str] = {}
    for subject in subjects or SUBJECTS:
        if subject == "training":
            measurements = measure_training(names, batches or BATCHES, turns, clock, tell)
            note = "" if clock == "wall" else " By processor time, one thread each."
            note = "\n\n".join(
                [
                    ABOUT_TRAINING + note,
                    training_table(measurements),
                    own_ratios(measurements),
                    same_weights(measurements),
                ]
            )
        elif subject == "derivatives":
            note = f"{ABOUT[subject]}\n\n{derivatives_report(tell, turns, clock)}"
        else:
            note = f"{ABOUT[subject]}\n\n{REPORTS[subject](tell)}"
        parts[subject] = f"{when} {note}"
    click.echo(results(parts, ""))
    for subject, page in PAGES.items():
        if write and (tables := parts.pop(subject, "")):
            page.write_text(with_tables(page.read_text(), tables))
    if write and parts:
        RESULTS.write_text(results(parts, RESULTS.read_text() if RESULTS.exists() else ""))


def results(parts: dict[str, str], before: str) -> str:
    """Return the text of `RESULTS`: parts that were measured now, and what there was `before` of the others."""
    kept = {
        head: text.strip()
        for head, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", before, re.DOTALL | re.MULTILINE)
    }
    kept |= {HEADS[subject]: text for subject, text in parts.items()}
    sections = [f"## {head}\n\n{kept[head]}" for head in HEADS.values() if head in kept]
    return "\n\n".join([TITLE, machine_report(), *sections]) + "\n"


if __name__ == "__main__":
    main()
