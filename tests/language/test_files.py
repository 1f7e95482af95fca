"""Models on disk: what was saved comes back; what is damaged is refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import strategies
from hypothesis import given
from safetensors.numpy import load_file, save_file

import flowgrad as fg
from flowgrad.errors import DataError, FlowgradError, GraphError
from flowgrad.files import OPTIMIZERS


class Cubed(fg.Op):
    """An op of a user."""

    @staticmethod
    def apply(a, *, offset):
        return a**3 + offset

    @staticmethod
    def jacobian(slot, y, a, *, offset):
        return fg.Diagonal(3 * a**2)


@pytest.fixture
def trained():
    """A graph and an optimizer that has made two updates."""
    with fg.Graph(seed=3) as graph:
        x = fg.Variable(3, [1.0, -2.0, 0.5], trainable=False, name="x")
        fg.Variable(2, name="without a value")
        w = fg.Variable(6, True, name="w")
        h = fg.Tanh(fg.MatVec(w, x))
        loss = fg.Sum(fg.Gather(h, [1, 0, 1]) * fg.Vectorize(h[0:1], fg.Scale(h, 2.0)))
    optimizer = fg.Adam(graph, loss, 0.05, 0.8, 0.95, batch_size=1, bias_correction=True)
    optimizer.one_step()
    optimizer.one_step()
    return graph, optimizer


def same_graph(a, b):
    assert [type(n) for n in a.nodes] == [type(n) for n in b.nodes]
    for mine, other in zip(a.nodes, b.nodes):
        assert (mine.name, mine.dim, mine.attrs) == (other.name, other.dim, other.attrs)
        assert [p.index for p in mine.parents] == [p.index for p in other.parents]
        if isinstance(mine, fg.Variable):
            assert mine.trainable == other.trainable
            assert (mine.value is None) == (other.value is None)
            assert mine.value is None or mine.value.tobytes() == other.value.tobytes()


def test_a_round_trip(trained, tmp_path):
    graph, optimizer = trained
    fg.save(tmp_path / "model", graph, optimizer)
    loaded = fg.load(tmp_path / "model")
    same_graph(graph, loaded.graph)
    assert loaded.optimizer.graph is loaded.graph
    assert loaded.optimizer.target.index == optimizer.target.index
    assert isinstance(loaded.optimizer, fg.Adam)
    for _ in range(3):  # the state came along: training goes on with the same bits
        assert loaded.optimizer.one_step() == optimizer.one_step()
    same_graph(graph, loaded.graph)


def test_a_graph_alone(trained, tmp_path):
    fg.save(tmp_path / "model", trained[0])
    loaded = fg.load(tmp_path / "model")
    same_graph(trained[0], loaded.graph)
    assert loaded.optimizer is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer(trained, tmp_path, kind):
    graph, adam = trained
    optimizer = getattr(fg, kind)(graph, adam.target, learning_rate=0.02, batch_size=2)
    for _ in range(4):
        optimizer.one_step()
    fg.save(tmp_path / "model", graph, optimizer)
    again = fg.load(tmp_path / "model").optimizer
    assert again.batch_size == 2
    for _ in range(4):
        assert again.one_step() == optimizer.one_step()
    same_graph(graph, again.graph)


@given(made=strategies.graphs())
def test_random_graphs(tmp_path_factory, made):
    path = tmp_path_factory.getbasetemp() / "random"
    fg.save(path, made.graph)
    loaded = fg.load(path)
    same_graph(made.graph, loaded.graph)
    made.set_sample(0)
    for variable, array in made.feeds.items():
        loaded.graph.nodes[variable.index].set_value(array[0])
    np.testing.assert_array_equal(loaded.graph.nodes[made.loss.index].forward(), made.loss.forward())


def test_ops_of_users_are_found_by_name(tmp_path):
    with fg.Graph() as graph:
        y = Cubed(fg.Variable(2, [1.0, 2.0]), offset=1.0)
    fg.save(tmp_path / "model", graph)
    assert fg.load(tmp_path / "model").graph.nodes[-1].forward().tolist() == y.forward().tolist()


def test_an_op_that_is_not_defined_is_named(tmp_path):
    with fg.Graph() as graph:
        Cubed(fg.Variable(2, [1.0, 2.0]), offset=1.0)
    Cubed.__qualname__ = "Elsewhere"
    try:
        fg.save(tmp_path / "model", graph)
    finally:
        Cubed.__qualname__ = "Cubed"
    with pytest.raises(FlowgradError, match="Elsewhere"):
        fg.load(tmp_path / "model")


class Attributes(fg.Op):
    """An op with an attribute of any kind."""

    @staticmethod
    def shape(a, *, what):
        return a

    @staticmethod
    def apply(a, *, what):
        return a


def test_attributes_come_back_as_they_were(tmp_path):
    given = [1, 2.5, True, None, "text", (), (1, (2.0, ("a", False))), float("inf")]
    given += [kind(1) for kind in np.sctypeDict.values() if np.dtype(kind).kind in "biufc"]
    given += [
        np.float32(0.1),
        np.float64("-inf"),
        np.datetime64("2020-01-01"),
        np.timedelta64(3, "s"),
        np.str_("text"),
        np.bytes_(b"ab"),
    ]
    given += [range(3), range(5, 1, -2), (np.int64(1), range(2), (np.bool_(False),))]
    with fg.Graph() as graph:
        x = fg.Variable(1, [1.0])
        for what in given:
            Attributes(x, what=what)
    fg.save(tmp_path / "model", graph)
    found = [n.attrs["what"] for n in fg.load(tmp_path / "model").graph.nodes[1:]]
    assert found == given
    kinds, expected = ([getattr(a, "dtype", type(a)) for a in attributes] for attributes in (found, given))
    assert kinds == expected  # of two integers of one size NumPy gives the usual one
    assert [type(a) for a in found[-1]] == [np.int64, range, tuple]
    assert found[-1][2][0] is np.False_


@pytest.mark.parametrize(
    "what", [frozenset([1]), b"a", len, (1, frozenset()), pytest.param(10**5000, id="large"), (np.float32(1.0), 1j)]
)
def test_attributes_that_no_file_can_hold(tmp_path, what):
    (tmp_path / "model").write_text("before")
    with fg.Graph() as graph:
        Attributes(fg.Variable(1, [1.0]), what=what, name="odd")
    with pytest.raises(FlowgradError, match=r"'odd'.*its attribute 'what' is "):
        fg.save(tmp_path / "model", graph)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model", "before")]


class Mine(fg.Adam):
    """An optimizer of a user."""


def test_an_optimizer_that_no_file_can_hold(tmp_path):
    with fg.Graph() as graph:
        w = fg.Variable(1, [1.0])
        loss = w * w
    for optimizer in (Mine(graph, loss), fg.Optimizer(graph, loss, fg.optim.AdamRule())):
        with pytest.raises(
            FlowgradError, match=f"a {type(optimizer).__name__} cannot be written to a file: use one of "
        ):
            fg.save(tmp_path / "model", graph, optimizer)


def test_saving_over_a_file_replaces_it(trained, tmp_path):
    graph, optimizer = trained
    (tmp_path / "model").write_bytes(b"old")
    fg.save(str(tmp_path / "model"), graph, optimizer)
    same_graph(graph, fg.load(tmp_path / "model").graph)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(trained, tmp_path, share):
    path = tmp_path / "model"
    fg.save(path, *trained)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="model"):
        fg.load(path)


def test_every_changed_byte_of_the_arrays_is_seen(trained, tmp_path):
    path = tmp_path / "model"
    fg.save(path, *trained)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - start > 100
    for at in range(start, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="model"):
            fg.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(100), b"\x80\x04\x95.", bytes(64)]
)
def test_a_file_of_another_kind(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(DataError, match="model"):
        fg.load(tmp_path / "model")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match=path.name):
            fg.load(path)


def metadata(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.clear(),
        lambda m: m.pop("about"),
        lambda m: m.pop("sha256"),
        lambda m: m.update(version="99"),
        lambda m: m.update(version="new"),
        lambda m: m.update(about="{"),
        lambda m: m.update(about="{}"),
        lambda m: m.update(about=m["about"].replace("Tanh", "Exp")),
    ],
)
def test_a_changed_description(trained, tmp_path, change):
    path = tmp_path / "model"
    fg.save(path, *trained)
    about = metadata(path)
    arrays = load_file(path)
    save_file(arrays, path, about)
    same_graph(trained[0], fg.load(path).graph)
    change(about)
    save_file(arrays, path, about)
    with pytest.raises(DataError, match="model"):
        fg.load(path)


def test_nothing_is_unpickled(tmp_path):
    """A file that would run code if it were unpickled is refused without running it."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "model").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        fg.load(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_random_values_go_on_after_loading(tmp_path):
    with fg.Graph(seed=5) as graph:
        first = fg.Variable(3, True)
    fg.save(tmp_path / "model", graph)
    loaded = fg.load(tmp_path / "model").graph
    values = []
    for g in (graph, loaded):
        with g:
            values.append(fg.Variable(3, True).value.tolist())
    assert values[0] == values[1] != first.value.tolist()


# -- ops of a script --

SCRIPT = """
import sys, flowgrad as fg
class Square(fg.Elementwise):
    formula = "a * a"
    slopes = ("2 * a",)
class Twice(fg.Elementwise):
    formula = "2 * a"
    slopes = ("2",)
with fg.Graph() as graph:
    y = Twice(Square(fg.Exp(fg.Variable(2, [0.0, 0.0]))))
fg.save(sys.argv[1], graph)
"""


class Square(fg.Elementwise):
    formula = "a * a"
    slopes = ("2 * a",)


class Twice(fg.Elementwise):
    formula = "2 * a"
    slopes = ("2",)


@pytest.fixture
def of_a_script(tmp_path):
    path = tmp_path / "model.safetensors"
    subprocess.run([sys.executable, "-c", SCRIPT, path], check=True, timeout=60)
    return path


def test_ops_of_a_script_can_be_given(of_a_script):
    for ops in ([Square, Twice], (c for c in (Twice, Square, Cubed, Square)), {Square, Twice}):
        graph, _ = fg.load(of_a_script, ops=ops)
        assert [type(n) for n in graph.nodes[1:]] == [fg.Exp, Square, Twice]
        assert graph.nodes[-1].forward().tolist() == [2.0, 2.0]
    fg.save(of_a_script, graph)  # under their modules now
    assert type(fg.load(of_a_script).graph.nodes[-1]) is Twice


@pytest.mark.parametrize(
    ("ops", "told"),
    [
        (
            (),
            "the ops __main__.Square, __main__.Twice, which are not defined here: import the module, or pass the classes: "
            "fg.load(path, ops=[Square, Twice])",
        ),
        (
            [Square],
            "the op __main__.Twice, which is not defined here: import the module, or pass the class: "
            "fg.load(path, ops=[Twice])",
        ),
    ],
)
def test_ops_that_are_lacking_are_named(of_a_script, ops, told):
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        fg.load(of_a_script, ops)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ops", "told"),
    [
        (Square, "ops is a list of op classes, not <class .*: give .Square.$"),
        ([Square, fg.Variable], "ops is a list of op classes; <class 'flowgrad.graph.variables.Variable'> is none"),
        (["Square"], "ops is a list of op classes; 'Square' is none"),
        (3, "ops is a list of op classes, not 3"),
    ],
)
def test_what_is_given_are_op_classes(of_a_script, ops, told):
    with pytest.raises(GraphError, match=told):
        fg.load(of_a_script, ops=ops)


def test_two_given_ops_of_one_name(of_a_script):
    other = type("Square", (Square,), {"__module__": "elsewhere", "formula": "a + a", "slopes": ("2",)})
    with pytest.raises(
        DataError, match=r"ops has several of that name: .*test_files.Square and elsewhere.Square; give"
    ):
        fg.load(of_a_script, ops=[Square, Twice, other])
    other.__module__ = "__main__"  # that is what the file says
    graph, _ = fg.load(of_a_script, ops=[Square, Twice, other])
    assert type(graph.nodes[2]) is other


def test_a_given_op_takes_no_place_of_another(tmp_path):
    """Neither of flowgrad's own, nor of one that the file has by its full name."""
    theirs = type("Square", (Square,), {"__module__": "elsewhere", "formula": "a + a", "slopes": ("2",)})
    mine = type("Exp", (Square,), {"__module__": "elsewhere"})
    with fg.Graph() as graph:
        theirs(Square(fg.Exp(fg.Variable(1, [1.0]))))
    fg.save(tmp_path / "model", graph)
    for ops in ([], [Square], [theirs], [mine, Square]):
        found = fg.load(tmp_path / "model", ops=ops).graph
        assert [type(n) for n in found.nodes[1:]] == [fg.Exp, Square, theirs]
