"""Backpropagation to look at: one mini-batch of the MNIST graph, every node and every edge a task of its own.

Run it with ``python examples/node_grain.py``; on a terminal it waits until the dashboard is open.
"""

import sys
from collections import Counter

from dask.utils import key_split
from distributed import Client, get_task_stream

import flowgrad as fg
from flowgrad.cli.models import multilayer_perceptron
from flowgrad.data import load_mnist

LOOK = """\
On the page "Status" the task stream shows one row per thread and one bar per task; point at a bar to read what it does.
  slice-...     a variable, cut out of the vector of all parameters
  dot-...       {dot} neurons, each a task: they wait for nothing but x and their weights, so they run side by side
  add-...       {add} additions: a bias per neuron
  vectorize-... the outputs of a layer, collected: here the two layers meet
  pull-...      backward, one task per edge: the cotangent of a node, pulled back to one of its operands
  cotangent-... the sum where those of several edges meet: here at the hidden layer
  update-...    Adam's step, after which the next mini-batch could begin
On the page "Graph" the same tasks are drawn as they depend on each other; click on one to read its key, which names the node,
or the edge: ('dot-...', 'h0.dot3', ...), ('pull-dot-...', 'h0.dot3 by h0.w0', ...). With fg.Engine(client, grain="node", shards=2)
each half of the mini-batch gets tasks of its own, and reduce-... adds up their gradients."""


def main() -> None:
    """Show the plan, run one mini-batch, count what ran."""
    data = load_mnist().head(32, 1)
    model = multilayer_perceptron(784, [90], 10)
    feeds = {model.x: data.x_train, model.label: data.y_train}
    with Client(n_workers=1, threads_per_worker=2) as client:
        engine = fg.Engine(client, dtype="float32", grain="node")
        print(engine.lower(model.loss, feeds, gradient=True).explain())
        print(f"\nOpen {client.dashboard_link} now.")
        if sys.stdin.isatty():
            input("Press Enter to run one mini-batch of 32 images. ")
        trainer = fg.Trainer(fg.Adam(model.graph, model.loss, batch_size=32), engine)
        with get_task_stream(client) as stream:
            history = trainer.fit(feeds, epochs=1)
        counts = Counter(key_split(task["key"]) for task in stream.data)
        del counts["hop"]  # how fast tasks follow each other is measured beforehand
        print(f"\nloss {history.steps[0][1]:.4f}; {sum(counts.values())} tasks ran on {threads(stream.data)} threads:")
        for prefix, number in counts.most_common():
            print(f"{number:6} {prefix}")
        print("\n" + LOOK.format(dot=counts["dot"], add=counts["add"]))
        if sys.stdin.isatty():
            input("Press Enter to close the dashboard. ")


def threads(tasks: list) -> int:
    """Return how many threads ran the tasks."""
    return len({(task["worker"], task["thread"]) for task in tasks})


if __name__ == "__main__":
    main()
