"""The handwritten digits of MNIST, one `Dot` per neuron, on worker processes of this machine.

Run it with ``python examples/mnist.py``, and open the address that it prints to watch.
"""

from distributed import Client

import flowgrad as fg
from flowgrad.data import load_mnist


def main() -> None:
    """Build the graph, train it, look at it."""
    data = load_mnist().head(55_000)
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(784, trainable=False, name="x")
        label = fg.Variable(10, trainable=False, name="label")
        hidden = fg.layers.dense(x, 90, "relu", per_neuron=True)
        logits = fg.layers.dense(hidden, 10, per_neuron=True)
        loss = fg.CrossEntropyWithSoftMax(logits, label)

    adam = fg.Adam(graph, loss, learning_rate=0.01, batch_size=32)
    with Client(n_workers=2, threads_per_worker=1) as client:
        print("dashboard:", client.dashboard_link)
        trainer = fg.Trainer(adam, fg.Engine(client, dtype="float32"))
        test = {x: data.x_test, label: data.y_test}
        print(trainer.fit({x: data.x_train, label: data.y_train}, epochs=6, validation=test))
        guess = trainer.predict(logits, {x: data.x_test[:10]}).argmax(axis=1)

    print("the first ten test images:", *data.y_test[:10])
    print("                predicted:", *guess)
    fg.save("mnist.safetensors", graph, adam)


if __name__ == "__main__":
    main()
