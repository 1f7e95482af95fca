"""The command line as a person meets it: help, bad input, a whole run, Ctrl-C in the middle."""

import ast
import csv
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from urllib.request import urlopen

import click
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT
from distributed import Client
from rich import console as console_module

import flowgrad as fg
from flowgrad.cli import main
from flowgrad.cli.console import console
from flowgrad.cli.facts import filters_of
from flowgrad.cli.folder import run_folder
from flowgrad.cli.models import multilayer_perceptron
from flowgrad.cli.progress import HEADER, ProgressCallback, epoch_line, metric_columns
from flowgrad.cli.report import classification_text, write_tables
from flowgrad.draw import best_epoch, curves
from flowgrad.draw.curves import smooth
from flowgrad.errors import ClusterError, DataError
from flowgrad.scheduler.executors import cluster as cluster_room
from flowgrad.scheduler.executors.cluster import existing_cluster
from flowgrad.scheduler.machine.doctor import Finding

for package in ("rich", "sklearn", "matplotlib"):
    pytest.importorskip(package)

RESULTS = [
    "history.csv", "learning_curves.png", "model.safetensors", "predictions.npz", "report.html", "report.json", "report.txt",
    "settings.json", "steps.csv",
]  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """Three classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))

    def part(n):
        y = rng.integers(0, 3, n)
        return centres[y] + 0.1 * rng.normal(size=(n, 8)), y

    (x_train, y_train), (x_test, y_test) = part(300), part(60)
    np.savez(tmp_path / "small.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path / "small.npz"


def invoke(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="flowgrad")


def start(*args, **more):
    command = [sys.executable, "-m", "flowgrad", *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_help():
    text = invoke("--help").output
    assert "flowgrad train mnist" in text
    assert len(text.splitlines()) < 30
    text = invoke("train", "--help").output
    for option in main.commands["train"].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in text
    assert "flowgrad train mnist --hidden 90,30 --epochs 3 --lr 0.001\n" in text
    assert fg.__version__ in invoke("--version").output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train",), "Missing argument 'DATASET'"),
        (("train", "mnits"), "no data set 'mnits': give mnist, digits, or the path of an .npz file"),
        (("train", "absent.npz"), "absent.npz: no such file"),
        (
            ("train", "mnist", "--optimizer", "adamm"),
            "'adamm' is not one of Adam, AdamW, AMSGrad, Lion, RMSProp, AdaGrad, Nesterov, Momentum, GradientDescent",
        ),
        (("train", "mnist", "--hidden", "90,x"), "'90,x' is not a list of layer sizes"),
        (("train", "mnist", "--hidden", "90,0"), "'90,0' is not a list of layer sizes"),
        (("train", "mnist", "--lr", "nan"), "nan is not a positive number"),
        (("train", "mnist", "--lr", "-1"), "-1 is not a positive number"),
        (("train", "mnist", "--epochs", "0"), "'0' is not an integer from 1 on"),
        (("train", "mnist", "--workers", "many"), "'many' is not an integer from 1 on"),
        (("train", "mnist", "--seed", "-1"), "'-1' is not an integer from 0 on"),
        (("train", "mnist", "--grain", "fine"), "'fine' is not one of auto"),
        (("train", "mnist", "--dtype", "int8"), "'int8' is not one of float32"),
        (("train", "mnist", "--workers", "2", "--scheduler", "tcp://a:1"), "give one of them"),
        (("train", "mnist", "--stay", "--no-dashboard"), "give one of them"),
        (("train", "mnist", "--train-size", "60001"), "mnist has 60000 training samples, 60001 asked for"),
        (("train", "mnist", "--train-size", "20"), "batch size 32 is larger than the 20 training samples"),
        (("tran", "mnist"), "No such command 'tran'"),
    ],
)
def test_bad_input(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_truncated_file(small):
    small.write_bytes(small.read_bytes()[:-500])
    result = invoke("train", small)
    assert result.exit_code == 2
    assert result.output == f"flowgrad: {small}: not a complete .npz file: write it again with numpy.savez\n"


def test_folders_that_cannot_be_used(small, tmp_path):
    result = invoke("train", small, "--out", small / "below")
    assert result.exit_code == 2
    assert "cannot write to" in result.output
    assert "--out" in result.output
    done = tmp_path / "done"
    done.mkdir()
    (done / "history.csv").write_text("epoch\n")
    result = invoke("train", small, "--out", done)
    assert result.exit_code == 2
    assert f"{done} already holds a run: choose another folder with --out" in result.output
    assert (done / "history.csv").read_text() == "epoch\n"


def test_what_is_not_installed(monkeypatch):
    command = import_module("flowgrad.cli.train")  # the package's attribute of this name is the command
    monkeypatch.setattr(command, "find_spec", lambda module: None if module == "sklearn" else module)
    result = invoke("train", "mnist")
    assert result.exit_code == 2
    assert result.output == "flowgrad: `flowgrad train` needs scikit-learn: pip install 'flowgrad[all]'\n"


def test_run_folder(tmp_path):
    out = tmp_path / "deep" / "run"
    with run_folder(out, "any") as folder:
        (folder / "a.txt").write_text("a")
        assert [path.name for path in out.iterdir()] == [".partial"]
        with pytest.raises(DataError, match="in use by another run"), run_folder(out, "any"):
            pass
    assert [path.name for path in out.iterdir()] == ["a.txt"]
    with suppress(KeyError), run_folder(tmp_path / "broken" / "run", "any") as folder:
        (folder / "a.txt").write_text("a")
        raise KeyError
    assert not (tmp_path / "broken").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyError), run_folder(tmp_path / "empty", "any"):
        raise KeyError
    assert (tmp_path / "empty").is_dir()  # it was there before


@pytest.mark.parametrize("out", ["run", None])
@pytest.mark.parametrize("fails", [True, False])
def test_a_relative_run_folder_stays_where_it_was(tmp_path, monkeypatch, out, fails):
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with suppress(KeyError), run_folder(out, "any") as folder:
        (folder / "a.txt").write_text("a")
        monkeypatch.chdir(tmp_path / "elsewhere")
        (folder / "b.txt").write_text("b")
        if fails:
            raise KeyError
    assert not list((tmp_path / "elsewhere").iterdir())
    left = sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert left == ([] if fails else ["a.txt", "b.txt"])


def test_default_run_folders_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    for _ in range(3):
        with run_folder(None, "mnist") as folder:
            (folder / "a.txt").write_text("a")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mnist-now", "mnist-now-2", "mnist-now-3"]


def test_models():
    model = multilayer_perceptron(784, (90,), 10)
    assert str(model) == "407 nodes, 406 of them for the loss, 71,560 trainable numbers"
    kinds = [type(node).__name__ for node in model.graph.nodes]
    assert kinds.count("Dot") == kinds.count("Add") == 100
    assert (model.probabilities.dim, model.loss.dim) == (10, 1)
    deep = multilayer_perceptron(6, (5, 4), 3, seed=1)
    assert [type(node).__name__ for node in deep.graph.nodes].count("ReLU") == 2
    deep.x.set_value(np.ones(6))
    assert deep.probabilities.forward().sum() == pytest.approx(1)
    assert multilayer_perceptron(6, (), 3).probabilities.dim == 3


def test_epoch_lines_fit_their_heading():
    record = {"epoch": 3, "loss": 0.123, "validation_loss": 12.5, "validation_accuracy": 1.0, "seconds": 1234.5}
    line = epoch_line({**record, "samples_per_second": 123456.0}, 600, 3725.2)
    assert len(line) == len(HEADER)
    assert line.split() == ["3/600", "12.5000", "100.00", "%", "0.1230", "123,456", "1234.5", "1:02:05"]
    first = epoch_line({**record, "epoch": 0, "loss": float("nan"), "samples_per_second": 0.0}, 600)
    assert first.split() == ["0/600", "12.5000", "100.00", "%", "1234.5"]
    assert epoch_line({"epoch": 1}, 2).split() == ["1/2"]
    own = {**record, "f1": 0.5, "validation_f1": 0.25, "validation_confusion_matrix": [[1]], "learning_rate": 0.1}
    assert metric_columns(own) == ["validation_f1"]
    assert epoch_line(own, 600, None, metric_columns(own)).split()[-1] == "0.2500"


def test_report(tmp_path):
    text = classification_text(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), 3)
    assert "accuracy" in text
    assert [row.split() for row in text.splitlines()[-3:]] == [list("0100"), list("1010"), list("2011")]
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0, 7.0]), 3), [1.5, 3.0, 5.0, 6.5])
    history = fg_history()
    write_tables(tmp_path, history)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["validation_accuracy"] for row in rows] == ["0.1", "0.9"]
    assert [row["loss"] for row in rows] == ["", "0.7"]
    for some, panels in (
        (history, ["loss", "accuracy"]),
        (fg_history(steps=0), ["loss", "accuracy"]),
        (fg_history(accuracy=None), ["loss"]),
    ):
        figure = curves(some.epochs, [loss for _, loss in some.steps])
        assert [axes.get_title(loc="left") for axes in figure.axes] == panels
    assert best_epoch(history.epochs) == 1
    assert best_epoch(history.epochs, 0) == 0


def fg_history(steps=500, accuracy=0.9):
    from types import SimpleNamespace

    records = [(0, float("nan"), 2.3, accuracy and 0.1), (1, 0.7, 0.3, accuracy)]
    keys = ("epoch", "loss", "validation_loss", "validation_accuracy")
    losses = [(k, 2.3 / k) for k in range(1, steps + 1)]
    return SimpleNamespace(epochs=[dict(zip(keys, record)) for record in records], steps=losses)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "ftp://x:1"])
def test_scheduler_that_does_not_answer(address, small, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_room, "TIMEOUT", 0.5)
    result = invoke("train", small, "--scheduler", address, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"flowgrad: no scheduler at {address}: " in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_a_port_where_something_else_answers(small, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_room, "TIMEOUT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        result = invoke("train", small, "--scheduler", address, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"flowgrad: no scheduler at {address}: " in result.output
    assert not (tmp_path / "run").exists()
    # Closed by a later collection, a client may wait for ever for a lock of dask's.
    assert {client.status for client in Client._instances} <= {"closed", "running"}


@pytest.mark.distributed
def test_a_scheduler_without_workers(monkeypatch):
    from distributed import LocalCluster

    reach = cluster_room.reach
    monkeypatch.setattr(cluster_room, "reach", lambda address, timeout: reach(address, 60))

    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as empty:
        connection = existing_cluster(empty.scheduler_address, 0.5)
        with pytest.raises(ClusterError, match=r"has no workers after 0\.5 s"), connection:
            pass


@pytest.mark.distributed
def test_a_whole_run_in_a_process_of_its_own(small, tmp_path):
    process = start("train", small, "--hidden", "6", "--epochs", 3, "--lr", 0.05, "--out", tmp_path / "run")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    for words in (
        "8 - 6 - 3",
        "dashboard: http://127.0.0.1:",
        "this training: http://127.0.0.1:",
        "    0/3",
        "    3/3",
        "confusion matrix",
        "macro avg",
    ):
        assert words in output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == RESULTS
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["validation_loss"]) < float(rows[0]["validation_loss"])
    assert len((tmp_path / "run" / "steps.csv").read_text().splitlines()) == 1 + 3 * 10
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["hidden"] == [6]
    graph = fg.load(tmp_path / "run" / "model.safetensors").graph
    assert [type(node).__name__ for node in graph.nodes].count("Dot") == 9


def attributes(page, name):
    return re.findall(rf'<[^>]* {name}="([^"]*)"', page)


@pytest.mark.distributed
def test_reports_need_neither_data_nor_cluster(small, tmp_path, cluster, monkeypatch):
    args = ("--scheduler", cluster.scheduler_address, "--hidden", "4", "--epochs", 2, "--schedule", "cosine")
    result = invoke("train", small, *args, "--quiet", "--out", tmp_path / "run")
    assert (result.exit_code, result.output) == (0, "")
    kept_samples = np.load(small)["x_test"]
    small.unlink()
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "run" / "report.json", tmp_path / "alone")
    (tmp_path / "alone" / "report.html").touch()
    result = invoke("report", tmp_path / "alone" / "report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "alone" / "report.html").read_text()
    assert page == (tmp_path / "run" / "report.html").read_text()
    assert all(
        link.startswith(("data:", "#")) for name in ("src", "href", "xlink:href") for link in attributes(page, name)
    )
    assert "url(http" not in page
    for words in (
        "learning rate",
        "taken for",
        "test sample ",
        "h0.w3",
        "grain round",
        "forward µs",
        "seed 0",
        "300 training and 60 test samples",
        "those after the last epoch, 2.",
        "not possible: one shard",
        "precision",
        "tcp://",
        "numpy 2",
    ):
        assert words in page, words
    kept = np.load(tmp_path / "run" / "predictions.npz")
    np.testing.assert_array_equal(kept["probabilities"].argmax(axis=1), kept["predicted"])
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    steps = f"{settings['plan']['steps_per_task']} steps"
    assert f"<p>Grain <b>round</b>: {steps} of 32 samples run one after the other" in page
    assert f"{steps} in one task" in page
    assert f"<b>{settings['seconds']:.1f} s</b><span>training" in page
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(facts["costs"]["parts"]["nodes"]) >= {"h0.dot3", "h0.0", "h0", "o.0", "loss", ""}
    assert facts["files"] == RESULTS
    assert len(facts["timeline"]["epochs"]) == 3
    monkeypatch.chdir(tmp_path / "run")
    found = {"flowgrad": fg, "samples": kept_samples}
    exec(html.unescape(re.findall("<pre>(graph, .*?)</pre>", page, re.DOTALL)[0]), found)
    np.testing.assert_allclose(found["probabilities"], kept["probabilities"], rtol=1e-5)
    assert np.trace(facts["matrix"]) == (kept["label"] == kept["predicted"]).sum()
    assert [w["true"] for w in facts["worst"]] == sorted(w["true"] for w in facts["worst"])
    assert facts["worst"][0]["true"] == pytest.approx(kept["probabilities"][np.arange(60), kept["label"]].min())


def test_filters_are_told_by_their_norm_and_whether_their_units_live():
    model = multilayer_perceptron(4, [3], 2)
    for k, name in enumerate(("h0.w0", "h0.w1", "h0.w2")):
        model.graph[name].set_value(np.full(4, k + 1.0))
    told = filters_of(model.x, np.array([0.5, 0.0, 1.0]))["pictures"]
    assert [(f["name"], f["norm"], f["active"]) for f in told] == [
        ("h0.w2", 6.0, 1.0),
        ("h0.w1", 4.0, 0.0),
        ("h0.w0", 2.0, 0.5),
    ]
    assert [f["active"] for f in filters_of(model.x)["pictures"]] == [None] * 3


@pytest.mark.parametrize(
    ("text", "message"), [(None, "has no report.json"), ("{", "is no report's"), ("[]", "is no report's")]
)
def test_a_folder_without_a_run_is_told(text, message, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.distributed
def test_events_as_lines_of_json(small, tmp_path):
    process = start(
        "train", small, "--hidden", "4", "--epochs", 2, "--json", "--performance-report", "--out", tmp_path / "run"
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in output.splitlines()]
    names = [event["event"] for event in events if event["event"] not in ("note", "steps")]
    assert names == [
        "data",
        "graph",
        "cluster",
        "dashboard",
        "page",
        "plan",
        "epoch",
        "epoch",
        "epoch",
        "result",
        "results",
        "end",
    ]
    by_name = {event["event"]: event for event in events}
    assert by_name["plan"]["hint"].startswith("1 of 2 workers stands idle")
    assert by_name["epoch"]["epoch"] == 2
    assert by_name["result"]["samples"] == 60
    assert (tmp_path / "run" / "performance-report.html").stat().st_size > 10_000
    assert sorted(by_name["results"]["files"]) == sorted([*RESULTS, "performance-report.html"])
    assert invoke("train", small, "--json", "--quiet").exit_code == 2


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("more", "told"), [((), "1 x 2"), (("--workers", 2), "2 x 1"), (("--threads-per-worker", 1), "1 x 1")]
)
def test_grain_node_runs_on_one_process_with_two_threads_unless_told_otherwise(small, tmp_path, more, told):
    args = ("--grain", "node", "--hidden", "none", "--epochs", 1, "--train-size", 64, "--out", tmp_path / "run")
    result = invoke("train", small, *args, *more)
    assert result.exit_code == 0, result.output
    assert f"cluster: {told} (worker processes x threads)" in result.output
    (look,) = [line for line in result.output.splitlines() if line.startswith("look at: http://")]
    assert "task stream" in look


@pytest.mark.distributed
def test_on_a_cluster_that_runs_already(small, tmp_path, cluster):
    args = ("--hidden", "none", "--epochs", 1, "--grain", "shard", "--out", tmp_path / "run")
    result = invoke("train", small, "--scheduler", cluster.scheduler_address, *args)
    assert result.exit_code == 0, result.output
    assert "grain shard" in result.output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == RESULTS
    assert cluster.scheduler.workers  # still there


@pytest.mark.distributed
def test_going_on_gives_the_same_model(small, tmp_path, cluster):
    more = ("--schedule", "step", "--weight-decay", 1e-4, "--clip-norm", 1, "--accumulate", 2, "--patience", 2)
    args = ("train", small, "--scheduler", cluster.scheduler_address, "--hidden", "none", "--epochs", 6, *more)
    whole = invoke(*args, "--out", tmp_path / "whole", "--checkpoint", tmp_path / "state")
    assert whole.exit_code == 0, whole.output
    assert "weights of epoch" in whole.output
    files = sorted((tmp_path / "state").iterdir())
    assert len(files) == 3
    for file in files[1:]:
        file.unlink()
    again = invoke(*args, "--out", tmp_path / "again", "--checkpoint", tmp_path / "state", "--resume")
    assert again.exit_code == 0, again.output
    assert sorted((tmp_path / "state").iterdir()) == files
    first, second = (fg.load(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert isinstance(second.optimizer.rule.learning_rate, fg.StepDecay)
    assert first.optimizer.rule == second.optimizer.rule
    for mine, other in zip(second.graph.nodes, first.graph.nodes):
        if mine.value is not None:
            assert mine.value.tobytes() == other.value.tobytes()


def test_resume_needs_a_folder(small):
    result = invoke("train", small, "--resume")
    assert result.exit_code == 2
    assert "give its folder with --checkpoint" in result.output


def heed_interrupts():
    """A suite that runs in the background of a script has inherited "ignore SIGINT"."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.distributed
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_the_dashboard_stays_if_asked(small, tmp_path):
    args = ("--hidden", 4, "--epochs", 1, "--json", "--stay", "--out", tmp_path / "run")
    process = start("train", small, *args, preexec_fn=heed_interrupts)
    told = {}
    for line in process.stdout:
        event = json.loads(line)
        told[event["event"]] = event
        if event["event"] == "stay":
            break
    assert sorted(told["results"]["files"]) == sorted(path.name for path in (tmp_path / "run").iterdir())
    with urlopen(told["page"]["address"], timeout=60) as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.distributed
@pytest.mark.skipif(os.name != "posix", reason="sends signals to a process group")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_the_middle(number, status, small, tmp_path):
    psutil = pytest.importorskip("psutil")
    args = ("--epochs", 100_000, "--no-dashboard", "--out", tmp_path / "run")
    process = start("train", small, *args, start_new_session=True, preexec_fn=heed_interrupts)
    for line in process.stdout:
        assert not line.startswith("dashboard: http")
        if line.strip().startswith("1/100000"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert errors == f"flowgrad: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert not (tmp_path / "run").exists()


def test_entry_points():
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution("flowgrad").entry_points
    except PackageNotFoundError:
        pytest.skip("flowgrad is not installed")
    assert {(e.group, e.name, e.value) for e in found} >= {
        ("console_scripts", "flowgrad", "flowgrad.cli:main"),
        ("dask_cli", "flowgrad", "flowgrad.cli:main"),
    }


def test_texts_are_shown_as_they_are(monkeypatch):
    """Square brackets of names, paths and extras; only one file makes consoles, and they read no markup."""
    told = "kernel numpy: pip install 'flowgrad[fast]' [bold]x[/bold] :smile:"
    plan = {"grain": "round", "shards": 1, "steps_per_task": 2, "reason": told}
    out = io.StringIO()
    ProgressCallback(console(file=out, width=200)).on_train_begin({"plan": plan, "epochs": 2, "hint": told})
    assert told in out.getvalue()
    ProgressCallback(console(file=out, width=200)).on_recovery({"step": 1200, "again": 1, "cause": told})
    assert f"after step 1,200: {told}; 1 step of it is done again" in out.getvalue()
    monkeypatch.setattr("flowgrad.cli.console.Console", partial(console_module.Console, file=out, width=300))
    sys.modules[import_module("flowgrad.cli.doctor").__name__]._show([Finding(told, "ok", told, told)])
    assert out.getvalue().count(told) == 6
    for path in (ROOT / "flowgrad" / "cli").glob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {f.id for f in calls if isinstance(f, ast.Name)} & {"Console", "TextColumn", "print"}
        assert not names or path.name == "console.py", path


WITHOUT_NUMBA = """
import importlib.abc, importlib.util, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("numba", "llvmlite") else found(name, package)
"""


@pytest.mark.distributed
def test_the_main_job_without_numba(tmp_path):
    """In this process and in the workers; steps are NumPy's, and it learns."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_NUMBA)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "flowgrad", "train", "mnist", "--train-size", "6400", "--test-size", "500"]
    command += ["--epochs", "2", "--no-dashboard", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "kernel numpy: numba is not installed (pip install 'flowgrad[fast]')" in done.stdout
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert float(rows[-1]["validation_accuracy"]) > 0.8
