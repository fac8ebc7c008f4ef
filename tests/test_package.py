"""What holds for the package as a whole: one import name, one direction of imports, names that resolve."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest

import dispatchgym
from dispatchgym.envs import ENVS
from dispatchgym.envs.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("envs", "solvers", "agents", "serving", "dashboards")
"""Each may import itself and what stands before it."""
CODE_FOLDERS = (*LAYERS, "configs")
LEARNING = {"torch", "torch_geometric", "stable_baselines3"}
DISTRIBUTIONS = importlib.metadata.packages_distributions()
"""Import name -> names of the installed distributions that provide it."""
ELSEWHERE = {"triton": {"torch"}, "ray": {"ray"}, "sglang": {"sglang"}, "vllm": {"vllm"}}
"""Libraries that this environment may lack -> the requirement that brings them where they are used."""
HOSTS = {
    "serving/plugins/vllm.py": ("vllm",), "serving/plugins/ray_router.py": ("ray",),
    "serving/plugins/ray_llm.py": ("ray",), "serving/plugins/sglang.py": ("sglang",),
}  # fmt: skip
"""Plug-ins -> the extra that installs what they plug into."""

SOURCES = sorted(
    file.relative_to(ROOT)
    for folder in (*CODE_FOLDERS, "tests", "benchmarks", ".ci")
    for file in (ROOT / folder).rglob("*.py")
) + [file.relative_to(ROOT) for file in sorted((*ROOT.glob("*.py"), *ROOT.glob("dispatchgym/*.py")))]


def imported_modules(file: Path) -> Iterator[str]:
    """Every module that `file` imports anywhere, or names as a registry's "module:attribute"."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "dispatchgym":
                yield from (f"dispatchgym.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and (named := re.fullmatch(r"(dispatchgym(?:\.\w+)+):\w+", node.value))
        ):
            yield named[1]


def canonical(distribution: str) -> str:
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def all_modules(package: str = "dispatchgym") -> list[str]:
    """Names of all modules of the package, found without importing more than the packages themselves."""
    root = importlib.import_module(package)
    return [package, *(found.name for found in pkgutil.walk_packages(root.__path__, f"{package}."))]


def imported(name: str) -> ModuleType | None:
    """The module; None if it is for a library that this environment lacks."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        if (missing.name or "").split(".")[0] in ELSEWHERE:
            return None
        raise


def run_python(code: str, cwd: Path, pythonpath: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that sees `pythonpath` alone beside what is installed."""
    environment = {"PATH": "", "HOME": str(cwd), "PYTHONPATH": str(pythonpath or "")}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_every_import_of_our_code_goes_through_dispatchgym(file: Path) -> None:
    foreign = [name for name in imported_modules(file) if name.split(".")[0] in ("", *CODE_FOLDERS)]
    assert not foreign, f"{file} imports {foreign}; write dispatchgym.{foreign[0].lstrip('.')}"


@pytest.mark.parametrize("file", [f for f in SOURCES if f.parts[0] in LAYERS], ids=str)
def test_imports_point_towards_envs_and_never_back(file: Path) -> None:
    allowed = LAYERS[: LAYERS.index(file.parts[0]) + 1]
    upward = [
        name
        for name in imported_modules(file)
        if re.match(r"dispatchgym\.", name) and name.split(".")[1] in set(LAYERS) - set(allowed)
    ]
    assert not upward, f"{file} imports {upward}; {file.parts[0]} may import {', '.join(allowed)} only"


@pytest.mark.parametrize("file", [f for f in SOURCES if f.parts[0] == "envs"], ids=str)
def test_no_file_of_envs_imports_a_learning_library(file: Path) -> None:
    assert not LEARNING & {name.split(".")[0] for name in imported_modules(file)}


@pytest.mark.parametrize("file", [f for f in SOURCES if f.parts[0] in (*LAYERS, "dispatchgym")], ids=str)
def test_every_library_that_is_imported_is_a_declared_requirement(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ("serving", "kubernetes", *HOSTS.get(file.as_posix(), ())) if file.parts[0] == "serving" else ()
    written = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    declared = {canonical(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in written}
    for name in {name.split(".")[0] for name in imported_modules(file)} - sys.stdlib_module_names - {"dispatchgym"}:
        provided_by = {canonical(distribution) for distribution in DISTRIBUTIONS.get(name, ())} | ELSEWHERE.get(
            name, set()
        )
        assert provided_by & declared, f"{file} imports {name}, which no dependency in pyproject.toml provides"


@pytest.mark.parametrize("package", ["dispatchgym.envs", "dispatchgym.solvers", "dispatchgym.agents.evaluation"])
def test_importing_all_of_a_package_that_needs_no_torch_loads_none(package: str, tmp_path: Path) -> None:
    code = (
        f"import importlib, sys\n"
        f"for name in {all_modules(package)!r}: importlib.import_module(name)\n"
        f"print(sorted({LEARNING!r} & set(sys.modules)))"
    )
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_every_registry_entry_can_be_imported() -> None:
    registries = {
        id(value): value
        for name in all_modules()
        if name != "dispatchgym.__main__"
        if (module := imported(name)) is not None
        for value in vars(module).values()
        if isinstance(value, Registry)
    }
    assert registries
    for registry in registries.values():
        for name in registry:
            assert registry[name] is not None


def test_importing_dispatchgym_makes_its_ids_known_to_gymnasium(tmp_path: Path) -> None:
    code = "import gymnasium, dispatchgym; print(*(n for n in gymnasium.registry if n.startswith('dispatchgym/')))"
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, list(ENVS)), done.stderr


@pytest.mark.parametrize("name", ENVS)
def test_every_registered_environment_can_be_made(name: str) -> None:
    gymnasium.make(name).close()


def test_a_checkout_imports_under_one_name_only(tmp_path: Path) -> None:
    code = (
        f"import importlib.util, dispatchgym.envs.api\n"
        f"print([n for n in {CODE_FOLDERS!r} if importlib.util.find_spec(n) is not None])"
    )
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_checkout_without_symbolic_links_still_imports(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in CODE_FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "dispatchgym"
    package.mkdir()
    for file in (ROOT / "dispatchgym").iterdir():
        if file.is_symlink():  # git on Windows writes a link as a text file that holds the target
            (package / file.name).write_text(f"../{file.name}", encoding="utf-8")
        elif file.is_file():
            shutil.copy(file, package)

    code = "import dispatchgym.envs.api, dispatchgym.solvers; print(dispatchgym.envs.api.__file__)"
    done = run_python(code, tmp_path, pythonpath=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == (tmp_path / "envs" / "api.py").resolve()


def test_the_code_folders_are_linked_into_the_package() -> None:
    package = Path(dispatchgym.__file__).parent
    for folder in CODE_FOLDERS:
        assert (package / folder).resolve() == ROOT / folder


def test_no_tracked_file_names_a_path_of_somebodys_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are ours")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    machine_path = re.compile(r"(?<![\w./~-])/(?:home|Users|root|work|mnt)/[\w.]")
    found = []
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if file.is_symlink() or not file.is_file():
            continue
        text = file.read_bytes().decode("utf-8", errors="replace")
        found += [f"{name}:{i}" for i, line in enumerate(text.splitlines(), 1) if machine_path.search(line)]
    assert not found
