"""The rules of the house hold: one way between the wings, no circles, heavy libraries at home, readable sizes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("scheduler", "workers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70

HOMES = {
    "ray": {"workers/ray_worker.py"},
    "vllm": {"workers/engines/vllm", "workers/engines/vllm_step_hook.py"},
    "pynvml": {"workers/power/nvml.py"},
    "sqlalchemy": {"scheduler/accounting/ledger", "scheduler/accounting/migrations/"},
    "alembic": {"scheduler/accounting/ledger", "scheduler/accounting/migrations/"},
    "pyarrow": {"scheduler/commands/usage_parquet.py"},
    "prometheus_client": {"scheduler/metrics.py"},
    "numba": {"scheduler/core/compiled.py"},
    "torch": {"workers/engines/smollm2.py", "workers/engines/vllm"},
    "transformers": {"workers/engines/smollm2.py"},
}
"""Where each heavy library may be imported; a prefix, so that an engine may have neighbours (vllm_args.py)."""


def product_files() -> list[Path]:
    return sorted(path for wing in WINGS for path in (ROOT / wing).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every absolute module name imported anywhere in the tree, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level + (node.module or ""), node.lineno)
            if node.module and not node.level:
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def run_time_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: no function bodies, no TYPE_CHECKING branch."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_time_statements(node.orelse)
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from run_time_statements(getattr(node, name, []))


def imports_at_import_time(tree: ast.Module) -> set[str]:
    statements = [node for node in run_time_statements(tree.body) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for node in statements for name, _ in imported(node)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each circle found by depth-first search, as the path that closes it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(graph.get(name, set())):
            visit(target, [*path, name])
        done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def foreign_imports(source: str, where: str) -> list[str]:
    """Heavy libraries that the file imports although it is not their home."""
    wrong = []
    for name, line in imported(ast.parse(source)):
        library = name.split(".")[0]
        if library in HOMES and not any(where.startswith(home) for home in HOMES[library]):
            wrong.append(f"{where}:{line} imports {library}")
    return sorted(set(wrong))


def long_functions(source: str, where: str) -> list[str]:
    return [
        f"{where}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def test_there_are_product_files_to_look_at() -> None:
    """The other tests of this file would pass on an empty list."""
    assert len(product_files()) >= 15


def test_workers_never_import_the_scheduler() -> None:
    """What runs beside a GPU does not know the control plane."""
    wrong = [
        f"{relative(path)}:{line} {name}"
        for path in product_files()
        if relative(path).startswith("workers/")
        for name, line in imported(ast.parse(path.read_text()))
        if name.split(".")[0] == "scheduler"
    ]
    assert [] == wrong


def test_imports_are_absolute() -> None:
    """A reader sees from each import where the thing lives."""
    wrong = [
        f"{relative(path)}:{line}"
        for path in product_files()
        for name, line in imported(ast.parse(path.read_text()))
        if name.startswith(".")
    ]
    assert [] == wrong


def test_modules_import_without_circles() -> None:
    """Every module can be read from the ground floor up."""
    modules = {module_of(path): path for path in product_files()}
    graph = {
        module: {name for name in imports_at_import_time(ast.parse(path.read_text())) if name in modules} - {module}
        for module, path in modules.items()
    }
    assert [] == circles(graph)


def test_heavy_libraries_stay_in_their_file() -> None:
    """Replacing Ray, vLLM, NVML or the database means to open one file."""
    wrong = [line for path in product_files() for line in foreign_imports(path.read_text(), relative(path))]
    assert [] == wrong


def test_product_files_are_of_readable_size() -> None:
    """A file fits in a head."""
    sizes = {relative(path): len(path.read_text().splitlines()) for path in product_files()}
    assert {} == {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES}


def test_functions_are_of_readable_size() -> None:
    """A function fits on a screen."""
    assert [] == [line for path in product_files() for line in long_functions(path.read_text(), relative(path))]


def test_every_module_begins_with_its_duty() -> None:
    """The first thing in a file says what it is for."""
    silent = [relative(path) for path in product_files() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert [] == silent


def test_package_files_define_nothing() -> None:
    """``__init__.py`` holds a docstring and nothing else."""
    packages = [path for path in product_files() if path.name == "__init__.py"]
    assert [] == [relative(path) for path in packages if len(ast.parse(path.read_text()).body) > 1]


def test_there_is_no_package_file_under_tests() -> None:
    """Tests are collected by importlib; equal names in two folders do not collide."""
    assert [] == [relative(path) for path in (ROOT / "tests").rglob("__init__.py")]


def test_no_catch_all_names() -> None:
    """A module is a noun of the domain."""
    banned = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
    assert [] == [relative(path) for path in product_files() if path.stem in banned]


@pytest.mark.parametrize(
    ("library", "statement"),
    [("ray", "import ray"), ("vllm", "from vllm.v1 import engine"), ("pynvml", "def f():\n    import pynvml")],
)
def test_a_heavy_library_outside_its_home_is_found(library: str, statement: str) -> None:
    """The rule bites, at the top of a file and inside a function."""
    wrong = foreign_imports(statement, "scheduler/dispatcher.py")
    assert [library] == [line.split()[-1] for line in wrong]


def test_a_circle_is_found() -> None:
    """The search names the path that closes the circle."""
    assert [["a", "b", "c", "a"]] == circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_an_import_for_types_only_is_no_circle() -> None:
    """What only a type checker reads does not run."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import scheduler.core\nelse:\n    import os\n"
    assert {"typing", "typing.TYPE_CHECKING", "os"} == imports_at_import_time(ast.parse(source))


def test_a_long_function_is_found() -> None:
    """Seventy lines pass, seventy-one do not."""
    body = "\n".join(["def f():", *["    pass"] * (MAX_FUNCTION_LINES - 1)])
    assert [] == long_functions(body, "x.py")
    assert ["x.py:1 f has 71 lines"] == long_functions(body + "\n    pass", "x.py")


def test_the_boundary_values_import_nothing_heavy() -> None:
    """A control plane without Ray and without an engine can read what a worker says."""
    code = "import sys, workers.types, workers.errors; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"ray", "vllm", "torch", "numpy", "pynvml"} & set(names.split())
