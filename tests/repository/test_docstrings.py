"""The examples in docstrings say what happens, and main entries have one."""

import doctest
import inspect
import pkgutil

import pytest

import flowgrad as fg

# Methods of these are what people call.
CLASSES = ("Engine", "Graph", "Node", "Trainer", "Variable")
# What nobody makes by itself, and methods whose names say all.
BASES = {"Callback", "FlowgradError", "LocalJacobian", "Node", "Optimizer", "Schedule", "Stacked"}
FORGET = (".reset_value", ".clear_jacobian", ".clear_cache")


def modules():
    found = [m.name for m in pkgutil.walk_packages(fg.__path__, "flowgrad.") if not m.name.endswith("__main__")]
    assert {"flowgrad.graph", "flowgrad.scheduler.engine.engine", "flowgrad.scheduler.tasks.tree"} <= set(found)
    return sorted(found)


@pytest.mark.parametrize("name", ["flowgrad", *modules()])
def test_examples(name, tmp_path, monkeypatch):
    module = pytest.importorskip(name, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)  # some write files
    assert doctest.testmod(module).failed == 0


def test_main_entries_have_an_example():
    entries = {name: thing for name, thing in vars(fg).items() if name in fg.__all__ and isinstance(thing, type)}
    for cls in CLASSES:
        members = inspect.getmembers(getattr(fg, cls), inspect.isfunction)
        entries |= {f"{cls}.{name}": member for name, member in members if not name.startswith("_")}
    without = {name for name, thing in entries.items() if ">>>" not in (thing.__doc__ or "")}
    assert without <= BASES | {name for name in entries if name.endswith(FORGET)}
    assert len(entries) > 60
