"""What a recipe says of an endpoint's address and secrets, checked before anything is asked. Pure functions.

A secret has no place in a recipe, as a copy of it lies in the run directory. It is kept in a variable of the environment (or of a
.env file), and the recipe says ``${NAME}`` where it belongs: in ``base_url`` and in the values of ``extra``. ``$${NAME}`` is those
characters themselves. No message repeats a value that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import JsonValue

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE: Final = re.compile(rf"(\$?)\$\{{({_NAME})\}}")
_WAY: Final = "put it into a variable of the environment (or of a .env file) and write ${NAME} in its place"
_OPERATIONS: Final = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/messages",
    "/embeddings",
    "/models",
    "/batches",
)
_HOST: Final = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+(%\w+)?")


def filled(text: str, value_of: Callable[[str], str]) -> str:
    """The text with the value of each ``${NAME}`` in its place."""
    return _VARIABLE.sub(lambda m: m[0][1:] if m[1] else value_of(m[2]), text)


def variables_in(value: JsonValue) -> Iterator[str]:
    """The names in ``${NAME}``, wherever they stand in a text, a list or a mapping."""
    if isinstance(value, str):
        yield from (m[2] for m in _VARIABLE.finditer(value) if not m[1])
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from variables_in(part)


def base_url_problem(base_url: str) -> str | None:
    """What is wrong with a base URL, and what to write instead; None for one that can work."""
    if base_url.startswith("${") and _VARIABLE.match(base_url):
        return None  # looked at when its value is known
    url = filled(base_url.strip(), lambda name: "1")
    if not url:
        return "is empty; write for example https://host/v1"
    if any(c.isspace() or not c.isprintable() for c in url):
        return "holds blanks or control characters; take them out"
    problem = _login_problem(base_url.strip()) or _scheme_problem(url)
    if problem is not None:
        return problem
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return (
            "its host or port cannot be right (a port is a number from 1 to 65535, an IPv6 address stands in brackets)"
        )
    return _host_problem(parts, port) or _path_problem(base_url.strip(), parts)


def _scheme_problem(url: str) -> str | None:
    scheme, separator, rest = url.partition("://")
    if not separator:
        if re.match(r"https?:", url, re.IGNORECASE):
            return "after http: or https: there must be two slashes; write for example https://host/v1"
        return "has no scheme; write http:// or https:// before the host, for example http://localhost:8000/v1"
    if scheme.lower() not in ("http", "https"):
        return "is no http(s) URL; write for example https://host/v1"
    return "has two schemes; write for example https://host/v1" if "://" in rest.partition("?")[0] else None


def _host_problem(parts: SplitResult, port: int | None) -> str | None:
    host = parts.hostname or ""
    if not host:
        return "has no host; write for example https://host/v1"
    if port == 0:
        return "its port is 0; a port is a number from 1 to 65535"
    if not _HOST.fullmatch(host) or ".." in host or host.startswith((".", "-")):
        return "its host holds characters that no host has; write the real one (a variable is written as ${NAME})"
    return None


def _login_problem(base_url: str) -> str | None:
    """A password may stand in the URL by the name of its variable only."""
    login, at, _ = re.split(r"[/?#]", re.sub(r"^[A-Za-z][\w+.-]*:/+", "", base_url), maxsplit=1)[0].rpartition("@")
    if not at or _VARIABLE.search(login.partition(":")[2]) or _VARIABLE.fullmatch(login):
        return None
    return (
        "holds a user or a password; write https://user:${NAME}@host/v1 with the password in the variable NAME, or give a key by "
        "api_key_env"
    )


def _path_problem(base_url: str, parts: SplitResult) -> str | None:
    if parts.fragment or "#" in base_url:
        return "must hold no fragment (#...)"
    path = parts.path.rstrip("/")
    for operation in _OPERATIONS:
        if path.lower().endswith(operation):
            return f"must stop before {operation}: what is asked for is added to it (it usually ends in /v1)"
    if re.search(r"/v\d\w*/chat$", path, re.IGNORECASE):
        return "must stop before /chat: what is asked for is added to it (it usually ends in /v1)"
    if re.search(r"[<>{}\\^`|\"]", parts.path + parts.query):
        return "holds characters that no URL has; write the real one (a variable is written as ${NAME})"
    bare = urlsplit(_VARIABLE.sub("", base_url))
    secret = any(looks_secret(part) for part in bare.path.split("/"))
    for name, value in parse_qsl(bare.query):
        secret = secret or is_secret_name(name) or looks_secret(value)
    return (
        f"a part of its path or query looks like a secret; {_WAY} (a key that is sent as a header: api_key_env)"
        if secret
        else None
    )


def variable_problem(name: str) -> str | None:
    """Why this cannot be the name of a variable; never repeats it, as it may be the key itself."""
    lone = len(name) >= 20 and "_" not in name and not (name.isupper() and name.isalpha())
    if re.fullmatch(_NAME, name) and not looks_secret(name) and not lone:
        return None
    return (
        "must be the name of a variable, such as OPENAI_API_KEY, and not a key (not repeated here); run `export NAME=...`, or "
        "write NAME=... into a .env file, and give NAME"
    )


def shown_name(name: str) -> str:
    """A variable's name for a message; one that is not written as variables mostly are may be a key, and is not repeated."""
    return name if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) else "the variable that it names"


def key_problem(key: str) -> str | None:
    """Why an API key cannot be sent; never repeats it."""
    if key and all("!" <= c <= "~" for c in key):
        return None
    return "the key is empty or holds blanks, line ends or characters that no key has; set it again without them"


def extra_problem(extra: JsonValue, where: str = "") -> str | None:
    """The first value in ``extra`` that looks like a secret in plain; None where there is none."""
    if isinstance(extra, dict):
        for key, part in extra.items():
            inner = f"{where}.{key}" if where else key
            plain = isinstance(part, str) and bool(part) and next(variables_in(part), None) is None
            if plain and is_secret_name(key):
                return f"{inner}: a secret must not be written here; {_WAY}"
            if (problem := extra_problem(part, inner)) is not None:
                return problem
    elif isinstance(extra, list):
        for i, part in enumerate(extra):
            if (problem := extra_problem(part, f"{where}[{i}]")) is not None:
                return problem
    elif isinstance(extra, str) and looks_secret(_VARIABLE.sub(" ", extra)):
        return f"{where}: looks like a secret, which must not be written here; {_WAY}"
    return None


_SECRET_NAME: Final = re.compile(
    r"(.*[_-])?(api|access|auth|account|private|secret|subscription|license|shared)[_-]?key|key|code|sig|signature|(.*[_-])?"
    r"(secret|password|passwd|passphrase|pwd|credentials?|authorization|jwt)|(.*[_-])?(access|api|auth|bearer|refresh|session|id|hf)"
    r"[_-]?token|token|auth|bearer|(client|app|x)[_-]?secret",
    re.IGNORECASE,
)
_KNOWN: Final = re.compile(
    r"(Bearer|Basic)\s+\S{6,}|-----BEGIN|\bsk-[\w-]{6,}|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|\beyJ[\w-]{8,}\.[\w-]+|"
    r"\b(sk|pk|rk|gsk|hf|xai|ghp|gho|ghs|github_pat|glpat|nvapi|pplx|r8|fw|xox[abp]|csk|tgp)[-_](?=\w*\d)[\w-]{8,}"
)


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret."""
    return _SECRET_NAME.fullmatch(name) is not None


def looks_secret(text: str) -> bool:
    """Whether a text holds what looks like a key: a known form, or a long run of letters and digits without a pattern."""
    return _KNOWN.search(text) is not None or any(_random(run) for run in re.findall(r"[A-Za-z0-9+]{16,}", text))


def _random(run: str) -> bool:
    digits = sum(c.isdigit() for c in run)
    if not digits or digits == len(run):
        return False
    if len(run) >= 32 and re.fullmatch(r"[0-9a-fA-F]+", run):
        return True
    mixed = any(c.isupper() for c in run) and any(c.islower() for c in run)
    changes = sum(a.isdigit() != b.isdigit() for a, b in pairwise(run))
    return (mixed and digits >= 2 and changes >= 3) or (len(run) >= 20 and changes >= 6)
