"""URLs of streaming: one use, one minute, one kind, a bounded number."""

from __future__ import annotations

import pytest

from noderuntime.cri.streaming.tokens import LIFETIME_S, MAX_OPEN, Forward, RemoteCommand, Tokens
from noderuntime.errors import ResourceExhaustedError

FORWARD = Forward(sandbox_id="s", ports=())
EXEC = RemoteCommand(
    container_id="c", argv=("sh",), stdin=False, stdout=True, stderr=True, tty=False
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_works_once() -> None:
    tokens = Tokens()
    token = tokens.issue(EXEC)
    assert tokens.redeem("exec", token) is EXEC
    assert tokens.redeem("exec", token) is None


def test_a_token_of_another_kind_is_void_and_used_up() -> None:
    tokens = Tokens()
    token = tokens.issue(FORWARD)
    assert tokens.redeem("exec", token) is None
    assert tokens.redeem("portforward", token) is None


def test_a_token_ends_after_a_minute() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    token = tokens.issue(EXEC)
    clock.now = LIFETIME_S
    assert tokens.redeem("exec", token) is None


def test_tokens_do_not_repeat_and_are_long() -> None:
    tokens = Tokens()
    found = {tokens.issue(EXEC) for _ in range(100)}
    assert len(found) == 100
    assert min(map(len, found)) >= 32


def test_open_tokens_are_bounded_until_they_end() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    for _ in range(MAX_OPEN):
        tokens.issue(EXEC)
    with pytest.raises(ResourceExhaustedError):
        tokens.issue(EXEC)
    clock.now = LIFETIME_S
    assert tokens.redeem("exec", tokens.issue(EXEC)) is EXEC
