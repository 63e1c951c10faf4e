"""Names for requests and answers: unlike each other, and no secret.

So they need no `secrets`, which asks the system and meanwhile lets go of Python's lock: under load a request would wait for it
again each time.
"""

from __future__ import annotations

import random


def fresh_id(prefix: str) -> str:
    """The prefix and 96 random bits."""
    return f"{prefix}{random.getrandbits(96):024x}"
