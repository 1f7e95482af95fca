"""Checkpoints: whole or not there, verified, pruned; going on from one is never having stopped."""

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import Model
from safetensors.numpy import load_file, save_file

import flowgrad as fg
from flowgrad.errors import DataError, GraphError
from flowgrad.files import read_arrays, write_arrays
from flowgrad.scheduler.costs.plan import make_plan
from flowgrad.scheduler.training import checkpoint
from flowgrad.scheduler.training.checkpoint import Saver, Snapshot, read_checkpoint


class Interrupted(Exception):
    pass


class Interrupt(fg.Callback):
    """Ends a training after a number of steps."""

    def __init__(self, step):
        self.step = step

    def on_steps(self, info):
        if info["step"] >= self.step:
            raise Interrupted


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def written(tmp_path):
    """A folder with checkpoints after 3, 6 and 9 steps, and the bits after 4 epochs without interruption."""
    model, whole = Model("Adam"), Model("Adam")
    model.fit(epochs=3, checkpoint=tmp_path)
    whole.fit(epochs=4)
    return tmp_path, whole.bits()


# -- when, where, how many --


def test_files_are_named_by_steps_and_pruned(tmp_path):
    Model().fit(epochs=7, checkpoint=fg.Checkpoints(tmp_path, every_epochs=2, keep=2))
    assert names(tmp_path) == ["step-000000018.safetensors", "step-000000021.safetensors"]  # 6 epochs; the end


@pytest.mark.parametrize("made", [str, Path, fg.Checkpoints])
def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch, made):
    """Report writers and the like change the folder of the process."""

    class Go(fg.Callback):
        def on_epoch(self, record):
            os.chdir(tmp_path)

    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    model, whole, folder = Model("Adam"), Model("Adam"), made("state")
    model.fit(epochs=3, checkpoint=folder, callbacks=[Go()])
    assert names(tmp_path) == ["home"]
    assert len(names(tmp_path / "home" / "state")) == 3
    if made is not fg.Checkpoints:
        os.chdir(tmp_path / "home")
    model.fit(epochs=4, checkpoint=folder, resume=True, callbacks=[Go()])
    whole.fit(epochs=4)
    assert model.bits() == whole.bits()


@pytest.mark.parametrize("grain", ["round", "shard", "node"])
@pytest.mark.parametrize("position", [1, 2, 4])
def test_going_on_in_the_middle_of_an_epoch(tmp_path, monkeypatch, grain, position):
    """Every window a checkpoint; a window of one step."""

    def choose(*args):
        return replace(make_plan(*args), steps_per_task=1, steps_per_window=1)

    monkeypatch.setattr("flowgrad.scheduler.training.estimate.make_plan", choose)
    whole, first, second = Model("Adam", n=22), Model("Adam", n=22), Model("Adam", n=22)
    expected = whole.fit(grain=grain, epochs=3, validation=whole.validation)
    always = fg.Checkpoints(tmp_path, every_epochs=None, every_seconds=1e-9, keep=1000)
    with pytest.raises(Interrupted):
        first.fit(
            grain=grain, epochs=3, validation=first.validation, checkpoint=always, callbacks=[Interrupt(6 + position)]
        )
    found = read_checkpoint(tmp_path)
    assert found.about["epoch"] == 1
    assert found.about["position"] == position - 1 > -1
    history = second.fit(grain=grain, epochs=3, validation=second.validation, checkpoint=always, resume=True)
    assert second.bits() == whole.bits()
    assert history.steps == expected.steps
    for mine, theirs in zip(history.epochs, expected.epochs, strict=True):
        assert mine["validation_loss"] == theirs["validation_loss"]
        np.testing.assert_equal(mine["loss"], theirs["loss"])


@pytest.mark.parametrize("kernels", [("numpy", "numba"), ("numba", "numpy")])
def test_going_on_takes_the_plan_along(tmp_path, kernels):
    """The kernel and the shards are those of the checkpoint, whatever would be chosen now."""
    pytest.importorskip("numba")

    def fit(model, grain, shards, kernel, epochs, **more):
        engine = fg.Engine("sync", grain=grain, shards=shards, kernel=kernel)
        return fg.Trainer(model.optimizer, engine).fit(model.feeds, epochs=epochs, **more)

    whole, first, second = Model("Adam"), Model("Adam"), Model("Adam")
    expected = fit(whole, "shard", 2, kernels[0], 4)
    fit(first, "shard", 2, kernels[0], 2, checkpoint=tmp_path)
    history = fit(second, "round", 1, kernels[1], 4, checkpoint=tmp_path, resume=True)
    assert second.bits() == whole.bits()
    for key in ("grain", "shards", "kernel"):
        assert history.plan[key] == expected.plan[key]


def test_a_finished_training_is_given_back(tmp_path):
    model, other = Model("Adam"), Model("Adam")
    model.fit(epochs=2, checkpoint=tmp_path)
    before = names(tmp_path)
    other.fit(epochs=2, checkpoint=tmp_path, resume=True)
    assert other.bits() == model.bits()
    assert names(tmp_path) == before


def test_a_folder_in_use_is_refused_unless_resumed(written):
    folder, _ = written
    before = names(folder)
    with pytest.raises(DataError, match="resume to go on from there"):
        Model("Adam").fit(checkpoint=folder)
    assert names(folder) == before


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every_epochs": 0}, "every_epochs must be an integer from 1 on, not 0"),
        ({"every_seconds": -1.0}, "every_seconds must be a number above 0, not -1"),
        ({"every_epochs": None}, "nothing is ever written"),
        ({"keep": 0}, "keep must be an integer from 1 on"),
    ],
)
def test_settings_that_make_no_sense(settings, told):
    with pytest.raises(GraphError, match=told):
        fg.Checkpoints("x", **settings)


# -- what was not written by this run --


def flip(path, at=-3):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    save_file({"w": np.zeros(3)}, path)


def a_model(path):
    fg.save(path, Model().graph)


def newer(path):
    arrays = load_file(path)
    about = json.dumps({"kind": "checkpoint"})
    save_file(arrays, path, metadata={"format": "flowgrad", "version": "99", "about": about, "sha256": ""})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, "is damaged: its checksum"),
        (truncate, "cannot read"),
        (empty, "cannot read"),
        (foreign, "not one of flowgrad"),
        (a_model, "not a checkpoint"),
        (newer, "version '99'"),
    ],
)
def test_the_one_before_is_used_and_that_is_said(written, damage, told):
    folder, bits = written
    damage(folder / "step-000000009.safetensors")
    model = Model("Adam")
    with pytest.warns(UserWarning, match=f"{told}.*going on from step-000000006"):
        model.fit(epochs=4, checkpoint=folder, resume=True)
    assert model.bits() == bits
    assert read_checkpoint(folder).about["epoch"] == 4


def test_none_can_be_read(written):
    folder, _ = written
    for path in folder.iterdir():
        flip(path)
    model = Model("Adam")
    before = model.bits()
    with pytest.raises(DataError, match=r"no checkpoint in .* can be read: .*step-000000009.* is damaged"):
        model.fit(checkpoint=folder, resume=True)
    assert model.bits() == before


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_goes_unseen(tmp_path, data):
    saver = Saver(fg.Checkpoints(tmp_path), resume=True)
    path = saver.write(1, Snapshot({"w": np.arange(5.0)}, {}, np.ones(2), {"epoch": 1}))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    path.write_bytes(bytes(changed))
    try:
        found = read_checkpoint(tmp_path)
    except DataError:
        return
    # Only what says nothing, such as spaces that fill up the header, may differ.
    assert found.state["w"].tobytes() == np.arange(5.0).tobytes()
    assert found.losses.tobytes() == np.ones(2).tobytes()
    assert found.about == {"epoch": 1, "kind": "checkpoint"}


@pytest.mark.parametrize(
    ("other", "fit", "told"),
    [
        ({"batch_size": 5}, {}, "batch size 4, this run has batch size 5"),
        ({}, {"seed": 1}, "seed 0, this run has seed 1"),
        ({}, {"shuffle": False}, "shuffle True, this run has shuffle False"),
        ({}, {"accumulate": 2}, "accumulate 1, this run has accumulate 2"),
        ({}, {"dtype": "float32"}, "dtype float64, this run has dtype float32"),
        ({"n": 11}, {}, "number of training samples 10, this run has number of training samples 11"),
        ({"learning_rate": 0.2}, {}, r"learning_rate=0\.1.*this run has.*learning_rate=0\.2"),
        ({"optimizer": "RMSProp"}, {}, r"optimizer Adam\(.*this run has the optimizer RMSProp\("),
        ({"weight_decay": 0.5}, {}, r"weight_decay=0\.0.*weight_decay=0\.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(written, other, fit, told):
    folder, _ = written
    model = Model(**{"optimizer": "Adam", **other})
    before, files = model.bits(), names(folder)
    with pytest.raises(GraphError, match=told):
        model.fit(checkpoint=folder, resume=True, **fit)
    assert model.bits() == before
    assert names(folder) == files


def scaled(by, t):
    return by / t


def shaped(by):
    return lambda t: by / t


RATES = {
    "lambda": (lambda t: 0.1 / t, lambda t: 0.1 / t, lambda t: 0.2 / t),
    "closure": (shaped(0.1), shaped(0.1), shaped(0.2)),
    "partial": (partial(scaled, 0.1), partial(scaled, 0.1), partial(scaled, 0.2)),
    "within a schedule": (
        fg.WarmUp(2, lambda t: 0.1 / t),
        fg.WarmUp(2, lambda t: 0.1 / t),
        fg.WarmUp(2, lambda t: 0.2 / t),
    ),
}


@pytest.mark.parametrize("kind", RATES)
def test_functions_of_ones_own_are_told_apart(tmp_path, kind, monkeypatch):
    first, same, other = RATES[kind]
    Model("Adam", learning_rate=first).fit(epochs=1, checkpoint=tmp_path)
    with pytest.raises(GraphError, match=r"of another run: it has the optimizer Adam\(.*code .*this run has.*code "):
        Model("Adam", learning_rate=other).fit(epochs=2, checkpoint=tmp_path, resume=True)
    whole, again = Model("Adam", learning_rate=first), Model("Adam", learning_rate=same)
    whole.fit(epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.fit(epochs=2, checkpoint=tmp_path, resume=True)
    assert again.bits() == whole.bits()
    monkeypatch.setattr(checkpoint, "PYTHON", "Python 4.0")
    monkeypatch.setattr(checkpoint, "code_token", lambda function: "0" * 16)
    with pytest.warns(
        UserWarning, match=r"written by another Python.*make sure that the optimizer Adam\(learning_rate="
    ):
        again.fit(epochs=3, checkpoint=tmp_path, resume=True)


def test_a_checkpoint_of_another_model_is_refused(written):
    folder, _ = written
    model = Model("Adam")
    with model.graph:
        loss = fg.CrossEntropyWithSoftMax(fg.Tanh(model.logits), model.label)
    trainer = fg.Trainer(fg.Adam(model.graph, loss, 0.1, batch_size=4), fg.Engine("sync"))
    with pytest.raises(GraphError, match=r"a model of 12 parameters \(7 nodes.*12 parameters \(8 nodes"):
        trainer.fit(model.feeds, checkpoint=folder, resume=True)


# -- the same run with other data --


def exchanged(model):
    labels = model.feeds[model.label].copy()
    first, other = 0, int(np.flatnonzero(labels != labels[0])[0])
    labels[[first, other]] = labels[[other, first]]
    return {model.label: labels}


def reordered(model):
    return {v: a[::-1].copy() for v, a in model.feeds.items()}


def one_number(model):
    images = model.feeds[model.x].copy()
    images[-1, -1] = np.nextafter(images[-1, -1], 9)
    return {model.x: images}


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (exchanged, "'label'"),
        (reordered, "'x', 'label'"),
        (one_number, "'x'"),
        (lambda m: {m.label: np.eye(3)[m.feeds[m.label]] * 0.5}, "'label'"),
        (lambda m: {m.x: np.asfortranarray(m.feeds[m.x][:, ::-1])}, "'x'"),
    ],
)
def test_other_data_is_noticed(written, change, of):
    folder, _ = written
    model = Model("Adam")
    before, files = model.bits(), names(folder)
    model.feeds |= change(model)
    told = (
        f"it has other values or another order of samples for {of} .by 10 rows that were compared.; give the same data"
    )
    with pytest.raises(GraphError, match=told) as caught:
        model.fit(checkpoint=folder, resume=True)
    assert "\n" not in str(caught.value)
    assert model.bits() == before
    assert names(folder) == files


def test_a_feed_more_is_noticed(tmp_path):
    folder, model, other = tmp_path / "state", Model("Adam"), Model("Adam")
    model.fit(epochs=1, checkpoint=folder)
    other.b.trainable = model.b.trainable = False
    trainer = fg.Trainer(model.optimizer, fg.Engine("sync"))
    with pytest.raises(GraphError, match="of another run"):
        trainer.fit({**model.feeds, model.b: np.zeros((10, 3))}, checkpoint=folder, resume=True)
    first = tmp_path / "first"
    other.fit(epochs=1, checkpoint=first)
    other.optimizer.state = None
    with pytest.raises(GraphError, match="it was fed 'x', 'label', this run is fed 'x', 'label', 'b'; give the same"):
        fg.Trainer(other.optimizer, fg.Engine("sync"), seed=0).fit(
            {**other.feeds, other.b: np.zeros((10, 3))}, checkpoint=first, resume=True
        )


def mapped(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


CONTAINERS = {
    "list": lambda a, path: a.tolist(),
    "tuple of rows": lambda a, path: tuple(map(np.array, a)),
    "pandas": lambda a, path: __import__("pandas").DataFrame(a) if a.ndim == 2 else __import__("pandas").Series(a),
    "not contiguous": lambda a, path: np.repeat(a, 2, axis=0)[::2],
    "Fortran's order": lambda a, path: np.asfortranarray(a),
    "big-endian": lambda a, path: a.astype(a.dtype.newbyteorder(">")),
    "memory map": mapped,
    "dask array that the client has": lambda a, path: __import__("dask.array").array.from_array(a, chunks=len(a)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_data_in_something_else_goes_on(written, tmp_path, container):
    if container == "pandas":
        pytest.importorskip("pandas")
    folder, bits = written
    model = Model("Adam")
    model.feeds = {v: CONTAINERS[container](a, tmp_path / f"{v.name}.npy") for v, a in model.feeds.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(epochs=4, checkpoint=folder, resume=True)
    assert model.bits() == bits


def test_rows_of_a_map_in_several_chunks(monkeypatch, tmp_path):
    """More rows than are compared, in chunks of 100; names of variables do not matter."""
    monkeypatch.setattr("flowgrad.scheduler.feeds.chunks.FILE_CHUNK_BYTES", 100 * 3 * 8)
    folder, model = tmp_path / "state", Model("Adam", n=2500)
    model.fit(epochs=1, checkpoint=folder)
    again = Model("Adam", n=2500)
    again.x.name = "images"
    again.feeds[again.x] = mapped(model.feeds[model.x], tmp_path / "x.npy")
    again.fit(epochs=2, checkpoint=folder, resume=True)
    again = Model("Adam", n=2500)
    again.feeds[again.x] = mapped(np.roll(model.feeds[model.x], 1, axis=0), tmp_path / "y.npy")
    with pytest.raises(GraphError, match=r"another order of samples for 'x' .by 1,024 rows"):
        again.fit(epochs=3, checkpoint=folder, resume=True)


def test_dask_arrays_are_told_apart_by_their_chunks(tmp_path):
    """What has another name may be the same data: that is said, and no more."""
    array, delayed = pytest.importorskip("dask.array"), pytest.importorskip("dask").delayed
    folder = tmp_path / "state"

    def fit(epochs, make, feeds=None):
        model = Model("Adam")
        images = model.feeds[model.x] if feeds is None else feeds
        model.feeds[model.x] = make(images)
        model.fit(epochs=epochs, checkpoint=folder, resume=True)
        return model.bits()

    def computed(a):
        return array.from_array(a, chunks=(4, 3)) * 1.0

    def drawn_anew(a):
        return array.from_delayed(delayed(lambda: a)(), a.shape, a.dtype)

    whole = Model("Adam")
    whole.fit(epochs=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(1, computed)
        fit(2, computed)
    told = "may be of other data: 'x' came from other dask chunks then, which may have the same values or not"
    with pytest.warns(UserWarning, match=told):
        fit(3, drawn_anew)
    with pytest.warns(UserWarning, match=told):
        fit(4, drawn_anew)
    with pytest.warns(UserWarning, match=told):
        assert fit(5, lambda a: a) == whole.bits()


@pytest.mark.distributed
def test_chunks_that_lie_on_workers_are_known_again(client, tmp_path):
    array = pytest.importorskip("dask.array")

    def fit(epochs, change=0.0):
        model = Model("Adam")
        images = client.persist(array.from_array(model.feeds[model.x] + change, chunks=(4, 3)) * 1.0)
        trainer = fg.Trainer(model.optimizer, fg.Engine(client))
        trainer.fit({**model.feeds, model.x: images}, epochs=epochs, checkpoint=tmp_path, resume=True)
        return model.bits()

    whole = Model("Adam")
    whole.fit(epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(1)
        assert fit(2) == whole.bits()
    with pytest.warns(UserWarning, match="may be of other data: 'x' came from other dask chunks then"):
        fit(3, change=1.0)


def test_nothing_is_kept_about_the_values_of_private_trainings(tmp_path):
    for folder, private in ((tmp_path / "a", True), (tmp_path / "b", False)):
        more = {"per_sample_clip": 1.0, "noise_multiplier": 1.0, "noise_seed": 3} if private else {}
        Model("Adam", **more).fit(epochs=1, checkpoint=folder)
        first = read_checkpoint(folder).about["run"]["data"][0]
        assert first.pop("rows", "") == "" if private else len(first.pop("rows")) == 32
        assert first == {"name": "x", "shape": [10, 3], "dtype": "float64"}


def test_a_checkpoint_that_says_nothing_of_data_goes_on(written):
    folder, bits = written
    for path in folder.iterdir():
        arrays, about = read_arrays(path)
        del about["run"]["data"]
        write_arrays(path, arrays, about)
    model = Model("Adam")
    model.fit(epochs=4, checkpoint=folder, resume=True)
    assert model.bits() == bits


# -- crashes --

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from models import Model
from flowgrad import files

count = 0
def die(real):
    def call(*args):
        global count
        count += 1
        if count == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call

{what}
Model("Adam").fit(epochs=4, checkpoint={folder!r})
"""
CRASHES = {
    "before the rename": "files.Path.replace = die(files.Path.replace)",
    "after the rename": "files._sync_folder = die(files._sync_folder)",
    "while the file is flushed": "os.fsync = die(os.fsync)",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_killed_while_it_writes(tmp_path, crash):
    folder = tmp_path / "state"
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), at=3, what=CRASHES[crash], folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = names(folder)
    assert any(name.endswith(".tmp") for name in left) == (crash != "after the rename")
    model, whole = Model("Adam"), Model("Adam")
    whole.fit(epochs=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(epochs=4, checkpoint=folder, resume=True)
    assert model.bits() == whole.bits()
    assert not any(name.endswith(".tmp") for name in names(folder))


def test_a_full_disk_is_said_and_loses_nothing(written, monkeypatch):
    folder, _ = written
    before = names(folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        Model("Adam").fit(epochs=5, checkpoint=folder, resume=True)
    assert names(folder) == before
    assert checkpoint.read_checkpoint(folder).about["epoch"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda about: about["plan"].update(lanes=3), "unexpected keyword argument 'lanes'"),
        (lambda about: about["plan"].pop("shards"), "missing 1 required positional argument: 'shards'"),
        (lambda about: about["plan"].update(shards="2"), "shards is '2', not int"),
        (lambda about: about["history"].update(colour=1), "unexpected keyword argument 'colour'"),
        (lambda about: about.pop("position"), "KeyError: 'position'"),
        (lambda about: about.update(plan=[1]), "TypeError"),
    ],
)
def test_a_checkpoint_with_other_fields_is_told_in_one_line(tmp_path, change, said):
    folder = tmp_path / "state"
    model = Model()
    fg.Trainer(model.optimizer, fg.Engine("sync", kernel="numpy")).fit(model.feeds, epochs=1, checkpoint=folder)
    (path,) = folder.iterdir()
    arrays, about = read_arrays(path)
    change(about)
    write_arrays(path, arrays, about)
    again = Model()
    trainer = fg.Trainer(again.optimizer, fg.Engine("sync", kernel="numpy"))
    with pytest.raises(fg.errors.DataError, match=said) as caught:
        trainer.fit(again.feeds, epochs=2, checkpoint=folder, resume=True)
    assert str(folder) in str(caught.value)
    assert "not as this version of flowgrad writes it" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
