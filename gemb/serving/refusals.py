"""What a request is refused with: a status, a message that says what to do, and its form."""

from __future__ import annotations

from typing import Any

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Refused(Exception):
    """A request is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "invalid_request",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Set what the client is told.

        Args:
            status: of HTTP.
            message: one line: what, where, and what to do.
            code: for programs: model_not_found, queue_full, ...
            param: the field that is wrong.
            headers: further headers of the response.
        """
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = headers or {}

    def body(self, path: str) -> dict[str, Any]:
        """Return the body, in the form that clients of this path know."""
        message = str(self)
        if path.startswith("/api/"):  # Ollama
            return {"error": message}
        if path in ("/embed", "/rerank"):  # text-embeddings-inference
            return {"error": message, "error_type": self.code}
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed the connection before it had the answer."""
