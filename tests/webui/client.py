"""A minimal client of the WebUI's REST API, on the standard library and Pillow."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from threading import Thread
from typing import Any

from PIL import Image

JSON = dict[str, Any]
LOOK_EVERY = 0.5  # seconds between two looks at the server's process


class ApiError(Exception):
    """An answer other than 2xx. `status` is the HTTP status, `body` the text of the answer."""

    def __init__(self, path: str, status: int, body: str) -> None:
        super().__init__(f"{path} answered {status}: {body[:500]}")
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Generation:
    """The answer to one txt2img or img2img request."""

    images: tuple[Image.Image, ...]
    infotexts: tuple[str, ...]

    @property
    def pixels(self) -> tuple[bytes, ...]:
        """RGB values of every image, without the metadata that a comparison of files would include."""
        return tuple(image.tobytes() for image in self.images)


class ServerDied(Exception):
    """The server's process has ended; the message has its exit status and the end of its log."""


class Client:
    """Talks to one WebUI. `url` is its root, such as http://127.0.0.1:7860.

    died: says what became of the server's process, None while it runs. Asked while an answer is awaited.
    adapted: puts a request for images into the words of this WebUI.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 300.0,
        died: Callable[[], str | None] = lambda: None,
        adapted: Callable[[JSON], JSON] = dict,
    ) -> None:
        self.url = url
        self.timeout = timeout
        self.died = died
        self.adapted = adapted
        # a proxy of the environment must not come between two programs of one machine
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _call(self, path: str, payload: JSON | None, timeout: float | None) -> Any:
        data = None if payload is None else json.dumps(payload).encode("utf-8")
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        answer: Future[Any] = Future()
        Thread(target=self._fetch, args=(request, timeout or self.timeout, answer), daemon=True).start()
        while True:
            try:
                return answer.result(LOOK_EVERY)
            except urllib.error.HTTPError as error:
                raise ApiError(path, error.code, error.read().decode("utf-8", "replace")) from None
            except (OSError, TimeoutError):
                if answer.done():
                    time.sleep(LOOK_EVERY)  # a process that just closed its sockets may still be ending
                if (end := self.died()) is not None:
                    raise ServerDied(end) from None
                if answer.done():
                    raise

    def _fetch(self, request: urllib.request.Request, timeout: float, into: Future[Any]) -> None:
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                into.set_result(json.load(answer))
        except Exception as error:
            into.set_exception(error)

    def get(self, path: str, timeout: float | None = None) -> Any:
        """GET `path`, parsed. Raises ApiError, ServerDied, or URLError when nothing answers."""
        return self._call(path, None, timeout)

    def post(self, path: str, payload: JSON | None = None, timeout: float | None = None) -> Any:
        """POST `payload` to `path` as JSON, parsed. Raises ApiError, ServerDied, or URLError when nothing answers."""
        return self._call(path, payload or {}, timeout)

    def generate(self, payload: JSON) -> Generation:
        """txt2img, or img2img when `payload` has `init_images`."""
        kind = "img2img" if "init_images" in payload else "txt2img"
        answer = self.post(f"/sdapi/v1/{kind}", self.adapted(payload))
        return Generation(
            images=tuple(decode_image(text) for text in answer["images"]),
            infotexts=tuple(json.loads(answer["info"])["infotexts"]),
        )


def encode_image(image: Image.Image) -> str:
    """`image` as the base64 text of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_image(text: str) -> Image.Image:
    """The image in a base64 text, as RGB."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
