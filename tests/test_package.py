"""What holds for the package as a whole: layers, safety of loading, the links at the top."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "o2o_smooth"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FILES = {"errors", "files", "reading", "redaction"}  # the ground that every room with files stands on

# room -> rooms of ours that it may import
MAY_KNOW = {
    "smoothing": {"smoothing"},
    "stability": {"stability", *FILES},
    "envs": {"envs", *FILES},
    "data": {"data", "envs", *FILES},
    "kernels": {"kernels"},
    "agents": {"agents", "smoothing", "kernels", "data.batch", "data.transfer", "draws", *FILES},
    "training": {"training", "agents", "data", "envs", "smoothing", "stability", "kernels", "draws", *FILES},
    "benchmarks": {
        *("benchmarks", "training", "agents", "data", "envs", "smoothing", "stability", "kernels", "draws"),
        *("cli", "cli_options", "cli_data"),  # what a job or a killed process runs is a command
        *FILES,
    },
}


def _imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("room", MAY_KNOW)
def test_rooms_know_only_whom_they_may(room: str) -> None:
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for name in _imports(file):
            if not name.startswith("o2o_smooth."):
                continue
            inner = name.removeprefix("o2o_smooth.")
            allowed = any(inner == known or inner.startswith(f"{known}.") for known in MAY_KNOW[room])
            through = inner in {known.split(".")[0] for known in MAY_KNOW[room]}  # "from o2o_smooth.data import ..."
            assert allowed or (through and inner in MAY_KNOW[room]), f"{file.relative_to(ROOT)} imports {name}"


def test_objectives_and_schedules_import_nothing_of_ours() -> None:
    for name in ("objective", "schedules"):
        ours = [i for i in _imports(PACKAGE / "smoothing" / f"{name}.py") if i.startswith("o2o_smooth")]
        assert not ours


def test_stability_needs_no_torch() -> None:
    code = "import sys, o2o_smooth.stability; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_that_executes_code_when_loaded(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {name.split(".")[0] for name in _imports(file)}
    assert not modules & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "eval", "exec"):
            assert "weights_only=True" in ast.unparse(node)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize("name", ["agents", "envs", "benchmarks"])
def test_folders_of_the_design_show_at_the_top(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (PACKAGE / name).resolve()


def test_no_global_random_numbers() -> None:
    """np.random.seed, torch.manual_seed and friends would tie runs in one process to each other."""
    allowed = ("default_rng", "Generator", "SeedSequence")
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            if (file.name, call) == ("snapshot.py", "np.random.RandomState"):
                continue  # an environment's own generator of the old kind, made to be given a state
            if call.startswith("np.random."):
                assert re.split(r"\W", call.removeprefix("np.random."))[0] in allowed, f"{file.name}: {call}"
            assert call not in ("torch.manual_seed", "torch.randn", "torch.rand", "torch.randint", "random.random")


@pytest.mark.slow
def test_wheel_built_from_the_sdist_works_from_another_folder(tmp_path: Path) -> None:
    """What users install: the presets and type marker are in it, and the command and import work outside the repo."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)  # without flags: the wheel is built from the sdist
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv = tmp_path / "venv"
    # A clean environment that borrows the installed dependencies, so that nothing is downloaded again.
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(venv)], check=True)
    site = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (borrowed,) = (venv / "lib").glob("python*/site-packages")
    python = str(venv / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (borrowed / "borrowed.pth").write_text(site + "\n")
    code = (
        "import o2o_smooth.agents as a, pathlib, sys; p = pathlib.Path(a.__file__).parent;"
        "assert str(p).startswith(sys.prefix), p; assert (p.parent / 'py.typed').is_file();"
        "assert (p.parent / 'kernels' / 'cpu.c').is_file();"
        "assert a.IQLConfig.preset('antmaze').beta == 10.0"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
    help_text = subprocess.run(
        [str(venv / "bin" / "o2o-smooth"), "run", "--help"], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert "--ramp-steps" in help_text
