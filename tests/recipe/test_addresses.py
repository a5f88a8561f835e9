"""Addresses, keys and secrets of an endpoint: what cannot work is refused when the recipe is read, and never repeated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue, ValidationError
from tests.paid_endpoint import paid_recipe

from cowest.cli.main import main
from cowest.errors import ConfigError
from cowest.models.address import secrets_of
from cowest.recipe.addresses import (
    base_url_problem,
    extra_problem,
    filled,
    key_problem,
    looks_secret,
    variable_problem,
    variables_in,
)
from cowest.recipe.config import OpenAIModelConfig, config_from_dict

KEY = "sk-test-0123456789abcdefSECRET"
HEX = "0f3a9c5b7d1e2f4a6b8c0d1e2f3a4b5c"
FINE = [
    "https://api.openai.com/v1",
    "http://localhost:8000/v1",
    "http://127.0.0.1:8000",
    "http://[::1]:8000/v1/",
    "HTTPS://Host/v1",
    "http://my_service:80/v1",
    "https://res.openai.azure.com/openai/deployments/gpt-4o-mini-2024-07-18?api-version=2024-06-01",
    "https://res.openai.azure.com/openai/v1/?api-version=preview",
    "https://generativelanguage.googleapis.com/v1beta/openai/",
    "https://host/v1/projects/123e4567-e89b-42d3-a456-426614174000/endpoints/openapi",
    "https://bücher.example/v1",
    "${GATEWAY}",
    "${GATEWAY}/v1",
    "https://${HOST}:${PORT}/v1",
    "https://user:${PASSWORD}@host/v1",
    "https://${LOGIN}@host/v1",
    "https://host/${TOKEN}/v1?code=${CODE}",
]
WRONG = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("localhost:8000/v1", "no scheme"),
    ("api.openai.com/v1", "no scheme"),
    ("//host/v1", "no scheme"),
    ("http:/host/v1", "two slashes"),
    ("https:host/v1", "two slashes"),
    ("ftp://host/v1", "no http"),
    ("file:///models/v1", "no http"),
    ("https://https://host/v1", "two schemes"),
    ("http://", "no host"),
    ("http:///v1", "no host"),
    ("https://host/v1/chat", "must stop before /chat"),
    ("http://:8000/v1", "no host"),
    ("http://host:0/v1", "port"),
    ("http://host:65536/v1", "port"),
    ("http://host:80a/v1", "port"),
    ("http://[::1/v1", "brackets"),
    ("http://ho st/v1", "blanks"),
    ("http://host/v1\nx", "blanks"),
    ("https://<resource>.openai.azure.com/v1", "no host has"),
    ("https://{resource}/v1", "no host has"),
    ("https://host/<deployment>", "no URL has"),
    ("https://host/${UNCLOSED/v1", "no URL has"),
    ("https://host/v1#top", "fragment"),
    ("http://h/v1/chat/completions", "must stop before /chat/completions"),
    ("http://h/v1/Chat/Completions/", "must stop before"),
    ("http://h/openai/deployments/d/chat/completions?api-version=1", "must stop before"),
    ("http://h/v1/responses", "must stop before"),
    ("http://h/v1/messages", "must stop before"),
    ("http://user@host/v1", "user or a password"),
    (f"http://user:{KEY}@host/v1", "user or a password"),
    (f"{KEY}@host/v1", "user or a password"),
    (f"http://host/v1?key={KEY}", "looks like a secret"),
    ("http://host/v1?sig=short", "looks like a secret"),
    (f"http://host/{KEY}/v1", "looks like a secret"),
    (f"http://host/{HEX}/v1", "looks like a secret"),
]


def validated(
    recipe: dict[str, JsonValue], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What ``cowest validate`` says of a recipe that it refuses."""
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", ["cowest", "validate", str(folder / "r.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize("url", FINE)
def test_addresses_that_can_work(url: str) -> None:
    assert base_url_problem(url) is None


@pytest.mark.parametrize(("url", "told"), WRONG)
def test_addresses_that_cannot_work_are_told_with_what_to_write(url: str, told: str) -> None:
    problem = base_url_problem(url)
    assert problem is not None and told in problem
    assert KEY not in problem and HEX not in problem


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "my_key", "K", "_x9", "SECRET_OF_THE_TEAM_2", "MYCOMPANYSOPENAIKEYNAME"]
)
def test_names_of_variables(name: str) -> None:
    assert variable_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        KEY,
        "sk-short",
        "gsk_9hT2kQ8vX1mZ4pL7wR3n",
        "hf_AbCdEfGhIjKlMnOpQrStUvWx12",
        "AIzaSyA1234567890abcdefghijklmnopqrstu",
        "a3f5c7d9e1b2a4c6d8e0f1a2b3c4d5e6",
        "tGzv3JOkF0XG5Qx2TlKWIA",
        "abcdefghijklmnopqrstuvwxyz",
        "$OPENAI_API_KEY",
        "${OPENAI_API_KEY}",
        "OPENAI API KEY",
        "OPENAI-API-KEY",
        "KEY\n",
        "Bearer x",
        "1KEY",
    ],
)
def test_what_is_no_name_of_a_variable_is_not_repeated(name: str) -> None:
    problem = variable_problem(name)
    assert problem is not None and "OPENAI_API_KEY" in problem
    assert not name.strip() or len(name) < 10 or name.strip("${}") == "OPENAI_API_KEY" or name not in problem


@pytest.mark.parametrize("key", ["", " ", "two words", f"{KEY}\n", f"\t{KEY}", f"{KEY}\u00e9", f"{KEY}\u200b"])
def test_a_key_that_cannot_be_sent(key: str) -> None:
    problem = key_problem(key)
    assert problem is not None and KEY not in problem
    assert key_problem(KEY) is None


@pytest.mark.parametrize(
    "extra",
    [
        {"reasoning_effort": "low", "max_tokens": 9, "stop_token_ids": [1, 2], "eos_token": "</s>"},
        {"models": ["mistralai/Mixtral-8x7B-Instruct-v0.1", "meta-llama/Llama-3.1-405B-Instruct"], "user": "team-7"},
        {"prompt_cache_key": "run-1", "session": "123e4567-e89b-42d3-a456-426614174000"},
        {"api_key": "${OTHER}", "auth": {"password": "x${PW}"}, "key": ""},
        {"guided_regex": "(yes|no|maybe){1,3}[A-Za-z0-9]+"},
    ],
)
def test_fields_that_hold_no_secret(extra: dict[str, JsonValue]) -> None:
    assert extra_problem(extra) is None


@pytest.mark.parametrize(
    ("extra", "where"),
    [
        ({"api_key": "x"}, "api_key"),
        ({"provider": {"Access-Token": "abc"}}, "provider.Access-Token"),
        ({"headers": {"x-api-key": "abc"}}, "headers.x-api-key"),
        ({"login": {"password": "correct horse"}}, "login.password"),
        ({"anything": KEY}, "anything"),
        ({"list": ["fine", {"deep": f"Bearer {HEX}"}]}, "list[1].deep"),
        ({"note": f"${{NAME}} and {HEX}"}, "note"),
    ],
)
def test_a_secret_in_the_extra_fields_is_told_by_its_place(extra: dict[str, JsonValue], where: str) -> None:
    problem = extra_problem(extra)
    assert problem is not None and problem.startswith(f"{where}: ") and "${NAME}" in problem
    assert KEY not in problem and HEX not in problem


def test_variables_and_how_to_write_their_characters() -> None:
    assert filled("a${X}b$${X}c${Y_1}", str.lower) == "axb${X}cy_1"
    assert list(variables_in({"a": ["${X}", 1], "b": {"c": "$${Z} ${Y}"}})) == ["X", "Y"]
    assert filled("${NOT-A-NAME} $X {X}", str.lower) == "${NOT-A-NAME} $X {X}"


@pytest.mark.parametrize("text", ["", "low", "gpt-4o-mini", "2024-06-01", "9" * 40, "internationalization", "v1beta1"])
def test_what_looks_like_no_secret(text: str) -> None:
    assert not looks_secret(text)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("base_url", "localhost:8000/v1", "strong.base_url: has no scheme"),
        ("base_url", f"https://me:{KEY}@host/v1", "strong.base_url: holds a user or a password"),
        ("base_url", "https://host/v1/chat/completions", "strong.base_url: must stop before"),
        ("api_key_env", KEY, "strong.api_key_env: must be the name of a variable"),
        ("api_key_env", 1234567890123456, "strong.api_key_env"),
        ("extra", {"api_key": KEY}, "strong.extra: api_key: a secret must not be written here"),
        ("extra", KEY, "strong.extra"),
        ("model", " ", "strong.model: must be the model's name"),
        ("model", "gpt 4", "strong.model: must be the model's name"),
        ("api_key", KEY, "strong.api_key: unknown key; did you mean 'api_key_env'?"),
    ],
)
def test_validate_refuses_it_and_does_not_repeat_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    value: JsonValue,
    told: str,
) -> None:
    recipe = paid_recipe("http://127.0.0.1:9/v1")
    recipe["strong"] = {**recipe["strong"], setting: value}  # type: ignore[dict-item]
    said = validated(recipe, tmp_path, monkeypatch, capsys)
    assert told in said
    assert KEY not in said and KEY[8:] not in said and "1234567890123456" not in said


@pytest.mark.parametrize(
    ("variables", "changes", "told"),
    [
        ({"COWEST_K": f"{KEY}\n"}, {"api_key_env": "COWEST_K"}, "strong.api_key_env: the key is empty or holds blanks"),
        ({"COWEST_K": "two words"}, {"api_key_env": "COWEST_K"}, "strong.api_key_env: the key"),
        ({}, {"base_url": "https://host/${COWEST_U}/v1"}, "strong.base_url: COWEST_U is not set"),
        ({}, {"extra": {"a": {"token": "${COWEST_U}"}}}, "strong.extra.a.token: COWEST_U is not set"),
        ({"COWEST_U": f"{KEY}:80/v1"}, {"base_url": "${COWEST_U}"}, "strong.base_url: has no scheme"),
        ({"COWEST_U": "a b"}, {"base_url": "https://host/${COWEST_U}"}, "a variable in it holds blanks"),
        ({"COWEST_U": "https://h/v1/chat/completions"}, {"base_url": "${COWEST_U}"}, "must stop before"),
        (
            {"COWEST_U": KEY, "COWEST_K": KEY},
            {"base_url": "https://u:${COWEST_U}@h/v1", "api_key_env": "COWEST_K"},
            "null",
        ),
    ],
)
def test_what_variables_hold_is_looked_at_by_validate(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    changes: dict[str, JsonValue],
    told: str,
) -> None:
    for name in ("COWEST_K", "COWEST_U"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = paid_recipe("http://127.0.0.1:9/v1")
    recipe["strong"] = {**recipe["strong"], **changes}  # type: ignore[dict-item]
    said = validated(recipe, tmp_path, monkeypatch, capsys)
    assert told in said and KEY not in said


def test_a_section_made_in_python_repeats_no_key_either() -> None:
    with pytest.raises(ValidationError) as caught:
        OpenAIModelConfig(kind="openai", model="m", api_key_env=KEY)
    assert KEY not in str(caught.value)
    recipe = paid_recipe("http://127.0.0.1:9/v1")
    recipe["weak"] = {**recipe["weak"], "base_url": f"http://{KEY}@h/v1"}  # type: ignore[dict-item]
    with pytest.raises(ConfigError) as refused:
        config_from_dict(recipe)
    assert "weak.base_url" in str(refused.value) and KEY not in str(refused.value)


@pytest.mark.parametrize("key", ["hf_abcdefghijklmnopqrstuvwx", "sk_live_abcdefghij", "mysecretpassword", "Tr0ub4dor"])
def test_a_key_in_the_place_of_a_name_is_not_repeated(key: str, tmp_path: Path) -> None:
    """Not even where it could be the name of a variable, which is not set."""
    section = OpenAIModelConfig(kind="openai", base_url="https://host/v1", model="m", api_key_env=key)
    with pytest.raises(ConfigError) as caught:
        secrets_of(section, tmp_path)
    assert key not in str(caught.value) and "strong.api_key_env" in str(caught.value)
