"""Several nodes upstream: what one of them had computed is saved, and the others use it again."""

import flowgrad as fg

with fg.Graph(seed=0) as graph:
    x = fg.Variable(3, [1.0, -0.5, 2.0], trainable=False, name="x")
    W, b = fg.Variable((2, 3), ("normal", 1.0), name="W"), fg.Variable(2, [0.1, -0.1], name="b")
    a = fg.Add(fg.MatVec(W, x, name="Wx"), b, name="a")
    h = fg.Tanh(a, name="h")
    y = fg.Sum(h, name="y")

saved = 0
for variable in (W, b, x):
    variable.backward(y)
    names = [node.name for node in graph.saved(y)]
    print(f"for {variable.name}: {len(names) - saved} computed,", *names[saved:])
    saved = len(names)
graph.draw("11_saved_and_used_again.png")
