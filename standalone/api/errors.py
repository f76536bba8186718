"""Errors of the API: always a status and one sentence, never a traceback or a path of the server."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from lib_methods.errors import UserError
from standalone.engine.names import shown
from standalone.host import errors
from standalone.host.jobs.queue import explain


class BadRequest(HTTPException):
    """A request that cannot be done as it is; `detail` says what is wrong with it."""

    def __init__(self, detail: str, status: int = 422) -> None:
        super().__init__(status_code=status, detail=detail)


class JobFailed(Exception):
    """A job that failed with an error of the host's, already logged by the job queue; the text is a sentence."""


def sentence_for(error: BaseException) -> tuple[str, int]:
    """What to tell the user about `error`, and the HTTP status: 4xx when the request is to blame, else 500.

    Errors that nobody expected go to the log.
    """
    if isinstance(error, JobFailed):
        return str(error), 500
    if isinstance(error, HTTPException):
        return str(error.detail), error.status_code
    if isinstance(error, UserError):
        return str(error), 422
    errors.report("Error while answering a request", exc_info=True)
    return explain(error), 500


class SafeJSONResponse(JSONResponse):
    """JSON of anything: text that cannot be encoded gets the replacement character, numbers that are none become null.

    Settings, names of files and prompts may come from elsewhere than a checked request.
    """

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except ValueError:  # UnicodeEncodeError is one
            return super().render(_encodable(content))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {_encodable(str(key)): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, (list, tuple)) else value


def problem(status: int, sentence: str, kind: str = "HTTPException") -> JSONResponse:
    """The WebUI's JSON for an error."""
    content = {"error": kind, "detail": sentence, "body": "", "errors": sentence}
    return SafeJSONResponse(status_code=status, content=content)


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object with named values",
    "model": "an object with named values",
}


def field_sentence(error: Mapping[str, Any]) -> str:
    """One sentence for one of pydantic's errors."""
    kind = str(error["type"])
    if kind == "json_invalid":
        return "The request is not valid JSON."
    place = error["loc"][1:] if error["loc"][:1] in (("body",), ("query",)) else error["loc"]
    where = ".".join(str(part) for part in place) or "the request"
    if where == "the request":
        return "The body of the request must be a JSON object, sent as application/json."
    if kind == "missing":
        return f"{where} is missing."
    limits = {"greater_than_equal": "less than", "less_than_equal": "more than", "greater_than": "not more than"}
    if kind in limits:
        return f"{where}: {_quoted(error['input'])} is {limits[kind]} {next(iter(error['ctx'].values())):g}."
    wanted = _WANTED.get(kind.split("_")[0])
    if wanted is None or kind.startswith("string_too"):
        return f"{where}: {str(error['msg'])[:200]}."
    return f"{where}: {_quoted(error['input'])} is not {wanted}."


def _quoted(given: Any) -> str:
    if isinstance(given, str):
        return f'"{shown(given)}"'
    if isinstance(given, (list, tuple)):
        return "a list"
    return "an object" if isinstance(given, Mapping) else shown(json.dumps(given, default=str))


def add_handlers(app: FastAPI) -> None:
    """Makes every error of `app` a sentence."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, field_sentence(error.errors()[0]), "RequestValidationError")

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    async def other(request: Request, error: Exception) -> JSONResponse:
        sentence, status = sentence_for(error)
        return problem(status, sentence, type(error).__name__)

    for kind in (UserError, JobFailed, Exception):  # after one that only Exception has, the connection is closed
        app.add_exception_handler(kind, other)
