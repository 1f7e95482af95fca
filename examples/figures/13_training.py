"""The loop that trains: three kinds of iris, told apart by four lengths."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris

import flowgrad as fg

features, kinds = load_iris(return_X_y=True)
features = (features - features.mean(axis=0)) / features.std(axis=0)
order = np.random.default_rng(0).permutation(150)
train, test = order[:100], order[100:]

with fg.Graph(seed=0) as graph:
    x = fg.Variable(4, trainable=False, name="x")
    label = fg.Variable(3, trainable=False, name="label")
    a = fg.layers.dense(x, 3, name="a")
    p = fg.SoftMax(a, name="p")
    loss = fg.CrossEntropyWithSoftMax(a, label, name="loss")
optimizer = fg.GradientDescent(graph, loss, learning_rate=0.5, batch_size=10)

losses = []
for epoch in range(1, 21):
    total = 0.0
    for i in train:
        x.set_value(features[i])
        label.set_value(np.eye(3)[kinds[i]])
        total += optimizer.one_step()
    losses.append(total / len(train))

    right = 0
    for i in test:
        x.set_value(features[i])
        right += p.forward().argmax() == kinds[i]
    if epoch % 5 == 0:
        print(f"epoch {epoch:2}  loss {losses[-1]:.3f}  right {right} of {len(test)}")

graph.draw("13_training.png")
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(range(1, 21), losses, "o-", color="#4f46e5", markersize=4)
axes.set(xlabel="epoch", ylabel="mean loss", ylim=0, xticks=range(0, 21, 5))
axes.spines[["top", "right"]].set_visible(False)
figure.savefig("13_loss.png", dpi=120)
