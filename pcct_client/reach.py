"""How a service is reached: URL, headers, proxy and certificates, and connections that one process or one event loop has.

A connection carries one request at a time, so two that use the same one get each other's answers. After a fork parent and
child hold the same sockets; the child opens others and leaves its parent's alone: to close them could end an encrypted
connection that the parent goes on with, or wait for a lock that a thread of the parent held at the fork. An asyncio
connection answers to the loop that opened it and to no other.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from pcct_client.errors import (
    BelongsElsewhere,
    ClientClosed,
    InvalidHeader,
    InvalidSetting,
    InvalidUrl,
    MissingExtra,
    NoEventLoop,
)
from pcct_client.settings import NamedProxy, key_to_send, proxy_to_use, trusted_certificates

_LARGEST_PORT = 65535
_LONGEST_LABEL, _LONGEST_HOST = 63, 253  # RFC 1035, 2.3.4
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")  # one label; underscores are no host names and are in use
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, 5.5
# They say how a body is to be read, or change what an answer means, so each request has its own or none.
_OURS = ("content-length", "transfer-encoding", "content-encoding", "if-none-match", "if-match", "range")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class Address:
    """Where a service is and how it is reached, read once when a client is made.

    url: without name and password. headers: of every request, those of the key among them. proxy: None where there is none.
    certificates: what verifies the service, and a proxy that is reached by https.
    """

    url: httpx.URL
    headers: httpx.Headers
    proxy: NamedProxy | None
    certificates: ssl.SSLContext

    @classmethod
    def read(cls, url: Any, pairs: list[tuple[str, str]], api_key: str | None, *, by_network: bool) -> Address:
        """Return the address for a client's arguments; by_network: no transport of the caller's takes the place of it.

        pairs: as `header_pairs` returns them. Raises InvalidUrl, InvalidKey, InvalidSetting, or MissingExtra.
        """
        base = _base_url(url)
        proxy = proxy_to_use(base.scheme, base.host, base.port) if by_network else None
        needs_trust = base.scheme == "https" or (proxy is not None and proxy.url.lower().startswith("https:"))
        address = cls(
            base.copy_with(userinfo=b""),
            _headers(base, pairs, api_key),
            proxy,
            # Without certificates a context trusts nobody; to load them takes a twentieth of a second.
            trusted_certificates() if by_network and needs_trust else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
        address.httpx_proxy()
        return address

    @property
    def shown(self) -> str:
        """The URL as messages show it."""
        return str(self.url).rstrip("/")

    def httpx_proxy(self) -> httpx.Proxy | None:
        """Return the proxy as httpx takes it. Raises InvalidSetting, or MissingExtra for SOCKS without its library."""
        return None if self.proxy is None else _httpx_proxy(self.proxy, self.url.host, self.certificates)


class Connections:
    """The connections of a `Client`, which each process that uses it opens for itself.

    transport: the caller's own in place of the network, or None.
    """

    def __init__(self, address: Address, transport: httpx.BaseTransport | None) -> None:
        self.address = address
        self.closed = False
        self._transport = transport
        self._process = os.getpid()
        # Those of a parent stay here untouched.
        self._by_process: dict[int, httpx.Client] = {}

    def http(self) -> httpx.Client:
        """Return what sends requests in this process. Raises ClientClosed, or BelongsElsewhere for a transport."""
        if self.closed:
            raise ClientClosed(self.address.shown)
        process = os.getpid()
        http = self._by_process.get(process)
        if http is None:
            _check_process(self._transport, self._process)
            # Not under a lock: a fork while another thread held it would leave the child waiting for ever.
            http = self._by_process.setdefault(process, self._open())
        return http

    def close(self) -> None:
        """Close the connections of this process."""
        self.closed = True
        http = self._by_process.pop(os.getpid(), None)
        if http is not None:
            http.close()
        elif self._transport is not None and os.getpid() == self._process:
            self._transport.close()

    def _open(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.address.url,
            headers=self.address.headers,
            transport=self._transport,
            proxy=self.address.httpx_proxy(),
            verify=self.address.certificates,
            trust_env=False,  # read in `settings`, for httpx refuses exemptions that others understand
        )


@dataclass
class _Pool:
    """Connections of one event loop. users: how many calls and sessions run on them, and the client while it is entered."""

    http: httpx.AsyncClient
    users: int = 0


class AsyncConnections:
    """The connections of an `AsyncClient`: for each event loop a pool of its own, closed with the last call that runs on it.

    A loop may end at any time and without a word, and what it leaves open can then not be closed any more. So connections
    outlive a call only where something says when they end: `async with`, a session, or a transport of the caller's.
    transport: as in `Connections`; it serves all loops, and `aclose` ends it.
    """

    def __init__(self, address: Address, transport: httpx.AsyncBaseTransport | None) -> None:
        self.address = address
        self.closed = False
        self._transport = transport
        self._process = os.getpid()
        # By the loop itself: an id may be another's later. None for the caller's transport.
        self._pools: dict[asyncio.AbstractEventLoop | None, _Pool] = {}

    def hold(self) -> _Pool:
        """Return the running loop's connections, to be kept open until `release`.

        Raises ClientClosed, NoEventLoop, or BelongsElsewhere for a transport.
        """
        if self.closed:
            raise ClientClosed(self.address.shown)
        loop = running_loop()
        _check_process(self._transport, self._process)
        key = loop if self._transport is None else None
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools.setdefault(key, _Pool(self._open()))
        pool.users += 1
        return pool

    async def release(self, pool: _Pool) -> None:
        """Close the running loop's connections if nobody else holds them."""
        pool.users -= 1
        if pool.users == 0 and self._transport is None:
            await self._close(running_loop())

    async def close(self) -> None:
        """Close the connections of the running loop; those of others end with the calls that run there."""
        self.closed = True
        await self._close(running_loop() if self._transport is None else None)

    async def _close(self, loop: asyncio.AbstractEventLoop | None) -> None:
        # Taken out before anything is awaited: a call that begins meanwhile opens others.
        pool = self._pools.pop(loop, None)
        if pool is not None:
            await pool.http.aclose()
        elif self._transport is not None and os.getpid() == self._process:
            await self._transport.aclose()

    def _open(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.address.url,
            headers=self.address.headers,
            transport=self._transport,
            proxy=self.address.httpx_proxy(),
            verify=self.address.certificates,
            trust_env=False,  # as in `Connections`
        )


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the asyncio loop that runs here. Raises NoEventLoop."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop from None


def _check_process(transport: object, process: int) -> None:
    if transport is not None and os.getpid() != process:
        raise BelongsElsewhere(
            "this is a fork of the process that made the client, and its transport may hold connections that both would use; "
            "make another client here"
        )


def _base_url(url: Any) -> httpx.URL:
    """Return the parsed URL. Raises InvalidUrl, without name and password, for what cannot be the URL of a service."""
    try:
        base = httpx.URL(url.strip() if isinstance(url, str) else url)
        fault = _url_fault(base)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        # The reason may show a part of the password.
        fault = "it cannot be read" if "@" in str(url) else str(error)
    if fault is None:
        return base
    is_text = isinstance(url, str | httpx.URL)
    shown = (
        repr(re.sub(r"^([^/]*//)?.*@", r"\1…@", str(url), flags=re.DOTALL)) if is_text else f"a {type(url).__name__}"
    )
    raise InvalidUrl(f"{shown} is not the URL of a service ({fault}); use one such as http://127.0.0.1:8000")


def _url_fault(url: httpx.URL) -> str | None:
    """Return what keeps a URL from being that of a service, None when it can be."""
    if "unix" in url.scheme:
        return "a Unix socket is given as transport=httpx.HTTPTransport(uds='/path'), with the URL http://localhost"
    if url.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    if not url.host:
        return "it names no host"
    if url.port is not None and not 1 <= url.port <= _LARGEST_PORT:
        return f"there is no port {url.port}"
    if url.query or url.fragment or "?" in str(url):
        return "give it without ? and # and what follows them"
    return _host_fault(url.raw_host.decode("ascii"))


def _host_fault(host: str) -> str | None:
    if ":" in host:  # IPv6, which httpx has read
        return None
    labels = host.removesuffix(".").split(".")
    if len(host) > _LONGEST_HOST or any(len(label) > _LONGEST_LABEL for label in labels):
        return f"its host is longer than {_LONGEST_LABEL} characters between two dots, or {_LONGEST_HOST} in all"
    return None if all(map(_HOST.fullmatch, labels)) else "its host holds what no name has"


def _headers(base: httpx.URL, pairs: list[tuple[str, str]], api_key: str | None) -> httpx.Headers:
    """Return the headers of every request; pairs: as `header_pairs` returns them.

    A key that is given goes before a header, that before a name and password in the URL, and these before the environment's
    key. The URL itself is used without them, for httpx logs it.
    """
    out = httpx.Headers([(name.encode(), value.encode("latin-1")) for name, value in pairs])
    if base.userinfo and "authorization" not in out:
        pair = f"{base.username}:{base.password}".encode()
        out["Authorization"] = f"Basic {b64encode(pair).decode()}"
    if api_key is not None or "authorization" not in out:
        key = key_to_send(api_key)
        if key is not None:
            out["Authorization"] = f"Bearer {key}"
    return out


def header_pairs(headers: Any) -> list[tuple[str, str]]:
    """Return a client's `headers`, a mapping, as they are sent. Raises InvalidHeader for what HTTP cannot carry."""
    try:
        pairs = [(name, value) for name, value in (headers.items() if isinstance(headers, Mapping) else headers or ())]
    except (TypeError, ValueError):
        raise InvalidHeader('headers are no mapping of names to values; use one such as {"X-Token": "…"}') from None
    for name, value in pairs:
        _check_header(name, value)
    return [(name, value.strip(" \t")) for name, value in pairs]


def _check_header(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise InvalidHeader(f"{name!r} in headers is no name of a header; use letters, digits and hyphens")
    if name.lower() in _OURS:
        raise InvalidHeader(f"the header {name} in headers is the client's own in every request; leave it out")
    if not isinstance(value, str):
        raise InvalidHeader(f"the header {name} in headers is of type {type(value).__name__}; use a string")
    if not _HEADER_VALUE.fullmatch(value):
        raise InvalidHeader(
            f"the header {name} in headers holds characters that HTTP cannot carry, such as the end of a line or what is not "
            "in Latin-1; strip() what a file ends with, and encode all else"
        )


def _httpx_proxy(proxy: NamedProxy, host: str, certificates: ssl.SSLContext) -> httpx.Proxy:
    """Return the proxy for httpx. Raises InvalidSetting, which does not show a password, or MissingExtra."""
    fix = f"correct it, unset it, or put {host} into NO_PROXY"
    try:
        url = httpx.URL(proxy.url if "://" in proxy.url else f"http://{proxy.url}")
        fault = None if url.host and (url.port is None or 1 <= url.port <= _LARGEST_PORT) else "host or port is missing"
        fault = fault or _host_fault(url.raw_host.decode("ascii"))
    except (httpx.InvalidURL, ValueError):
        raise InvalidSetting(f"{proxy.source} does not hold the URL of a proxy; {fix}") from None
    if url.scheme not in _PROXY_SCHEMES:
        raise InvalidSetting(
            f"{proxy.source} names a proxy of the kind {url.scheme}://; known are {', '.join(_PROXY_SCHEMES)}: {fix}"
        )
    if fault is not None:
        raise InvalidSetting(f"{proxy.source} does not hold the URL of a proxy ({fault}); {fix}")
    if url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise MissingExtra(
            f"{proxy.source} names a SOCKS proxy, which needs socksio: pip install 'httpx[socks]', "
            f"or unset it, or put {host} into NO_PROXY"
        )
    return httpx.Proxy(url, ssl_context=certificates if url.scheme == "https" else None)
