from __future__ import annotations

import pytest

from noderuntime.api.quantity import milli_cpu, parse, show_bytes, show_cpu, size_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("128Mi", 128 << 20),
        ("1Gi", 1 << 30),
        ("1.5Ki", 1536),
        ("1k", 1000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("12e-1", 2),
        ("100m", 1),
        (".5", 1),
        ("5.", 5),
        ("+3", 3),
        ("7Ei", 7 << 60),
        ("1n", 1),
    ],
)
def test_sizes_are_read_and_rounded_up(text: str, amount: int) -> None:
    assert size_bytes(text) == amount


@pytest.mark.parametrize(
    ("text", "millis"),
    [("500m", 500), ("2", 2000), ("0.1", 100), ("1u", 1), ("1.0005", 1001), ("1k", 10**6)],
)
def test_cpu_is_read_in_thousandths_and_rounded_up(text: str, millis: int) -> None:
    assert milli_cpu(text) == millis


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "x",
        "-1",
        "1 ",
        " 1",
        "1Mi ",
        "1mi",
        "1e",
        "1e999",
        "9" * 31,
        "8Ei",
        "1e19",
        "1K",
        "٣",
        "0x1",
        "1\n",
    ],
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a quantity|is larger"):
        size_bytes(text)


def test_cpu_that_fits_as_a_number_but_not_in_thousandths_is_refused() -> None:
    assert parse("9e15") == 9 * 10**15
    with pytest.raises(ValueError, match="thousandths"):
        milli_cpu("1e16")


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0"), (1, "1"), (1 << 20, "1Mi"), (1536, "1536"), (1 << 60, "1Ei")]
)
def test_bytes_are_shown_in_the_largest_unit_that_divides(amount: int, text: str) -> None:
    assert show_bytes(amount) == text
    assert size_bytes(text) == amount


@pytest.mark.parametrize(("millis", "text"), [(500, "500m"), (2000, "2"), (0, "0")])
def test_cpu_is_shown_as_a_user_writes_it(millis: int, text: str) -> None:
    assert show_cpu(millis) == text
