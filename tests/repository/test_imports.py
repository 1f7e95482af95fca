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
# Wings of scheduler/, in the order in which a wing may import another: only those before it. Files without `__init__`, lines.
WINGS = (
    "tasks",
    "machine",
    "executors",
    "collective",
    "kernels",
    "feeds",
    "programs",
    "derivatives",
    "steps",
    "costs",
    "windows",
    "engine",
    "watch",
    "dashboard",
    "telling",
    "training",
)
FILES, LINES = range(4, 10), 2100
# Wings with a budget of their own: two ways to run a program, each with all ops; callbacks, logs, metrics and weights.
LARGER = {"kernels": 3030, "training": 2560}
# Rooms of flowgrad/ likewise. Files and folders of one tuple stand side by side.
ROOMS = (
    ("typing", "errors"),
    ("inputs",),
    ("jacobians", "draw", "formulas", "reads"),
    ("returned",),
    ("initial",),
    ("graph",),
    ("op",),
    ("samples",),
    ("ops", "check"),
    ("program", "layers", "losses"),
    ("autodiff", "tangents", "counts"),
    ("summary",),
    ("optim",),
    ("data", "files"),
)
# What a function may import for itself: packages that are optional or slow to load.
LATE = {"graphviz", "matplotlib", "networkx", "numba", "pandas", "rich", "sklearn", "tensorboardX", "uvloop"}
# Packages that only some files know, by how their names begin; the command line is no wing and may know all.
KNOWN = {
    "distributed": ("scheduler/executors/", "scheduler/collective/", "scheduler/dashboard/", "scheduler/telling/"),
    "bokeh": ("scheduler/dashboard/",),
    "numba": ("scheduler/kernels/numba_", "scheduler/machine/facts.py"),
    "llvmlite": ("scheduler/kernels/numba_",),
    "dask.array": ("scheduler/derivatives/arrays.py", "scheduler/feeds/chunks.py"),
    "dask.task_spec": ("scheduler/tasks/",),
    "dask._task_spec": ("scheduler/tasks/",),
}
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
    assert {"flowgrad/graph/graph.py", "flowgrad/jacobians/base.py", "scheduler/programs/fuse.py"} <= set(
        source_files()
    )
    assert len(IMPORTS) > 50


def wing_of(name):
    """The wing that a file or a module is in; None for other rooms."""
    parts = name.removesuffix(".py").replace("/", ".").removeprefix("flowgrad.").split(".")
    return parts[1] if parts[0] == "scheduler" and len(parts) > 1 and parts[1] != "__init__" else None


def test_the_wings_are_those_that_the_door_tells_of():
    folders = {path.name for path in (ROOT / "scheduler").iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert folders == set(WINGS)
    assert {path.name for path in (ROOT / "scheduler").glob("*.py")} == {"__init__.py"}
    table = ast.get_docstring(parsed("scheduler/__init__.py"))
    for wing in WINGS:
        sentence = ast.get_docstring(parsed(f"scheduler/{wing}/__init__.py"))
        assert f"``{wing}/``" in table
        assert sentence in " ".join(table.split()), wing
    assert [table.index(f"``{wing}/``") for wing in WINGS] == sorted(table.index(f"``{wing}/``") for wing in WINGS)


def test_a_wing_imports_only_those_above_it():
    wrong = [
        i
        for i in IMPORTS
        if wing_of(i.file) and wing_of(i.module) and WINGS.index(wing_of(i.module)) > WINGS.index(wing_of(i.file))
    ]
    assert not wrong, told(wrong)
    assert sum(bool(wing_of(i.file) and wing_of(i.module) not in (None, wing_of(i.file))) for i in IMPORTS) > 100


def test_what_crosses_wings_goes_through_their_doors():
    wrong = [
        i
        for i in IMPORTS
        if wing_of(i.module) and wing_of(i.file) != wing_of(i.module) and len(i.module.split(".")) > 4
    ]
    assert not wrong, told(wrong)
    for wing in WINGS:
        door = f"scheduler/{wing}/__init__.py"
        handed = {i.module.rpartition(".")[2] for i in IMPORTS if i.file == door and wing_of(i.module) == wing}
        taken = {
            i.module.rpartition(".")[2]
            for i in IMPORTS
            if i.file != door and wing_of(i.module) == wing and wing_of(i.file) != wing and i.module.count(".") == 3
        }
        assert handed <= taken, f"{wing} hands on what nobody takes: {sorted(handed - taken)}"


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_keeps_to_its_budget(wing):
    files = [file for file in source_files() if wing_of(file) == wing and not file.endswith("__init__.py")]
    assert len(files) in FILES
    assert sum(len((ROOT / file).read_text().splitlines()) for file in files) <= LARGER.get(wing, LINES)


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


def test_rooms_of_the_language_import_those_before_them():
    floor = {room: k for k, rooms in enumerate(ROOMS) for room in rooms}
    wrong = []
    for i in IMPORTS:
        room, target = Path(i.file).with_suffix("").parts[1], i.module.split(".")
        if i.file.startswith("flowgrad/") and room in floor and target[0] == "flowgrad" and target[1] != room:
            wrong += [i] if floor.get(target[1], len(ROOMS)) >= floor[room] else []
    assert not wrong, told(wrong)
    rooms = {path.stem for path in (ROOT / "flowgrad").glob("[a-z]*") if path.suffix == ".py" or path.is_dir()}
    assert rooms - set(floor) <= {"cli", "scheduler"}


@pytest.mark.parametrize("package", KNOWN)
def test_packages_that_few_files_know(package):
    wrong = [
        i for i in IMPORTS if within(i.module, package) and not i.file.startswith((*KNOWN[package], "flowgrad/cli/"))
    ]
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


def test_all_modules_can_be_imported_where_there_is_no_posix():
    """As on Windows: without fork, signal masks, and what else only some systems have."""
    code = """
import os, pkgutil, signal
for thing, names in ((os, ("register_at_fork", "fork", "sched_getaffinity")), (signal, ("pthread_sigmask", "SIGKILL"))):
    for name in names:
        if hasattr(thing, name):
            delattr(thing, name)
from importlib import import_module
import flowgrad
for module in pkgutil.walk_packages(flowgrad.__path__, "flowgrad."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
with flowgrad.Graph():
    x = flowgrad.Variable(2, trainable=False)
    y = flowgrad.Exp(x)
print(flowgrad.Engine("threads").jacobian(y, x, {x: [[0.0, 0.0]]}).tolist())
"""
    assert run(code) == "[[[1.0, 0.0], [0.0, 1.0]]]\n"
