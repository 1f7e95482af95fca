"""Rates by variable and scope, what is frozen, averages of weights, rows of tables: the same everywhere, and in files."""

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.errors import GraphError
from flowgrad.files import OPTIMIZERS
from flowgrad.scheduler.training import job


class Net:
    """A net in two scopes, and data."""

    def __init__(self, kind="AdamW", **settings):
        rng = np.random.default_rng(5)
        with fg.Graph(seed=0) as self.graph:
            self.x, self.y = fg.Variable(3, trainable=False, name="x"), fg.Variable(1, trainable=False, name="y")
            with fg.scope("encoder"):
                self.w, self.b = (
                    fg.Variable(12, rng.normal(size=12), name="w"),
                    fg.Variable(4, rng.normal(size=4), name="b"),
                )
                hidden = fg.Tanh(fg.MatVec(self.w, self.x) + self.b)
            self.head = fg.Variable(4, rng.normal(size=4), name="head")
            self.loss = fg.MeanSquaredError(fg.Dot(self.head, hidden), self.y)
        self.trained = (self.w, self.b, self.head)
        self.feeds = {self.x: rng.normal(size=(12, 3)), self.y: rng.normal(size=12)}
        settings = {key: value(self) if callable(value) else value for key, value in settings.items()}
        self.optimizer = getattr(fg, kind)(self.graph, self.loss, 0.1, batch_size=4, **settings)

    def fit(self, where="sync", epochs=2, **engine):
        to_fit = {name: engine.pop(name) for name in ("checkpoint", "resume", "validation") if name in engine}
        trainer = fg.Trainer(self.optimizer, fg.Engine(where, **engine), shuffle=False)
        trainer.fit(self.feeds, epochs=epochs, **to_fit)
        return trainer

    def step(self, epochs=2):
        for i in [*range(12)] * epochs:
            self.x.set_value(self.feeds[self.x][i])
            self.y.set_value(self.feeds[self.y][i])
            self.optimizer.one_step()

    def bits(self):
        state = self.optimizer.state
        return b"".join(v.value.tobytes() for v in self.trained) + b"".join(state[k].tobytes() for k in sorted(state))

    def values(self):
        return [v.value.copy() for v in self.trained]


SETTINGS = {
    "rates": {"learning_rates": lambda net: {"encoder": 0.1, net.head: 0.5}},
    "frozen": {"freeze": ["encoder.w"]},
    "average": {"ema": 0.9},
    "all": {"learning_rates": {"encoder": 0.1, "head": 2}, "freeze": ["encoder.b"], "ema": 0.5, "clip_norm": 0.3,
            "weight_decay": 0.1},
    "private": {"freeze": ["encoder.b"], "learning_rates": {"head": 2}, "ema": 0.5, "per_sample_clip": 0.5, "noise_multiplier": 0.1,
                "noise_seed": 3},
}  # fmt: skip


def close(mine, theirs):
    for a, b in zip(mine, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_interpreter_takes_the_same_steps(kind, what):
    trained, stepped = Net(kind, **SETTINGS[what]), Net(kind, **SETTINGS[what])
    trained.fit()
    stepped.step()
    close(trained.values(), stepped.values())
    close(trained.optimizer.state.values(), (stepped.optimizer.state[slot] for slot in trained.optimizer.state))


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("what", SETTINGS)
def test_the_same_bits_on_every_executor(executor, kernel, what):
    if kernel == "numba":
        pytest.importorskip("numba")

    def train(where, grain, kind):
        net = Net(kind, **SETTINGS[what])
        net.fit(where, grain=grain, kernel=kernel, shards=4)
        return net.bits()

    for kind in ("AMSGrad", "Lion"):
        ends = {train(executor, grain, kind) for grain in ("round", "shard", "sample", "collective")}
        assert ends == {train("sync", "round", kind)}


def test_rates_are_factors_of_the_step():
    """Of gradient descent, whose steps are multiples of the gradient; of decoupled decay likewise."""
    plain, rated = Net("GradientDescent"), Net("GradientDescent", **SETTINGS["rates"])
    before = plain.values()
    for net in (plain, rated):
        net.optimizer.batch_size = 12
        net.fit(epochs=1)
    for a, b, old, factor in zip(plain.values(), rated.values(), before, (0.1, 0.1, 0.5)):
        np.testing.assert_allclose(b - old, factor * (a - old), rtol=1e-12)
    decayed = Net("Lion", weight_decay=0.5, learning_rates={"head": 0.25})
    rule, w = decayed.optimizer.rule, np.array([1.0, -2.0])
    state = {**rule.init(w), "rates": np.array([0.25, 1.0])}
    np.testing.assert_allclose(rule.update(w, np.ones(2), state)[0], w - state["rates"] * 0.1 * (1 + 0.5 * w))


def test_the_closest_name_counts():
    net = Net(learning_rates=lambda net: {"encoder": 0, "encoder.b": 0.5, net.head: 2.0, "head": 0})
    assert net.optimizer.variables() == [net.b, net.head]
    assert net.optimizer.rates(net.optimizer.variables()).tolist() == [0.5] * 4 + [2.0] * 4


@pytest.mark.parametrize("way", ["fit", "step"])
def test_what_is_frozen_stays_and_costs_nothing(way):
    net = Net("Adam", freeze=["encoder"])
    before = net.values()
    getattr(net, way)()
    after = net.values()
    assert [np.array_equal(a, b) for a, b in zip(before, after)] == [True, True, False]
    assert len(net.optimizer.state["v"]) == 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rates": {"encode": 0.1}}, "has no variable 'encode', and none in a scope of that name"),
        ({"freeze": ["encoder.w.x"]}, "has no variable 'encoder.w.x'"),
        ({"freeze": "encoder"}, r"freeze is a list of variables, names or scopes, not 'encoder': write \[...\]"),
        ({"learning_rates": 0.1}, "learning_rates is a dict of factors by variable, name or scope, not 0.1"),
        (
            {"learning_rates": {"encoder": -1}},
            "the learning rate's factor of 'encoder' must be a number from 0 on, not -1",
        ),
        ({"learning_rates": {3: 1}}, "has no variable 3"),
    ],
)
def test_bad_rates_are_refused(settings, told):
    with pytest.raises(GraphError, match=told):
        Net(**settings)


def test_a_variable_of_another_graph_is_refused():
    with pytest.raises(GraphError, match="has no variable"):
        Net(freeze=[Net().head])


@pytest.mark.parametrize("what", ["rates", "frozen", "average", "all"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_they_come_back_from_files(tmp_path, kind, what):
    net = Net(kind, **SETTINGS[what])
    net.fit()
    fg.save(tmp_path / "m", net.graph, net.optimizer)
    graph, optimizer = fg.load(tmp_path / "m")
    assert [v.index for v in optimizer.variables()] == [v.index for v in net.optimizer.variables()]
    net.step(1)
    for i in range(12):
        graph["x"].set_value(net.feeds[net.x][i])
        graph["y"].set_value(net.feeds[net.y][i])
        optimizer.one_step()
    for v in net.trained:
        assert graph[v.name].value.tobytes() == v.value.tobytes()


@pytest.mark.parametrize("what", SETTINGS)
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, what):
    whole, begun, resumed = (Net("AMSGrad", **SETTINGS[what]) for _ in range(3))
    whole.fit(epochs=4)
    begun.fit(epochs=2, checkpoint=tmp_path)
    resumed.fit(epochs=4, checkpoint=tmp_path, resume=True)
    assert resumed.bits() == whole.bits()
    if what == "rates":
        with pytest.raises(GraphError, match=r"has learning rates by variable {'encoder': 0.1, .*this run has .* None"):
            Net("AMSGrad").fit(epochs=4, checkpoint=tmp_path, resume=True)


# -- averages --


def written_out(net, beta, rates=(1, 1, 1), updates=6):
    """Gradient descent and the average of its weights, as torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn has it."""
    averages = None
    for t in range(updates):
        sums = [0.0] * 3
        for i in range(4 * (t % 3), 4 * (t % 3) + 4):
            net.x.set_value(net.feeds[net.x][i])
            net.y.set_value(net.feeds[net.y][i])
            sums = [s + v.backward(net.loss)[0] for s, v in zip(sums, net.trained)]
        for v, s, rate in zip(net.trained, sums, rates):
            v.set_value(v.value - 0.1 * rate * s / 4)
        now = net.values()
        averages = now if averages is None else [a + (1 - beta) * (v - a) for a, v in zip(averages, now)]
    return averages


@pytest.mark.parametrize("way", ["fit", "step"])
def test_averages_are_those_of_the_weights(way):
    net, other = Net("GradientDescent", ema=0.8), Net("GradientDescent")
    getattr(net, way)()
    expected, last = written_out(other, 0.8), net.values()
    with net.optimizer.averaged():
        close(net.values(), expected)
    close(net.values(), other.values())
    assert all(a.tobytes() == b.tobytes() for a, b in zip(net.values(), last))


def test_averages_are_evaluated_and_saved(tmp_path):
    net = Net("GradientDescent", ema=0.8)
    trainer = net.fit()
    last = trainer.evaluate(net.feeds)["loss"]
    with net.optimizer.averaged():
        loss = trainer.evaluate(net.feeds)["loss"]
        fg.save(tmp_path / "averaged", net.graph)
    assert loss != last == trainer.evaluate(net.feeds)["loss"]
    again = fg.load(tmp_path / "averaged").graph
    np.testing.assert_array_equal(
        np.concatenate([again[v.name].value for v in net.trained]), net.optimizer.state["average"]
    )


def test_a_callback_looks_at_averages_and_changes_nothing():
    plain, watched = Net("Adam", ema=0.8), Net("Adam", ema=0.8)
    losses = []

    class Look(fg.Callback):
        def on_epoch(self, record):
            with watched.optimizer.averaged():
                losses.append(trainer.predict(watched.loss, watched.feeds).mean())

    trainer = fg.Trainer(watched.optimizer, fg.Engine("sync"), shuffle=False, callbacks=[Look()])
    trainer.fit(watched.feeds, epochs=2)
    plain.fit()
    assert watched.bits() == plain.bits()
    assert len(set(losses)) == 2


def test_variables_that_come_later_begin_their_average_with_their_value():
    net = Net("GradientDescent", ema=0.5)
    net.step(1)
    with net.graph:
        late = fg.Variable(2, [3.0, 4.0])
        net.optimizer.target = net.loss + fg.Dot(late, late)
    with net.optimizer.averaged():
        assert late.value.tolist() == [3.0, 4.0]
    assert net.optimizer.state_now()["average"][-2:].tolist() == [3.0, 4.0]


def test_what_the_loss_does_not_depend_on_has_no_average():
    with fg.Graph() as graph:
        w, idle = fg.Variable(1, [1.0]), fg.Variable(1, [5.0])
        optimizer = fg.GradientDescent(graph, w * w, 0.1, batch_size=1, ema=0.5)
    with pytest.warns(UserWarning, match="does not depend"):
        optimizer.one_step()
    idle.set_value([7.0])
    with optimizer.averaged():
        assert idle.value.tolist() == [7.0]


def test_averages_that_nobody_keeps_are_told():
    with (
        pytest.raises(GraphError, match=r"keeps no averages of weights: make it with ema=0.999"),
        Net().optimizer.averaged(),
    ):
        pass
    with pytest.raises(GraphError, match="ema must be at least 0 and below 1, not 1"):
        Net(ema=1)
    net = Net(ema=0.5)  # before the first update they are the weights
    before = net.values()
    with net.optimizer.averaged():
        close(net.values(), before)


# -- rows of tables --


class Tables(Net):
    """Two tables, one of which is read twice, by numbers that are fed and by one that is set."""

    def __init__(self, kind="AdamW", **settings):
        rng = np.random.default_rng(5)
        with fg.Graph(seed=0) as self.graph:
            self.x, self.y = fg.Variable(2, trainable=False, name="x"), fg.Variable(1, trainable=False, name="y")
            with fg.scope("encoder"):
                self.w = fg.Variable((40, 3), rng.normal(size=(40, 3)), name="w")
                self.b = fg.Variable((30, 2), rng.normal(size=(30, 2)), name="b")
                read = (fg.Embedding(self.b, self.x), fg.Embedding(self.b, fg.Variable(1, [7], trainable=False)))
                hidden = fg.Vectorize(fg.Embedding(self.w, self.x).reshape(6), read[0].reshape(4), read[1].reshape(2))
            self.head = fg.Variable(12, rng.normal(size=12), name="head")
            self.loss = fg.MeanSquaredError(fg.Tanh(fg.Dot(self.head, hidden)), self.y)
        self.trained = (self.w, self.b, self.head)
        self.feeds = {self.x: rng.integers(0, 30, (12, 2)), self.y: rng.normal(size=12)}
        self.optimizer = getattr(fg, kind)(self.graph, self.loss, 0.1, batch_size=4, **settings)


ROWS = {
    "plain": {},
    "rates": {"learning_rates": {"encoder.w": 0.5}, "freeze": ["encoder.b"]},
    "all": {"learning_rates": {"encoder": 0.1, "head": 2}, "ema": 0.5, "clip_norm": 0.3, "weight_decay": 0.1},
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_interpreter_moves_the_same_rows(kind, what, lazy):
    trained, stepped = (Tables(kind, lazy_rows=lazy, **ROWS[what]) for _ in range(2))
    trained.fit(dtype="float64")
    stepped.step()
    close(trained.values(), stepped.values())
    close(trained.optimizer.state.values(), (stepped.optimizer.state[slot] for slot in trained.optimizer.state))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_rows_have_the_bits_of_whole_tables_on_every_executor(executor, kernel, lazy, monkeypatch):
    if kernel == "numba":
        pytest.importorskip("numba")
    row_tables = job.row_tables

    def train(where, grain, what, tables=row_tables):
        monkeypatch.setattr(job, "row_tables", tables)
        net = Tables("AMSGrad", lazy_rows=lazy, **ROWS[what])
        net.fit(where, grain=grain, kernel=kernel, shards=4)
        return net.bits()

    for what in ("plain", "all"):
        ends = {train(executor, grain, what) for grain in ("round", "shard", "sample", "collective")}
        if kernel == "numpy":
            ends.add(train(executor, "node", what))
        assert ends == {train("sync", "round", what)}
        if not lazy:
            assert ends == {train("sync", "round", what, lambda step, target, batch: ())}


def test_private_steps_have_the_same_bits_with_rows(monkeypatch):
    private = {"per_sample_clip": 0.5, "noise_multiplier": 0.1, "noise_seed": 3}
    rows, whole = Tables(**private), Tables(**private)
    rows.fit(shards=2)
    monkeypatch.setattr(job, "row_tables", lambda step, target, batch: ())
    whole.fit(shards=2)
    assert rows.bits() == whole.bits()


@pytest.mark.parametrize("way", ["numpy", "numba", "step"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rows_that_do_not_occur_keep_their_bits_and_so_does_their_state(kind, way):
    settings = {"ema": 0.5, "weight_decay": 0.1, "lazy_rows": True}
    net = Tables(kind, **settings)
    for k in range(3):
        part = slice(4 * k, 4 * k + 4)
        before, state = net.values(), net.optimizer.state_now() or net.optimizer.first_state()
        if way == "step":
            for i in range(12)[part]:
                net.x.set_value(net.feeds[net.x][i])
                net.y.set_value(net.feeds[net.y][i])
                net.optimizer.one_step()
        else:
            engine = fg.Engine("sync", dtype="float64", kernel=way)
            fg.Trainer(net.optimizer, engine).fit({v: a[part] for v, a in net.feeds.items()}, epochs=1)
        picked = np.unique(net.feeds[net.x][part])
        moving = [
            np.isin(np.arange(40), picked).repeat(3),
            np.isin(np.arange(30), [*picked, 7]).repeat(2),
            np.ones(12, bool),
        ]
        for old, new, moves in zip(before, net.values(), moving):
            assert ((old.view(np.int64) != new.view(np.int64)) <= moves).all()
            assert (old != new)[moves].any()
        for slot, old in state.items():
            if slot != "t":
                changed = old.view(np.int64) != net.optimizer.state[slot].view(np.int64)
                assert (changed <= np.concatenate(moving)).all()
        assert net.optimizer.state["t"] == k + 1


def test_a_first_update_of_all_rows_is_that_of_the_dense_rule():
    lazy, dense = Tables("Adam", lazy_rows=True), Tables("Adam")
    every = {"x": np.arange(40).reshape(20, 2) % 30, "y": np.zeros(20)}
    for net in (lazy, dense):
        net.optimizer.batch_size = 20
        fg.Trainer(net.optimizer, fg.Engine("sync", dtype="float64", kernel="numpy")).fit(every, epochs=2)
    assert lazy.b.value.tobytes() == dense.b.value.tobytes()
    assert lazy.optimizer.state["v"][120:].tobytes() == dense.optimizer.state["v"][120:].tobytes()


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_lazy_rows_go_on_from_checkpoints_and_files(tmp_path, kernel):
    settings = {**ROWS["all"], "lazy_rows": True}
    whole, begun, resumed = (Tables("AMSGrad", **settings) for _ in range(3))
    whole.fit(epochs=4, kernel=kernel)
    begun.fit(epochs=2, checkpoint=tmp_path / "c", kernel=kernel)
    fg.save(tmp_path / "m", begun.graph, begun.optimizer)
    graph, optimizer = fg.load(tmp_path / "m")
    assert optimizer.lazy_rows
    fg.Trainer(optimizer, fg.Engine("sync", kernel=kernel), shuffle=False).fit(
        {v.name: array for v, array in begun.feeds.items()}, epochs=2
    )
    assert [graph[v.name].value.tobytes() for v in whole.trained] == [v.value.tobytes() for v in whole.trained]
    with pytest.raises(GraphError, match=r"lazy_rows=True, .* this run has the optimizer .*lazy_rows=False"):
        Tables("AMSGrad", **ROWS["all"]).fit(epochs=4, checkpoint=tmp_path / "c", resume=True)
    resumed.fit(epochs=4, checkpoint=tmp_path / "c", resume=True, kernel=kernel)
    assert resumed.bits() == whole.bits()


def test_lazy_rows_may_be_set_between_epochs():
    class Turn(fg.Callback):
        def on_epoch(self, record):
            net.optimizer.lazy_rows = True

    net, other = Tables(), Tables()
    fg.Trainer(net.optimizer, fg.Engine("sync"), shuffle=False, callbacks=[Turn()]).fit(net.feeds, epochs=2)
    other.fit(epochs=1)
    other.optimizer.lazy_rows = True
    other.fit(epochs=1)
    assert net.bits() == other.bits()
    third = Tables(lazy_rows=True)
    third.fit(epochs=2)
    assert third.bits() != other.bits()


def test_lazy_rows_that_mean_nothing_are_refused():
    with pytest.raises(
        GraphError, match=r"AdamW: lazy_rows is for variables that Embedding alone reads, and .* there is none"
    ):
        Net(lazy_rows=True)
    with pytest.raises(GraphError, match="AdamWRule: lazy_rows must be True or False, not 'yes'"):
        Tables(lazy_rows="yes")
    with pytest.raises(
        GraphError, match=r"AdamW: lazy_rows would tell which rows samples pick, .* leave out one of them"
    ):
        Tables(lazy_rows=True, per_sample_clip=1.0)
    net = Tables(lazy_rows=True)
    with net.graph:
        tied = fg.Sum(fg.MatVec(net.w, fg.Variable(3, True))) + fg.Sum(net.b)
        both = fg.Sum(fg.Embedding(net.w, net.x)) + tied
    with pytest.raises(
        GraphError, match=r"the table Variable 'encoder.w' \(40 x 3\) is read otherwise too, or computed: leave"
    ):
        net.optimizer.target = both
    assert net.optimizer.target is net.loss
    late = Tables()
    for v in (late.x, late.y):
        v.set_value(late.feeds[v][0])
    late.optimizer.one_step()
    with pytest.raises(GraphError, match="lazy_rows cannot begin after 1 of 4 samples"):
        late.optimizer.lazy_rows = True


def test_what_a_batch_norm_measures_is_not_what_is_trained():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(2, [1.0, 2.0], trainable=False)
        loss = fg.Sum(fg.BatchNorm(fg.Variable(2, True, name="w") * x, name="norm"))
    with pytest.warns(UserWarning, match="nothing is trained"):
        fg.GradientDescent(graph, loss, batch_size=1, freeze=["w"]).one_step()
