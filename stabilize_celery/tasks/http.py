"""HTTPTask: one HTTP request, with redirects and retries."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import random
import ssl
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import httpcore
import httpx

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import Masker, Redactor
from stabilize_celery.tasks.http_options import IDEMPOTENT, HTTPOptions
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    OptionError,
    masker_of,
    read_options,
    redactor_of,
    stage_label,
    substitute,
    visible_data,
)
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run
from stabilize_celery.tasks.ssrf import Network, SsrfBlockedError, Transport

#: Seconds beyond what the options allow before the engine may step in.
_MARGIN_SECONDS = 20.0
#: What another origin may be told; any other header may be meant for the first one only.
_HARMLESS = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "connection", "content-encoding", "content-length", "content-type",
        "host", "range", "transfer-encoding", "user-agent",
    }
)  # fmt: skip


class _BadRequestError(Exception):
    """It cannot be sent, or its answer not be used.  The message does not repeat the URL: it may hold a password."""


class HTTPTask(Task):
    """Sends a request; ``{key}`` in ``url``, ``headers``, ``bearer_token`` and ``body`` becomes what the stage sees.

    Outputs: ``status_code``, ``headers``, ``body``, ``elapsed_ms``, ``url`` (the last one, after redirects),
    ``content_type``, ``content_length``, ``body_json`` if asked for and parsed, ``body_b64`` if the body is no text.
    Retries happen inside one attempt of the engine, so they keep a worker busy: few and short is right here.
    """

    #: Whether stages that do not say ``allow_private_urls`` may reach addresses that are not public.
    allow_private_urls_default: bool = False

    def execute(self, stage: StageExecution) -> TaskResult:
        """Send the request of ``stage``."""
        try:
            options = _rendered(read_options(HTTPOptions, stage), stage)
            tls = options.tls()
        except OptionError as error:
            return TaskResult.terminal(str(error))
        if options.allow_private_urls is None:
            options = options.model_copy(update={"allow_private_urls": self.allow_private_urls_default})
        return _Exchange(options, tls, stage).run()

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """All attempts, the waits between them, and some room."""
        try:
            longest = read_options(HTTPOptions, stage).longest()
        except OptionError:
            return None
        return timedelta(seconds=min(longest, 10**8) + _MARGIN_SECONDS)


def _rendered(options: HTTPOptions, stage: StageExecution) -> HTTPOptions:
    """The options with the stage's data put in.

    Raises:
        OptionError: the result is no URL, or no header.
    """
    data, label = visible_data(HTTPOptions, stage), stage_label(stage)

    def fill(template: str, option: str) -> str:
        return substitute(template, data, f"stage {label}: option {option!r}")

    changes: dict[str, Any] = {
        "url": fill(options.url, "url").strip(),
        "headers": {name: fill(value, "headers") for name, value in options.headers.items()},
    }
    if options.bearer_token is not None:
        changes["bearer_token"] = fill(options.bearer_token, "bearer_token")
    if options.body is not None:
        # Braces in it are mostly those of JSON.
        changes["body"] = substitute(options.body, data)
    for name, value in changes["headers"].items():
        if any(character in name + value for character in "\r\n\0"):
            raise OptionError(f"Stage '{label}': option 'headers.{name!r}': must not contain line breaks")
    try:
        _check_url(changes["url"])
    except _BadRequestError as error:
        raise OptionError(f"Stage '{label}': option 'url': {error}") from None
    return options.model_copy(update=changes)


def _check_url(text: str) -> None:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise _BadRequestError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https"):
        raise _BadRequestError(f"unsupported scheme {url.scheme!r}; use http or https")
    if not url.host:
        raise _BadRequestError("it names no host")


class _Exchange:
    """One task's requests: attempts, and in each of them redirects."""

    def __init__(self, options: HTTPOptions, tls: ssl.SSLContext, stage: StageExecution) -> None:
        self._options = options
        self._tls = tls
        secrets = options.secret_values()
        self._masker = masker_of(stage, *secrets)
        self._redactor = redactor_of(stage, named=secrets)
        self._url = httpx.URL(options.url).copy_with(userinfo=b"")
        self._run = current_run()
        self._started = time.monotonic()

    def run(self) -> TaskResult:
        retry = 0
        while True:
            result, again, asked_for = self._attempt()
            if not again or retry >= self._options.retries:
                return result
            retry += 1
            if self._interrupted(self._options.delay(retry, asked_for, random.random())):
                return self._was_interrupted()

    def _interrupted(self, wait: float = 0.0) -> bool:
        if self._run is not None:
            return self._run.cancelled.wait(wait)
        time.sleep(wait)
        return False

    def _was_interrupted(self) -> TaskResult:
        return TaskResult.terminal("HTTP request was interrupted", context=self._facts(self._redactor))

    def _attempt(self) -> tuple[TaskResult, bool, float]:
        """One attempt: its result, whether another one may help, and the least seconds the server asks for."""
        options = self._options
        network = Network(options.timeout, bool(options.allow_private_urls))
        guard = self._run.on_interrupt(network.interrupt) if self._run else contextlib.nullcontext()
        client = httpx.Client(
            transport=Transport(network, self._tls, options.proxy),
            auth=httpx.Auth(),
            trust_env=False,
            timeout=None,
            headers={"User-Agent": "stabilize-celery", "Accept-Encoding": "gzip, deflate"},
        )
        try:
            with (
                _no_wire_log(),
                guard,
                client,
                _first_request(client, options) as request,
                contextlib.closing(self._follow(client, request)) as response,
            ):
                result, again, wait = self._judged(response)
            # A body that ends with its connection looks complete after an interrupt too.
            return (self._was_interrupted(), False, 0.0) if self._interrupted() else (result, again, wait)
        except SsrfBlockedError as error:
            blocked = f"SSRF blocked: URL '{self._url}' targets blocked address {error.address}"
            return self._failure(
                f"{blocked}; the stage's allow_private_urls, or stabilize_allow_private_urls, allows it"
            )
        except (_BadRequestError, httpx.DecodingError) as error:
            return self._failure(str(error))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return self._failure(f"URL error: {error}")
        except httpcore.TimeoutException as error:
            return self._broken(f"Request timed out after {options.timeout:g}s", error)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            return self._broken(f"URL error: {str(error) or type(error).__name__}", error)
        except OSError as error:
            return self._failure(f"File error: {error}")

    def _follow(self, client: httpx.Client, first: httpx.Request) -> httpx.Response:
        """The response at the end of the redirects; another origin gets no credentials, and nothing else meant for ours."""
        cookie, request = first.headers.get("cookie"), first
        for _ in range(self._options.max_redirects + 1):
            self._url = request.url
            response = client.send(request, stream=True)
            following = response.next_request if self._options.follow_redirects else None
            if following is None:
                return response
            response.close()
            if following.url.scheme not in ("http", "https"):
                raise _BadRequestError(f"URL error: redirected to the scheme {following.url.scheme!r}")
            following.url = following.url.copy_with(userinfo=b"")
            if _origin(following.url) != _origin(first.url):
                for name in following.headers.keys() - _HARMLESS - {"cookie"}:
                    del following.headers[name]
            elif cookie is not None:
                more = following.headers.get("cookie")
                following.headers["cookie"] = cookie if more is None else f"{cookie}; {more}"
            request = following
        raise _BadRequestError(f"URL error: more than {self._options.max_redirects} redirects")

    def _judged(self, response: httpx.Response) -> tuple[TaskResult, bool, float]:
        status, expected = response.status_code, self._options.expected_status
        succeeded = status in expected if expected is not None else 200 <= status < 300
        hide = self._masker if succeeded else self._redactor
        outputs = _read(response, self._options, hide) | self._facts(hide)
        if succeeded:
            return TaskResult.success(outputs=outputs), False, 0.0
        asked_for = response.headers.get("retry-after", "")
        wait = float(asked_for) if asked_for.isdecimal() else 0.0
        error = f"HTTP {status}" if expected is None else f"Unexpected status {status}, expected {expected}"
        again = status in self._options.retry_on_status and self._may_repeat()
        return self._options.failure(error, outputs), again, wait

    def _facts(self, hide: Masker | Redactor) -> dict[str, Any]:
        return {
            "elapsed_ms": int((time.monotonic() - self._started) * 1000),
            "url": hide.text(str(self._url)),
        }

    def _may_repeat(self) -> bool:
        return self._options.method in IDEMPOTENT or self._options.retry_non_idempotent

    def _failure(self, error: str) -> tuple[TaskResult, bool, float]:
        return self._options.failure(self._redactor.text(error), self._facts(self._redactor)), False, 0.0

    def _broken(self, message: str, error: Exception) -> tuple[TaskResult, bool, float]:
        """The connection failed; what never reached the server may always be sent again."""
        if self._interrupted():
            return self._was_interrupted(), False, 0.0
        not_sent = isinstance(error, (httpcore.ConnectError, httpcore.ConnectTimeout))
        distrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
        result, _, _ = self._failure(message)
        return result, (not_sent or self._may_repeat()) and not distrusted, 0.0


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


@contextlib.contextmanager
def _first_request(client: httpx.Client, options: HTTPOptions) -> Iterator[httpx.Request]:
    """The request the options describe; an uploaded file is open while the block runs."""
    url, headers = httpx.URL(options.url), httpx.Headers()
    user = options.auth or ((url.username, url.password) if url.userinfo else None)
    if user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode("ascii")
    if options.bearer_token is not None:
        headers["Authorization"] = f"Bearer {options.bearer_token}"
    headers.update(options.headers)
    with contextlib.ExitStack() as opened:
        body: dict[str, Any] = {}
        if options.upload_file is not None:
            file = opened.enter_context(open(options.upload_file, "rb"))
            name = options.upload_filename or os.path.basename(options.upload_file)
            body = {"files": {options.upload_field: (name, file)}, "data": options.upload_form}
        elif "json_body" in options.model_fields_set:
            body = {"json": options.json_body}
        elif options.form is not None:
            body = {"data": options.form}
        elif options.body is not None:
            body = {"content": options.body.encode("utf-8", "surrogatepass")}
        yield client.build_request(options.method, url.copy_with(userinfo=b""), headers=headers, **body)


def _read(response: httpx.Response, options: HTTPOptions, hide: Masker | Redactor) -> dict[str, Any]:
    """The outputs of a response; a body that is no text in its charset is also given as it is, in ``body_b64``.

    Raises:
        _BadRequestError: decompressed, it is larger than ``max_response_size``; nothing is left of a download.
        httpx.DecodingError: its compression is damaged.
    """
    announced = response.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() else None
    head = response.request.method == "HEAD"
    if length is not None and length > options.max_response_size and not head:
        raise _too_large(options)
    headers: dict[str, str] = {}
    for raw, _ in response.headers.raw:
        # One value per name, as the server wrote the name; several are joined by commas.
        name = raw.decode("latin-1")
        if name.lower() not in map(str.lower, headers):
            headers[name] = response.headers[name]
    data: dict[str, Any] = {
        "status_code": response.status_code,
        "headers": hide.value(headers),
        "content_type": hide.text(response.headers.get("content-type", "")),
    }
    if options.download_to is not None and response.is_success:
        return {**data, "content_length": _download(response, options), "body": options.download_to}
    content = b"".join(_limited(response, options))
    data["content_length"] = length if head and length is not None else len(content)
    try:
        text = content.decode(response.charset_encoding or "utf-8")
    except (UnicodeDecodeError, LookupError):
        text = content.decode("utf-8", "replace")
        data["body_b64"] = base64.b64encode(hide.data(content)).decode("ascii")
    data["body"] = hide.text(text)
    if options.parse_json:
        with contextlib.suppress(ValueError, RecursionError):
            data["body_json"] = hide.value(json.loads(text, parse_constant=_no_constant))
    return data


def _limited(response: httpx.Response, options: HTTPOptions) -> Iterator[bytes]:
    size = 0
    for chunk in response.iter_bytes():
        size += len(chunk)
        if size > options.max_response_size:
            raise _too_large(options)
        yield chunk


def _too_large(options: HTTPOptions) -> _BadRequestError:
    return _BadRequestError(f"Response exceeds max size ({options.max_response_size} bytes)")


def _no_constant(name: str) -> None:
    """NaN and Infinity are no JSON, and no database stores them."""
    raise ValueError(name)


def _download(response: httpx.Response, options: HTTPOptions) -> int:
    """Write the body to its file, which appears only when it is complete; returns the bytes written."""
    folder, name = os.path.split(os.path.abspath(str(options.download_to)))
    part = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            for chunk in _limited(response, options):
                file.write(chunk)
            size = file.tell()
        os.replace(part, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    return size


_quiet: ContextVar[bool] = ContextVar("stabilize_http_quiet", default=False)

# httpx logs every URL, httpcore at level DEBUG the headers of every response, and what is secret in them.
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(lambda _: not _quiet.get())


@contextlib.contextmanager
def _no_wire_log() -> Iterator[None]:
    """Keep what these libraries log of this thread's requests out of the log while the block runs."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)
