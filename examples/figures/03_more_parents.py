"""More than two parents, and the same with a node added between: two parents are enough for everything."""

import flowgrad as fg

with fg.Graph() as graph:
    a = fg.Variable(1, [2.0], name="a")
    b = fg.Variable(1, [3.0], name="b")
    c = fg.Variable(1, [5.0], name="c")
    at_once = fg.Multiply(a, b, c, name="at_once")
    ab = fg.Multiply(a, b, name="ab")
    by_pairs = fg.Multiply(ab, c, name="by_pairs")

print("at once:", at_once.forward(), "by pairs:", by_pairs.forward())
for variable in (a, b, c):
    print(f"by {variable.name}:", variable.backward(at_once), variable.backward(by_pairs))
graph.draw("03_more_parents.png", targets=at_once)
graph.draw("03_node_added.png", targets=by_pairs)
