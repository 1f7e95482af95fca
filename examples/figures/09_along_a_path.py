"""Along a path the Jacobian is the product of the local ones: each is that of a node by its parent."""

from itertools import pairwise

import numpy as np

import flowgrad as fg

with fg.Graph() as graph:
    x = fg.Variable(3, [0.5, -1.0, 2.0], trainable=False, name="x")
    a = fg.Slice(x, 0, 2, name="a")
    e = fg.Exp(a, name="e")
    y = fg.Sum(e, name="y")

product = np.eye(y.dim)
for parent, node in reversed(list(pairwise([x, a, e, y]))):
    local = node.local_jacobian_by(parent)
    product = product @ local
    print(f"{node.name} by {parent.name}:", local, sep="\n")
print("the product of all:", product, "y by x:", x.backward(y), sep="\n")
graph.draw("09_along_a_path.png")
