"""``flowgrad doctor``: judgements on made-up machines, and the command on this one."""

import builtins
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowgrad.cli import main
from flowgrad.cli.doctor import plain_text, summary
from flowgrad.scheduler.machine.doctor import KERNELS, LEVELS, Finding, examine, level_of_cpu, level_of_kernel
from flowgrad.scheduler.machine.facts import Facts, cache_folder, read_cpu, read_facts

ROOT = Path(__file__).parents[2]
AVX512 = frozenset({"sse2", "avx", "avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"})


def openblas(architecture, package="numpy"):
    return {
        "user_api": "blas",
        "internal_api": "openblas",
        "version": "0.3.31",
        "num_threads": 2,
        "filepath": f"/lib/{package}.libs/libscipy_openblas.so",
        "architecture": architecture,
    }


GOOD = Facts(
    python="3.12",
    system="Linux",
    cpu="a processor",
    flags=AVX512,
    cores=4,
    usable_cores=4,
    memory=16 << 30,
    free_memory=12 << 30,
    blas=(openblas("SkylakeX"), openblas("SkylakeX", "scipy")),
    versions={
        "numba": "0.68",
        "llvmlite": "0.50",
        "scipy": "1.17",
        "dask": "2026.8.0",
        "distributed": "2026.8.0",
        "scikit-learn": "1.9",
        "rich": "15",
        "matplotlib": "3.11",
        "networkx": "3.6",
    },
    settings={
        "distributed.scheduler.worker-saturation": "inf",
        "distributed.admin.event-loop": "tornado",
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
    },
    numba={"threading_layer": "default", "threads": 4, "jit": True, "cpu": "skylake-avx512"},
    cache="/cache",
)


def finding(facts, subject):
    """The only finding on a subject."""
    (found,) = [f for f in examine(facts) if f.subject == subject]
    return found


def test_nothing_is_to_be_changed_on_a_good_machine():
    assert {f.verdict for f in examine(GOOD)} == {"ok"}
    assert summary(examine(GOOD)) == "nothing to change"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (AVX512, "AVX-512"),
        ({"sse2", "avx", "avx2", "fma", "avx512f"}, "AVX2"),  # too little of AVX-512 for its kernels
        ({"sse2", "avx"}, "AVX"),
        ({"sse2"}, "SSE"),
        ({"asimd"}, ""),
    ],
)
def test_level_of_cpu(flags, level):
    assert level_of_cpu(frozenset(flags)) == level


def test_level_of_kernel():
    assert level_of_kernel("Haswell") == level_of_kernel("Zen") == "AVX2"
    assert level_of_kernel("neoversen1") == ""
    assert set(KERNELS) == set(LEVELS)


def test_a_forced_kernel_is_named_with_its_price_and_the_cure():
    facts = replace(GOOD, blas=(openblas("Haswell"),), environment={"OPENBLAS_CORETYPE": "Haswell"})
    found = finding(facts, "BLAS of numpy")
    assert found.verdict == "change"
    assert "AVX-512" in found.text
    assert "1.2x" in found.text
    assert "1.5x" in found.text
    assert found.advice.startswith("unset OPENBLAS_CORETYPE (now Haswell)")
    assert summary(examine(facts)) == "1 thing to change"


def test_an_old_blas_is_to_be_updated():
    found = finding(replace(GOOD, blas=(openblas("Nehalem", "scipy"),)), "BLAS of scipy")
    assert found.verdict == "change"
    assert "pip install" in found.advice
    assert "1.5x" not in found.text  # nobody measured that pair


@pytest.mark.parametrize("architecture", [None, "neoversen1", "armv8"])
def test_kernels_that_are_not_known_are_no_complaint(architecture):
    facts = replace(GOOD, blas=(openblas(architecture),))
    assert finding(facts, "BLAS of numpy").verdict == "ok"


@pytest.mark.parametrize(
    ("change", "subject", "verdict", "words"),
    [
        ({"blas": ()}, "BLAS", "note", "threads cannot be limited"),
        ({"environment": {"OPENBLAS_CORETYPE": "SkylakeX"}, "blas": (openblas("SkylakeX"),)}, "BLAS of numpy", "note", "unset"),
        ({"environment": {"OMP_NUM_THREADS": "4"}}, "BLAS threads", "note", "OMP_NUM_THREADS=4"),
        ({"usable_cores": 2}, "cores", "note", "2 of 4"),
        ({"free_memory": 1 << 30}, "memory", "note", "--workers 1"),
        ({"numba": {**GOOD.numba, "jit": False}}, "numba", "change", "unset NUMBA_DISABLE_JIT"),
        ({"cache_problem": "/x cannot be written to"}, "kernel cache", "change", "FLOWGRAD_CACHE_DIR"),
        ({"versions": {**GOOD.versions, "distributed": "2026.1.0"}}, "dask", "change", "pip install -U"),
        ({"settings": {**GOOD.settings, "distributed.scheduler.worker-saturation": 1.1}}, "small tasks", "note", "1.1"),
        ({"settings": {**GOOD.settings, "distributed.admin.event-loop": "uvloop"}}, "event loop", "change", "uvloop"),
        ({"environment": {"MALLOC_TRIM_THRESHOLD_": "0"}}, "workers' memory", "change", "export"),
        ({"environment": {"MALLOC_TRIM_THRESHOLD_": str(1 << 30)}}, "workers' memory", "ok", "this shell"),
    ],
)  # fmt: skip
def test_verdicts(change, subject, verdict, words):
    found = finding(replace(GOOD, **change), subject)
    assert found.verdict == verdict
    assert words in f"{found.text} {found.advice}"


@pytest.mark.parametrize("name", ["numba", "scipy"])
def test_compiled_kernels_need_numba_and_scipy(name):
    versions = {key: value for key, value in GOOD.versions.items() if key != name}
    found = finding(replace(GOOD, versions=versions, numba={}), "numba")
    assert found.verdict == "change"
    assert name in found.text
    assert "flowgrad[fast]" in found.advice


def test_extras_that_are_missing_are_named_with_their_extra():
    versions = {key: value for key, value in GOOD.versions.items() if key not in ("rich", "matplotlib")}
    found = finding(replace(GOOD, versions=versions), "extras")
    assert found.text == "not installed: rich, matplotlib"
    assert "flowgrad[ml,viz]" in found.advice


def test_what_dask_gives_to_workers_is_only_a_note():
    settings = {**GOOD.settings, "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": 65536}}
    assert finding(replace(GOOD, settings=settings), "workers' memory").verdict == "note"


def test_facts_may_be_missing():
    assert examine(Facts())


def test_cpu_of_other_systems(tmp_path):
    assert read_cpu(tmp_path / "none")[1] == frozenset()
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: other\n")
    assert read_cpu(arm)[1] == {"fp", "asimd"}


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWGRAD_CACHE_DIR", str(tmp_path / "file" / "deeper"))
    assert "is not a folder" in read_facts().cache_problem
    monkeypatch.setenv("FLOWGRAD_CACHE_DIR", str(tmp_path / "new" / "deeper"))
    assert not read_facts().cache_problem
    assert not (tmp_path / "new").exists()  # looking changes nothing


@pytest.mark.parametrize("variable", ["FLOWGRAD_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_relative_cache_stays_where_it_was(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("FLOWGRAD_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, f"cache-{tmp_path.name}")
    monkeypatch.chdir(tmp_path)
    before = cache_folder()
    monkeypatch.chdir(tmp_path.parent)
    assert cache_folder() == before
    assert tmp_path in before.parents


def test_plain_text_lines_up():
    text = plain_text([Finding("a", "ok", "fine"), Finding("longer", "change", "bad", "do this")])
    assert text.splitlines() == [
        "ok           a       fine",
        "change this  longer  bad",
        "                     -> do this",
    ]


def test_the_command():
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    for word in ("processor", "BLAS", "numba", "dask", "kernel cache"):
        assert word in done.output


def test_the_command_on_a_terminal(monkeypatch):
    # The group's attribute `doctor` is the command, which hides the module.
    monkeypatch.setattr(sys.modules["flowgrad.cli.doctor"], "_on_terminal", lambda: True)
    done = CliRunner().invoke(main, ["doctor"], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    assert "processor" in done.output


def test_the_command_as_json():
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.output)
    assert {"subject", "verdict", "text", "advice"} == set(values["findings"][0])
    assert values["facts"]["versions"]["numpy"]
    assert values["facts"]["usable_cores"] >= 1


def test_a_forced_kernel_is_seen_in_a_real_process():
    if level_of_cpu(read_cpu()[1]) not in ("AVX2", "AVX-512"):
        pytest.skip("this processor offers no more than the kernel that would be forced")
    env = {**os.environ, "OPENBLAS_CORETYPE": "Nehalem", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "flowgrad", "doctor", "--json"], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    if "openblas" not in {pool["internal_api"] for pool in values["facts"]["blas"]}:
        pytest.skip("NumPy here uses another BLAS than OpenBLAS")
    assert any(f["verdict"] == "change" and "OPENBLAS_CORETYPE" in f["advice"] for f in values["findings"])


def test_without_rich(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
