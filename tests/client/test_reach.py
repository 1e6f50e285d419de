"""What a client makes of URLs, headers, proxies and certificates, before anything is sent."""

import http.server
import os
import threading

import httpx
import numpy as np
import pytest

from pcct_client import (
    AsyncClient,
    Client,
    InvalidHeader,
    InvalidKey,
    InvalidSetting,
    InvalidUrl,
    MissingExtra,
    ServerUnavailable,
    dataset_id,
)
from pcct_client.settings import is_loopback, proxy_to_use, trusted_certificates

POINTS = np.eye(3)
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in (*CERTIFICATES, "PCCT_API_KEY"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://ho st:80", "holds what no name has"),
        ("http://%20", "holds what no name has"),
        ("http://*", "holds what no name has"),
        ("http://a..b", "holds what no name has"),
        ("http://.", "holds what no name has"),
        ("http://h\\x", "holds what no name has"),
        ("http://" + "a" * 64 + ".com", "longer than 63"),
        ("http://" + "a." * 130 + "com", "253 in all"),
        ("http://xn--/", "A-label"),
        ("http://١٢٧.0.0.1", "IDNA"),
        ("http://[::1", "port"),
        ("http://::1:8000", "port"),
        ("http://[::gg]", "IPv6"),
        ("http://256.1.1.1", "IPv4"),
        ("http://h:80:90", "port"),
        ("http://h:-1", "no port -1"),
        ("http://h:65536", "no port 65536"),
        ("http://\x00", "non-printable"),
        ("http:/127.0.0.1:8000", "names no host"),
        ("http://u@:80", "names no host"),
        ("//h:80", "does not begin with http"),
        ("http//h", "does not begin with http"),
        ("localhost:8000", "does not begin with http"),
        ("http://h?x=1", r"without \? and #"),
        ("http://h/#part", r"without \? and #"),
        ("unix:///run/pcct.sock", r"transport=httpx\.HTTPTransport"),
        ("http+unix://%2Frun%2Fpcct.sock", r"transport=httpx\.HTTPTransport"),
        (b"http://h", "a bytes is not"),
        (8000, "a int is not"),
    ],
)
def test_a_url_that_is_none_is_refused_with_its_fault(url, fault):
    for make in (Client, AsyncClient):
        with pytest.raises(InvalidUrl, match=fault) as caught:
            make(url)
        assert str(caught.value).endswith("use one such as http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "url", ["http://me:secret@h:99999", "http://me:se/secret@h", "http://me:secret@", b"http://u:secret@h"]
)
def test_a_password_is_not_shown_with_a_url_that_is_refused(url):
    with pytest.raises(InvalidUrl) as caught:
        Client(url)
    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize(
    "url", [" http://h:1\n", "HTTP://H:1/", "http://bücher.example", "http://a_b.c-d.:80", "http://[::1%lo]:80"]
)
def test_a_url_is_taken_in_the_spellings_that_there_are(url):
    Client(url).close()


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({"X-A": "a\nX-Evil: 1"}, "X-A in headers holds characters"),
        ({"X-A": "a\r"}, "X-A in headers holds characters"),
        ({"X-A": "token\n"}, "X-A in headers holds characters"),
        ({"X-A": "\x00"}, "X-A in headers holds characters"),
        ({"X-A": "a\x7f"}, "X-A in headers holds characters"),
        ({"X-A": "naïve – no"}, "X-A in headers holds characters"),
        ({"X-A": 7}, "X-A in headers is of type int"),
        ({"X-A": None}, "X-A in headers is of type NoneType"),
        ({"X-A": b"a"}, "X-A in headers is of type bytes"),
        ({"X A": "a"}, "'X A' in headers is no name"),
        ({"X-A:": "a"}, "'X-A:' in headers is no name"),
        ({"": "a"}, "'' in headers is no name"),
        ({"Größe": "a"}, "'Größe' in headers is no name"),
        ({5: "a"}, "5 in headers is no name"),
        ({"content-length": "5"}, "content-length in headers is the client's own"),
        ({"Transfer-Encoding": "chunked"}, "Transfer-Encoding in headers is the client's own"),
        ("X-A: a", "no mapping"),
        (7, "no mapping"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_by_its_name(headers, fault):
    for make in (Client, AsyncClient):
        with pytest.raises(InvalidHeader, match=fault) as caught:
            make(headers=headers)
        assert "Evil" not in str(caught.value)
        assert "naïve" not in str(caught.value)


def test_headers_that_can_be_sent_are_sent_as_they_are(service):
    headers = httpx.Headers({"X-Latin": "café".encode("latin-1"), "X-Blank": " a\tb ", "X-Empty": ""})
    with Client("http://pcct.test", headers=headers, transport=httpx.MockTransport(service)) as client:
        client.upload(POINTS)
    sent = dict(service.requests[0].headers.raw)
    assert (sent[b"x-latin"], sent[b"x-blank"], sent[b"x-empty"]) == (b"caf\xe9", b"a\tb", b"")


@pytest.mark.parametrize("key", [7, b"pcct_ab", ["pcct_ab"]])
def test_a_key_that_is_no_string_is_refused_and_not_shown(key):
    with pytest.raises(InvalidKey, match=r"api_key is of type .*; use a string") as caught:
        Client(api_key=key)
    assert "pcct_ab" not in str(caught.value)


LOOPBACK = [
    *(
        "localhost",
        "localhost.",
        "LOCALHOST",
        "sub.localhost",
        "a.b.localhost.",
        "ip6-localhost",
        "localhost.localdomain",
    ),
    *("127.0.0.1", "127.0.0.2", "127.255.1.9", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1"),
    *(
        "0.0.0.0",  # noqa: S104
        "0",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:0.0.0.0]",
    ),
    "[::1%25lo]",
]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "all_proxy"])
def test_loopback_is_never_asked_for_through_a_proxy(monkeypatch, host, variable):
    monkeypatch.setenv(variable, "no such proxy://[")  # not even read
    for make in (Client, AsyncClient):
        assert make(f"http://{host}:8000")._address.proxy is None


@pytest.mark.parametrize(
    "host", ["localhost.example.org", "notlocalhost", "128.0.0.1", "10.0.0.1", "::2", "::ffff:10.0.0.1", "1.2.3.4.5"]
)
def test_what_is_not_loopback_is_told_apart(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("no_proxy", "host", "passes"),
    [
        ("localhost,[::1]", "example.org", False),
        ("localhost,[fd00::1]", "fd00::1", True),
        ("fd00::1", "fd00::1", True),
        ("fd00:0::1", "fd00::1", True),
        ("[fd00::1]:8000", "fd00::1", True),
        ("[fd00::1]:8001", "fd00::1", False),
        ("[fd00::]/8", "fd12::1", True),
        ("fd00::/8", "fe80::1", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.7/8", "10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "10.example.org", False),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.33", False),
        ("example.org", "example.org", True),
        ("Example.ORG.", "example.org", True),
        ("example.org", "a.example.org", True),
        (".example.org", "a.example.org", True),
        (".example.org", "example.org", True),
        ("*.example.org", "a.example.org", True),
        ("example.org", "anexample.org", False),
        ("example.org:8000", "example.org", True),
        ("example.org:443", "example.org", False),
        ("http://example.org", "example.org", True),
        ("a.org b.org", "b.org", True),
        ("a.org,, b.org ,", "b.org", True),
        ("*", "example.org", True),
        ("[,::,//,:,/,%", "example.org", False),
        ("", "example.org", False),
    ],
)
def test_no_proxy_exempts_names_addresses_networks_and_ports(monkeypatch, no_proxy, host, passes):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_to_use("http", host, 8000) is None) == passes


@pytest.mark.parametrize(
    ("value", "error", "fault"),
    [
        ("socks5://127.0.0.1:1080", MissingExtra, "needs socksio: pip install"),
        ("socks5h://127.0.0.1:1080", MissingExtra, "needs socksio: pip install"),
        ("socks4://127.0.0.1:1080", InvalidSetting, "of the kind socks4://"),
        ("ftp://proxy.test", InvalidSetting, "of the kind ftp://"),
        ("http://me:secret@proxy.test:99999", InvalidSetting, "does not hold the URL of a proxy"),
        ("http://me:secret@proxy.test:port", InvalidSetting, "does not hold the URL of a proxy"),
        ("http://", InvalidSetting, "does not hold the URL of a proxy"),
        ("http://[::1", InvalidSetting, "does not hold the URL of a proxy"),
        ("my proxy", InvalidSetting, "does not hold the URL of a proxy"),
        ("http://xn--/", InvalidSetting, "does not hold the URL of a proxy"),
    ],
)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, variable, value, error, fault):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for make in (Client, AsyncClient):
        with pytest.raises(
            error, match=f"the environment variable {variable} .*{fault}.* put example.org into NO_PROXY"
        ) as caught:
            make("https://example.org")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_asked_and_named_where_it_does_not_answer(monkeypatch, variable):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        monkeypatch.setenv(variable, f"127.0.0.1:{server.server_port}")
        with Client("http://pcct.test:8000") as client:
            client.upload(POINTS)
        server.shutdown()
        thread.join()
    assert asked == [f"http://pcct.test:8000/v1/datasets/{dataset_id(POINTS)}"]
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    with (
        Client("http://pcct.test:8000") as client,
        pytest.raises(ServerUnavailable, match=f"{variable} has a proxy asked"),
    ):
        client.upload(POINTS)


@pytest.mark.parametrize("content", [None, "", "no certificate"])
@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_file_of_certificates_that_cannot_be_used_is_named(monkeypatch, tmp_path, content, make):
    file = tmp_path / "roots.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(InvalidSetting, match=r"SSL_CERT_FILE is '.*roots\.pem', which cannot be used .*or unset it"):
        make("https://localhost:8000")
    make("http://localhost:8000")  # needs none


def test_a_folder_of_certificates_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    for wrong in (tmp_path / "absent", tmp_path / "file"):
        (tmp_path / "file").touch()
        monkeypatch.setenv("SSL_CERT_DIR", str(wrong))
        with pytest.raises(InvalidSetting, match=r"SSL_CERT_DIR is .*openssl rehash"):
            Client("https://pcct.test")
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'absent'}{os.pathsep}{tmp_path}")
    Client("https://pcct.test").close()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    with pytest.raises(InvalidSetting, match="SSL_CERT_FILE"):
        trusted_certificates()


def test_a_transport_of_the_callers_needs_no_proxy_and_no_certificates(monkeypatch, service):
    monkeypatch.setenv("ALL_PROXY", "socks4://x")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    with Client("https://pcct.test", transport=httpx.MockTransport(service)) as client:
        assert client.upload(POINTS) == dataset_id(POINTS)
