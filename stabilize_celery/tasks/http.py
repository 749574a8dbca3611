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
from functools import cache
from typing import Annotated, Any, ClassVar

import httpx
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import Masker, Redactor, masker_of, redactor_of
from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    DEFAULT_MAX_OUTPUT_BYTES,
    OptionError,
    TaskOptions,
    read_options,
    stage_label,
    substitute,
    visible_data,
)
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run
from stabilize_celery.tasks.ssrf import Network, SsrfBlockedError, Transport

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
#: Sending one of these twice does the same as sending it once (RFC 9110).
IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT"})
#: The longest wait before a retry is this many times ``retry_delay``.
_MAX_DELAY_FACTOR = 10.0
#: Request headers whose values are secret whether named in ``secrets`` or not.
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token"})
#: Seconds beyond what the options allow before the engine may step in.
_MARGIN_SECONDS = 20.0
#: Headers that another origin gets too; any other may be meant for the first one only.
_HARMLESS = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "connection", "content-encoding", "content-length", "content-type",
        "host", "range", "transfer-encoding", "user-agent",
    }
)  # fmt: skip


@cache
def _usual_tls(verify: bool) -> ssl.SSLContext:
    """Reading the usual certificates takes some 20 ms, so it is done once."""
    return httpx.create_ssl_context(verify=verify)


def _method(value: str) -> str:
    if value.upper() not in METHODS:
        raise ValueError(f"Unsupported method {value!r}. Supported: {list(METHODS)}")
    return value.upper()


def _proxy(value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise ValueError(f"is no URL: {error}") from None
    if not url.host:
        raise ValueError("names no host")
    if url.scheme not in ("http", "https"):
        raise ValueError(f"has the scheme {url.scheme!r}; use http or https")
    return value


def _upload(value: str) -> str:
    if not os.path.isfile(value):
        raise ValueError("Upload file not found")
    return value


def _download(value: str) -> str:
    if not os.path.isdir(os.path.dirname(os.path.abspath(value))):
        raise ValueError("its directory does not exist")
    return value


class HTTPOptions(TaskOptions):
    """Options of an ``http`` stage; times are in seconds, sizes in bytes."""

    private: ClassVar[frozenset[str]] = frozenset(
        {"url", "headers", "auth", "bearer_token", "body", "json", "form", "upload_form", "proxy"}
    )

    url: str = Field(min_length=1)
    method: Annotated[str, AfterValidator(_method)] = "GET"
    headers: dict[str, str] = Field(default_factory=dict)
    #: User name and password.
    auth: tuple[str, str] | None = None
    bearer_token: str | None = None

    #: Body: the first of these that is given.
    upload_file: Annotated[str, AfterValidator(_upload)] | None = None
    json_body: Any = Field(default=None, alias="json")
    form: dict[str, Any] | None = None
    body: str | None = None
    upload_field: str = "file"
    #: Name the server sees; the file's own without it.
    upload_filename: str | None = None
    upload_form: dict[str, Any] = Field(default_factory=dict)

    #: For one attempt with all its redirects, from resolving the name to the last byte.
    timeout: Seconds = Field(default=30.0, gt=0)
    #: Attempts after the first.
    retries: int = Field(default=0, ge=0, le=100)
    #: Before the first retry; then twice as long each time, ten times as long at most.
    retry_delay: Seconds = 1.0
    retry_on_status: list[int] = Field(default_factory=lambda: [502, 503, 504])
    #: Whether POST and PATCH are repeated too although the server may have acted on them already.  A request that
    #: never reached the server is repeated in any case.
    retry_non_idempotent: bool = True
    follow_redirects: bool = True
    max_redirects: int = Field(default=10, ge=0)

    verify_ssl: bool = True
    #: File of certificates to trust instead of the usual ones.
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    #: Success is one of these instead of 2xx.
    expected_status: (
        Annotated[list[int], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]
        | None
    ) = None
    max_response_size: int = Field(default=DEFAULT_MAX_OUTPUT_BYTES, ge=0)
    parse_json: bool = False
    #: Path the body is written to; output ``body`` is then that path.
    download_to: Annotated[str, AfterValidator(_download)] | None = None
    #: ``None`` takes ``HTTPTask.allow_private_urls_default``.
    allow_private_urls: bool | None = None
    #: Never taken from the environment.  A proxy resolves names by itself, so it needs ``allow_private_urls``.
    proxy: Annotated[str, AfterValidator(_proxy)] | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> HTTPOptions:
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("'client_key' needs 'client_cert'")
        if self.proxy is not None and not self.allow_private_urls:
            raise ValueError("'proxy' needs 'allow_private_urls': what a proxy connects to cannot be checked")
        return self

    def secret_values(self) -> list[Any]:
        """What is secret whether named in ``secrets`` or not."""
        values: list[Any] = [self.bearer_token]
        if self.auth is not None:
            values += [self.auth[1], ":".join(self.auth)]
        for text in (self.url, self.proxy):
            url = httpx.URL(text or "")
            if url.password:
                values += [url.password, f"{url.username}:{url.password}"]
        for name, value in self.headers.items():
            if name.lower() in _SECRET_HEADERS:
                values += [value, value.rpartition(" ")[2]]
        return values

    def delay(self, retry: int, asked_for: float, luck: float) -> float:
        """Seconds before retry number ``retry`` (1, 2, ...), with up to a tenth more by ``luck`` (0 to 1)."""
        longest = self.retry_delay * _MAX_DELAY_FACTOR
        wait = min(self.retry_delay * 2.0 ** min(retry - 1, 30), longest)
        return max(wait, min(asked_for, longest)) * (1 + luck / 10)

    def longest(self) -> float:
        """Seconds everything can take, retries included."""
        return self.timeout + self.retries * (self.timeout + self.delay(100, 0, 1))

    def tls(self) -> ssl.SSLContext:
        """How to speak TLS.

        Raises:
            OptionError: a file is missing or is none of the kind.
        """
        try:
            if self.ca_cert is None and self.client_cert is None:
                return _usual_tls(self.verify_ssl)
            if self.ca_cert is not None and self.verify_ssl:
                context = ssl.create_default_context(cafile=self.ca_cert)
            else:
                context = httpx.create_ssl_context(verify=self.verify_ssl)
            if self.client_cert is not None:
                context.load_cert_chain(self.client_cert, self.client_key)
        except (OSError, ssl.SSLError) as error:
            raise OptionError(f"TLS options 'ca_cert', 'client_cert', 'client_key': {error}") from None
        return context


class _TooLargeError(Exception):
    """There is more of the response than may be kept."""

    def __init__(self, options: HTTPOptions) -> None:
        super().__init__(f"Response exceeds max size ({options.max_response_size} bytes)")


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
        url = httpx.URL(changes["url"])
    except httpx.InvalidURL as error:
        raise OptionError(f"Stage '{label}': option 'url': not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        what = "it names no host" if url.scheme in ("http", "https") else f"unsupported scheme {url.scheme!r}"
        raise OptionError(f"Stage '{label}': option 'url': {what}; use http or https")
    return options.model_copy(update=changes)


class _Exchange:
    """One task's requests: attempts, and in each of them redirects."""

    def __init__(self, options: HTTPOptions, tls: ssl.SSLContext, stage: StageExecution) -> None:
        self._options = options
        self._tls = tls
        secrets = options.secret_values()
        self._masker = masker_of(stage, *secrets)
        self._redactor = redactor_of(stage, named=secrets)
        self._url = httpx.URL(options.url).copy_with(userinfo=b"")
        self._first: httpx.Request | None = None
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
            follow_redirects=options.follow_redirects,
            max_redirects=options.max_redirects,
            event_hooks={"request": [self._before_request], "response": [self._after_redirect]},
            headers={"User-Agent": "stabilize-celery", "Accept-Encoding": "gzip, deflate"},
        )
        self._first = None
        try:
            with (
                _no_wire_log(),
                guard,
                client,
                _first_request(client, options) as request,
                contextlib.closing(client.send(request, stream=True)) as response,
            ):
                result, again, wait = self._judged(response)
            # A body that ends with its connection looks complete after an interrupt too.
            return (self._was_interrupted(), False, 0.0) if self._interrupted() else (result, again, wait)
        except SsrfBlockedError as error:
            blocked = f"SSRF blocked: URL '{self._url}' targets blocked address {error.address}"
            return self._failure(
                f"{blocked}; the stage's allow_private_urls, or stabilize_allow_private_urls, allows it"
            )
        except (_TooLargeError, httpx.DecodingError) as error:
            return self._failure(str(error))
        except httpx.TooManyRedirects:
            return self._failure(f"URL error: more than {options.max_redirects} redirects")
        except httpx.TimeoutException as error:
            return self._broken(f"Request timed out after {options.timeout:g}s", error)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return self._broken(f"URL error: {str(error) or type(error).__name__}", error)
        except OSError as error:
            return self._failure(f"File error: {error}")

    def _before_request(self, request: httpx.Request) -> None:
        """After a redirect another origin gets no credentials, and nothing else meant for the first one."""
        self._url = request.url.copy_with(userinfo=b"")
        if self._first is None:
            self._first = request
        elif _origin(request.url) != _origin(self._first.url):
            for name in request.headers.keys() - _HARMLESS - {"cookie"}:
                del request.headers[name]
        elif "cookie" in self._first.headers:
            # httpx sends what it was given on the way alone.
            cookies = (self._first.headers["cookie"], request.headers.get("cookie"))
            request.headers["cookie"] = "; ".join(filter(None, cookies))

    def _after_redirect(self, response: httpx.Response) -> None:
        """The body of a redirect that is followed is not read, however long it is."""
        if self._options.follow_redirects and response.has_redirect_location:
            response.stream.close()  # type: ignore[union-attr]
            response.stream = httpx.ByteStream(b"")

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
        not_sent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
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
        _TooLargeError: decompressed, it is larger than ``max_response_size``; nothing is left of a download.
        httpx.DecodingError: its compression is damaged.
    """
    announced = response.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() else None
    head = response.request.method == "HEAD"
    if length is not None and length > options.max_response_size and not head:
        raise _TooLargeError(options)
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
        return {**data, "content_length": _save(response, options), "body": options.download_to}
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
            raise _TooLargeError(options)
        yield chunk


def _no_constant(name: str) -> None:
    """NaN and Infinity are no JSON, and no database stores them."""
    raise ValueError(name)


def _save(response: httpx.Response, options: HTTPOptions) -> int:
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
