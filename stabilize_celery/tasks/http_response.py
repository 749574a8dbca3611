"""Responses: read as they arrive, up to a limit, into memory or into a file."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from typing import Any

import httpx

from stabilize_celery.redaction import Masker
from stabilize_celery.tasks.http_options import HTTPOptions


class TooLargeError(Exception):
    """The response is larger than allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"Response exceeds max size ({limit} bytes)")


def read_response(response: httpx.Response, options: HTTPOptions, masker: Masker) -> dict[str, Any]:
    """The outputs of a response: ``status_code``, ``headers``, ``body`` and what is known of it.

    A body that is no text in its charset is also given as it is, in ``body_b64``.

    Raises:
        TooLargeError: decompressed, it is larger than ``max_response_size``; nothing is left of the download.
        httpx.DecodingError: its compression is damaged.
    """
    announced = response.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() else None
    head = response.request.method == "HEAD"
    if length is not None and length > options.max_response_size and not head:
        raise TooLargeError(options.max_response_size)
    data: dict[str, Any] = {
        "status_code": response.status_code,
        "headers": masker.value(_headers(response)),
        "content_type": masker.text(response.headers.get("content-type", "")),
    }
    if options.download_to is not None and response.is_success:
        data["content_length"] = _download(response, options.download_to, options.max_response_size)
        data["body"] = options.download_to
        return data
    raw = bytearray()
    for chunk in response.iter_bytes():
        raw += chunk
        if len(raw) > options.max_response_size:
            raise TooLargeError(options.max_response_size)
    data["content_length"] = length if head and length is not None else len(raw)
    _add_body(data, bytes(raw), response, options, masker)
    return data


def _headers(response: httpx.Response) -> dict[str, str]:
    """One value per name, as the server wrote the name; several are joined by commas."""
    found: dict[str, str] = {}
    for raw, _ in response.headers.raw:
        name = raw.decode("latin-1")
        if name.lower() not in map(str.lower, found):
            found[name] = response.headers[name]
    return found


def _add_body(
    data: dict[str, Any], raw: bytes, response: httpx.Response, options: HTTPOptions, masker: Masker
) -> None:
    charset = response.charset_encoding or "utf-8"
    try:
        text = raw.decode(charset)
    except (UnicodeDecodeError, LookupError):
        text = raw.decode("utf-8", "replace")
        data["body_b64"] = base64.b64encode(masker.data(raw)).decode("ascii")
    data["body"] = masker.text(text)
    if options.parse_json:
        with contextlib.suppress(ValueError, RecursionError):
            data["body_json"] = masker.value(json.loads(text, parse_constant=_no_constant))


def _no_constant(name: str) -> None:
    """NaN and Infinity are no JSON, and no database stores them."""
    raise ValueError(name)


def _download(response: httpx.Response, path: str, limit: int) -> int:
    """Write the body to ``path``, which appears only when it is complete; returns the bytes written."""
    written = 0
    file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed and renamed, or removed, below
        dir=os.path.dirname(os.path.abspath(path)), prefix=".", suffix=".part", delete=False
    )
    try:
        with file:
            for chunk in response.iter_bytes():
                written += len(chunk)
                if written > limit:
                    raise TooLargeError(limit)
                file.write(chunk)
        os.chmod(file.name, 0o666 & ~_umask())
        os.replace(file.name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        raise
    return written


def _umask() -> int:
    """The process's umask, read without changing it where the system shows it."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    return 0o022
