"""Feeds in chunks: dask arrays and memory-mapped files stay where they are, and the result is that of arrays in memory."""

import os

import numpy as np
import pytest
from dask import array as da
from faults import BATCH, SAMPLES, Net

import flowgrad as fg
from flowgrad.errors import FeedError
from flowgrad.scheduler.feeds import chunks, file_rows
from flowgrad.scheduler.feeds import placement as data_room
from flowgrad.scheduler.feeds.check import check_feeds
from flowgrad.scheduler.feeds.chunks import Chunked
from flowgrad.scheduler.training import estimate


def as_stack(folder, name, array, rows):
    da.to_npy_stack(str(folder / name), da.from_array(array, chunks=(rows, *array.shape[1:])))
    return da.from_npy_stack(str(folder / name))


def as_file(folder, name, array, rows):
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def as_part_of_a_file(folder, name, array, rows):
    np.save(folder / f"{name}.npy", np.concatenate([array[:7], array]))
    return np.load(folder / f"{name}.npy", mmap_mode="r")[7:]


def computed(folder, name, array, rows):
    """A dask array that has to be computed, in chunks along both axes."""
    stack = as_stack(folder, name, array, rows)
    return (stack + 0).rechunk({axis: -(-n // 2) for axis, n in enumerate(array.shape)})


WAYS = (as_stack, as_file, as_part_of_a_file, computed)


def fit(where, feeds_of=None, validation=None, grain="shard", shards=3, epochs=2, **settings):
    net = Net()
    feeds = net.feeds if feeds_of is None else feeds_of(net)
    trainer = net.trainer(where, grain, shards if grain != "sample" else None, **settings)
    history = trainer.fit(feeds, epochs=epochs, validation=None if validation is None else validation(net))
    return trainer.fingerprint(), history.steps, [r["validation_loss"] for r in history.epochs]


@pytest.fixture(scope="module")
def expected():
    return {grain: fit("sync", grain=grain) for grain in ("node", "sample", "shard", "round")}


def chunked_feeds(folder, way, labels=True):
    def feeds(net):
        return {
            net.x: way(folder, "x", net.feeds[net.x], 70),
            net.label: way(folder, "label", net.feeds[net.label], 50) if labels else net.feeds[net.label],
        }

    return feeds


@pytest.mark.parametrize("grain", ["shard", "round"])
@pytest.mark.parametrize("way", WAYS)
def test_the_bits_are_those_of_arrays_in_memory(tmp_path, executor, expected, way, grain):
    assert fit(executor, chunked_feeds(tmp_path, way), grain=grain) == expected[grain]


@pytest.mark.parametrize("grain", ["node", "sample"])
def test_fine_grains(tmp_path, expected, grain):
    assert fit("sync", chunked_feeds(tmp_path, as_stack), grain=grain) == expected[grain]


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
def test_small_buckets(tmp_path, executor, expected, monkeypatch, labels):
    """Two steps in a bucket; labels in chunks too, or in memory."""
    monkeypatch.setattr(data_room, "BUCKET_BYTES", BATCH * 25 * 4)
    monkeypatch.setattr(data_room, "RESIDENT_BYTES", 0)
    assert fit(executor, chunked_feeds(tmp_path, as_stack, labels)) == expected["shard"]


@pytest.mark.distributed
def test_arrays_of_the_client_that_are_too_large_for_workers(client, expected, monkeypatch):
    monkeypatch.setattr(data_room.Placement, "bucketed", lambda self, workers: True)
    monkeypatch.setattr(data_room, "SENT_BYTES", 100)
    assert fit(client) == expected["shard"]


@pytest.mark.parametrize("way", [as_stack, as_file])
def test_validation_and_evaluation(tmp_path, executor, way):
    feeds = chunked_feeds(tmp_path, way)
    found = fit(executor, feeds, validation=feeds)
    whole = fit("sync", validation=lambda net: net.feeds)
    assert found == whole
    net = Net()
    trainer = net.trainer(executor)
    assert trainer.evaluate(feeds(net)) == trainer.evaluate(net.feeds)


@pytest.mark.distributed
def test_an_array_that_the_user_keeps_on_the_workers(tmp_path, client, expected):
    kept = []

    def feeds(net):
        kept.extend(client.persist([as_stack(tmp_path, "x", net.feeds[net.x], 70)]))
        return {net.x: kept[0], net.label: net.feeds[net.label]}

    assert fit(client, feeds) == expected["shard"]
    np.testing.assert_array_equal(client.compute(kept[0]).result(), next(iter(Net().feeds.values())))  # still theirs


def test_bytes_become_numbers_of_the_right_type(tmp_path, executor):
    def small(net):
        return (np.arange(SAMPLES * 20).reshape(SAMPLES, 20) % 251).astype(np.uint8)

    def memory(net):
        return {net.x: small(net), net.label: net.feeds[net.label]}

    def file(net):
        return {net.x: as_file(tmp_path, "x", small(net), 0), net.label: net.feeds[net.label]}

    assert fit(executor, file, dtype="float32") == fit("sync", memory, dtype="float32")


def test_nothing_is_computed_before_training(tmp_path):
    """Checking looks at shapes alone."""

    def load(block):
        raise AssertionError("computed")

    x = da.zeros((SAMPLES, 20), chunks=(100, 20)).map_blocks(load, dtype=np.float32, meta=np.zeros((0, 20), np.float32))
    net = Net()
    checked = check_feeds(net.graph, {net.x: x, net.label: net.feeds[net.label]}, lazy=True)
    assert isinstance(checked.arrays[net.x], Chunked)
    assert checked.dtype == np.float32


# -- what does not fit: see also `test_table` --


def bad(value, label=None):
    net = Net()
    feeds = {net.x: value(net.feeds[net.x]), net.label: net.feeds[net.label] if label is None else label}
    return net.trainer("sync").fit(feeds, epochs=1)


def test_a_wrong_shape_is_told_before_anything_runs(tmp_path):
    with pytest.raises(FeedError, match=r"'x' has shape \(480, 19\).*\(N, 20\)"):
        bad(lambda x: as_stack(tmp_path, "x", x[:, :19], 70))


def test_sizes_that_are_not_known_are_found_without_a_change_of_what_was_fed(expected):
    fed = []

    def feeds(net):
        y = da.from_array(net.feeds[net.x], chunks=(70, 20))
        fed.append(y[y[:, 0] > -100])
        return {net.x: fed[0], net.label: net.feeds[net.label]}

    assert fit("sync", feeds) == expected["shard"]
    assert np.isnan(fed[0].shape[0])


def test_a_value_that_is_not_finite_is_told_with_its_sample(tmp_path):
    def poisoned(x):
        x = x.copy()
        x[301, 4] = np.nan
        return as_stack(tmp_path, "x", x, 70)

    with pytest.raises(FeedError, match=r"'x' is not finite.*sample 301 holds nan"):
        bad(poisoned)


def test_a_label_out_of_range_is_told_with_its_sample(tmp_path):
    label = np.zeros(SAMPLES, int)
    label[222] = 5
    with pytest.raises(FeedError, match="sample 222 of the feed for 'label' has class 5"):
        bad(lambda x: x, as_stack(tmp_path, "label", label, 70))


def test_a_file_that_goes_away_is_told(tmp_path):
    class Gone(fg.Callback):
        def on_epoch(self, record):
            (tmp_path / "x.npy").unlink()

    net = Net()
    feeds = chunked_feeds(tmp_path, as_file, labels=False)(net)
    trainer = net.trainer("sync", "shard", 3, callbacks=[Gone()])
    with pytest.raises(FeedError, match=r"x\.npy of a feed cannot be read .* put it where all workers find it"):
        trainer.fit(feeds, epochs=2)


def replace(path, array):
    np.save(path.with_name("new.npy"), array)
    path.with_name("new.npy").replace(path)


def rewrite(path, array):
    """Write to the file that is there."""
    before = path.stat()
    np.save(path, array)
    os.utime(
        path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000)
    )  # two writes may fall into one tick of its clock
    assert path.stat().st_ino == before.st_ino


LARGE = np.arange(400_000.0).reshape(200_000, 2)
# One row among many, which no sample of them would hold.
OTHER = np.where(np.arange(len(LARGE))[:, None] == 4567, -1.0, LARGE)
CHANGED = r"x\.npy of a feed has been written to or replaced since it was fed: call again"


def weighed():
    with fg.Graph() as graph:
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        y = fg.Dot(w, x)
    return x, y, fg.Trainer(fg.GradientDescent(graph, y, 1e-9, batch_size=1000), fg.Engine("sync"))


@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_map_is_the_file_that_was_opened(tmp_path, executor, change):
    x, y, trainer = weighed()
    trainer = fg.Trainer(trainer.optimizer, fg.Engine(executor))
    engine = fg.Engine(executor)
    np.save(tmp_path / "x.npy", LARGE)
    feed = np.load(tmp_path / "x.npy", mmap_mode="r")

    def found(feeds):
        return trainer.evaluate(feeds)["loss"], float(engine.per_sample_gradients(y, feeds).norms().sum())

    first, other = found({x: LARGE}), found({x: OTHER})
    assert first != other
    assert found({x: feed}) == first
    change(tmp_path / "x.npy", OTHER)
    assert found({x: feed}) == (first if change is replace else other)
    assert found({x: np.load(tmp_path / "x.npy", mmap_mode="r")}) == other
    kept = LARGE.copy()
    assert found({x: kept}) == first
    kept[...] = OTHER
    assert found({x: kept}) == other


@pytest.mark.parametrize("change", [replace, rewrite])
def test_a_file_that_changes_before_it_is_read_is_told(tmp_path, executor, change):
    class Change(fg.Callback):
        def on_epoch(self, record):
            change(tmp_path / "x.npy", OTHER)

    x, y, trainer = weighed()
    np.save(tmp_path / "x.npy", LARGE)
    feeds = {x: np.load(tmp_path / "x.npy", mmap_mode="r")}
    gradients = fg.Engine(executor).per_sample_gradients(y, feeds)
    trainer = fg.Trainer(trainer.optimizer, fg.Engine(executor), callbacks=[Change()])
    with pytest.raises(FeedError, match=CHANGED):
        trainer.fit(feeds, epochs=3)
    with pytest.raises(FeedError, match=CHANGED):
        gradients.norms()


def test_a_copy_on_another_machine_stays_what_it_was_first(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", LARGE)
    pieces = file_rows(np.load(tmp_path / "x.npy", mmap_mode="r"))
    monkeypatch.setattr(chunks, "_place", lambda: "elsewhere")
    replace(tmp_path / "x.npy", LARGE)  # the copy there, with numbers of its own
    for _ in range(2):
        np.testing.assert_array_equal(pieces[0](), LARGE)
    replace(tmp_path / "x.npy", OTHER)
    with pytest.raises(FeedError, match=CHANGED):
        pieces[0]()


def test_what_was_written_to_a_map_is_in_the_file_that_others_read(tmp_path, client):
    x, y, _ = weighed()
    np.save(tmp_path / "x.npy", LARGE)
    feed = np.load(tmp_path / "x.npy", mmap_mode="r+")
    engine = fg.Engine(client)
    for k in range(3):
        feed[4567] = k
        norms = engine.per_sample_gradients(y, {x: feed}).norms()
        np.testing.assert_array_equal(norms, fg.Engine("sync").per_sample_gradients(y, {x: np.array(feed)}).norms())


def test_measuring_reads_no_row_that_is_not_there(tmp_path, client, monkeypatch):
    seen = []
    run_round = getattr(estimate.run_round, "__wrapped__", estimate.run_round)  # it travels, what wraps it need not

    def watched(step, before, const, feeds, steps, threads=1):
        seen.append((min(map(len, feeds)), max(int(rows.max()) for shards in steps for rows in shards)))
        return run_round(step, before, const, feeds, steps, threads)

    monkeypatch.setattr(estimate, "run_round", watched)
    fit(client, chunked_feeds(tmp_path, as_file), grain="auto", epochs=1)
    assert len({most for _, most in seen}) > 1  # whole steps, and steps with one sample in each shard
    assert all(most < length for length, most in seen)


def test_what_was_written_to_a_map_in_memory_counts(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 1)))
    feed = np.load(tmp_path / "x.npy", mmap_mode="c")
    feed *= 2
    with fg.Graph() as graph:
        x = fg.Variable(1, trainable=False)
        loss = fg.Variable(1, [1.0]) * x
    trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=4), fg.Engine("sync"))
    assert trainer.evaluate({x: feed})["loss"] == trainer.predict(loss, {x: feed}).mean() == 2.0
    assert trainer.fit({x: feed}, epochs=1).epochs[0]["loss"] == 2.0
