"""Logs that callbacks write: CSV, TensorBoard."""

import csv
import importlib.util
import struct

import numpy as np
import pytest
from models import Model

import flowgrad as fg
from flowgrad.errors import DataError


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_for_each_epoch(tmp_path, executor):
    model, seen = Model(), []

    class Reading(fg.Callback):
        def on_epoch(self, record):
            seen.append(len(rows(tmp_path / "log.csv")))

    log = fg.CSVLog(tmp_path / "log.csv")
    history = model.fit(executor, epochs=3, validation=model.validation, callbacks=[log, Reading()])
    assert seen == [1, 2, 3, 4]  # as soon as the epoch is done
    written = rows(tmp_path / "log.csv")
    assert [row["epoch"] for row in written] == ["0", "1", "2", "3"]
    assert written[0]["loss"] == written[0]["learning_rate"] == ""
    for row, record in zip(written[1:], history.epochs[1:]):
        assert {key: float(value) for key, value in row.items()} == pytest.approx(record)


def test_csv_holds_the_epochs_before_a_checkpoint(tmp_path):
    for epochs, resume in ((2, False), (4, True)):
        log = fg.CSVLog(tmp_path / "log.csv")
        Model().fit(epochs=epochs, checkpoint=tmp_path / "state", resume=resume, callbacks=[log])
    assert [row["epoch"] for row in rows(tmp_path / "log.csv")] == ["1", "2", "3", "4"]


def events(folder):
    """Records of TensorBoard: a length of eight bytes, four to check it, as many, four to check them."""
    pb = pytest.importorskip("tensorboardX.proto.event_pb2")
    for file in folder.iterdir():
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield pb.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_has_scalars_and_a_histogram_of_each_layer(tmp_path):
    pytest.importorskip("tensorboardX")
    with fg.Graph(seed=0) as graph:
        x, y = fg.Variable(3, trainable=False, name="x"), fg.Variable(1, trainable=False, name="y")
        loss = fg.MeanSquaredError(
            fg.layers.dense(fg.layers.dense(x, 4, "tanh", name="h", per_neuron=True), 1, name="o"), y
        )
    feeds = {x: np.ones((8, 3)), y: np.ones((8, 1))}
    log = fg.TensorBoard(tmp_path / "board")
    trainer = fg.Trainer(fg.Adam(graph, loss, 0.25, batch_size=4), fg.Engine("sync"), callbacks=[log])
    history = trainer.fit(feeds, epochs=2, validation=feeds)
    values = [(v, event.step) for event in events(tmp_path / "board") for v in event.summary.value]
    scalars = {(v.tag, step): v.simple_value for v, step in values if v.HasField("simple_value")}
    assert scalars["loss/validation", 2] == pytest.approx(history.epochs[2]["validation_loss"])
    assert scalars["loss/training", 1] == pytest.approx(history.epochs[1]["loss"])
    assert ("loss/training", 0) not in scalars
    assert scalars["run/learning_rate", 2] == pytest.approx(0.25)
    assert ("steps/loss", 4) in scalars
    counts = {(v.tag, step): v.histo.num for v, step in values if v.HasField("histo")}
    assert counts == {(f"weights/{layer}", step): n for layer, n in (("h", 16), ("o", 5)) for step in (0, 1, 2)}


def test_what_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*: choose another place"):
        Model().fit(epochs=1, callbacks=[fg.CSVLog(tmp_path / "file" / "log.csv")])
    with pytest.raises(fg.FlowgradError, match="CSVLog: path"):
        fg.CSVLog(3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs tensorboardX: pip install 'flowgrad\[tensorboard\]'"):
        fg.TensorBoard(tmp_path / "board")
