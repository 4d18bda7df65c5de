"""CONTRIBUTING.md's bounds on the size of a file and of a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("noderuntime", "operator", "tests", "e2e", "deploy")
GENERATED = ROOT / "noderuntime" / "cri" / "runtime_v1"
MAX_FILE_LINES = 400
MAX_TEST_LINES = 600  # a table of cases is easier to read in one piece
MAX_FUNCTION_LINES = 60


def sources() -> list[Path]:
    found = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if GENERATED not in path.parents)


def bound_of(path: Path) -> int:
    is_test = path.relative_to(ROOT).parts[0] == "tests" or path.name.startswith("test_")
    return MAX_TEST_LINES if is_test else MAX_FILE_LINES


def long_functions(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    functions = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {lines} lines"
        for function in functions
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]


@pytest.fixture(scope="module")
def python_files() -> list[Path]:
    files = sources()
    assert len(files) > 20
    return files


def test_no_file_is_longer_than_the_bound(python_files: list[Path]) -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in python_files
        if (lines := len(path.read_text().splitlines())) > bound_of(path)
    }
    assert too_long == {}


@pytest.mark.slow
def test_no_function_is_longer_than_the_bound(python_files: list[Path]) -> None:
    assert [text for path in python_files for text in long_functions(path)] == []
