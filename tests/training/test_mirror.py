"""What callbacks see of a training is what is, and what they change counts or is refused by name."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
from faults import Net

import flowgrad as fg
from flowgrad.optim import GradientDescentRule


def trainer_of(net, where="sync", callbacks=(), rate=0.01, **settings):
    optimizer = fg.Adam(net.graph, net.loss, rate, batch_size=32)
    return fg.Trainer(optimizer, fg.Engine(where, shards=4, kernel="numpy", **settings), seed=5, callbacks=callbacks)


def idle_of(w):
    return next(v for v in w.graph.nodes if v.name == "idle")


class Doubled(GradientDescentRule):
    def rate(self, t):
        return 2 * super().rate(t)


class Watch(fg.Callback):
    """Does something after each epoch."""

    def __init__(self, action):
        self.action, self.seen = action, []

    def on_epoch(self, record):
        if record["epoch"]:
            self.seen.append(self.action(record))


def parameters(net):
    return [v for v in net.graph.nodes if isinstance(v, fg.Variable) and v.trainable]


def test_an_epochs_weights_are_there(executor, tmp_path):
    net = Net()

    def look(record):
        path = tmp_path / f"{record['epoch']}.safetensors"
        fg.save(path, net.graph, trainer.optimizer)
        found = trainer.evaluate(net.feeds)["loss"], trainer.predict(net.loss, net.feeds).mean(), trainer.fingerprint()
        return *found, int(trainer.optimizer.state["t"][0])

    watch = Watch(look)
    trainer = trainer_of(net, executor, [watch])
    history = trainer.fit(net.feeds, epochs=3, validation=net.feeds)
    expected = [record["validation_loss"] for record in history.epochs[1:]]
    assert [seen[0] for seen in watch.seen] == pytest.approx(expected)
    assert [seen[1] for seen in watch.seen] == pytest.approx(expected)
    assert [seen[3] for seen in watch.seen] == [15, 30, 45]
    for epochs, seen in enumerate(watch.seen, 1):
        other = Net()
        alone = trainer_of(other)
        alone.fit(other.feeds, epochs=epochs)
        assert alone.fingerprint() == seen[2]
        graph, optimizer = fg.load(tmp_path / f"{epochs}.safetensors")
        assert fg.Trainer(optimizer, fg.Engine("sync"), seed=5).fingerprint() == seen[2]
        assert len(graph.nodes) == len(net.graph.nodes)


@pytest.mark.parametrize("kept", [None, fg.KEEP])
def test_epochs_count_with_the_state_that_is_shown(tmp_path, kept):
    """What a callback saved goes on as what was saved after `fit`: with other orders of samples."""

    def go_on(path):
        graph, optimizer = fg.load(path)
        trainer = fg.Trainer(optimizer, fg.Engine("sync", shards=4, kernel="numpy"), seed=5)
        trainer.fit(dict(zip(graph.nodes, net.feeds.values())), epochs=2)
        return trainer.fingerprint()

    class Save(fg.Callback):
        def on_train_begin(self, info):
            assert trainer.optimizer.epochs == len(info["past"])

        def on_steps(self, info):
            assert trainer.optimizer.epochs == info["epoch"] - 1

        def on_epoch(self, record):
            assert trainer.optimizer.epochs == copy.deepcopy(trainer.optimizer).epochs == record["epoch"]
            fg.save(tmp_path / f"{record['epoch']}.safetensors", net.graph, trainer.optimizer)
            return kept if record["epoch"] == 1 else None

        def on_train_end(self, history):
            assert trainer.optimizer.epochs == len(history.epochs)

    net, whole = Net(), Net()
    trainer = trainer_of(net, callbacks=[Save()])
    trainer.fit(net.feeds, epochs=1, checkpoint=tmp_path / "state")
    net = Net()
    trainer = trainer_of(net, callbacks=[Save()])
    trainer.fit(net.feeds, epochs=2, checkpoint=tmp_path / "state", resume=True)
    straight = trainer_of(whole)
    straight.fit(whole.feeds, epochs=4)
    assert go_on(tmp_path / "2.safetensors") == straight.fingerprint()


def test_a_run_that_was_interrupted_before_its_first_step_goes_on_with_its_weights(tmp_path):
    class Press(fg.Callback):
        def on_train_begin(self, info):
            self.seen = weights(net), trainer.optimizer.epochs

        def on_epoch(self, record):
            raise KeyboardInterrupt

    def interrupt(trainer, net, **settings):
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(net.feeds, epochs=2, validation=net.feeds, checkpoint=tmp_path, **settings)
        return press.seen

    def weights(net):
        return [v.value.tobytes() for v in parameters(net)]

    net, press = Net(), Press()
    trainer_of(net).fit(net.feeds, epochs=1)
    trainer = trainer_of(net, callbacks=[press])
    trainer.optimizer.epochs = 1
    first = interrupt(trainer, net)
    net = Net()
    trainer = trainer_of(net, callbacks=[press])
    before = weights(net)
    assert interrupt(trainer, net, resume=True) == first != before
    assert weights(net) == before


def test_nodes_that_were_computed_before_are_computed_anew():
    net = Net()
    w = parameters(net)[0]
    with net.graph:
        norm = w @ w
    first = float(norm.forward()[0])
    watch = Watch(lambda record: (float(norm.forward()[0]), float(w.value @ w.value)))
    trainer_of(net, callbacks=[watch]).fit(net.feeds, epochs=2)
    assert all(a == pytest.approx(b) and a != first for a, b in watch.seen)


@pytest.mark.parametrize("grain", ["shard", "round", "collective", "node"])
def test_what_is_set_counts(executor, grain):
    def train(where, by_hand):
        net = Net()
        w = parameters(net)[0]

        def clip(record):
            w.set_value(np.clip(w.value, -0.25, 0.25))

        trainer = trainer_of(net, where, [] if by_hand else [Watch(clip)], grain=grain)
        if not by_hand:
            trainer.fit(net.feeds, epochs=3)
        for _ in range(3 * by_hand):
            trainer.fit(net.feeds, epochs=1)
            clip(None)
        assert abs(w.value).max() <= 0.25
        return trainer.fingerprint()

    assert train(executor, False) == train("sync", True)


def test_a_learning_rate_and_a_rule_count(executor, tmp_path):
    def train(where, by_hand, **settings):
        net = Net()
        watch = Watch(lambda record: setattr(trainer.optimizer, "learning_rate", 0.01 / (1 + record["epoch"])))
        trainer = trainer_of(net, where, [] if by_hand else [watch])
        if by_hand:
            for epoch in range(1, 4):
                trainer.fit(net.feeds, epochs=1)
                trainer.optimizer.rule = fg.Adam(net.graph, net.loss, 0.01 / (1 + epoch)).rule
        else:
            trainer.fit(net.feeds, epochs=3, **settings)
        return trainer.fingerprint()

    expected = train("sync", True)
    assert train(executor, False) == expected
    assert train(executor, False, checkpoint=tmp_path) == expected


class Plateau(fg.Callback):
    """A schedule that reads what changes: of its own, and of a lock, which no other process can have."""

    def __init__(self):
        self.rate, self.asked, self.lock = 0.01, [], threading.Lock()

    def __call__(self, t):
        with self.lock:
            self.asked.append(t)
            return self.rate

    def on_epoch(self, record):
        self.rate = 0.01 / (1 + record["epoch"] // 2)

    def on_steps(self, info):
        if info["epoch"] == 3:
            self.rate = 0.5  # no epoch ends in the middle: the next one begins with what `on_epoch` sets


@pytest.mark.parametrize("grain", ["shard", "round", "collective"])
@pytest.mark.parametrize("within", [lambda rate: rate, lambda rate: fg.WarmUp(3, then=rate)])
def test_a_schedule_that_changes_counts_from_the_next_epoch_on(executor, grain, within):
    net, rate = Net(), Plateau()
    trainer = trainer_of(net, executor, [rate], within(rate), grain=grain)
    trainer.fit(net.feeds, epochs=4)
    net = Net()
    other = trainer_of(net)
    for number in (0.01, 0.01, 0.005, 0.005):
        other.optimizer.learning_rate = within(number)
        other.fit(net.feeds, epochs=1)
    assert trainer.fingerprint() == other.fingerprint()


def test_a_schedule_is_asked_once_for_each_update():
    net, rate = Net(), Plateau()
    trainer_of(net, callbacks=[rate], rate=rate).fit(net.feeds, epochs=3)
    assert rate.asked == [1, *range(1, 46)]  # and once for the plan


def test_a_rule_of_ones_own_makes_of_a_schedule_what_it_did(executor):
    def train(rule, rate):
        net = Net()
        optimizer = fg.Optimizer(net.graph, net.loss, rule(rate), batch_size=32)
        trainer = fg.Trainer(optimizer, fg.Engine(executor, kernel="numpy", shards=2))
        trainer.fit(net.feeds, epochs=2)
        return trainer.fingerprint()

    assert train(Doubled, lambda t: 0.01 / t) == train(GradientDescentRule, lambda t: 0.02 / t)


@pytest.mark.parametrize("kernel", ["auto", "numpy"])
@pytest.mark.parametrize("good", [0, 20])
@pytest.mark.parametrize("answer", ["0.1", None, -1.0, np.inf, True])
@pytest.mark.filterwarnings("error")
def test_a_schedule_that_gives_no_rate_is_named_and_nothing_else_is_told(kernel, good, answer):
    net = Net()
    optimizer = fg.Adam(net.graph, net.loss, lambda t: 0.1 if t <= good else answer, batch_size=32)
    trainer = fg.Trainer(optimizer, fg.Engine("sync", kernel=kernel))
    before = trainer.fingerprint()
    with pytest.raises(
        fg.FlowgradError, match=rf"^AdamRule: the learning rate of update {good + 1}, by .* must be a number"
    ):
        trainer.fit(net.feeds, epochs=2)
    assert trainer.fingerprint() == before


def test_a_rate_that_a_callback_set_is_there_when_a_run_goes_on(tmp_path):
    def run(epochs, fail_at=None, **settings):
        net = Net()

        class Halve(fg.Callback):
            def on_epoch(self, record):
                if record["epoch"] == fail_at:
                    raise KeyboardInterrupt
                trainer.optimizer.learning_rate /= 2

        trainer = trainer_of(net, callbacks=[Halve()])
        trainer.fit(net.feeds, epochs=epochs, **settings)
        return trainer.fingerprint()

    with pytest.raises(KeyboardInterrupt):
        run(4, fail_at=3, checkpoint=tmp_path)
    assert run(4, checkpoint=tmp_path, resume=True) == run(4)


def test_a_rule_of_another_kind_is_refused():
    net = Net()
    watch = Watch(lambda record: setattr(trainer.optimizer, "rule", fg.Momentum(net.graph, net.loss).rule))
    trainer = trainer_of(net, callbacks=[watch])
    with pytest.raises(
        fg.FlowgradError, match=r"was AdamRule \(v, s\) when fit began, it cannot become MomentumRule \(v\)"
    ):
        trainer.fit(net.feeds, epochs=2)


@pytest.mark.parametrize(
    ("kind", "name", "slots"), [("RMSProp", "momentum", "s, v"), ("Momentum", "ema", "v, average")]
)
def test_settings_that_need_another_state_are_refused(kind, name, slots):
    net = Net()
    watch = Watch(lambda record: setattr(optimizer, name, 0.5))
    optimizer = getattr(fg, kind)(net.graph, net.loss, batch_size=32)
    with pytest.raises(fg.FlowgradError, match=rf"when fit began, it cannot become {kind}Rule \({slots}\) meanwhile"):
        fg.Trainer(optimizer, fg.Engine("sync"), callbacks=[watch]).fit(net.feeds, epochs=2)


def test_steps_see_the_last_epochs_weights_and_set_nothing():
    net = Net()
    w = parameters(net)[0]
    seen = []

    class Steps(fg.Callback):
        def on_steps(self, info):
            seen.append((info["epoch"], w.value.tobytes()))
            if info["epoch"] == 3:
                w.set_value(np.zeros(w.dim))

    ends = Watch(lambda record: w.value.tobytes())
    before = w.value.tobytes()
    trainer = trainer_of(net, callbacks=[Steps(), ends])
    with pytest.raises(fg.FlowgradError, match=rf"{w.name}.*middle of an epoch.*on_epoch"):
        trainer.fit(net.feeds, epochs=4)
    values = [before, *ends.seen]
    assert all(value == values[epoch - 1] for epoch, value in seen)
    assert w.value.tobytes() == before


def test_another_thread_and_variables_that_are_not_trained_are_refused():
    net = Net()
    w, told = parameters(net)[0], []

    def set_elsewhere(record):
        def attempt(variable):
            try:
                variable.set_value(np.zeros(variable.dim))
            except fg.FlowgradError as error:
                told.append(str(error))

        thread = threading.Thread(target=attempt, args=(w,))
        thread.start()
        thread.join()
        attempt(net.x)

    trainer_of(net, callbacks=[Watch(set_elsewhere)]).fit(net.feeds, epochs=1)
    assert "another thread" in told[0]
    assert "no trained variable" in told[1]
    w.set_value(np.ones(w.dim))  # afterwards anybody may


def test_one_training_of_a_graph_at_a_time():
    net = Net()
    watch = Watch(lambda record: trainer_of(net).fit(net.feeds, epochs=1))
    with pytest.raises(fg.FlowgradError, match="trained already"):
        trainer_of(net, callbacks=[watch]).fit(net.feeds, epochs=1)
    trainer_of(net).fit(net.feeds, epochs=1)


@pytest.mark.parametrize("what", ["raises", "nan", "set and raises", "at the end"])
def test_whatever_ends_a_training_early_all_is_as_before(executor, what):
    net = Net()
    w = parameters(net)[0]

    class Disturb(fg.Callback):
        def on_epoch(self, record):
            if what == "nan":
                trainer.optimizer.learning_rate = 1e300
            elif what != "at the end" and record["epoch"] == 2:
                w.set_value(np.zeros(w.dim)) if what == "set and raises" else w.value
                raise ValueError("enough")

        def on_train_end(self, history):
            raise ValueError("enough")

    trainer = trainer_of(net, executor, [Disturb()])
    trainer_of(net).fit(net.feeds, epochs=1)
    before = trainer.fingerprint(), trainer.optimizer.rule, trainer.optimizer.epochs
    with pytest.raises(fg.FlowgradError if what == "nan" else ValueError), np.errstate(all="ignore"):
        trainer.fit(net.feeds, epochs=4)
    assert (trainer.fingerprint(), trainer.optimizer.rule, trainer.optimizer.epochs) == before


@pytest.mark.parametrize("through_a_file", [False, True])
def test_epochs_one_by_one_are_epochs_in_a_row(executor, tmp_path, through_a_file):
    net = Net()
    whole = trainer_of(net, executor)
    whole.fit(net.feeds, epochs=3)
    net = Net()
    trainer = trainer_of(net, executor)
    feeds = net.feeds
    for _ in range(3):
        trainer.fit(feeds, epochs=1)
        if through_a_file:
            path = tmp_path / "model.safetensors"
            fg.save(path, trainer.optimizer.graph, trainer.optimizer)
            graph, optimizer = fg.load(path)
            trainer = fg.Trainer(optimizer, trainer.engine, seed=5)
            feeds = dict(zip(graph.nodes, net.feeds.values()))
    assert trainer.optimizer.epochs == 3
    assert trainer.fingerprint() == whole.fingerprint()


def test_what_is_not_read_is_not_copied(monkeypatch):
    from flowgrad.scheduler.training.job import TrainingJob

    stored = []
    original = TrainingJob.store
    monkeypatch.setattr(TrainingJob, "store", lambda self, state: (stored.append(1), original(self, state)))
    net = Net()
    trainer_of(net, callbacks=[Watch(lambda record: None)]).fit(net.feeds, epochs=5, validation=net.feeds)
    assert len(stored) == 1
    net = Net()
    trainer_of(net, callbacks=[Watch(lambda record: parameters(net)[0].value)]).fit(net.feeds, epochs=5)
    assert len(stored) == 1 + 6


@pytest.mark.parametrize("way", ["unread", "read", "in place", "none"])
def test_a_state_that_a_callback_sets_counts(way):
    def train(by_hand):
        net = Net()

        def reset(record):
            optimizer = trainer.optimizer
            if way == "none":
                optimizer.state = None
                return
            if way == "in place":
                for name in ("v", "s"):
                    if name in optimizer.state:
                        optimizer.state[name][:] = 0
                return
            if way == "read":
                assert optimizer.state is not None
            size = sum(v.dim for v in optimizer.variables())
            zeros = {slot: np.zeros(size, np.float32) for slot in optimizer.rule.slots}
            optimizer.state = {**zeros, "t": np.array([15])}

        trainer = trainer_of(net, callbacks=[] if by_hand else [Watch(reset)])
        if not by_hand:
            trainer.fit(net.feeds, epochs=3)
        for _ in range(3 * by_hand):
            trainer.fit(net.feeds, epochs=1)
            reset(None)
        return parameters(net)[0].value.tobytes()

    net = Net()
    trainer_of(net).fit(net.feeds, epochs=3)
    assert train(False) == train(True) != parameters(net)[0].value.tobytes()


@pytest.mark.parametrize(
    "state",
    [
        {"t": 5},
        {"t": np.array([np.nan])},
        {"t": np.array([-1])},
        {"v": [["a"]]},
        {"v": np.ones((2, 2))},
        {"v": [np.inf]},
    ],
)
def test_a_state_that_cannot_be_is_refused_where_it_is_set(state):
    trainer = trainer_of(Net())
    with pytest.raises(fg.FlowgradError, match=rf"an optimizer's state has .* under '{next(iter(state))}'"):
        trainer.optimizer.state = state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda o, w: setattr(o, "batch_size", 4), "batch size .* cannot change while it is being trained"),
        (lambda o, w: setattr(o, "target", o.target), "target .* cannot change while it is being trained"),
        (lambda o, w: setattr(o, "epochs", 0), "number of epochs .* cannot change while it is being trained"),
        (lambda o, w: setattr(o, "learningrate", 0.1), "no attribute 'learningrate': do you mean 'learning_rate'?"),
        (lambda o, w: setattr(o, "clip_norm", -1.0), "clip_norm must be a number above 0, not -1.0"),
        (lambda o, w: setattr(w, "trainable", False), "is being trained: set its trainable before or after fit"),
        (lambda o, w: setattr(idle_of(w), "trainable", True), "'idle'.* is not being trained: set its"),
        (lambda o, w: setattr(o, "rule", "adam"), "a rule is an object such as"),
        (lambda o, w: np.array([1, 2]), r"on_epoch of Act returned array"),
    ],
)
def test_what_cannot_change_is_refused_by_name(change, told):
    net = Net()
    with net.graph:
        fg.Variable(2, [1.0, 2.0], trainable=False, name="idle")

    class Act(fg.Callback):
        def on_epoch(self, record):
            return change(trainer.optimizer, parameters(net)[0])

    trainer = trainer_of(net, callbacks=[Act()])
    with pytest.raises(fg.FlowgradError, match=told):
        trainer.fit(net.feeds, epochs=2)


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", None])
def test_a_batch_size_is_checked_where_it_is_set(size):
    trainer = trainer_of(Net())
    with pytest.raises(fg.FlowgradError, match="batch_size"):
        trainer.optimizer.batch_size = size


def test_private_steps_follow_the_batch_size():
    def train(late):
        net = Net()
        first = 32 if late else 16
        optimizer = fg.GradientDescent(
            net.graph, net.loss, 0.1, batch_size=first, per_sample_clip=1.0, noise_multiplier=0.5, noise_seed=1
        )
        optimizer.batch_size = 16
        fg.Trainer(optimizer, fg.Engine("sync", kernel="numpy", shards=2)).fit(net.feeds, epochs=1)
        return parameters(net)[0].value.tobytes()

    assert train(True) == train(False)


def test_a_schedule_that_a_callback_set_is_there_when_a_run_goes_on(tmp_path):
    def run(rate, fail_at=None, **settings):
        net = Net()

        class Change(fg.Callback):
            def on_epoch(self, record):
                if record["epoch"] == fail_at:
                    raise KeyboardInterrupt
                if record["epoch"] == 2:
                    trainer.optimizer.learning_rate = rate

        trainer = trainer_of(net, callbacks=[Change()])
        trainer.fit(net.feeds, epochs=4, **settings)
        return trainer.fingerprint()

    schedule = fg.CosineDecay(0.3, 60)
    with pytest.raises(KeyboardInterrupt):
        run(schedule, fail_at=3, checkpoint=tmp_path / "own")
    assert run(schedule, checkpoint=tmp_path / "own", resume=True) == run(schedule)
    with pytest.raises(KeyboardInterrupt):
        run(lambda t: 0.3, fail_at=3, checkpoint=tmp_path / "lambda")
    with pytest.warns(UserWarning, match="learning rate to a function of its own, which no checkpoint holds"):
        run(lambda t: 0.3, checkpoint=tmp_path / "lambda", resume=True)


def test_two_threads_never_train_one_graph_at_once():
    net = Net()
    trainer, ready, told = trainer_of(net), threading.Barrier(2), []

    def fit():
        ready.wait()
        try:
            trainer.fit(net.feeds, epochs=1)
        except fg.FlowgradError as error:
            told.append(str(error))

    for _ in range(5):
        several = [threading.Thread(target=fit) for _ in range(2)]
        for one in several:
            one.start()
        for one in several:
            one.join()
    assert trainer.optimizer.epochs == 10 - len(told)
    assert all("trained already" in text for text in told)


@pytest.mark.parametrize("setting", [{"clip_norm": 0.01}, {"weight_decay": 0.5}, {"momentum": 0.1}])
def test_what_is_set_of_the_rule_counts(setting):
    def train(change, optimizer):
        watch = Watch(lambda record: change(optimizer) if record["epoch"] == 1 else None)
        trainer = fg.Trainer(optimizer, fg.Engine("sync"), callbacks=[watch])
        trainer.fit(net.feeds, epochs=3)
        return trainer.fingerprint()

    prints = []
    for change in (
        lambda o: [setattr(o, name, value) for name, value in setting.items()],
        lambda o: setattr(o, "rule", replace(o.rule, **setting)),
        lambda o: None,
    ):
        net = Net()
        prints.append(train(change, fg.Momentum(net.graph, net.loss, 0.1, batch_size=16)))
    assert prints[0] == prints[1] != prints[2]


def test_another_target_counts_from_the_next_fit():
    with fg.Graph() as graph:
        x, w = fg.Variable(1, trainable=False), fg.Variable(1, [1.0])
        first, second = w * x, -(w * x)
    optimizer = fg.GradientDescent(graph, first, 0.25, batch_size=1)
    trainer = fg.Trainer(optimizer, fg.Engine("sync"))
    trainer.fit({x: [1.0]}, epochs=1)
    assert w.value.tolist() == [0.75]
    optimizer.target = second
    trainer.fit({x: [1.0]}, epochs=2)
    assert w.value.tolist() == [1.25]
    assert trainer.evaluate({x: [1.0]}) == {"loss": -1.25}
    optimizer.epochs = 0
    for target in (5, fg.Variable(1)):
        with pytest.raises(fg.FlowgradError, match="is not a node of"):
            optimizer.target = target
    with pytest.raises(fg.FlowgradError, match="is not a scalar"):
        optimizer.target = fg.Vectorize(w, w)
    with pytest.raises(fg.FlowgradError, match="epochs must be an integer from 0 on, not -1"):
        optimizer.epochs = -1
    assert (optimizer.target, optimizer.epochs) == (second, 0)
