"""The text of a profile: what is taken, what it becomes, and what is refused by its line."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from noderuntime.api.apparmor_text import LONGEST, compile_text, read
from noderuntime.api.securityprofile import SecurityProfileSpec

PLAIN = "profile web {\n  file,\n}\n"
FULL = """\
#include <tunables/global>
abi <abi/3.0>,
@{DATA}=/srv /opt  # where the data is
# A comment with profile evil { in it.
profile web flags=(mediate_deleted, attach_disconnected) {
  include <abstractions/base>
  file, # all files
  deny @{DATA}/{a,b}/** w,
  deny "/with a space {/x" w,
  signal (send, receive) peer=web,
  signal (send) peer="web",
  signal (send) peer=website,
  deny signal (send) peer=other,
  /usr/bin/[^a]* ix,
}
"""


def test_a_profile_becomes_one_of_ours_with_its_rules_as_they_are() -> None:
    name, source = compile_text(read(FULL), "team.a", complain=False)
    assert name.startswith("noderuntime-team.a-")
    assert len(name.rpartition("-")[2]) == 12
    assert source.splitlines() == [
        "#include <tunables/global>",
        "abi <abi/3.0>,",
        "@{DATA}=/srv /opt",
        f"profile {name} flags=(attach_disconnected, mediate_deleted) {{",
        "  include <abstractions/base>",
        "  file,",
        "  deny @{DATA}/{a,b}/** w,",
        '  deny "/with a space {/x" w,',
        f"  signal (send, receive) peer={name},",
        f'  signal (send) peer="{name}",',
        "  signal (send) peer=website,",
        "  deny signal (send) peer=other,",
        "  /usr/bin/[^a]* ix,",
        "  signal (receive) peer=unconfined,",
        "  signal (receive) peer=crun,",
        "  signal (receive) peer=runc,",
        "}",
    ]


def test_another_text_is_another_profile_and_the_same_text_is_the_same() -> None:
    names = {
        compile_text(read(text), profile, complain=complain)[0]
        for text, profile, complain in (
            (PLAIN, "web", False),
            (PLAIN + "# said otherwise\n", "web", False),
            (PLAIN.replace("file,", "file, network,"), "web", False),
            (PLAIN, "web", True),
            (PLAIN, "other", False),
        )
    }
    assert len(names) == 4


def test_in_audit_the_kernel_logs_what_it_would_deny() -> None:
    assert "flags=(complain)" in compile_text(read(PLAIN), "web", complain=True)[1]


@pytest.mark.parametrize(
    ("rule", "becomes"),
    [
        ("deny /tmp/** w,", "audit /tmp/** w,"),
        ("audit deny /tmp/** wklx,", "audit /tmp/** wkl,"),
        ("deny /bin/sh x,", "audit /bin/sh r,"),
        ("deny x /bin/sh,", "audit r /bin/sh,"),
        ("deny mount,", "audit mount,"),
        ("deny signal (send) peer=x,", "audit signal (send) peer=x,"),
        ("deny /a w, /b ix,", "audit /a w, /b ix,"),
    ],
)
def test_in_audit_a_deny_is_logged_and_not_done(rule: str, becomes: str) -> None:
    text = read(f"profile web {{\n  {rule}\n}}\n")
    assert f"  {becomes}\n" in compile_text(text, "web", complain=True)[1]
    assert f"  {rule}\n" in compile_text(text, "web", complain=False)[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "holds no profile", id="empty"),
        pytest.param("# nothing\n", "holds no profile", id="a comment"),
        pytest.param("profile web {\n", "does not end", id="no end"),
        pytest.param("x" * (LONGEST + 1), "longer than", id="long"),
        pytest.param("/usr/sbin/sshd {\n}\n", "before the profile", id="a path as its name"),
        pytest.param("profile /usr/sbin/sshd {\n}\n", "and no path", id="named by a path"),
        pytest.param("profile web /usr/sbin/sshd {\n}\n", "and no path", id="attachment"),
        pytest.param("profile :ns:web {\n}\n", "and no path", id="namespace"),
        pytest.param("profile web flags=(complain) {\n}\n", "flag complain", id="complain"),
        pytest.param("profile web flags=(unconfined) {\n}\n", "flag unconfined", id="unconfined"),
        pytest.param("profile web xattrs=(a=b) {\n}\n", "no path", id="xattrs"),
        pytest.param(PLAIN + "profile other {\n}\n", "line 4: something follows", id="a second"),
        pytest.param(PLAIN + "include <tunables/x>\n", "line 4: an include", id="include after"),
        pytest.param("profile web {\n profile x {\n}\n}\n", "line 2: profile:", id="child"),
        pytest.param("profile web {\n ^hat {\n}\n}\n", "^hat:", id="hat"),
        pytest.param("profile web {\n file,^hat{file,}\n}\n", "hat", id="hat without a space"),
        pytest.param("profile web {\n hat x {\n}\n}\n", "hat:", id="hat by its word"),
        pytest.param("profile web {\n if defined $X {\n}\n}\n", "if:", id="condition"),
        pytest.param("profile web {\n x{\n}\n}\n", "no block", id="block"),
        pytest.param("profile web {\n /x}{ r,\n}\n", "no block", id="braces the other way"),
        pytest.param("profile web {\n /x\\{ r,\n}\n", "escaped brace", id="escaped brace"),
        pytest.param("profile web {\n /a#b { r,\n}\n", "a # inside", id="no comment after all"),
        pytest.param('profile web {\n "/a r,\n}\n', "a quote is not closed", id="quote"),
        pytest.param('profile web {\n include "/etc/x"\n}\n', "an include", id="include of a path"),
        pytest.param("profile web {\n include </etc/x>\n}\n", "an include", id="include, brackets"),
        pytest.param("profile web {\n file, include <x>\n}\n", "include", id="include in a line"),
        pytest.param(
            "profile web {\n include <abstractions/../x>\n}\n", "an include", id="include upwards"
        ),
        pytest.param(
            "profile web {\n include if exists <abstractions/base>\n}\n", "include", id="if exists"
        ),
        pytest.param("profile web {\n deny signal,\n}\n", "deny signal", id="no signals"),
        pytest.param(
            "profile web {\n audit deny  signal (send, receive),\n}\n", "deny signal", id="both"
        ),
        pytest.param("alias / -> /x,\n" + PLAIN, "before the profile", id="alias"),
    ],
)
def test_a_text_that_reaches_beyond_itself_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        read(text)
    with pytest.raises(ValidationError):
        SecurityProfileSpec.model_validate({"appArmor": {"profile": text}})


def test_a_comment_never_reaches_the_parser() -> None:
    text = 'profile web {\n  file, #include "/etc/shadow"\n}\n'
    assert "shadow" not in compile_text(read(text), "web", complain=False)[1]


@given(st.text(alphabet='profile web{}^,/ab "#\\()=\n\thif', max_size=120))
def test_whatever_is_taken_defines_one_profile_and_ends(inside: str) -> None:
    try:
        text = read(f"profile web {{\n{inside}\n}}\n")
    except ValueError:
        return
    name, source = compile_text(text, "p", complain=False)
    lines = source.splitlines()
    assert [line for line in lines if line.startswith("profile ")] == [f"profile {name} {{"]
    assert lines[-1] == "}"
    assert all(line.startswith("  ") for line in lines[1:-1])
