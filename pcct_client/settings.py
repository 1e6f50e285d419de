"""What the client reads from the environment: the key, the proxies and the certificates."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.request import getproxies

from pcct_client.errors import InvalidKey, InvalidSetting

API_KEY = "PCCT_API_KEY"
CERT_FILE, CERT_DIR = "SSL_CERT_FILE", "SSL_CERT_DIR"

_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Besides localhost and all below it: names that the usual hosts files give to the loopback addresses.
_LOOPBACK_NAMES = ("localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")


def key_to_send(given: str | None) -> str | None:
    """Return the API key to send: the given one, else that of the environment, else None.

    Blanks and ends of lines around it, as a file has them, are left out. Raises InvalidKey for what no header can carry.
    """
    if given is not None and not isinstance(given, str):
        raise InvalidKey(f"api_key is of type {type(given).__name__}; use a string")
    key = (os.environ.get(API_KEY, "") if given is None else given).strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        source = f"the environment variable {API_KEY}" if given is None else "api_key"
        raise InvalidKey(f"{source} holds characters that no API key has; copy it again, without quotes or line breaks")
    return key or None


@dataclass(frozen=True)
class NamedProxy:
    """A proxy that the environment names. url: as it stands there, perhaps with a password. source: who names it."""

    url: str = field(repr=False)
    source: str


def proxy_to_use(scheme: str, host: str, port: int | None) -> NamedProxy | None:
    """Return the proxy that the environment wants for a service, None where there is none or the service needs none.

    scheme: "http" or "https". host: as `httpx.URL.host` has it. This machine itself is never asked for through a proxy, for
    the proxy's loopback is another.
    """
    if is_loopback(host):
        return None
    settings = getproxies()
    name = scheme if settings.get(scheme) else "all"
    url = settings.get(name)
    if not url or _goes_past(settings.get("no", ""), host, port or _DEFAULT_PORTS[scheme]):
        return None
    variables = (each for each, value in os.environ.items() if each.lower() == f"{name}_proxy" and value == url)
    return NamedProxy(url, next((f"the environment variable {each}" for each in variables), "the system's own setting"))


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's own loopback, in any of its spellings."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in _LOOPBACK_NAMES:
        return True
    ip = _ip(name)
    # To connect to the address that means "any" is to connect to this machine.
    return ip is not None and (ip.is_loopback or ip.is_unspecified)


def trusted_certificates() -> ssl.SSLContext:
    """Return what verifies a service's certificate: SSL_CERT_FILE, else SSL_CERT_DIR, else the roots of certifi.

    Raises InvalidSetting when that cannot be read.
    """
    file, folder = os.environ.get(CERT_FILE), os.environ.get(CERT_DIR)
    if file:
        return _context_of(file)
    if folder:
        # OpenSSL reads a list of folders and passes over what is not there: the first connection would fail, without a reason.
        if not any(_is_readable_folder(each) for each in folder.split(os.pathsep)):
            raise InvalidSetting(
                f"the environment variable {CERT_DIR} is {folder!r}, where no folder can be read; "
                "name a folder of certificates as `openssl rehash` makes it, or unset it"
            )
        return ssl.create_default_context(capath=folder)
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _context_of(file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ValueError) as error:
        # What OpenSSL finds wrong with the content is an OSError too, one without a file.
        reason = "no PEM certificate can be read from it" if isinstance(error, ssl.SSLError) else f"{error}"
        raise InvalidSetting(
            f"the environment variable {CERT_FILE} is {file!r}, which cannot be used ({reason}); "
            "name a file of PEM certificates, or unset it"
        ) from error


def _is_readable_folder(name: str) -> bool:
    return bool(name) and Path(name).is_dir() and os.access(name, os.R_OK | os.X_OK)


def _goes_past(no_proxy: str, host: str, port: int) -> bool:
    """Return whether NO_PROXY exempts a host: names and what is below them, addresses, networks, each perhaps with a port.

    What cannot be read there exempts nothing, as in curl.
    """
    name = host.lower().rstrip(".")
    return any(_exempts(entry.lower(), name, port) for entry in no_proxy.replace(",", " ").split())


def _exempts(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2].rstrip("/")
    network = _network(entry)
    if network is not None:
        ip = _ip(host)
        return ip is not None and ip in network
    pattern, only = _without_port(entry)
    if only is not None and only != port:
        return False
    ip = _ip(pattern)
    if ip is not None:
        return _ip(host) == ip
    pattern = pattern.removeprefix("*").strip(".")
    return bool(pattern) and (host == pattern or host.endswith(f".{pattern}"))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network that an entry with a slash names, such as 10.0.0.0/8 or [fd00::]/8."""
    if "/" not in entry:
        return None
    with suppress(ValueError):
        return ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    return None


def _without_port(entry: str) -> tuple[str, int | None]:
    """Return host and port of an entry such as example.org:8080, [::1]:8000, ::1 or .example.org."""
    host, colon, port = entry.rpartition(":")
    is_host = bool(host) and (":" not in host or host.endswith("]"))
    if colon and is_host and port.isascii() and port.isdigit():
        return host.strip("[]"), int(port)
    return entry.strip("[]"), None


def _ip(host: str) -> _Ip | None:
    """Return the address that a host is, in the spellings too that only the resolver knows, such as 127.1; else None."""
    with suppress(ValueError):
        ip = ipaddress.ip_address(host.partition("%")[0])
        return getattr(ip, "ipv4_mapped", None) or ip
    # inet_aton takes anything behind a blank for a comment.
    with suppress(OSError, UnicodeError):
        return None if not host or host != "".join(host.split()) else ipaddress.IPv4Address(socket.inet_aton(host))
    return None
