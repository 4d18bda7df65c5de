"""The reader of documents whose commands are run (``e2e/framework/walk.py``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.framework.walk import Shell, Step, missing, steps, walk

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = """# A title
<!-- shown only: no cluster here -->
```sh
make up
```

```sh
x=1
cat > file <<'EOF'
$ not a command
EOF
```
text
```console
$ echo $x; false
1
$ echo $?
1
```
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path, os.environ)
    yield made
    made.close()


def test_a_document_is_scripts_and_commands_with_their_lines() -> None:
    script = "set -e\nx=1\ncat > file <<'EOF'\n$ not a command\nEOF\nset +e"
    assert list(steps(DOCUMENT)) == [
        Step(line=8, command=script),
        Step(line=15, command="echo $x; false", prints=("1",)),
        Step(line=17, command="echo $?", prints=("1",)),
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "absent"),
    [
        ((), "anything", ""),
        (("b   c",), "a\n  b c\n", ""),
        (("a", "c"), "a\nb\nc", ""),
        (("c", "a"), "a\nb\nc", "a"),
        (("...", "b"), "a\nb", ""),
        (("web-...   1/1   ...",), "web-5d9c-x 1/1 Running", ""),
        (("b",), "abc", "b"),
        (("a.c",), "abc", "a.c"),
    ],
)
def test_lines_are_found_in_their_order(
    expected: tuple[str, ...], printed: str, absent: str
) -> None:
    assert missing(expected, printed) == absent


@pytest.mark.slow
def test_a_walk_keeps_folder_variables_and_status(shell: Shell, tmp_path: Path) -> None:
    document = tmp_path / "d.md"
    document.write_text(DOCUMENT)
    walk(document, shell)
    assert (tmp_path / "file").read_text() == "$ not a command\n"
    document.write_text("```console\n$ echo a\nb\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)d\.md:2: \$ echo a\n.*\n  b\nbut printed\na"):
        walk(document, shell)


@pytest.mark.slow
def test_a_command_that_hangs_or_ends_the_shell_is_told(shell: Shell) -> None:
    with pytest.raises(AssertionError, match="the shell ended: echo last; exit"):
        shell.run("echo last; exit", 10)


def test_the_tutorial_runs_what_it_shows() -> None:
    found = list(steps((ROOT / "docs" / "tutorial.md").read_text()))
    assert len(found) > 30
    assert not any("make " in each.command for each in found)
