"""The bodies of every dialect, with the images in them."""

import base64
import json
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
WEBP = b"RIFF\x24\0\0\0WEBPVP8 " + bytes(range(64))
ONE, TWO = base64.b64encode(PNG).decode(), base64.b64encode(WEBP).decode()
URL, OTHER = "https://cdn.example.com/a?sig=x%2Fy", "https://cdn.example.com/b.png"
Came = list[bytes | str | None]


def sse(*values: Any, prefix: str = "data: ") -> bytes:
    return "".join(f"{prefix}{json.dumps(value)}\n\n" for value in values).encode()


DIALECTS: dict[str, tuple[Any, Came]] = {
    "base64": ({"data": [{"b64_json": ONE}, {"b64_json": TWO}]}, [PNG, WEBP]),
    "addresses": ({"data": [{"url": URL}, {"url": OTHER}]}, [URL, OTHER]),
    "base64 and address": ({"data": [{"b64_json": ONE, "url": URL}]}, [PNG]),
    "data as one object": ({"data": {"b64_json": ONE}}, [PNG]),
    "an array": ([{"b64_json": ONE}, {"url": URL}], [PNG, URL]),
    "an array of strings": ([ONE, URL], [PNG, URL]),
    "images as objects": ({"images": [{"url": URL, "content_type": "image/png"}]}, [URL]),
    "images as strings": ({"images": [ONE, URL]}, [PNG, URL]),
    "image": ({"image": ONE}, [PNG]),
    "image of an item": ({"data": [{"image": ONE}, {"image": URL}]}, [PNG, URL]),
    "image_url": ({"data": [{"image_url": URL}]}, [URL]),
    "image_url as an object": ({"data": [{"image_url": {"url": URL}}]}, [URL]),
    "image_base64": ({"data": {"image_base64": [ONE, TWO]}}, [PNG, WEBP]),
    "image_urls": ({"data": {"image_urls": [URL, OTHER]}}, [URL, OTHER]),
    "url as a list": ({"data": [{"url": [URL, OTHER]}]}, [URL, OTHER]),
    "data.images": ({"code": 0, "data": {"images": [{"url": URL}]}}, [URL]),
    "output": (
        {"output": [URL, OTHER], "status": "succeeded", "urls": {"get": "https://api/x"}},
        [URL, OTHER],
    ),
    "output as text": ({"id": "x", "status": "succeeded", "output": URL}, [URL]),
    "output.results": ({"output": {"task_status": "SUCCEEDED", "results": [{"url": URL}]}}, [URL]),
    "result.sample": ({"status": "Ready", "result": {"sample": URL, "prompt": OTHER}}, [URL]),
    "result": ({"result": {"image": ONE}, "success": True, "errors": []}, [PNG]),
    "Responses API": ({"output": [{"type": "image_generation_call", "result": ONE}]}, [PNG]),
    "Gemini": (
        {
            "candidates": [
                {
                    "content": {
                        "parts": [
                            {"text": URL},
                            {"inlineData": {"mimeType": "image/png", "data": ONE}},
                        ]
                    }
                }
            ]
        },
        [PNG],
    ),
    "Imagen": ({"predictions": [{"bytesBase64Encoded": ONE, "mimeType": "image/png"}]}, [PNG]),
    "chat": (
        {
            "choices": [
                {
                    "message": {
                        "content": "Here",
                        "images": [{"image_url": {"url": "data:image/png;base64," + ONE}}],
                    }
                }
            ]
        },
        [PNG],
    ),
    "address in b64_json": ({"data": [{"b64_json": URL, "url": ""}]}, [URL]),
    "base64 in url": ({"data": [{"url": ONE}]}, [PNG]),
    "data URL in b64_json": ({"data": [{"b64_json": "data:image/png;base64," + ONE}]}, [PNG]),
    "data URL of text": (
        {"data": [{"url": "data:image/svg+xml,%3Csvg%20xmlns=%22x%22/%3E"}]},
        [b'<svg xmlns="x"/>'],
    ),
    "the same twice": ({"data": [{"url": URL}], "images": [{"url": URL}]}, [URL]),
    "two that are equal": ({"data": [{"url": URL}, {"url": URL}]}, [URL, URL]),
    "two in one object": ({"image_1": ONE, "image_2": TWO}, [PNG, WEBP]),
    "an unknown key": ({"data": [{"pixels": ONE}]}, [PNG]),
    "relative paths": ({"images": ["/out/1.png", "/out/2.png"]}, ["/out/1.png", "/out/2.png"]),
    "a thumbnail beside": ({"data": [{"url": URL, "thumbnail_url": OTHER}]}, [URL]),
    "a thumbnail alone": ({"data": [{"thumbnail_image_url": OTHER}]}, [OTHER]),
    "an empty error": ({"error": {}, "data": [{"url": URL}]}, [URL]),
    "an error without a message": ({"error": {"message": ""}, "data": [{"url": URL}]}, [URL]),
    "an error of nulls": (
        {"error": {"code": None, "message": None}, "data": [{"url": URL}]},
        [URL],
    ),
    "code and message of a success": (
        {"code": 200, "message": "success", "data": [{"url": URL}]},
        [URL],
    ),
    "one item failed": (
        {"data": [{"url": URL}, {"error": {"code": "x", "message": "blocked"}}]},
        [URL],
    ),
}

DIALECTS |= {
    f"an address under {name!r}": ({"data": [{name: URL, "id": "x"}]}, [URL])
    for name in (
        *("href", "link", "location", "path", "s3_url", "oss_url", "hd_url", "presigned_url"),
        *("originUrl", "resourceUrl", "storage_url", "permalink", "foo"),
    )
}
DIALECTS |= {
    "an address in an unknown object": (
        {"data": [{"foo": {"bar": URL}}, {"x": OTHER}]},
        [URL, OTHER],
    ),
    "lists in lists": ({"output": [[URL], [OTHER]]}, [URL, OTHER]),
    "images by number": ({"images": {"0": URL, "1": OTHER}}, [URL, OTHER]),
    "image as an object": ({"image": {"original": URL, "id": "x"}}, [URL]),
    "further addresses": (
        {"data": [{"url": URL, "download_url": OTHER, "proxy_url": "https://p/1"}]},
        [URL],
    ),
    "an object in a string": (
        {"code": 200, "data": {"resultJson": json.dumps({"resultUrls": [URL, OTHER]})}},
        [URL, OTHER],
    ),
    "a response in a string": ({"body": json.dumps({"data": [{"b64_json": ONE}]})}, [PNG]),
    "a request beside it": (
        {"images": [ONE], "parameters": {"init_images": [TWO]}, "info": '{"prompt": "x"}'},
        [PNG],
    ),
    "Markdown": ({"choices": [{"message": {"content": f"Here:\n![image]({OTHER})"}}]}, [OTHER]),
    "Markdown with a data URL": (
        {"choices": [{"message": {"content": f"![x](data:image/png;base64,{ONE})"}}]},
        [PNG],
    ),
    "a Buffer": ({"data": [{"image": {"type": "Buffer", "data": list(PNG)}}]}, [PNG]),
}

STREAMS: dict[str, tuple[bytes, list[tuple[str, bool]]]] = {
    "succeeded": (
        sse(
            {"type": "image_generation.partial_succeeded", "image_index": 0, "url": URL},
            {"type": "image_generation.partial_succeeded", "image_index": 1, "b64_json": ONE},
            {"type": "image_generation.completed", "usage": {"total_tokens": 3}},
        ),
        [(URL, False), ("PNG", False)],
    ),
    "one failed": (
        sse(
            {"type": "image_generation.partial_succeeded", "image_index": 0, "url": URL},
            {
                "type": "image_generation.partial_failed",
                "image_index": 1,
                "error": {"code": "x", "message": "no"},
            },
            {"type": "image_generation.completed", "usage": {"total_tokens": 3}},
        ),
        [(URL, False)],
    ),
    "lines of JSON": (
        b"".join(
            json.dumps(value).encode() + b"\n"
            for value in (
                {
                    "type": "image_generation.partial_image",
                    "b64_json": ONE,
                    "partial_image_index": 0,
                },
                {"type": "image_generation.completed", "b64_json": ONE},
            )
        ),
        [("PNG", True), ("PNG", False)],
    ),
    "Responses API": (
        sse(
            {"type": "response.image_generation_call.partial_image", "partial_image_b64": ONE},
            {
                "type": "response.output_item.done",
                "item": {"type": "image_generation_call", "result": ONE},
            },
        ),
        [("PNG", True), ("PNG", False)],
    ),
    "unknown types": (
        sse({"type": "image.ready", "image": URL}, {"type": "x", "url": OTHER}),
        [(URL, False), (OTHER, False)],
    ),
    "a preview": (
        sse({"type": "preview", "image": ONE}, {"type": "done", "image": URL}),
        [("PNG", True), (URL, False)],
    ),
    "bare base64": (f"data: {ONE}\n\n".encode(), [("PNG", False)]),
    "an image under a ping": (sse({"type": "keepalive", "b64_json": ONE}), [("PNG", False)]),
    "an array of events": (
        json.dumps(
            [
                {"type": "image_generation.partial_image", "b64_json": ONE},
                {"type": "image_generation.completed", "url": URL},
            ]
        ).encode(),
        [("PNG", True), (URL, False)],
    ),
    "nested events": (
        sse(
            {"result": {"type": "image_generation.partial_image", "b64_json": ONE}},
            {"result": {"partial_image_index": 1, "b64_json": ONE}},
            {"event": {"type": "image_generation.completed", "url": URL}},
        ),
        [("PNG", True), ("PNG", True), (URL, False)],
    ),
    "summary of the Responses API": (
        sse(
            {"type": "response.output_item.done", "item": {"result": ONE}},
            {"type": "response.completed", "response": {"output": [{"result": ONE}]}},
        ),
        [("PNG", False)],
    ),
    "summary of addresses": (
        sse(
            {"type": "image_generation.partial_succeeded", "url": URL},
            {"type": "image_generation.partial_succeeded", "url": OTHER},
            {"type": "image_generation.completed", "data": [{"url": URL}, {"url": OTHER}]},
        ),
        [(URL, False), (OTHER, False)],
    ),
    "the same image twice": (
        sse(*[{"type": "image_generation.completed", "url": URL}] * 2),
        [(URL, False), (URL, False)],
    ),
    **{
        f"unfinished by {unfinished}": (
            sse({**unfinished, "image": ONE}, {**finished, "image": URL}),
            [("PNG", True), (URL, False)],
        )
        for unfinished, finished in (
            ({"is_partial": True}, {"is_partial": False}),
            ({"final": False}, {"final": True}),
            ({"stage": "draft"}, {"stage": "final"}),
            ({"status": "processing"}, {"status": "succeeded"}),
            ({"event": "partial_image"}, {"event": "completed"}),
            (
                {"object": "image_generation.partial_image"},
                {"object": "image_generation.completed"},
            ),
        )
    },
    "record separators": (
        b"\x1e%b\n\x1e%b\n"
        % (
            json.dumps({"type": "image_generation.partial_image", "image": ONE}).encode(),
            json.dumps({"type": "image_generation.completed", "image": URL}).encode(),
        ),
        [("PNG", True), (URL, False)],
    ),
    "events without blank lines": (
        sse(
            {"type": "image_generation.partial_image", "image": ONE},
            {"type": "image_generation.completed", "image": URL},
        ).replace(b"\n\n", b"\n"),
        [("PNG", True), (URL, False)],
    ),
    "a data URL as data": (
        f"event: image\ndata: data:image/png;base64,{ONE}\n\n".encode(),
        [("PNG", False)],
    ),
    "an address as data": (f"event: image\ndata: {URL}\n\n".encode(), [(URL, False)]),
    "a string as data": (f'data: "{ONE}"\n\n'.encode(), [("PNG", False)]),
    "broken side data": (b'data: {"b64_json":"%b","x":}\n\n' % ONE.encode(), [("PNG", False)]),
}

LARGE = PNG + bytes(range(256)) * 1_000
TEXTS: dict[str, tuple[str, Came]] = {
    "base64": (base64.b64encode(LARGE).decode(), [LARGE]),
    "wrapped base64": (base64.encodebytes(LARGE).decode(), [LARGE]),
    "a data URL": ("data:image/png;base64," + base64.b64encode(LARGE).decode(), [LARGE]),
    "an address": (URL + "\n", [URL]),
    "addresses": (f"{URL}\n{OTHER}\n", [URL, OTHER]),
    "a string": (json.dumps(ONE), [PNG]),
    "a string with an address": (json.dumps(URL), [URL]),
    "a string of JSON": (json.dumps(json.dumps({"data": [{"b64_json": ONE}]})), [PNG]),
}
