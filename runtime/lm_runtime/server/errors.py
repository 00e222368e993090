"""Errors as OpenAI's protocol has them: a status, and an object that names what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lm_runtime.files import UnusableFileError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_LONGEST = 500


class ApiError(Exception):
    """A request that is not answered as it wishes.

    Args:
        status: of HTTP.
        message: one line for the caller.
        param: the field that it is about.
        code: what a program may look for.
        headers: more headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def record(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(str(self).split())[:_LONGEST]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def invalid(error: Exception | str, param: str | None = None) -> ApiError:
    """A request with a wrong value."""
    return ApiError(400, str(error), param=param, code="invalid_value")


def busy(message: str) -> ApiError:
    """A request that may come again in a second."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


@contextmanager
def refusing(fields: Iterable[str] = (), param: str | None = None) -> Iterator[None]:
    """Turn the errors of wrong values into status 400.

    Args:
        fields: names of fields; the one that a message begins with is what it is about.
        param: what all messages are about.
    """
    try:
        yield
    except (ValueError, UnusableFileError) as error:
        text = str(error)
        named = param or next((name for name in fields if text.removeprefix("a ").startswith(name)), None)
        raise invalid(error, named) from None
    except ModuleNotFoundError as error:  # the extra for regular expressions
        raise ApiError(501, str(error), param=param, code="not_installed") from None
