"""Errors in OpenAI's form: a status, and a body that names the field."""

from typing import Any


class RequestError(Exception):
    """A request that is refused.

    Attributes:
      status: of HTTP.
      param: the field that is wrong, as "input[3]"; None: no field is.
      code: a word for programs; None: the status says it all.
      retry_after: seconds after which the same request may be accepted; None: it never will be.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def headers(self) -> dict[str, str]:
        """Headers of the response; a server that stops or is full keeps no connection."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413, 503):
            headers["Connection"] = "close"
        return headers


def body_of(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The body of an error's response."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
