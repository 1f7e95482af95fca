"""Draw the pictures of graphs that the documentation shows: ``python docs/draw_pictures.py``."""

from pathlib import Path

import flowgrad as fg
from flowgrad.cli.models import multilayer_perceptron
from flowgrad.draw import draw

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Draw a softmax regression, the net that `flowgrad train mnist` trains, and a recurrent cell of many steps."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(10, trainable=False, name="x")
        label = fg.Variable(3, trainable=False, name="label")
        fg.CrossEntropyWithSoftMax(fg.layers.dense(x, 3, per_neuron=True, name="o"), label, name="loss")
    graph.draw(str(IMAGES / "softmax_regression.png"))

    model = multilayer_perceptron(784, [90], 10)
    draw(model.graph, IMAGES / "mnist.png", targets=model.loss)

    with fg.Graph(seed=0) as graph:
        h = fg.layers.lstm(fg.Variable((96, 4), trainable=False, name="x"), 8, name="lstm")
    draw(graph, IMAGES / "lstm.png", targets=h, direction="down")


if __name__ == "__main__":
    main()
