"""Relay images to browsers as server-sent events, from FastAPI, Starlette, aiohttp.web and others.

    @app.get("/image")                                     # FastAPI, and Starlette likewise
    async def image(prompt: str, id: str, request: Request):
        job = await jobs.start(prompt, id=id)
        events = jobs.events(job.id, after=request.headers.get("last-event-id"))
        return web.starlette_response(events)

    async def image(request):                              # aiohttp.web
        job = await jobs.start(request.query["prompt"], id=request.query["id"])
        events = jobs.events(job.id, after=request.headers.get("last-event-id"))
        return await web.aiohttp_response(request, events)

What the browser receives:

    retry: 1000                                            once, at the start
    : ping                                                 in silence, every `heartbeat` seconds
    id: 1795738260123001                                   jobs only; comes back as Last-Event-ID
    event: image_generation.partial_image                  the fields of OpenAI's events
    data: {"type":"image_generation.partial_image","partial_image_index":0,…,"b64_json":"…"}

    event: error                                           a failure, see `error_body`; the last
    data: {"error":{"message":"…","type":"RateLimitError",…}}

    data: [DONE]                                           the end of a success

A job continues when the browser disconnects. Its `EventSource` reconnects after a second,
receives the remaining events, and stops after the end, when the response is 204.

`client.generate(…, stream=True)` can be relayed as well, but then **disconnecting discards the
image**: the upstream connection is closed with the browser's, although the image may be billed.
Such a stream is read only as fast as the browser reads. As every reconnect would generate another
image, its `retry` delays that by more than three weeks; a page should close its `EventSource` at
`[DONE]` and at `error`. To respond to a rejected request with an HTTP status instead, open the
stream before the response begins: `stream = await client.generate(…, stream=True)` raises the
error, and the open stream can be relayed.

An `error` event of the API has `data`; the `error` event that an `EventSource` itself fires has
none. `elkimg.js`, which `javascript` returns, handles all this for a page.
"""

from elkimg_async.web.error_body import error_body
from elkimg_async.web.frameworks import aiohttp_response, javascript, starlette_response
from elkimg_async.web.messages import Message, messages
from elkimg_async.web.relay import HEADERS, ServerSentEvents

__all__ = [
    "HEADERS",
    "Message",
    "ServerSentEvents",
    "aiohttp_response",
    "error_body",
    "javascript",
    "messages",
    "starlette_response",
]
