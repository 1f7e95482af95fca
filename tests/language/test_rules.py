"""Schedules, weight decay, clipping: formulas written out, the interpreter as oracle, the same bits everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Model

import flowgrad as fg
from flowgrad.errors import GraphError
from flowgrad.files import OPTIMIZERS
from flowgrad.optim import (
    NORM_BLOCK,
    RowGradient,
    Table,
    block_norms,
    describe,
    entries_of,
    restore,
    scale_of,
    spans_of,
)

# Settings by kind; words after the name tell variants apart.
KINDS = {kind: {} for kind in OPTIMIZERS} | {
    "Adam corrected": {"bias_correction": True},
    "RMSProp momentum": {"momentum": 0.8},
}
SCHEDULES = (
    fg.StepDecay(0.3, every=2, factor=0.5),
    fg.ExponentialDecay(0.3, factor=0.5, every=3),
    fg.CosineDecay(0.3, steps=7, final=0.01),
    fg.WarmUp(3, then=fg.CosineDecay(0.3, steps=5)),
    fg.WarmUp(2, then=0.2),
)
FEATURES = {
    "decay": {"weight_decay": 0.3},
    "clip": {"clip_norm": 0.05},
    "loose clip": {"clip_norm": 1e6},
    "schedule": {"learning_rate": SCHEDULES[3]},
    "all": {"learning_rate": SCHEDULES[0], "weight_decay": 0.3, "clip_norm": 0.2},
}

# -- schedules --


def test_schedules_are_their_formulas():
    for t in range(1, 12):
        assert SCHEDULES[0](t) == pytest.approx(0.3 * 0.5 ** ((t - 1) // 2))
        assert SCHEDULES[1](t) == pytest.approx(0.3 * math.exp(math.log(0.5) * (t - 1) / 3))
        cosine = 0.01 + 0.29 * (1 + math.cos(math.pi * min((t - 1) / 7, 1))) / 2
        assert SCHEDULES[2](t) == pytest.approx(cosine)
        warm = 0.1 * t if t <= 3 else 0.15 * (1 + math.cos(math.pi * min((t - 4) / 5, 1)))
        assert SCHEDULES[3](t) == pytest.approx(warm)
        assert SCHEDULES[4](t) == pytest.approx(0.1 if t == 1 else 0.2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_come_back_from_a_file(tmp_path, schedule):
    assert restore(describe(schedule)) == schedule
    model = Model("Adam", learning_rate=schedule, weight_decay=0.25, clip_norm=2.0)
    fg.save(tmp_path / "m", model.graph, model.optimizer)
    assert fg.load(tmp_path / "m").optimizer.rule == model.optimizer.rule


def test_a_function_of_the_users_trains_and_cannot_be_saved(executor, tmp_path):
    model, other = Model(learning_rate=lambda t: 0.1 / t), Model()
    model.fit(executor, epochs=1, shuffle=False)
    for t, rows in enumerate([range(4), range(4, 8), range(8, 10)], 1):
        gradients = other.mean_gradient(rows)[1]
        for v, g in zip((other.w, other.b), gradients):
            v.set_value(v.value - 0.1 / t * g)
    np.testing.assert_allclose(model.w.value, other.w.value, rtol=1e-12)
    with pytest.raises(fg.errors.DataError, match=r"function of your own.*CosineDecay"):
        fg.save(tmp_path / "m", model.graph, model.optimizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [-0.1, math.nan, "fast", None])
def test_a_schedule_that_gives_no_rate_is_said_with_the_update(rate):
    model = Model(learning_rate=lambda t: 0.1 if t < 2 else rate)
    before = model.bits()
    with pytest.raises(GraphError, match="update 2"):
        model.fit()
    assert model.bits() == before


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fg.StepDecay(0.1, every=0), "every must be an integer from 1 on, not 0"),
        (lambda: fg.StepDecay(-1, every=3), "learning_rate must be a number above 0, not -1"),
        (lambda: fg.CosineDecay(0.1, steps=2.5), "steps must be an integer"),
        (lambda: fg.ExponentialDecay(0.1, factor=math.nan), "factor"),
        (lambda: fg.WarmUp(5, then="slow"), "then must be a number"),
        (lambda: Model(weight_decay=-1.0), "weight_decay must be a number from 0 on"),
        (lambda: Model(clip_norm=0.0), "clip_norm must be a number above 0"),
        (lambda: Model(clip_norm="tight"), "clip_norm must be a number above 0"),
    ],
)
def test_bad_settings_are_refused(make, told):
    with pytest.raises(GraphError, match=told):
        make()


def test_numpy_scalars_do_not_change_the_precision():
    model = Model("Adam", learning_rate=np.float64(0.1), beta_1=np.float64(0.5))
    model.fit(dtype="float32")
    assert model.optimizer.state["v"].dtype == np.float32


# -- weight decay and clipping --


def written_out(kind, w, g, slots, t, learning_rate=0.1, weight_decay=None, clip_norm=None):
    """One update as PyTorch does it: clip_grad_norm_, then weight decay in the optimizer, then the rule."""
    rate = learning_rate(t) if callable(learning_rate) else learning_rate
    weight_decay = (0.01 if kind == "AdamW" else 0.0) if weight_decay is None else weight_decay
    if clip_norm is not None:
        g = g * min(1.0, clip_norm / np.linalg.norm(g))
    if kind in ("AdamW", "Lion"):  # torch.optim.AdamW: param.mul_(1 - lr * weight_decay)
        w = w * (1 - rate * weight_decay)
    else:
        g = g + weight_decay * w
    v, s, top = slots
    if kind == "GradientDescent":
        return w - rate * g, slots
    if kind in ("Momentum", "Nesterov"):  # torch.optim.SGD(momentum=0.9, nesterov=...)
        v = 0.9 * v + g
        return w - rate * (v if kind == "Momentum" else g + 0.9 * v), (v, s, top)
    if kind == "AdaGrad":
        s = s + g**2
        return w - rate * g / np.sqrt(s + 1e-10), (v, s, top)
    if kind == "Lion":  # optax.lion, Chen et al., algorithm 2
        return w - rate * np.sign(0.9 * v + (1 - 0.9) * g), (0.99 * v + (1 - 0.99) * g, s, top)
    if kind in ("Adam corrected", "AdamW", "AMSGrad"):  # torch.optim.adam._single_tensor_adam, eps = 1e-8
        b = 0.99 if kind == "Adam corrected" else 0.999
        v, s = 0.9 * v + (1 - 0.9) * g, b * s + (1 - b) * g**2
        top = np.maximum(top, s)
        root = np.sqrt(top if kind == "AMSGrad" else s) / math.sqrt(1 - b**t) + 1e-8
        return w - (rate / (1 - 0.9**t)) * (v / root), (v, s, top)
    b = 0.99 if kind == "Adam" else 0.9
    s = g**2 if t == 1 else b * s + (1 - b) * g**2
    if kind == "RMSProp momentum":  # torch.optim.RMSprop(momentum=0.8)
        v = 0.8 * v + g / np.sqrt(s + 1e-10)
        return w - rate * v, (v, s, top)
    v = g if t == 1 or kind == "RMSProp" else 0.9 * v + (1 - 0.9) * g
    return w - rate * v / np.sqrt(s + 1e-10), (v, s, top)


@pytest.mark.parametrize("feature", ["none", *FEATURES])
@pytest.mark.parametrize("kind", KINDS)
def test_rules_are_their_published_formulas(kind, feature):
    settings, rng = FEATURES.get(feature, {}), np.random.default_rng(0)
    rule = Model(kind.split()[0], **KINDS[kind], **settings).optimizer.rule
    w = mine = rng.normal(size=50)
    slots, state = (np.zeros(50),) * 3, rule.init(w)
    for t in range(1, 30):
        g = rng.normal(size=50) * rng.choice([0.0, 1e-3, 1.0, 10.0], 50)  # so that means fall, too
        w, slots = written_out(kind, w, g, slots, t, **settings)
        mine, state = rule.update(mine, g, state)
        np.testing.assert_allclose(mine, w, rtol=1e-12, atol=1e-12)


def test_no_two_kinds_do_the_same():
    """So that the test above could fail."""
    rng = np.random.default_rng(0)
    steps, ends = rng.normal(size=(3, 50)), set()
    for kind, settings in KINDS.items():
        rule = Model(kind.split()[0], **settings).optimizer.rule
        w, state = np.ones(50), rule.init(np.ones(50))
        for k, g in enumerate(steps):
            w, state = rule.update(w, g / (k + 1), state)
        ends.add(w.tobytes())
    assert len(ends) == len(KINDS)


@pytest.mark.parametrize(
    ("formulas", "told"),
    [
        ({}, "the rule Own states no step"),
        ("lr * g", "the rule Own states 'lr \\* g' for formulas"),
        ({"step": 0.1}, "the rule Own states {'step': 0.1} for formulas"),
        ({"add": "g", "step": "lr * g"}, "a formula of 'add', which cannot be the name of an array"),
        ({"step": "lr *"}, "is no expression"),
        (
            {"step": "lr * h"},
            "the formula of w, names 'h', which is neither one of w, g, nor one of lr, t, first",
        ),
        ({"step": "rates * g"}, "names 'rates', which is neither"),
        ({"w": "g", "step": "lr * g"}, "the rule Own states a formula of 'w', which is flowgrad's own name"),
        ({"lr": "g", "step": "lr * g"}, "a formula of 'lr', which cannot be the name of an array"),
    ],
)
def test_a_rule_whose_formulas_are_wrong_is_refused(formulas, told):
    own = type("Own", (fg.optim.Rule,), {"formulas": formulas})
    model = Model()
    with pytest.raises(GraphError, match=told):
        fg.Optimizer(model.graph, model.loss, own(0.1))


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_formulas_and_one_step(kind, feature):
    settings = FEATURES[feature]
    trained, stepped, other = (Model(kind.split()[0], n=12, **KINDS[kind], **settings) for _ in range(3))
    w, slots = np.concatenate([other.w.value, other.b.value]), (np.zeros(12),) * 3
    for t in range(1, 7):
        rows = [(4 * (t - 1) + k) % 12 for k in range(4)]
        for i in rows:
            stepped.x.set_value(stepped.feeds[stepped.x][i])
            stepped.label.set_value(np.eye(3)[stepped.feeds[stepped.label][i]])
            stepped.optimizer.one_step()
        g = np.concatenate(other.mean_gradient(rows)[1])
        w, slots = written_out(kind, w, g, slots, t, **settings)
        other.w.set_value(w[:9])
        other.b.set_value(w[9:])
    trained.fit(epochs=2, shuffle=False)
    for mine, theirs, formula in zip(trained.weights.values(), stepped.weights.values(), other.weights.values()):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10)
        np.testing.assert_allclose(theirs, formula, rtol=1e-10)


def test_the_features_do_something():
    """So that the tests above could fail."""
    results = set()
    for settings in [{}, *FEATURES.values()]:
        model = Model("Momentum", n=12, **settings)
        model.fit(epochs=2, shuffle=False)
        results.add(model.bits())
    assert len(results) == len(FEATURES)  # the loose clip changes nothing


def test_clipping_is_of_all_variables_together():
    model = Model(clip_norm=0.01, learning_rate=1.0)
    before = np.concatenate(list(model.weights.values()))
    model.fit(shuffle=False, epochs=1)
    norms = [np.linalg.norm(np.concatenate(list(model.weights.values())) - before)]
    assert norms[0] <= 3 * 0.01 * (1 + 1e-9)  # three updates
    rule = model.optimizer.rule
    w, _ = rule.update(np.zeros(5), np.arange(5.0), rule.init(np.zeros(5)))
    assert np.linalg.norm(w) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("where", ["one_step", "fit"])
def test_what_the_loss_does_not_depend_on_is_not_decayed(where):
    with fg.Graph(seed=0) as graph:
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        idle, loss = fg.Variable(3, [1.0, 2.0, 3.0], name="idle"), fg.Dot(x, w)
    optimizer = fg.Momentum(graph, loss, 0.1, batch_size=1, weight_decay=0.5)
    trainer = fg.Trainer(optimizer, fg.Engine("sync"))
    x.set_value([1.0, 1.0])
    update = optimizer.one_step if where == "one_step" else lambda: trainer.fit({x: np.ones((1, 2))}, epochs=1)
    with pytest.warns(UserWarning, match="idle"):
        update()
    assert idle.value.tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_allclose(w.value, [1 - 0.1 * 1.5, 2 - 0.1 * 2.0])


def test_a_gradient_without_a_norm_is_told_by_the_loss():
    for g in ([np.nan], [np.inf, 1.0], [1.7e308, 1.7e308]):
        assert math.isnan(scale_of(np.array(g), 1.0))


@pytest.mark.parametrize("size", [1, 2, NORM_BLOCK + 3])
def test_a_long_gradient_whose_square_is_no_number_is_clipped(size):
    g = np.full(size, 1e200)
    assert scale_of(g, 3.0) == pytest.approx(3e-200 / math.sqrt(size))
    rule = Model(learning_rate=1.0, clip_norm=3.0).optimizer.rule
    np.testing.assert_allclose(rule.update(np.zeros(size), g, rule.init(g))[0], -3.0 / math.sqrt(size))


# -- the norm does not depend on slices, alignment, kernels --


@given(
    size=st.sampled_from([0, 1, 63, 64, 65, NORM_BLOCK - 1, NORM_BLOCK, NORM_BLOCK + 1, 3 * NORM_BLOCK + 77]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 5),
    offset=st.integers(0, 7),
)
def test_block_norms_in_slices_at_any_address(size, dtype, seed, offset):
    g = np.random.default_rng(seed).normal(size=size).astype(dtype)
    lying = np.zeros(g.nbytes + offset, np.uint8)[offset:].view(dtype)
    lying[:] = g
    whole = block_norms(g)
    np.testing.assert_allclose(whole.sum(), np.sum(g.astype(float) ** 2), rtol=1e-12)
    cuts = [block_norms(part) for part in (lying[:NORM_BLOCK], lying[NORM_BLOCK:])]
    assert np.concatenate(cuts).tobytes() == whole.tobytes()


@given(st.data())
def test_rows_add_up_to_the_bits_of_whole_gradients(data):
    tables = (Table(2, 4, 3), Table(14, 5, 1), Table(20, 3, 2))
    size = data.draw(st.sampled_from([26, 29]))
    special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 3e-39, -2e-39, 1e30, np.inf, np.nan])
    dense, rows = [], []
    for _ in range(3):
        whole = np.array(data.draw(st.lists(special, min_size=size, max_size=size)), np.float32)
        picked = [np.unique(np.array(data.draw(st.lists(st.integers(0, t.rows - 1))), np.int32)) for t in tables]
        there = entries_of(spans_of(size, tables, picked))
        whole[np.setdiff1d(np.arange(size), there)] = 0.0
        dense.append(whole)
        rows.append(RowGradient.of(whole, tables, picked))
    with np.errstate(invalid="ignore"):
        total = rows[0] + rows[1] + rows[2]
        expected = dense[0] + dense[1] + dense[2]
    assert [r.dense().tobytes() for r in rows] == [d.tobytes() for d in dense]
    assert total.dense().tobytes() == expected.tobytes()
    assert not np.delete(expected, entries_of(total.spans)).any()


def test_an_update_in_slices_has_the_same_bits():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 3 * NORM_BLOCK + 5))
    rule = Model("Adam", weight_decay=0.1).optimizer.rule
    whole, _ = rule.update(w, g, rule.init(w))
    for part in (slice(0, 2 * NORM_BLOCK), slice(2 * NORM_BLOCK, None)):
        cut, _ = rule.update(w[part], g[part], rule.init(w[part]))
        assert cut.tobytes() == whole[part].tobytes()


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("feature", ["decay", "clip", "all"])
def test_the_same_bits_on_every_executor(executor, kernel, feature):
    if kernel == "numba":
        pytest.importorskip("numba")

    def train(where, grain):
        rng = np.random.default_rng(11)
        with fg.Graph(seed=0) as graph:
            x, label = fg.Variable(300, trainable=False), fg.Variable(7, trainable=False)
            w = fg.Variable(300 * 33, rng.normal(0, 0.1, 300 * 33))
            last = fg.Variable(7 * 33, rng.normal(0, 0.3, 7 * 33))
            loss = fg.CrossEntropyWithSoftMax(fg.MatVec(last, fg.Tanh(fg.MatVec(w, x))), label)
        feeds = {x: rng.random((100, 300)).astype("f4"), label: rng.integers(0, 7, 100)}
        engine = fg.Engine(where, grain=grain, shards=3, kernel=kernel)
        fg.Trainer(fg.Adam(graph, loss, batch_size=32, **FEATURES[feature]), engine).fit(feeds, epochs=2)
        return w.value.tobytes() + last.value.tobytes()

    assert train(executor, "round") == train(executor, "shard") == train("sync", "round")


# -- rules of one's own --


class Halving(fg.optim.Rule):
    """Subtracts half of a running sum, by a slot."""

    formulas = {"v": "v + g", "step": "0.5 * v"}


def own(step=None, **rules):
    formulas = {} if step is None else {"formulas": {**Halving.formulas, "step": step}}
    return type("Own", (Halving,), formulas | rules)(0.1)


WRONG = {
    "nan": ("where(w > 1.5, sqrt(-w), g)", r"step of Own at update 1 gave nan where the gradient is"),
    "raises": ("g * (lr / (t - 1))", r"a formula of Own at update 1 failed: ZeroDivisionError"),
    "complex": ("g * (lr - t) ** 0.5", r"a formula of Own at update 1 is no real number"),
}
BEGINS = {
    "shape": (
        lambda s, w: {"t": np.zeros(1, int), "v": w[:2]},
        r"init of Own for 'v' gave shape \(2,\), .* shape \(5,\)",
    ),
    "none": (lambda s, w: None, r"init of Own gave None, it must be a dict of 't', 'v'"),
    "lacks": (lambda s, w: {"t": np.zeros(1, int)}, r"init of Own gave 't', it must be a dict of 't', 'v'"),
    "count": (lambda s, w: {"t": 0, "v": w}, r"init of Own gave an? int for 't', it must be one integer"),
    "raises": (lambda s, w: w["v"], r"init of Own failed: IndexError"),
}


def five(rule):
    with fg.Graph() as graph:
        x = fg.Variable(5, np.ones(5), trainable=False)
        w, v = fg.Variable(3, np.ones(3), name="first"), fg.Variable(2, [1.0, 2.0], name="last")
        loss = fg.Dot(x, fg.Vectorize(w, v))
    return fg.Optimizer(graph, loss, rule, batch_size=1), {x: np.ones((2, 5))}


@pytest.mark.parametrize(
    ("rules", "told"),
    [({"step": step}, told) for step, told in WRONG.values()]
    + [({"init": init}, told) for init, told in BEGINS.values()],
    ids=[*WRONG, *(f"init {name}" for name in BEGINS)],
)
def test_a_rule_of_ones_own_that_is_wrong_is_named(executor, rules, told):
    optimizer, feeds = five(own(**rules))
    variables = "'last'" if "nan" in told else "'first', 'last'"
    for use in (optimizer.one_step, lambda: fg.Trainer(optimizer, fg.Engine(executor)).fit(feeds, 1)):
        with pytest.raises(GraphError, match=f"{told}.*it was given {variables}$") as error:
            use()
        assert "\n" not in str(error.value)
    assert [v.value.tolist() for v in optimizer.variables()] == [[1.0] * 3, [1.0, 2.0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_a_rule_of_ones_own_can_only_mean_is_taken(executor, dtype):
    """A list for a slot, and integers of another precision."""

    def init(self, w):
        return {"t": np.zeros(1, np.int32), "v": [0] * len(w)}

    found = []
    for rule in (own(), own(init=init)):
        optimizer, feeds = five(rule)
        fg.Trainer(optimizer, fg.Engine(executor, dtype=dtype)).fit(feeds, 2)
        found.append([v.value.tolist() for v in optimizer.variables()] + [optimizer.state["v"].tolist()])
    assert found[0] == found[1]


LATE = {
    "g * (lr / (2 - t))": ("auto", "a formula of Own at update 2 failed: ZeroDivisionError"),
    "where(t > 1, sqrt(-abs(g)), g)": ("numpy", "step of Own at update 2 gave nan where the gradient is 1"),
}


@pytest.mark.parametrize("step", LATE)
def test_a_rule_that_is_wrong_later_is_named_where_it_runs(executor, step):
    optimizer, feeds = five(own(step))
    kernel, told = LATE[step]
    with pytest.raises(GraphError, match=told):
        fg.Trainer(optimizer, fg.Engine(executor, kernel=kernel)).fit(feeds, 1)
    assert [v.value.tolist() for v in optimizer.variables()] == [[1.0] * 3, [1.0, 2.0]]


@pytest.mark.parametrize("name", ["step", "loop", "slots", "update", "update_in_place"])
def test_what_a_rule_states_in_code_is_refused(name):
    """Machine code is made of the formulas, also of those of a class above."""
    with pytest.raises(GraphError, match=f"the rule Own states '{name}' in code, .*: give its class formulas"):
        type("Own", (fg.optim.rules.AdamRule,), {name: lambda *args: None})


def test_a_learning_rate_of_a_rules_own_is_asked_at_each_update():
    def train(kernel):
        optimizer, feeds = five(own(rate=lambda rule, t: 0.1 / t, step="lr * v"))
        feeds = {x: np.ones((5, 5)) for x in feeds}
        fg.Trainer(optimizer, fg.Engine("sync", kernel=kernel, dtype="float64")).fit(feeds, 1)
        return [v.value.tolist() for v in optimizer.variables()]

    assert train("auto") == train("numpy")
