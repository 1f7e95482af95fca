"""One parent: a node computes its value from another node, and knows its derivatives by it."""

import flowgrad as fg

with fg.Graph() as graph:
    x = fg.Variable(3, [1.0, 2.0, 3.0], trainable=False, name="x")
    y = fg.Power(x, 2, name="y")

print("y = x ** 2 =", y.forward())
print("Jacobian of y by x, a row for each entry of y:", x.backward(y), sep="\n")
graph.draw("01_one_parent.png")
