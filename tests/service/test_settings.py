"""Settings: from flags, environment and `.env`; documented; unsafe ones refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from fewshot import app
from service.settings import Settings, from_arguments
from service.settings_page import page

ROOT = Path(__file__).parents[2]
run = CliRunner().invoke


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == page()


def test_a_setting_without_a_default_has_none() -> None:
    assert "``" not in page()
    assert "`FEWSHOT_DATABASE_URL`: default none." in page()


def test_every_setting_is_a_flag_and_says_when_to_change_it() -> None:
    shown = run(app, ["serve", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "--fewshot" not in shown.stdout  # one name each
    assert "Each flag says when" in shown.stdout
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown.stdout
        assert len((field.description or "").split()) >= 10, name


def test_flags_beat_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FEWSHOT_MAX_FILES=5\nFEWSHOT_PORT=5\nOTHER=x\n")
    monkeypatch.setenv("FEWSHOT_PORT", "6")
    monkeypatch.setenv("FEWSHOT_CORS_ORIGINS", "https://a.example, http://b.example:81")
    found = from_arguments(["--max-body-mb", "7", "--cors-credentials"])
    assert (found.max_files, found.port, found.max_body_mb) == (5, 6, 7)
    assert found.cors_origins == ("https://a.example", "http://b.example:81")
    assert found.cors_credentials
    assert from_arguments(["--port=8"]).port == 8


@pytest.mark.parametrize(
    ("file", "environment", "arguments", "expected"),
    [
        ("DATABASE_URL=sqlite:///file", {}, [], "file"),
        ("DATABASE_URL=sqlite:///file\nFEWSHOT_DATABASE_URL=sqlite:///own", {}, [], "own"),
        ("DATABASE_URL=sqlite:///file", {"DATABASE_URL": "sqlite:///env"}, [], "env"),
        ("", {"DATABASE_URL": "sqlite:///x", "FEWSHOT_DATABASE_URL": "sqlite:///own"}, [], "own"),
        ("FEWSHOT_DATABASE_URL=sqlite:///own", {"DATABASE_URL": "sqlite:///x"}, [], "own"),
        ("", {"DATABASE_URL": "sqlite:///x"}, ["--database-url", "sqlite:///flag"], "flag"),
    ],
)
def test_the_usual_name_of_the_database_is_read_everywhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    environment: dict[str, str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert from_arguments(arguments).database == f"sqlite:///{expected}"
    if not arguments:  # what `fewshot keys` reads
        assert Settings().database == f"sqlite:///{expected}"
    assert Settings(database_url=SecretStr("sqlite:///named")).database == "sqlite:///named"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FEWSHOT_AUHT", "no setting FEWSHOT_AUHT; did you mean FEWSHOT_AUTH? "),
        ("fewshot_max_bodymb", "did you mean FEWSHOT_MAX_BODY_MB"),
        ("FEWSHOT_ZZZ", "no setting FEWSHOT_ZZZ; `fewshot serve --help` names all"),
        ("FEWSHOT_TEH_DATA_DIR", "no setting FEWSHOT_TEH_DATA_DIR"),
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["keys", "list"]])
@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_misspelt_name_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    hint: str,
    command: list[str],
    where: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if where == "file":
        (tmp_path / ".env").write_text(f"{name}=required\n")
    else:
        monkeypatch.setenv(name, "required")
    refused = run(app, command)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.output
    assert hint in refused.stderr
    assert run(app, ["serve", "--help"]).exit_code == 0


def test_names_that_others_read_are_no_misspelt_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "FEWSHOT_DATA",
        "FEWSHOT_CACHE",
        "FEWSHOT_API_KEY",
        "FEWSHOT_TEST_POSTGRES",
        "FEWSHOT_SERVICE_HOST",
        "FEWSHOT_SERVICE_PORT_HTTP",
        "FEWSHOT_PORT_8000_TCP_ADDR",
        "FEWSHOT_WEB_SERVICE_HOST",
        "FEWSHOT_WEB_PORT",
        "FEWSHOT_WEB_PORT_80_TCP",
        "MY_FEWSHOT_AUHT",
    ):
        monkeypatch.setenv(name, "x")
    assert Settings().auth == "auto"


def test_the_port_that_kubernetes_names_is_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSHOT_PORT", "tcp://10.96.0.1:8000")  # of a service named fewshot
    assert Settings().port == 8000
    assert from_arguments(["--port", "5"]).port == 5
    with pytest.raises(ValueError):
        from_arguments(["--port", "tcp://10.96.0.2:8000"])
    (tmp_path / ".env").write_text("FEWSHOT_PORT=9000\n")
    assert Settings().port == 9000


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (b"OTHER=x\nFEWSHOT_AUTH required\n", "fewshot: .env, line 2: not NAME=value\n"),
        (b"OTHER\n\n \nFEWSHOT_AUTH\n", "fewshot: .env, line 4: not NAME=value\n"),
        (b"\nDATABASE_URL\n", "fewshot: .env, line 2: not NAME=value\n"),
        (b"FEWSHOT_AUTH=\xff\n", "fewshot: .env is not written in UTF-8\n"),
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["keys", "list"]])
def test_a_file_of_settings_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bytes, line: str, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(file)
    refused = run(app, command)
    assert (refused.exit_code, refused.stderr) == (2, line)


@pytest.mark.parametrize("name", ["FEWSHOT_DATA_DIR", "FEWSHOT_ZOO", "FEWSHOT_HOST"])
def test_an_empty_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    refused = run(app, ["serve"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.output
    assert f"{name.removeprefix('FEWSHOT_').lower()}: empty" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "65536"], "port: "),
        (["--port", "x"], "port: "),
        (["--port"], "--port"),
        (["--no-such-flag"], "--no-such-flag"),
        (["stray"], "stray"),
        (["--device", "tpu"], "device: "),
        (["--workers", "0"], "workers: "),
        (["--request-timeout-s", "0"], "request_timeout_s: "),
        (["--request-timeout-s", "nan"], "request_timeout_s: "),
        (["--cors-origins", "*", "--cors-credentials"], "unsafe"),
        (["--request-timeout-s", "60", "--max-request-timeout-s", "30"], "max_request_timeout_s"),
        (["--cors-origins", "shop.example"], "'shop.example' is no origin"),
        (["--allowed-hosts", "http://shop.example"], "is no host's name"),
        (["--otlp-endpoint", "http://user:word@host"], "otlp_endpoint: "),
        (["--zoo", "/no/such/folder"], "not a folder"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(arguments: list[str], expected: str) -> None:
    refused = run(app, ["serve", *arguments])
    assert refused.exit_code == 2, refused.output
    assert refused.stderr.startswith("fewshot: ")
    assert refused.stderr.count("\n") == 1
    assert expected in refused.stderr
