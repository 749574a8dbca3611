"""HTTPTask: one HTTP request, with redirects and retries."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpcore
import httpx

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import Masker
from stabilize_celery.tasks.http_network import Network, Transport, no_wire_log
from stabilize_celery.tasks.http_options import IDEMPOTENT, HTTPOptions
from stabilize_celery.tasks.http_request import (
    BadUrlError,
    TooManyRedirectsError,
    first_request,
    parse_url,
    redirected,
    same_origin,
)
from stabilize_celery.tasks.http_response import TooLargeError, read_response
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    OptionError,
    masker_of,
    read_options,
    stage_label,
    substitute,
    visible_data,
)
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run
from stabilize_celery.tasks.ssrf import SsrfBlockedError

#: Seconds beyond what the options allow before the engine may step in.
_MARGIN_SECONDS = 20.0


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
        return _Exchange(options, tls, masker_of(stage, *options.secret_values())).run()

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
    data = visible_data(HTTPOptions, stage)
    changes: dict[str, Any] = {
        "url": substitute(options.url, data).strip(),
        "headers": {name: substitute(value, data) for name, value in options.headers.items()},
    }
    for name in ("bearer_token", "body"):
        if getattr(options, name) is not None:
            changes[name] = substitute(getattr(options, name), data)
    where = f"Stage '{stage_label(stage)}': "
    for name, value in changes["headers"].items():
        if any(character in name + value for character in "\r\n\0"):
            raise OptionError(f"{where}option 'headers.{name!r}': must not contain line breaks")
    try:
        parse_url(changes["url"])
    except BadUrlError as error:
        raise OptionError(f"{where}option 'url': {error}") from None
    return options.model_copy(update=changes)


class _Exchange:
    """One task's requests: attempts, and in each of them redirects."""

    def __init__(self, options: HTTPOptions, tls: Any, masker: Masker) -> None:
        self._options = options
        self._tls = tls
        self._masker = masker
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
        return TaskResult.terminal("HTTP request was interrupted", context=self._facts())

    def _attempt(self) -> tuple[TaskResult, bool, float]:
        """One attempt: its result, whether another one may help, and the least seconds the server asks for."""
        network = Network(self._options.timeout, bool(self._options.allow_private_urls))
        transport = Transport(network, self._tls, self._options.proxy)
        guard = self._run.on_interrupt(network.interrupt) if self._run else contextlib.nullcontext()
        try:
            with no_wire_log(), guard, contextlib.closing(transport), first_request(self._options) as request:
                response = self._follow(transport, request)
                with contextlib.closing(response):
                    data = read_response(response, self._options, self._masker)
            # A body that ends with its connection looks complete after an interrupt too.
            return (self._was_interrupted(), False, 0.0) if self._interrupted() else self._judged(data)
        except SsrfBlockedError as error:
            return self._failure(f"SSRF blocked: URL '{self._url}' targets blocked address {error.address}")
        except (BadUrlError, TooManyRedirectsError) as error:
            return self._failure(f"URL error: {error}")
        except (TooLargeError, httpx.DecodingError) as error:
            return self._failure(str(error))
        except httpcore.TimeoutException as error:
            return self._broken(f"Request timed out after {self._options.timeout:g}s", error)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            return self._broken(f"URL error: {str(error) or type(error).__name__}", error)
        except OSError as error:
            return self._failure(f"File error: {error}")

    def _follow(self, transport: Transport, request: httpx.Request) -> httpx.Response:
        """The response at the end of the redirects."""
        cookies, given, first = httpx.Cookies(), request.headers.get("cookie"), request
        for _ in range(self._options.max_redirects + 1):
            self._url = request.url
            response = transport.send(request)
            cookies.extract_cookies(response)
            following = redirected(request, response) if self._options.follow_redirects else None
            if following is None:
                return response
            response.close()
            cookies.set_cookie_header(following)
            if given is not None and same_origin(first.url, following.url):
                more = following.headers.get("cookie")
                following.headers["cookie"] = given if more is None else f"{given}; {more}"
            request = following
        raise TooManyRedirectsError(f"more than {self._options.max_redirects} redirects")

    def _facts(self) -> dict[str, Any]:
        return {
            "elapsed_ms": int((time.monotonic() - self._started) * 1000),
            "url": self._masker.text(str(self._url)),
        }

    def _judged(self, data: Mapping[str, Any]) -> tuple[TaskResult, bool, float]:
        outputs = {**data, **self._facts()}
        status, expected = outputs["status_code"], self._options.expected_status
        if status in expected if expected is not None else 200 <= status < 300:
            return TaskResult.success(outputs=outputs), False, 0.0
        asked_for = outputs["headers"].get("Retry-After", outputs["headers"].get("retry-after", ""))
        wait = float(asked_for) if asked_for.isdecimal() else 0.0
        error = f"HTTP {status}" if expected is None else f"Unexpected status {status}, expected {expected}"
        again = status in self._options.retry_on_status and self._may_repeat()
        return self._options.failure(error, outputs), again, wait

    def _may_repeat(self) -> bool:
        return self._options.method in IDEMPOTENT or self._options.retry_non_idempotent

    def _failure(self, error: str) -> tuple[TaskResult, bool, float]:
        return self._options.failure(self._masker.text(error), self._facts()), False, 0.0

    def _broken(self, message: str, error: Exception) -> tuple[TaskResult, bool, float]:
        """The connection failed; what never reached the server may always be sent again."""
        if self._interrupted():
            return self._was_interrupted(), False, 0.0
        not_sent = isinstance(error, (httpcore.ConnectError, httpcore.ConnectTimeout))
        distrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
        result, _, _ = self._failure(message)
        return result, (not_sent or self._may_repeat()) and not distrusted, 0.0
