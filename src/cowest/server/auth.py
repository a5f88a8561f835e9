"""Who may ask: API keys, and, without any, only pages and programs of this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from cowest.errors import ConfigError
from cowest.server.errors import ApiError


def is_loopback(host: str) -> bool:
    """Whether an address (or name) can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Keys:
    """The accepted keys, kept as hashes. Raises ConfigError for one that no header could carry."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for key in keys:
            if not key or not all("!" <= c <= "~" for c in key):
                raise ConfigError("--api-key-env: a key is empty or holds blanks or characters that no key has")
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str, host: str) -> str:
        """The key's number (``key1``, ...), or ``anonymous`` where none is needed. Raises ApiError 401 or 403.

        Every key is compared, each in constant time: how long it takes tells nothing. Without keys the ``Host`` must be this
        machine's, as a web page whose name was pointed here (DNS rebinding) could else use the endpoint.
        """
        if not self._digests:
            if not _names_this_machine(host):
                raise ApiError(403, "without an API key only localhost may be asked by its name", code="forbidden_host")
            return "anonymous"
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        found = 0
        for number, known in enumerate(self._digests, start=1):
            found |= number * hmac.compare_digest(digest, known)
        if not found or scheme.lower() != "bearer":
            raise ApiError(401, "missing or wrong API key", type_="authentication_error", code="invalid_api_key")
        return f"key{found}"


@lru_cache(maxsize=256)
def _names_this_machine(host: str) -> bool:
    """Whether a ``Host`` header is a loopback address or name, with or without a port."""
    if not all(c.isalnum() or c in ".-:[]" for c in host):
        return False
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:  # brackets that hold no address
        return False
