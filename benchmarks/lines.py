"""Line counts of examples beside the same nets in PyTorch and Keras, and what each of them reaches.

As a module it writes the counts into docs/lines.md, which takes no training.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable
from pathlib import Path

from benchmarks.turns import clean_environment

ROOT = Path(__file__).parents[1]
BESIDE = Path(__file__).with_name("beside")
PAGE = ROOT / "docs" / "lines.md"
# Label, and where flowgrad's is.
NETS: dict[str, tuple[str, str]] = {
    "quick_start": ("softmax regression, the quick start", "README.md"),
    "mnist": ("784-90-10 on MNIST", "examples/mnist.py"),
    "lenet": ("LeNet", "examples/lenet.py"),
    "first_symbol": ("LSTM", "examples/first_symbol.py"),
    "attention": ("attention, with a picture", "examples/attention.py"),
    "tables": ("factorization machine, wide & deep, DeepFM", "examples/tables.py"),
}
LIBRARIES = ("flowgrad", "torch", "keras")
LABELS = {"flowgrad": "flowgrad", "torch": "PyTorch", "keras": "Keras"}
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def source(net: str, library: str) -> str:
    """Return the code of a net."""
    if library != "flowgrad":
        return (BESIDE / f"{net}_{library}.py").read_text(encoding="utf-8")
    text = (ROOT / NETS[net][1]).read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL) if NETS[net][1] == "README.md" else None
    return found[1] if found else text


def lent(net: str) -> set[str]:
    """Return what others import from an example: data, constants, pictures, the evaluation."""
    return {
        alias.name
        for library in LIBRARIES[1:]
        for node in ast.parse(source(net, library)).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("examples.")
        for alias in node.names
    }


def count(text: str, without: set[str]) -> tuple[int, int]:
    """Return how many lines of code there are, and how many words (tokens).

    Neither counts blank lines, comments, docstrings, imports, what is `without`, and ``if __name__ == "__main__"``.
    """
    tree, left_out = ast.parse(text), set()
    for node in ast.walk(tree):
        first = getattr(node, "body", None) if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) else None
        doc = first and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant)
        skipped = [first[0]] if first and doc else []
        skipped += [node] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        for part in skipped:
            left_out |= {*range(part.lineno, (part.end_lineno or 0) + 1)}
    for part in tree.body:
        targets = part.targets if isinstance(part, ast.Assign) else []
        names = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        names |= {part.name} if isinstance(part, (ast.FunctionDef, ast.ClassDef)) else set()
        if (names and names <= without) or (isinstance(part, ast.If) and "__name__" in ast.unparse(part.test)):
            left_out |= {*range(part.lineno, (part.end_lineno or 0) + 1)}
    words = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in SKIPPED and token.start[0] not in left_out
    ]
    return len({line for token in words for line in range(token.start[0], token.end[0] + 1)}), len(words)


def counts(net: str) -> dict[str, tuple[int, int]]:
    """Return lines and words of a net by library."""
    return {library: count(source(net, library), lent(net)) for library in LIBRARIES}


def counts_table() -> str:
    """Return a line for each net."""
    lines = [
        "| net and training: lines (words) | " + " | ".join(LABELS.values()) + " |",
        "|---|" + "---:|" * len(LIBRARIES),
    ]
    for net, (label, path) in NETS.items():
        cells = (f"{lines} ({words:,})" for lines, words in counts(net).values())
        lines.append(f"| [{label}](../{path}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reached(net: str, library: str) -> str:
    """Run a net in a process and a folder of its own, and return the accuracy, or the log losses, that it tells last."""
    env = {**clean_environment(1), "KERAS_BACKEND": "torch"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, f"{net}.py")
        script.write_text(source(net, library), encoding="utf-8")
        done = subprocess.run([sys.executable, script], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        missing = re.search(r"No module named '(\w+)", done.stderr)
        return f"{missing[1]} is not installed" if missing else f"failed: {done.stderr.strip().splitlines()[-1]}"
    losses = re.findall(r"^(?!regression).* log loss (\S+)", done.stdout, re.MULTILINE)
    accuracies = re.findall(r"(?:accuracy.*? |^)(0\.\d+|1\b|1\.0+)", done.stdout, re.MULTILINE)
    return ", ".join(losses) or f"{float(accuracies[-1]):.4f}"


def results_table(tell: Callable[[str], None]) -> str:
    """Train all, and return a line for each net."""
    lines = [
        "| accuracy in the end, or log losses | " + " | ".join(LABELS.values()) + " |",
        "|---|---|---|---|",
    ]
    for net, (label, _) in NETS.items():
        cells = []
        for library in LIBRARIES:
            tell(f"lines: {net}, {LABELS[library]}")
            cells.append(reached(net, library))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lines_report(tell: Callable[[str], None] = print) -> str:
    """Count lines, train all, and return tables."""
    return f"{counts_table()}\n\n{results_table(tell)}"


if __name__ == "__main__":  # without training: counts alone
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(r"\| net and training(.*\n)*?(?=\n)", lambda _: f"{counts_table()}\n", page), encoding="utf-8"
    )
