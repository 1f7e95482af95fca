"""Who may import whom, read from the source; and what ``import flowgrad`` loads."""

import ast
import graphlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import flowgrad as fg

ROOT = Path(__file__).parents[2]
LIMIT = 360  # lines in a file

# What a function may import for itself: packages that are optional or slow to load.
LATE = {"graphviz", "matplotlib", "networkx", "numba", "pandas", "rich", "sklearn", "uvloop"}
# The only files that know these.
DISTRIBUTED = {"scheduler/executors/distributed.py", "scheduler/latency.py"}
TASK_SPEC = {"scheduler/daskgraph.py"}
DOORS = {"flowgrad/__init__.py"}  # and everything in flowgrad/cli/


class Import(NamedTuple):
    file: str
    module: str  # absolute, with the imported name: `from a import b` is a.b
    line: int
    in_function: bool
    typing_only: bool


def source_files():
    """Python files of the two rooms, relative to the repository; the link to scheduler/ is not followed."""
    files = [*(ROOT / "flowgrad").rglob("*.py"), *(ROOT / "scheduler").rglob("*.py")]
    relative = {file.relative_to(ROOT).as_posix() for file in files}
    return sorted(name for name in relative if not name.startswith("flowgrad/scheduler/"))


def parsed(file):
    return ast.parse((ROOT / file).read_text(), file)


def package_of(file):
    """Package that relative imports of `file` start from; scheduler/ is imported as flowgrad.scheduler."""
    parts = Path(file).parent.parts
    return list(parts) if parts[0] == "flowgrad" else ["flowgrad", *parts]


def imports_of(file):
    """Every import statement in `file`."""
    found = []

    def walk(node, in_function, typing_only):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = package_of(file)[: len(package_of(file)) - child.level + 1] if child.level else []
                base = [*base, child.module] if child.module else base
                names = [".".join([*base, alias.name]) for alias in child.names]
            else:
                names = []
            found.extend(Import(file, name, child.lineno, in_function, typing_only) for name in names)
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            walk(child, in_function or function, typing_only or guard)

    walk(parsed(file), False, False)
    return found


IMPORTS = [found for file in source_files() for found in imports_of(file)]


def within(module, package):
    return module == package or module.startswith(package + ".")


def told(wrong):
    return "\n".join(f"{i.file}:{i.line} imports {i.module}" for i in wrong)


def test_the_source_was_found():
    assert {"flowgrad/node.py", "flowgrad/jacobian.py", "scheduler/fuse.py"} <= set(source_files())
    assert len(IMPORTS) > 50


def test_the_language_knows_neither_dask_nor_the_scheduler():
    wrong = [
        i
        for i in IMPORTS
        if i.file.startswith("flowgrad/")
        and i.file not in DOORS
        and not i.file.startswith("flowgrad/cli/")
        and any(within(i.module, other) for other in ("dask", "distributed", "flowgrad.scheduler", "bokeh"))
    ]
    assert not wrong, told(wrong)


def test_the_door_loads_the_scheduler_lazily():
    wrong = [i for i in IMPORTS if i.file in DOORS and within(i.module, "flowgrad.scheduler") and not i.typing_only]
    assert not wrong, told(wrong)


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("errors", set()),
        ("jacobian", set()),
        ("outer", {"jacobian"}),
        ("matrix_jacobian", {"jacobian", "outer"}),
        ("shares", {"jacobian", "outer"}),
        ("factors", {"jacobian", "shares"}),
        ("numbers", {"errors"}),
        ("privacy", {"jacobian", "numbers"}),
        ("graph", {"draw", "numbers"}),
        ("vectors", {"errors", "jacobian"}),
        ("node", {"errors", "graph", "jacobian", "vectors"}),
        ("op", {"errors", "jacobian", "node", "vectors"}),
        ("ops", {"errors", "jacobian", "matrix_jacobian", "node", "op", "ops", "vectors"}),
        ("program", {"errors", "node", "op"}),
        ("autodiff", {"program", "ops"}),
        ("norms", {"jacobian"}),
        ("optim", {"errors", "jacobian", "norms", "numbers"}),
        ("optimizer", {"errors", "graph", "jacobian", "node", "numbers", "optim", "privacy"}),
        ("optimizers", {"graph", "node", "optim", "optimizer"}),
        ("schedules", {"errors", "numbers"}),
        ("expressions", set()),
        ("check_compiled", {"errors", "expressions", "jacobian", "matrix_jacobian", "node"}),
        ("check", {"check_compiled", "errors", "jacobian", "node"}),
        ("files", {"errors", "graph", "jacobian", "node", "op", "optimizer", "optimizers", "schedules"}),
    ],
)
def test_rooms_of_the_language(room, allowed):
    """Each may import what stands before it."""
    mine = [i for i in IMPORTS if within(i.file.removesuffix(".py").replace("/", "."), f"flowgrad.{room}")]
    assert (ROOT / "flowgrad" / room).is_dir() or (ROOT / "flowgrad" / f"{room}.py").is_file()
    wrong = [
        i
        for i in mine
        if i.module.startswith("flowgrad.") and not i.typing_only and i.module.split(".")[1] not in allowed
    ]
    assert not wrong, told(wrong)


@pytest.mark.parametrize(
    ("package", "files"),
    [("distributed", DISTRIBUTED), ("dask.task_spec", TASK_SPEC), ("dask._task_spec", TASK_SPEC)],
)
def test_packages_that_one_file_knows(package, files):
    wrong = [
        i
        for i in IMPORTS
        if within(i.module, package) and i.file not in files and not i.file.startswith("flowgrad/cli/")
    ]
    assert not wrong, told(wrong)


def test_bokeh_stays_in_the_dashboard():
    wrong = [i for i in IMPORTS if within(i.module, "bokeh") and not i.file.startswith("scheduler/dashboard/")]
    assert not wrong, told(wrong)


def test_imports_run_one_way():
    """No file is imported by what it imports; packages whose modules import one another count as one file each."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in source_files()}
    modules = {f"flowgrad.{m}" if m.startswith("scheduler") else m: file for m, file in modules.items()}
    edges = {file: set() for file in modules.values()}
    for i in IMPORTS:
        if i.in_function or i.typing_only:
            continue
        name = i.module
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name and modules[name] not in DOORS:
            edges[i.file].add(modules[name])
    assert sum(map(len, edges.values())) > 200
    order = graphlib.TopologicalSorter({file: others - {file} for file, others in edges.items()})
    order.prepare()  # raises with the cycle if there is one


def test_functions_import_only_what_is_optional_or_slow():
    wrong = [
        i
        for i in IMPORTS
        if i.in_function and i.module.split(".")[0] not in LATE and not i.file.startswith("flowgrad/cli/")
    ]
    assert not wrong, told(wrong)


def test_nothing_is_imported_with_a_star():
    wrong = [i for i in IMPORTS if i.module.endswith(".*")]
    assert not wrong, told(wrong)


def test_files_are_short():
    files = [*source_files(), *(f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py"))]
    long = {file: n for file in files if (n := len((ROOT / file).read_text().splitlines())) > LIMIT}
    assert not long


def run(code):
    """Run `code` in a fresh interpreter and return what it prints."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_flowgrad_needs_numpy_only():
    heavy = (
        "dask",
        "distributed",
        "bokeh",
        "safetensors",
        "matplotlib",
        "networkx",
        "graphviz",
        "numba",
        "sklearn",
    )
    code = f"""
import sys
import flowgrad as fg
with fg.Graph():
    x = fg.Variable(2, [1.0, 2.0])
    y = fg.Dot(x, x)
assert x.backward(y).tolist() == [[2.0, 4.0]]
print(sorted(set(sys.modules) & {set(heavy)!r}))
fg.Engine
print("dask" in sys.modules)
"""
    assert run(code).split("\n")[:2] == ["[]", "True"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Angine"):
        _ = fg.Angine


def test_every_public_name_can_be_had_and_is_listed():
    assert len(set(fg.__all__)) == len(fg.__all__)
    assert all(hasattr(fg, name) for name in fg.__all__)
    assert {"Graph", "Variable", "Dot", "Adam", "Engine", "Trainer", "save", "load"} <= set(fg.__all__)


def public_objects():
    """Every public name of flowgrad, and the public methods that its classes define."""
    for name in fg.__all__:
        thing = getattr(fg, name)
        if isinstance(thing, type) or inspect.isroutine(thing) or inspect.ismodule(thing):
            yield name, thing
        if isinstance(thing, type) and thing.__module__.startswith("flowgrad"):
            for attribute, member in vars(thing).items():
                member = getattr(member, "__func__", getattr(member, "fget", member))
                if not attribute.startswith("_") and inspect.isroutine(member):
                    yield f"{name}.{attribute}", member


def test_every_public_name_has_a_docstring():
    names = dict(public_objects())
    assert len(names) > 60
    # Not inspect.getdoc: it would take the docstring of a base class.
    assert not [name for name, thing in names.items() if not (thing.__doc__ or "").strip()]
