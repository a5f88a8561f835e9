"""Where an endpoint is, and how one is let in."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from cowest.errors import ConfigError
from cowest.models.keys import find_key
from cowest.models.secrets import Secrets
from cowest.recipe.addresses import base_url_problem, key_problem, shown_name
from cowest.recipe.models import OpenAIModelConfig


@dataclass(frozen=True, slots=True)
class Address:
    """``shown`` is the URL as it is written, with the names of variables; only that may be told. ``headers`` hold the key."""

    shown: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


def address_of(base_url: str, secrets: Secrets) -> Address:
    """The address with its variables filled in. Raises ConfigError, which repeats no URL, as it may hold a secret.

    A user and a password in the URL are sent as HTTP's basic authentication, in place of a key.
    """
    _refuse(base_url_problem(base_url))
    if secrets.key is not None and (problem := key_problem(secrets.key)):
        raise ConfigError(f"api_key_env: {problem}")
    template, login = _without_login(base_url.strip())
    url = str(secrets.fill(template, "base_url"))
    if login is None:  # all of the URL may be in a variable
        url, login = _without_login(url)
        login = login and unquote(login)
    else:
        login = str(secrets.fill(login, "base_url"))
    _refuse(_unwritten_problem(url))
    if login is None:
        return Address(
            _trimmed(template), _trimmed(url), {"Authorization": f"Bearer {secrets.key}"} if secrets.key else {}
        )
    if secrets.key:
        raise ConfigError("base_url: holds a user and a password, and api_key_env names a key; set api_key_env: null")
    encoded = base64.b64encode(login.encode()).decode()
    for part in (login.partition(":")[2], encoded):
        secrets.add(part)
    return Address(_trimmed(template), _trimmed(url), {"Authorization": f"Basic {encoded}"})


def secrets_of(config: OpenAIModelConfig, folder: Path = Path(), where: str = "strong") -> Secrets:
    """The key, and what ``${NAME}`` stands for in a section; ``where`` is its name. ``folder`` may hold a .env file.

    Raises ConfigError, which names the setting and no value, for what is not set or cannot be used.
    """
    key = None if config.api_key_env is None else find_key(config.api_key_env, folder)
    if config.api_key_env is not None and not key:
        name = shown_name(config.api_key_env)
        export = config.api_key_env if name == config.api_key_env else "NAME"
        raise ConfigError(
            f"{where}.api_key_env: {name} is not set, neither in the environment nor in a .env file (here or "
            f"beside the recipe). Run `export {export}=...`, or set {where}.api_key_env: null for a server "
            "that wants no key."
        )
    secrets = Secrets(key, folder)
    try:
        address_of(config.base_url, secrets)
        secrets.fill_all(config.extra)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
    return secrets


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise ConfigError(f"base_url: {problem}")


def _unwritten_problem(url: str) -> str | None:
    """What is wrong with a URL whose variables are filled in; what looks like a secret in it is in its place."""
    parts = urlsplit(url) if "://" in url else None
    plain = url if parts is None else urlunsplit(parts._replace(path=re.sub(r"[^/]{16,}", "x", parts.path), query=""))
    if any(c.isspace() or not c.isprintable() for c in url):
        return "a variable in it holds blanks or control characters; set it again without them"
    return base_url_problem(plain)


def _without_login(url: str) -> tuple[str, str | None]:
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    return (f"{scheme}{separator}{host}{slash}{path}", login) if separator and at else (url, None)


def _trimmed(url: str) -> str:
    """Without slashes at the end of the path."""
    path, mark, query = url.partition("?")
    return path.rstrip("/") + mark + query


def joined(base: str, path: str) -> str:
    """``path`` below ``base``; a query of the base (Azure's ``api-version``) goes to the end."""
    url, _, query = base.partition("?")
    return f"{url.rstrip('/')}/{path}" + (f"{'&' if '?' in path else '?'}{query}" if query else "")
