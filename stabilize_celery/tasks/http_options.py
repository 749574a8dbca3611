"""Options of an ``http`` stage."""

from __future__ import annotations

import os
import ssl
from functools import cache
from typing import Annotated, Any, ClassVar

import httpx
from pydantic import BeforeValidator, Field, field_validator, model_validator

from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.options import DEFAULT_MAX_OUTPUT_BYTES, OptionError, TaskOptions

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
#: Sending one of these twice does the same as sending it once (RFC 9110).
IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT"})
#: The longest wait before a retry is this many times ``retry_delay``.
_MAX_DELAY_FACTOR = 10.0
#: Request headers whose values are secret whether named in ``secrets`` or not.
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token"})


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


@cache
def _usual_tls(verify: bool) -> ssl.SSLContext:
    """Reading the usual certificates takes some 20 ms, so it is done once."""
    return httpx.create_ssl_context(verify=verify)


class HTTPOptions(TaskOptions):
    """Options of an ``http`` stage; times are in seconds, sizes in bytes."""

    private: ClassVar[frozenset[str]] = frozenset(
        {"url", "headers", "auth", "bearer_token", "body", "json", "form", "upload_form", "proxy"}
    )

    url: str = Field(min_length=1)
    method: str = "GET"
    headers: dict[str, str] = Field(default_factory=dict)
    #: User name and password.
    auth: tuple[str, str] | None = None
    bearer_token: str | None = None

    #: Body: the first of these that is given.
    upload_file: str | None = None
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
    expected_status: Annotated[list[int], BeforeValidator(_as_list)] | None = None
    max_response_size: int = Field(default=DEFAULT_MAX_OUTPUT_BYTES, ge=0)
    parse_json: bool = False
    #: Path the body is written to; output ``body`` is then that path.
    download_to: str | None = None
    #: ``None`` takes ``HTTPTask.allow_private_urls_default``.
    allow_private_urls: bool | None = None
    #: Never taken from the environment.  A proxy resolves names by itself, so it needs ``allow_private_urls``.
    proxy: str | None = None

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value.upper() not in METHODS:
            raise ValueError(f"Unsupported method {value!r}. Supported: {list(METHODS)}")
        return value.upper()

    @field_validator("proxy")
    @classmethod
    def _proxy_url(cls, value: str | None) -> str | None:
        try:
            if value is not None and not httpx.URL(value).host:
                raise ValueError("names no host")
        except httpx.InvalidURL as error:
            raise ValueError(f"is no URL: {error}") from None
        return value

    @field_validator("upload_file")
    @classmethod
    def _upload_exists(cls, value: str | None) -> str | None:
        if value is not None and not os.path.isfile(value):
            raise ValueError("Upload file not found")
        return value

    @field_validator("download_to")
    @classmethod
    def _download_directory(cls, value: str | None) -> str | None:
        if value is not None and not os.path.isdir(os.path.dirname(os.path.abspath(value))):
            raise ValueError("its directory does not exist")
        return value

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
