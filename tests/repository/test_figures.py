"""The book of figures: every script runs, draws its pictures, and its numbers are those of formulas written by hand."""

import re
import runpy

import numpy as np
import pytest
from conftest import ROOT

import flowgrad as fg

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
BOOK = ROOT / "examples" / "figures"
SCRIPTS = {path.stem[:2]: path for path in sorted(BOOK.glob("*.py"))}


def logistic(a):
    return 1 / (1 + np.exp(-a))


def softmax(a):
    return np.exp(a) / np.exp(a).sum()


def softmax_jacobian(p):
    return np.diag(p) - np.outer(p, p)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script in an empty folder and return what it defines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return lambda number: runpy.run_path(str(SCRIPTS[number]))


def shaped(node):
    return node.value.reshape(node.shape)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("number", SCRIPTS)
def test_a_script(run, number, tmp_path, capsys):
    graph = run(number)["graph"]
    assert 2 <= len(capsys.readouterr().out.splitlines()) <= 25
    assert len(SCRIPTS[number].read_text().splitlines()) <= 50
    for result in (node for node in graph.nodes if not node.children):
        assert fg.check_gradients(result) < 1e-7
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in (BOOK / "images").glob(f"{number}_*"))
    assert all((tmp_path / name).stat().st_size > 1000 for name in drawn)


def test_the_book_tells_of_every_script_in_order():
    book = (BOOK / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+) ", book, re.MULTILINE) == [str(int(number)) for number in SCRIPTS]
    assert re.findall(r"\((\d\w+\.py)\)", book) == [path.name for path in SCRIPTS.values()]
    pictures = re.findall(r"\(images/(.+?)\)", book)
    assert sorted(pictures) == sorted(path.name for path in (BOOK / "images").iterdir())
    assert [name[:2] for name in pictures] == sorted(name[:2] for name in pictures)


def test_one_and_two_parents(run):
    s = run("01")
    same(s["y"].value, s["x"].value ** 2)
    same(s["x"].backward(s["y"]), np.diag(2 * s["x"].value))
    s = run("02")
    w, x, a = s["w"], s["x"], s["a"]
    same(a.value, [w.value @ x.value])
    same(w.backward(a), x.value[None])
    same(x.backward(a), w.value[None])


def test_three_parents_or_a_node_added(run):
    s = run("03")
    a, b, c = (s[name].value[0] for name in "abc")
    for result in (s["at_once"], s["by_pairs"]):
        same(result.value, [a * b * c])
        same([s[name].backward(result)[0, 0] for name in "abc"], [b * c, a * c, a * b])
    assert len(s["at_once"].parents) == 3


def test_logistic_regression_in_scalars_and_vectors(run):
    s, v = run("04"), run("06")
    x, w = (np.array([s[f"{name}{k}"].value[0] for k in (1, 2)]) for name in "xw")
    p = logistic(w @ x + s["b"].value)
    same(s["p"].value, p)
    same([s[f"w{k}"].backward(s["p"])[0, 0] for k in (1, 2)], p * (1 - p) * x)
    same(s["b"].backward(s["p"])[0], p * (1 - p))
    same(v["p"].value, p)
    same(v["w"].backward(v["p"])[0], p * (1 - p) * x)
    same(v["b"].backward(v["p"])[0], p * (1 - p))


def test_the_logistic_function_taken_apart(run):
    s = run("05")
    y = logistic(s["a"].value)
    for result in (s["whole"], s["apart"]):
        same(result.value, y)
        same(s["a"].backward(result), np.diag(y * (1 - y)))
    ops = [type(node).__name__ for node in s["graph"].nodes if node.parents]
    assert ops == ["Logistic", "Negative", "Exp", "Add", "Reciprocal"]


def test_a_multi_layer_perceptron(run):
    s = run("07")
    W, b, V, c = (shaped(s["graph"][name]) for name in ("hidden.W", "hidden.b", "p.W", "p.b"))
    h = np.tanh(W @ s["x"].value + b)
    p = softmax(V @ h + c)
    same(s["p"].value, p)
    same(s["x"].backward(s["p"]), softmax_jacobian(p) @ V @ np.diag(1 - h * h) @ W)


def test_shared_weights_three_ways(run):
    s = run("08")
    image, w, U, c = shaped(s["x"])[0], shaped(s["w"])[0, 0], shaped(s["U"]), s["c"].value
    patches = [image[i : i + 2, j : j + 2] for i in (0, 1) for j in (0, 1)]
    h = np.tanh([(w * patch).sum() + s["b"].value[0] for patch in patches])
    p = softmax(U @ h + c)
    by_sums = softmax_jacobian(p) @ U @ np.diag(1 - h * h)
    of_patches = [np.outer(by_sums[:, k], patch) for k, patch in enumerate(patches)]
    by_x = np.zeros((2, 3, 3))
    for k in range(4):
        by_x[:, k // 2 : k // 2 + 2, k % 2 : k % 2 + 2] += by_sums[:, k, None, None] * w
    for result in (s["by_dots"], s["by_matrices"], s["by_conv2d"]):
        same(result.value, p)
        same(s["w"].backward(result), sum(of_patches))
        same(s["b"].backward(result)[:, 0], by_sums.sum(axis=1))
        same(s["x"].backward(result), by_x.reshape(2, 9))
        same(s["U"].backward(result), np.einsum("ij,k->ijk", softmax_jacobian(p), h).reshape(2, 8))
        same(s["c"].backward(result), softmax_jacobian(p))
    same(s["shares"], of_patches)


def test_along_a_path_and_by_several_children(run):
    s = run("09")
    expected = [[*np.exp(s["x"].value[:2]), 0]]
    same(s["product"], expected)
    same(s["x"].backward(s["y"]), expected)
    s = run("10")
    x = s["x"].value
    shares = [np.diag(slope) for slope in (np.exp(x), 1 - np.tanh(x) ** 2, 2 * x)]
    same(s["shares"], shares)
    same(s["x"].backward(s["y"]), sum(shares))


def test_what_is_saved_is_used_again(run, capsys):
    s = run("11")
    told = capsys.readouterr().out
    assert re.findall(r"for (\w): (\d) computed", told) == [("W", "5"), ("b", "1"), ("x", "1")]
    W, x = shaped(s["W"]), s["x"].value
    slope = 1 - np.tanh(W @ x + s["b"].value) ** 2
    saved = s["graph"].saved(s["y"])
    same(saved[s["W"]][0], np.outer(slope, x).ravel())
    same(saved[s["b"]][0], slope)
    same(saved[s["x"]][0], slope @ W)


def test_softmax_regression(run):
    s = run("12")
    graph, x, label = s["graph"], s["x"].value, s["label"].value
    p = softmax(np.array([graph[f"a.w{k}"].value @ x + graph[f"a.b{k}"].value[0] for k in range(3)]))
    same(s["p"].value, p)
    same(s["loss"].value, [-np.log(p[1])])
    same(s["a"].backward(s["loss"])[0], p - label)
    for k in range(3):
        same(graph[f"a.w{k}"].backward(s["loss"])[0], (p - label)[k] * x)


def test_training(run, capsys):
    """Against the same training, written in NumPy."""
    s = run("13")
    rng = np.random.default_rng(0)  # as the graph draws its weights
    W = fg.initial.initial("glorot", "W")(rng, (3, 4)).reshape(3, 4)
    b, losses = np.zeros(3), []
    for _ in range(20):
        total, by_W, by_b = 0.0, np.zeros((3, 4)), np.zeros(3)
        for n, i in enumerate(s["train"], 1):
            x, label = s["features"][i], np.eye(3)[s["kinds"][i]]
            p = softmax(W @ x + b)
            total -= np.log(p @ label)
            by_W, by_b = by_W + np.outer(p - label, x), by_b + p - label
            if n % 10 == 0:
                W, b = W - 0.5 * by_W / 10, b - 0.5 * by_b / 10
                by_W, by_b = np.zeros((3, 4)), np.zeros(3)
        losses.append(total / 100)
    np.testing.assert_allclose(s["losses"], losses, rtol=1e-9)
    found = (s["features"][s["test"]] @ W.T + b).argmax(axis=1)
    assert s["right"] == (found == s["kinds"][s["test"]]).sum() == 48
    assert "right 48 of 50" in capsys.readouterr().out
