"""The logistic function as one op, and taken apart into four: the value and the Jacobian are the same."""

import flowgrad as fg

with fg.Graph() as graph:
    a = fg.Variable(3, [-2.0, 0.0, 1.0], trainable=False, name="a")
    whole = fg.Logistic(a, name="whole")
    apart = 1 / (1 + fg.Exp(-a))
    apart.name = "apart"

print("whole:", whole.forward(), a.backward(whole), sep="\n")
print("apart:", apart.forward(), a.backward(apart), sep="\n")
graph.draw("05_logistic_taken_apart.png")
