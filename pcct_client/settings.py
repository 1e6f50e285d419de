"""What the client reads from the environment."""

from __future__ import annotations

import os

from pcct_client.errors import InvalidKey

API_KEY = "PCCT_API_KEY"


def key_to_send(given: str | None) -> str | None:
    """Return the API key to send: the given one, else that of the environment, else None.

    Blanks and ends of lines around it, as a file has them, are left out. Raises InvalidKey for what no header can carry.
    """
    key = (os.environ.get(API_KEY, "") if given is None else given).strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        source = f"the environment variable {API_KEY}" if given is None else "api_key"
        raise InvalidKey(f"{source} holds characters that no API key has; copy it again, without quotes or line breaks")
    return key or None
