"""Requests: the first one, and those a server redirects to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from stabilize_celery.tasks.http_options import HTTPOptions

USER_AGENT = "stabilize-celery"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: What another origin may be told; any other header may be meant for the first one only.
_HARMLESS = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent", "range"})
_BODY_HEADERS = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding"})


class BadUrlError(ValueError):
    """The URL, or one that was redirected to, cannot be requested."""


class TooManyRedirectsError(Exception):
    """The server keeps redirecting."""


def parse_url(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """An absolute http(s) URL.

    Raises:
        BadUrlError: it is none.  The message does not repeat it: it may contain a password.
    """
    try:
        url = httpx.URL(text) if base is None else base.join(text)
    except httpx.InvalidURL as error:
        raise BadUrlError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https"):
        raise BadUrlError(f"unsupported scheme {url.scheme!r}; use http or https")
    if not url.host:
        raise BadUrlError("it names no host")
    return url


@contextmanager
def first_request(options: HTTPOptions) -> Iterator[httpx.Request]:
    """The request the options describe; an uploaded file is open while the block runs."""
    headers = httpx.Headers({"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "gzip, deflate"})
    url = parse_url(options.url)
    if url.userinfo:
        headers["Authorization"] = _basic(url.username, url.password)
        url = url.copy_with(userinfo=b"")
    if options.auth is not None:
        headers["Authorization"] = _basic(*options.auth)
    if options.bearer_token is not None:
        headers["Authorization"] = f"Bearer {options.bearer_token}"
    headers.update(options.headers)
    if options.upload_file is not None:
        name = options.upload_filename or os.path.basename(options.upload_file)
        with open(options.upload_file, "rb") as file:
            files = {options.upload_field: (name, file)}
            yield httpx.Request(options.method, url, headers=headers, files=files, data=options.upload_form)
        return
    body: dict[str, Any] = {}
    if "json_body" in options.model_fields_set:
        body = {"json": options.json_body}
    elif options.form is not None:
        body = {"data": options.form}
    elif options.body is not None:
        body = {"content": options.body.encode("utf-8", "surrogatepass")}
    yield httpx.Request(options.method, url, headers=headers, **body)


def _basic(user: str, password: str) -> str:
    request = httpx.Request("GET", "http://h")
    return next(httpx.BasicAuth(user, password).auth_flow(request)).headers["Authorization"]


def redirected(request: httpx.Request, response: httpx.Response) -> httpx.Request | None:
    """The request the response asks for instead, or ``None``.

    Another origin gets none of the credentials, cookies and other headers that were meant for the first.

    Raises:
        BadUrlError: the new location cannot be requested.
    """
    location = response.headers.get("location")
    if response.status_code not in _REDIRECTS or location is None:
        return None
    url = parse_url(location, base=request.url)
    if url.userinfo:
        url = url.copy_with(userinfo=b"")
    method = _method_after(response.status_code, request.method)
    dropped = {"host", "cookie"}
    if method != request.method:
        dropped |= _BODY_HEADERS
    trusted = same_origin(url, request.url)
    # httpx adds the host only to requests whose body it makes itself.
    headers = [("Host", url.netloc.decode("ascii"))] + [
        (name, value)
        for name, value in request.headers.multi_items()
        if name.lower() not in dropped and (trusted or name.lower() in _HARMLESS | _BODY_HEADERS)
    ]
    stream = request.stream if method == request.method else None
    return httpx.Request(method, url, headers=headers, stream=stream)


def _method_after(status: int, method: str) -> str:
    """What browsers do: 303 asks for GET, 301 and 302 turn POST into GET."""
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        return "GET"
    return method


def same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    """Whether what is meant for one may be shown to the other."""
    return _origin(one) == _origin(other)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme]
