"""How much is tried of CRI: half a minute in ``make test``, FUZZ_FACTOR times that in a long run."""

from __future__ import annotations

import os
from typing import Final

FACTOR: Final = int(os.environ.get("FUZZ_FACTOR", "1"))
EXAMPLES: Final = 12 * FACTOR
