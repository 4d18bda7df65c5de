"""What the documents say can be found in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_every_link_leads_somewhere() -> None:
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents()
        for target in LINK.findall(document.read_text())
        if not (document.parent / target).exists()
    ]
    assert broken == []


ATTACKS = ROOT / "tests" / "root" / "attacks"
# Those that a node runtime has to answer for; each has a test that says so.
CVES = (
    "2019-5736 2024-21626 2021-30465 2025-31133 2025-52565 2025-52881 2019-16884 2022-0492 2022-0811 "
    "2022-23648 2024-3154 2022-27652 2022-24769 2022-2995 2024-40635 2024-5154 2024-8676 2022-31030 "
    "2022-1708 2025-64329 2024-25621 2021-41103 2020-15257 2020-8558"
).split()


def attacks() -> dict[str, str]:
    """Return the docstring of each attack's test, by ``FILE::NAME``."""
    return {
        f"{file.name}::{node.name}": ast.get_docstring(node) or ""
        for file in sorted(ATTACKS.glob("test_*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    }


def test_the_threat_model_links_each_attack_and_each_says_what_it_is() -> None:
    told: list[str] = []
    file = ""
    for named, test in re.findall(
        r"`(test_\w+\.py)?::(test_\w+)`", (ROOT / "docs" / "threat-model.md").read_text()
    ):
        file = named or file
        told.append(f"{file}::{test}")
    found = attacks()
    assert sorted(told) == sorted(found)
    assert [name for name, text in found.items() if not text] == []


def test_each_known_vulnerability_of_such_a_runtime_has_its_attack() -> None:
    def words(cve: str) -> str:
        year, _, number = cve.partition("-")
        return rf"{year}(_\d+)*(_and)?(_\d{{4}})?_{number}(_|$)"

    missing = [cve for cve in CVES if not any(re.search(words(cve), name) for name in attacks())]
    assert missing == []


def test_every_make_target_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, flags=re.MULTILINE))
    named = {
        name
        for document in documents()
        for name in re.findall(r"(?:`|^\s*)make ([a-z]+)", document.read_text(), re.MULTILINE)
    }
    assert named - targets == set()


def test_ci_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_make_lists_its_commands() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("up", "down", "check", "test", "e2e", "image", "generate"):
        assert f"make {command} " in done.stdout


def test_the_decision_records_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
