"""Stop signals by name, as a Pod or an image gives them."""

from __future__ import annotations

import logging
import signal

_log = logging.getLogger(__name__)


def stop_signal(name: str) -> int:
    """Return the number of ``SIGTERM``, ``TERM``, ``15`` or ``RTMIN+3``; SIGTERM where it is none.

    The name may be an image's, so a bad one is no error: the container must be stoppable.
    """
    word = name.strip().upper().removeprefix("SIG")
    base, plus, offset = word.partition("+")
    if not word:
        return signal.SIGTERM
    number = -1
    if word.isdecimal():
        number = int(word[:4])
    elif plus and base == "RTMIN" and offset.isdecimal():
        number = signal.SIGRTMIN + int(offset[:4])
    elif f"SIG{word}" in signal.Signals.__members__:
        number = signal.Signals[f"SIG{word}"]
    if 0 < number <= signal.SIGRTMAX:
        return number
    _log.warning("an unknown stop signal is taken as SIGTERM", extra={"stop_signal": name[:40]})
    return signal.SIGTERM
