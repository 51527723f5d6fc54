"""Other sites' web pages, in the browser of somebody whose service asks for no key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from service.store.keys import Scope
from tests.service.asking import SETS, assert_problem, make_set

BASE = "http://127.0.0.1:8000"
EVIL = "https://evil.example"


@contextmanager
def serving(zoo: Path, folder: Path, **settings: Any) -> Iterator[TestClient]:
    chosen = {"allowed_hosts": ()} | settings
    app = create_app(Settings(zoo=zoo, device="cpu", threads=1, data_dir=folder, **chosen))
    with TestClient(app, base_url=BASE) as client:
        yield client


@pytest.mark.parametrize("auth", ["auto", "off"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},  # a file, or a frame without an origin
        {"origin": "http://127.0.0.1:9000"},  # another service of this machine
        {"origin": "http://[::1"},
        {"origin": EVIL, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_sites_page_changes_nothing(
    zoo: Path, tmp_path: Path, headers: dict[str, str], auth: str
) -> None:
    with serving(zoo, tmp_path, auth=auth) as client:
        mine = make_set(client).json()["support_set"]["id"]
        for response in (
            make_set(client, headers=headers),
            client.delete(f"{SETS}/{mine}", headers=headers),
            client.patch(f"{SETS}/{mine}", json={"name": "x"}, headers=headers),
            client.post("/v1/predictions", data={"model": "mean"}, headers=headers),
            client.post("/v2/models/mean/infer", json={}, headers=headers),
        ):
            assert_problem(response, 403, "foreign-page")
        kept = client.get(SETS).json()["support_sets"]
        assert [(one["id"], one["name"]) for one in kept] == [(mine, "")]
        assert client.get(SETS, headers=headers).status_code == 200  # which it cannot read


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": BASE},
        {"origin": BASE, "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        # Behind a proxy that puts its own idea of the host into Host.
        {"origin": "https://shop.example", "sec-fetch-site": "same-origin"},
        {"origin": "https://partner.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://partner.example"},
    ],
)
def test_its_own_page_named_origins_and_programs_may(
    zoo: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    with serving(zoo, tmp_path, cors_origins=("https://partner.example",)) as client:
        assert make_set(client, headers=headers).status_code == 201


def test_every_page_may_where_the_setting_says_so(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path, cors_origins=("*",)) as client:
        assert make_set(client, headers={"origin": EVIL}).status_code == 201


REBOUND = {"host": "rebind.evil.example:8000", "origin": "http://rebind.evil.example:8000"}


def test_a_name_that_is_not_the_services_reads_nothing(zoo: Path, tmp_path: Path) -> None:
    with serving(zoo, tmp_path) as client:
        for name in (REBOUND["host"], "127.0.0.1.evil.example", "localhost.evil.example", "[::2]"):
            for response in (
                client.get(SETS, headers={"host": name}),
                client.get("/v1/models", headers={"host": name}),
                make_set(client, headers=REBOUND | {"host": name}),
            ):
                assert_problem(response, 403, "foreign-host")
            for path in ("/livez", "/readyz", "/metrics", "/v1/limits", "/v2/health/live"):
                assert client.get(path, headers={"host": name}).status_code == 200, path


@pytest.mark.parametrize(
    "name",
    ["localhost", "LocalHost:8000", "localhost.:1", "127.0.0.1", "127.8.0.1:80", "[::1]:8000",
     "[::1]", "shop.example", "Shop.Example:8443"],
)  # fmt: skip
def test_the_services_own_names_are_known(zoo: Path, tmp_path: Path, name: str) -> None:
    with serving(zoo, tmp_path, allowed_hosts=("shop.example",)) as client:
        assert client.get(SETS, headers={"host": name}).status_code == 200


def test_a_key_settles_it(zoo: Path, tmp_path: Path) -> None:
    """No page knows one; and a service with keys may have any name."""
    with serving(zoo, tmp_path) as client:
        _, token = client.app.state.store.keys.create("k", [Scope.write])
        bearer = {"authorization": f"Bearer {token}"}
        assert make_set(client, headers=REBOUND | bearer).status_code == 201
        assert make_set(client, headers={"origin": EVIL} | bearer).status_code == 201
        assert_problem(make_set(client, headers=REBOUND), 401, "unauthenticated")


def test_where_other_machines_may_ask_names_are_checked_once_there_are_some(
    zoo: Path, tmp_path: Path
) -> None:
    with serving(zoo, tmp_path, host="0.0.0.0") as client:
        assert client.get(SETS, headers={"host": "few.lan:8000"}).status_code == 200
        assert_problem(make_set(client, headers={"origin": EVIL}), 403, "foreign-page")
    with serving(zoo, tmp_path, host="0.0.0.0", allowed_hosts=("few.lan",)) as client:
        assert client.get(SETS, headers={"host": "few.lan:8000"}).status_code == 200
        assert_problem(client.get(SETS, headers=REBOUND), 403, "foreign-host")
