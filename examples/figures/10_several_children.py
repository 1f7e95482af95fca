"""Several children: each brings back a share of the derivative, and the shares are added up."""

import flowgrad as fg

with fg.Graph() as graph:
    x = fg.Variable(2, [0.5, -1.0], trainable=False, name="x")
    children = [fg.Exp(x, name="exp"), fg.Tanh(x, name="tanh"), fg.Power(x, 2, name="square")]
    y = fg.Add(*children, name="y")

shares = [child.backward(y) @ child.local_jacobian_by(x) for child in children]
for child, share in zip(children, shares):
    print(f"by way of {child.name}:", share, sep="\n")
print("their sum:", sum(shares), "y by x:", x.backward(y), sep="\n")
graph.draw("10_several_children.png")
