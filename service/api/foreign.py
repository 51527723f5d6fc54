"""Web pages of others, at a service that asks for no key.

A browser sends whatever page it shows any form here without asking first; and a page whose name was
made to lead to this machine (DNS rebinding) may read the answers too. A key settles both, since no
page knows it.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers

from service.problems import ForeignHost, ForeignPage
from service.settings import Settings

_CHANGES_NOTHING = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"\[?(.*?)\]?(:\d*)?")


class Foreign:
    """Refuses what a browser sends for another site's page; other clients name no page."""

    def __init__(self, settings: Settings) -> None:
        self._origins, self._names = settings.cors_origins, settings.allowed_hosts
        # Elsewhere the service is reached under names that only its operator knows.
        self._asks_host = is_loopback(settings.host) or bool(self._names)

    def check(self, method: str, headers: Headers) -> None:
        """Raises `ForeignHost` or `ForeignPage`."""
        host = headers.get("host", "").lower()
        if self._asks_host and host and not self._is_ours(host):
            raise ForeignHost(
                "the service does not go by the name in Host; ask for localhost, or add the name "
                "to the setting allowed_hosts"
            )
        if method not in _CHANGES_NOTHING and self._is_foreign(host, headers):
            raise ForeignPage(
                "the request comes from another site's web page; to allow it, add its origin to "
                "the setting cors_origins"
            )

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        name = found[1].removesuffix(".") if found else ""
        return is_loopback(name) or name in self._names

    def _is_foreign(self, host: str, headers: Headers) -> bool:
        origin = headers.get("origin")
        if "*" in self._origins or origin in self._origins:
            return False
        # The browser's own word, which also holds where a proxy has put another name into Host.
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        return origin is not None and origin.partition("://")[2].lower() != host


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or "" for every address
        return host == "localhost"
