"""What people read about plans and costs."""

import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Model
from test_forecast import cluster, machine, net

import flowgrad as fg
from flowgrad.cli import main
from flowgrad.inputs import count
from flowgrad.scheduler.costs.explain import explain_job
from flowgrad.scheduler.costs.plan import SURE, Plan, choose_grain, choose_kernel, idle_workers, make_plan
from flowgrad.scheduler.costs.times import Times
from flowgrad.scheduler.costs.words import columns, ms, ratio, short
from flowgrad.scheduler.feeds.placement import Lane
from flowgrad.scheduler.programs import compile_gradient, lower_gradient
from flowgrad.scheduler.steps.lower import lower_steps
from flowgrad.scheduler.tasks import Ref, TaskGraph
from flowgrad.scheduler.training.estimate import Estimate, costs_of, explain_training, plan_training
from flowgrad.scheduler.training.job import TrainingJob


def estimate(case, links, grain="auto", kernels=("numba", "numpy"), kernel="numba"):
    """An estimate on a machine that is made up."""
    times = {name: machine(case, name) for name in kernels}

    def made(costs):
        plan = make_plan(choose_grain(grain, costs), case.shards, (kernel, "compiled"), costs["round"], 407)
        return Estimate(plan, case, times, links, "a cluster", {}, False)

    first = made({"round": 1.0, "collective": 2.0})
    return made(first.costs())


def rows_of(text):
    """The table as a dict of lines by grain."""
    return {m[1]: m[0] for m in re.finditer(r"^ +(round|shard|collective|sample|node) .*$", text, re.MULTILINE)}


def test_a_small_step():
    text = explain_training(estimate(net(), cluster(2)))
    assert "plan: grain round, 2 shards, kernel numba, on a cluster" in text
    assert "1 thread in each matrix product" in text
    rows = rows_of(text)
    assert set(rows) == {"round", "shard", "collective", "sample", "node"}
    assert rows["round"].endswith("the plan")
    assert "the gradient of 16 samples" in rows["shard"]
    assert "1,448" in rows["node"]
    assert "  65 " in rows["sample"]
    assert "  4 " in rows["shard"]
    assert re.search(r"  2 workers pay from about [\d,]+ on, with \d shards\n  4 workers pay", text)
    assert "this batch is 32:" in text
    assert max(map(len, text.splitlines())) < 130


def test_a_large_step():
    e = estimate(net(1024, 16384, 8), cluster(2))
    text = explain_training(e)
    assert "plan: grain collective, 8 shards" in text
    assert re.search(r"workers that share steps are [12]\.\dx as fast as one that runs them all", text)
    assert rows_of(text)["collective"].endswith("the plan")


@pytest.mark.parametrize("workers", [2, 4, 16])
def test_a_number_of_workers_pays_from_where_on_it_is_chosen(workers):
    e = estimate(net(512, 4096, 8), cluster(2))
    found = e.pays_from(workers)
    assert found is not None
    for batch, pays in ((found, True), (found - 1, False)):
        there = e.at(batch, workers)
        assert there.case.shards >= workers
        half = e.at(batch, workers // 2).seconds("round" if workers == 2 else "collective")
        assert (there.seconds("collective") < SURE * half) == pays
    told = f"{workers} workers pay from about {float(f'{found:.2g}'):,.0f} on"
    assert told in explain_training(e)


def test_more_workers_than_shards():
    idle = "8 of 16 workers stand idle; shards=16 would use them"
    assert idle in explain_training(estimate(net(1024, 16384, 8), cluster(16), "collective"))
    assert "idle" not in explain_training(estimate(net(1024, 16384, 8), cluster(8), "collective"))
    e = estimate(net(512, 4096, 8), cluster(2))
    assert e.at(4096, 16).case.shards == 16
    assert e.at(4096, 2).case.shards == 8


def test_where_nothing_is_shared():
    text = explain_training(estimate(net(), cluster(1)))
    assert "can be measured where there are two workers or more" in text
    assert rows_of(text)["collective"].endswith("-  not possible: one worker")


def test_a_grain_that_was_asked_for():
    text = explain_training(estimate(net(), cluster(2), grain="shard"))
    assert "asked for; auto would choose round" in text
    assert rows_of(text)["shard"].endswith("the plan")
    assert re.search(r"0\.\d+x$", rows_of(text)["round"])


def test_numbers_are_told_for_people():
    assert [ms(s) for s in (1.2e-5, 3.456e-3, 0.0456, 12.3)] == ["0.01", "3.46", "45.6", "12,300"]
    assert [short(n) for n in (7, 1234, 5e6, 7e10)] == ["7", "1.2 thousand", "5.0 million", "70.0 billion"]
    assert [count(n, "shard") for n in (1, 2)] == ["1 shard", "2 shards"]
    assert [ratio(r) for r in (0.001, 1.0, 99.4)] == ["0.001x", "1x", "99x"]
    assert columns([["a", "10"], ["bcd", "2"]], right=[1]) == ["  a    10", "  bcd   2"]


def test_a_trainer_explains_without_training(executor):
    model = Model("Adam")
    before = model.bits()
    text = fg.Trainer(model.optimizer, fg.Engine(executor, kernel="numpy")).explain(model.feeds, epochs=3)
    assert model.bits() == before
    assert "plan: grain round, 1 shard, kernel numpy" in text
    assert "4 samples" in text
    assert "12 parameters" in text
    assert re.search(r"expected: \d", text)
    assert set(rows_of(text)) == {"round", "shard", "collective", "sample", "node"}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_plan_that_is_explained_is_the_one_that_runs(accumulate):
    for grain in ("round", "node", "sample"):
        model = Model(batch_size=3)
        engine = fg.Engine("sync", grain=grain, kernel="numpy")
        trainer = fg.Trainer(model.optimizer, engine, accumulate=accumulate)
        told = trainer.explain(model.feeds)
        plan = trainer.fit(model.feeds, epochs=1).plan
        assert f"plan: grain {plan['grain']}, {count(plan['shards'], 'shard')}, kernel {plan['kernel']}," in told
        assert plan["blas_threads"] == 1
        assert f"a step: {3 * accumulate} samples" in told


def test_bad_feeds_are_told_before_anything_is_measured():
    model = Model()
    engine = fg.Engine("sync")
    with pytest.raises(fg.FlowgradError, match="label"):
        fg.Trainer(model.optimizer, engine).explain({model.x: np.ones((4, 3))})
    assert not engine.executor.measured


def test_too_large_a_batch_is_told():
    model = Model(batch_size=64)
    with pytest.raises(fg.FlowgradError, match="batch size 64 is larger than the data: 10 samples"):
        fg.Trainer(model.optimizer, fg.Engine("sync")).explain(model.feeds)
    model = Model(batch_size=4)
    told = "batch size 4 times accumulate 3 = 12 is larger than the data: 10 samples; choose at most 3"
    with pytest.raises(fg.FlowgradError, match=told):
        fg.Trainer(model.optimizer, fg.Engine("sync"), accumulate=3).explain(model.feeds)


def test_what_ran_costs_by_parts():
    model = Model()
    trainer = fg.Trainer(model.optimizer, fg.Engine("sync"))
    plan = trainer.fit(model.feeds, epochs=1).plan
    told = costs_of(trainer.settings, model.feeds, 1, {**plan, "steps_per_task": 7})
    assert "7 steps, one after the other" in told["explained"]
    assert [row["grain"] for row in told["grains"]] == ["round", "shard", "collective", "sample", "node"]
    assert told["grains"][2]["against"].startswith("not possible: one worker")
    for grain in ("round", "node"):
        nodes = costs_of(trainer.settings, model.feeds, 1, {**plan, "grain": grain})["parts"]["nodes"]
        assert {"", model.loss.name} < set(nodes)
        assert all(seconds > 0 for seconds in nodes[model.loss.name])


def test_a_task_has_no_more_steps_than_an_epoch():
    model = Model()
    plan = fg.Trainer(model.optimizer, fg.Engine("sync")).fit(model.feeds, epochs=1).plan
    assert plan["steps_per_task"] == 3


# -- jobs of an engine --


def test_a_lowered_job_explains_itself(executor):
    model = Model()
    lowered = fg.Engine(executor).lower(model.loss, model.feeds, gradient=True)
    text = lowered.explain()
    assert "expected, once it is lowered:" in text
    rows = rows_of(text)
    assert set(rows) == {"shard", "sample", "node"}
    assert rows["shard"].endswith("this")
    assert "BLAS: 1 thread in each matrix product" in text
    assert "break-even:" in text


@pytest.mark.parametrize("grain", ["node", "sample", "shard"])
def test_the_row_of_its_own_grain_counts_its_tasks(grain):
    model = Model()
    lowered = fg.Engine("sync").lower(model.loss, model.feeds, grain=grain)
    row = rows_of(lowered.explain())[grain]
    assert row.endswith("this")
    assert f" {sum(lowered.tasks().values())} " in row


@settings(max_examples=30)
@given(
    samples=st.integers(1, 40),
    feeds=st.integers(1, 3),
    shards=st.sampled_from([None, 1, 3]),
    what=st.sampled_from(["gradient", "one value", "two values"]),
)
def test_tasks_are_counted_as_they_are_lowered(samples, feeds, shards, what):
    with fg.Graph(seed=0):
        fed = [fg.Variable(2, trainable=False) for _ in range(feeds)]
        total = fg.Variable(2, [1.0, 2.0])
        for x in fed:
            total = total * x
        loss = fg.Sum(total)
    arrays = {x: np.random.default_rng(k).normal(size=(samples, 2)) for k, x in enumerate(fed)}
    targets = [loss, total] if what == "two values" else loss
    engine = fg.Engine("sync", shards=shards)
    told = rows_of(engine.lower(targets, arrays, gradient=what == "gradient").explain())
    for grain in ("shard", "sample", "node"):
        lowered = engine.lower(targets, arrays, gradient=what == "gradient", grain=grain)
        assert f" {sum(lowered.tasks().values())} " in told[grain], grain


def large_job(samples=20_000):
    """A gradient that is worth more than one thread."""
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(300, trainable=False)
        w = fg.Variable(300 * 200, True)
        loss = fg.Sum(fg.MatVec(w, x))
    engine = fg.Engine("threads", shards=1)
    feeds = {x: np.ones((samples, 300), np.float32)}
    return engine, loss, feeds, w, graph


def test_a_single_large_task_may_use_more_blas_threads():
    from flowgrad.scheduler.feeds.check import check_feeds

    _, loss, feeds, w, graph = large_job(5000)

    def told(shards, threads):
        checked = check_feeds(graph, feeds)
        job = lower_gradient(
            *compile_gradient(loss, checked.arrays, [w], "shard"), graph, checked, [w], "shard", shards
        )
        times = Times("numpy", ((1, 1e-3), (4096, 1.0)), 1e-3)
        return "\n".join(explain_job(job, lambda grain: job, lambda job, blas: times, cluster(1, threads)))

    assert "BLAS: 4 threads in each matrix product, because a single large task runs" in told(1, 4)
    assert "BLAS: 1 thread in each matrix product" in told(2, 4)
    assert "BLAS: 1 thread in each matrix product" in told(1, 1)


def test_the_engine_does_what_it_explains(monkeypatch):
    engine, loss, feeds, w, _ = large_job(5000)
    asked = []
    submit = engine.executor.submit

    def spy(records, keys, workers=(), only=False, blas_threads=1):
        asked.append(blas_threads)
        return submit(records, keys, blas_threads=blas_threads)

    monkeypatch.setattr(engine.executor, "submit", spy)
    monkeypatch.setattr(engine.executor, "threads", 2)
    gradient = engine.gradient(loss, feeds)[w]
    assert asked == [2]
    np.testing.assert_allclose(gradient, 1.0, rtol=1e-4)
    engine.session.shards = 2
    engine.gradient(loss, feeds)
    assert asked == [2, 1]


@pytest.mark.parametrize("grain", ["node", "sample", "shard"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tasks_of_a_step_are_those_that_are_lowered(grain, shards):
    """What a training submits for two steps, less what it submits for one."""
    counts = []
    for steps in (1, 2):
        model, graph = Model("Adam", batch_size=4), TaskGraph()
        shards = 4 if grain == "sample" else shards
        engine = fg.Engine("sync", grain=grain, shards=None if grain == "sample" else shards, kernel="numpy")
        job = TrainingJob(fg.Trainer(model.optimizer, engine).settings, model.feeds, 1)
        job.follow(replace(plan_training(job), grain=grain))
        lane = Lane(0, Ref("step"), Ref("const"), [Ref("x"), Ref("y")], 0, shards)
        rows = [[np.array([k, s]) for s in range(shards)] for k in range(steps)]
        lower_steps(graph, grain, [lane], [Ref("state")], rows, job.step)
        counts.append(len(graph.records))
    model = Model("Adam", batch_size=4)
    told = fg.Trainer(
        model.optimizer, engine if grain == "sample" else fg.Engine("sync", grain=grain, shards=shards, kernel="numpy")
    )
    row = rows_of(told.explain(model.feeds))[grain]
    assert f" {counts[1] - counts[0]} " in row


# -- the command --


@pytest.mark.distributed
def test_the_command(tmp_path, cluster):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 8)), random.integers(0, 3, 300)
    np.savez(tmp_path / "small.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    args = ["explain", str(tmp_path / "small.npz"), "--hidden", "4", "--scheduler", cluster.scheduler_address]
    done = CliRunner().invoke(main, [*args, "--batch-size", "20", "--grain", "shard"], prog_name="flowgrad")
    assert done.exit_code == 0, done.output
    assert "graph: 8 - 4 - 3" in done.output
    assert "plan: grain shard" in done.output
    assert "20 samples" in done.output
    assert "break-even" in done.output
    assert set(rows_of(done.output)) == {"round", "shard", "collective", "sample", "node"}
    assert "not possible: one shard" in rows_of(done.output)["collective"]
    assert [path.name for path in tmp_path.iterdir()] == ["small.npz"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--workers", "2", "--scheduler", "tcp://a:1"), "give one of them"),
        (("mnits",), "no data set 'mnits'"),
        (("--hidden", "0"), "not a list of layer sizes"),
        (("--train-size", "20"), "batch size 32 is larger than the 20 training samples"),
    ],
)
def test_bad_input(args, message):
    done = CliRunner().invoke(main, ["explain", *args], prog_name="flowgrad")
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1


def test_train_and_explain_share_their_options():
    shared = {o.name for o in main.commands["train"].params} & {o.name for o in main.commands["explain"].params}
    assert {
        "dataset",
        "hidden",
        "epochs",
        "batch_size",
        "optimizer",
        "dtype",
        "train_size",
        "workers",
        "grain",
    } <= shared


def test_choose_kernel_is_told():
    assert choose_kernel("auto", "auto", "numba is not installed")[1] == "numba is not installed"


@pytest.mark.parametrize(
    ("plan", "workers", "threads", "said"),
    [
        (("round", 1, "asked for"), 3, 1, "2 of 3 workers stand idle: a round runs on one of them"),
        (("round", 1, "auto: steps of this size"), 2, 2, "1 of 2 workers stands idle: sharing a step"),
        (
            ("shard", 2, "asked for"),
            3,
            1,
            "1 of 3 workers stands idle: each mini-batch has 2 shards; larger ones, or shards=3",
        ),
        (("collective", 1, "asked for"), 2, 1, "1 of 2 workers stands idle: each mini-batch has 1 shard; "),
        (
            ("round", 1, "collective rounds were asked for"),
            2,
            1,
            "1 of 2 workers stands idle: each mini-batch has 1 shard; ",
        ),
        (("shard", 4, "asked for"), 3, 1, ""),
        (("node", 1, "asked for"), 3, 1, ""),
        (("round", 1, "asked for"), 1, 1, ""),
    ],
)
def test_who_stands_idle_is_told(plan, workers, threads, said):
    grain, shards, reason = plan
    made = Plan(grain, shards, "numpy", 1, 1, reason)
    assert idle_workers(made, workers, threads).startswith(said)
    assert bool(said) == bool(idle_workers(made, workers, threads))
    if grain == "round" and workers > 1 and "collective" not in reason:
        assert "most of the time" in idle_workers(replace(made, other="collective"), workers, threads)
        assert not idle_workers(replace(made, threads=workers * threads), workers, threads)
