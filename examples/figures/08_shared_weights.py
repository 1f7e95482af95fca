"""One weight vector for four patches of an image: a small convolutional net, written in three ways.

``fg.watch(by_dots)`` would write a page that plays the first of them, forward and back: click on ``w`` there, and see four add up.
"""

import numpy as np

import flowgrad as fg

PATCHES = [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]  # 2 x 2 of the image's entries 0 to 8
IMAGE = [0.1, 0.9, 0.2, 0.8, 0.5, 0.7, 0.3, 0.6, 0.4]

with fg.Graph(seed=0) as graph:
    x = fg.Variable((1, 3, 3), IMAGE, trainable=False, name="x")
    w, b = fg.Variable((1, 1, 2, 2), [1.0, -2.0, 0.5, 1.5], name="w"), fg.Variable(1, [0.1], name="b")
    U, c = fg.Variable((2, 4), ("normal", 1.0), name="U"), fg.Variable(2, [0.2, -0.2], name="c")

    dots = [fg.Dot(w, fg.Gather(x, patch, name=f"patch{k}"), name=f"dot{k}") for k, patch in enumerate(PATCHES)]
    h = fg.Vectorize(*[fg.Tanh(dot + b) for dot in dots], name="h")
    by_dots = fg.SoftMax(fg.MatVec(U, h) + c, name="by_dots")

    which = fg.Constant(np.eye(9)[np.ravel(PATCHES)])  # 16 rows, each picks an entry
    patches = fg.Reshape(fg.MatVec(which, x, name="picked"), (4, 4), name="patches")
    h_matrices = fg.Tanh(fg.MatVec(patches, w, name="products") + b, name="h_matrices")
    by_matrices = fg.SoftMax(fg.MatVec(U, h_matrices) + c, name="by_matrices")

    h_conv2d = fg.Tanh(fg.Conv2D(w, x, name="convolved") + b, name="h_conv2d")
    by_conv2d = fg.SoftMax(fg.MatVec(U, h_conv2d) + c, name="by_conv2d")

for result in (by_dots, by_matrices, by_conv2d):
    print(f"{result.name}: {result.forward()}, the first of them by w: {w.backward(result)[0]}")
shares = [dot.backward(by_dots) @ dot.local_jacobian_by(w) for dot in dots]
print("what each of the four dots gives to that:", *[share[0] for share in shares], sep="\n")
print("their sum:", sum(shares)[0])
graph.draw("08_by_dots.png", targets=by_dots)
graph.draw("08_by_matrices.png", targets=h_matrices)  # what follows is the same
graph.draw("08_by_conv2d.png", targets=h_conv2d)
