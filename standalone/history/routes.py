"""The page's routes to the history, below /internal, so that its login and the guard's other rules hold for them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from lib_methods.errors import UserError
from lib_methods.pictures.convert import ImageError, open_image, to_rgb
from standalone.api.errors import BadRequest, SafeJSONResponse

from .files import Gone, ImageFile
from .index import History, Page
from .texts import Known, texts_of
from .thumbnails import TYPE

T = TypeVar("T")
MOST_ITEMS = 500
_NOT_SHOWN = ("image/tiff",)
"""What browsers cannot show: they get a PNG."""
# an address with an id always means the same bytes
_KEEP = {
    "cache-control": "private, max-age=31536000, immutable",
    "content-security-policy": "default-src 'none'; sandbox",
}


class Images(BaseModel):
    """POST /internal/history/trash and /restore."""

    ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MOST_ITEMS)]


def _item(file: ImageFile, known: Known | None) -> dict[str, Any]:
    found = known or Known("", "txt2img", False)
    return {
        "id": file.ident,
        "name": file.name,
        "time": file.modified / 1e9,
        "prompt": found.prompt,
        "tab": found.tab,
        "several": found.several,
        "pixels": found.pixels,
    }


def _answer(page: Page) -> dict[str, Any]:
    return {
        "total": page.total,
        "version": page.version,
        "unread": page.unread,
        "in_trash": page.in_trash,
        "items": [_item(file, page.known.get(file.ident)) for file in page.files],
    }


async def _in_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a thread; its errors as answers: 404 for an image that is gone, else 422."""
    try:
        return await asyncio.to_thread(work)
    except Gone as error:
        raise BadRequest(str(error), 404) from None
    except FileNotFoundError:
        raise BadRequest(str(Gone()), 404) from None
    except PermissionError:
        raise BadRequest("This image cannot be read: you may not have permission.", 422) from None


def _as_png(file: ImageFile) -> bytes:
    buffer = io.BytesIO()
    with open_image(Path(file.path)) as image:
        to_rgb(image).save(buffer, format="PNG")
    return buffer.getvalue()


def make_router(history: History) -> APIRouter:
    """All routes below /internal/history."""
    router = APIRouter(prefix="/internal/history", default_response_class=SafeJSONResponse, include_in_schema=False)

    @router.get("", response_model=None)
    async def images(
        query: Annotated[str, Query(max_length=500)] = "",
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 100,
        trash: bool = False,
    ) -> SafeJSONResponse:
        page = await _in_thread(lambda: history.page(query, offset, limit, in_trash=trash))
        return SafeJSONResponse(_answer(page))

    @router.get("/info/{ident}", response_model=None)
    async def info(ident: str) -> SafeJSONResponse:
        def read() -> dict[str, Any]:
            file = history.find(ident)
            try:
                text = "\n".join(filter(None, texts_of(file, whole=True)))
            except ImageError:
                text = ""
            return {"infotext": text, "name": file.name, "size": file.size, "time": file.modified / 1e9}

        return SafeJSONResponse(await _in_thread(read))

    makers = asyncio.Semaphore(2)  # a generation may be running, and other requests need threads as well

    @router.get("/thumbnail/{ident}")
    async def thumbnail(ident: str, client: Request) -> Response:
        data = await _in_thread(lambda: history.find_thumbnail(ident))
        if data is None:
            async with makers:
                if await client.is_disconnected():  # scrolled past
                    raise Gone
                data = await _in_thread(lambda: history.make_thumbnail(ident))
        return Response(data, media_type=TYPE, headers=_KEEP)

    @router.get("/image/{ident}")
    async def image(ident: str) -> Response:
        file = await _in_thread(lambda: history.find(ident))
        if file.kind in _NOT_SHOWN:
            return Response(await _in_thread(lambda: _as_png(file)), media_type="image/png", headers=_KEEP)
        name = Path(file.name).name
        return FileResponse(file.path, 200, _KEEP, file.kind, filename=name, content_disposition_type="inline")

    def each(ids: list[str], work: Callable[[str], None]) -> dict[str, Any]:
        """What was done, and the sentences of what could not be."""
        done, problems = [], []
        for ident in dict.fromkeys(ids):
            try:
                work(ident)
                done.append(ident)
            except Gone:
                pass  # another page was faster, or a file manager
            except UserError as error:
                problems.append(str(error))
        return {"done": done, "problems": list(dict.fromkeys(problems))[:3]}

    @router.post("/trash", response_model=None)
    async def trash(wanted: Images) -> SafeJSONResponse:
        return SafeJSONResponse(await _in_thread(lambda: each(wanted.ids, history.delete)))

    @router.post("/restore", response_model=None)
    async def restore(wanted: Images) -> SafeJSONResponse:
        return SafeJSONResponse(await _in_thread(lambda: each(wanted.ids, history.restore)))

    @router.post("/empty", response_model=None)
    async def empty() -> SafeJSONResponse:
        return SafeJSONResponse({"deleted": await _in_thread(history.empty_trash)})

    return router
