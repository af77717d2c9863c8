"""The bodies of every dialect, with the images in them."""

import base64
import gzip
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

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

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>'
LONG = PNG + bytes(range(256)) * 3
LONG_TEXT = base64.b64encode(LONG).decode()
DIALECTS |= {
    f"base64 after {prefix!r} in {name!r}": ({"data": [{name: prefix + text}]}, [content])
    for name in ("b64_json", "url", "pixels")
    for text, content in ((ONE, PNG), (LONG_TEXT, LONG))
    for prefix in (
        *("data:;base64,", "data:application/octet-stream;base64,", "data:base64,", "base64,"),
        *("data:image/png; base64,", "data:image/png;base64, ", "data:image/png,", "base64:"),
        *("data:image/png;charset=utf-8;base64,", "data:image/png;base64;charset=utf-8,"),
        *('data:image/png;name="a,b.png";base64,', "data:image/png;base64,data:image/png;base64,"),
    )
}
DIALECTS |= {
    "quoted base64": ({"data": [{"b64_json": f'"{ONE}"'}]}, [PNG]),
    "a quoted address": ({"data": [{"url": f'"{URL}"'}]}, [URL]),
    "a list in a string": ({"data": [{"url": json.dumps([URL, OTHER])}]}, [URL, OTHER]),
    "JSON in b64_json": ({"data": [{"b64_json": json.dumps({"b64_json": ONE})}]}, [PNG]),
    "percent-encoded base64": (
        {"data": [{"url": "data:image/png;base64," + quote(ONE, safe="")}]},
        [PNG],
    ),
    "no-break spaces": ({"data": [{"b64_json": "\u00a0" + LONG_TEXT + "\u200b"}]}, [LONG]),
    "base64 of base64": (
        {"data": [{"b64_json": base64.b64encode(LONG_TEXT.encode()).decode()}]},
        [LONG],
    ),
    "base64 of gzip": (
        {"data": [{"b64_json": base64.b64encode(gzip.compress(LONG)).decode()}]},
        [LONG],
    ),
    "hexadecimal": ({"data": [{"b64_json": PNG.hex()}, {"x": WEBP.hex()}]}, [PNG, WEBP]),
    "SVG as text": ({"data": [{"svg": SVG.decode()}, {"b64_json": SVG.decode()}]}, [SVG, SVG]),
    "signed bytes": ({"image": [byte - 256 if byte > 127 else byte for byte in PNG]}, [PNG]),
    "numbered bytes": (
        {"data": [{"image": dict(zip(map(str, range(len(PNG))), PNG, strict=True))}]},
        [PNG],
    ),
    "HTML": ({"choices": [{"message": {"content": f'<img src="{URL}" alt="x">'}}]}, [URL]),
    "Markdown with a title": (
        {"choices": [{"message": {"content": f'![x]({URL} "A title")'}}]},
        [URL],
    ),
    "Markdown with a reference": (
        {"choices": [{"message": {"content": f"![x][1]\n\n[1]: {URL}"}}]},
        [URL],
    ),
    "Markdown with parentheses": (
        {"choices": [{"message": {"content": "![x](https://cdn.example.com/a_(1).png)"}}]},
        ["https://cdn.example.com/a_(1).png"],
    ),
    "Markdown in parts": (
        {"choices": [{"message": {"content": [{"type": "text", "text": f"![x]({URL})"}]}}]},
        [URL],
    ),
    "Markdown in output_text": (
        {"output": [{"content": [{"type": "output_text", "text": f"![x]({URL})"}]}]},
        [URL],
    ),
    "Markdown of Gemini": (
        {"candidates": [{"content": {"parts": [{"text": f"![x]({URL})"}]}}]},
        [URL],
    ),
    "a data URL in prose": (
        {"choices": [{"message": {"content": f"Here:\ndata:image/png;base64,{ONE}\nEnjoy"}}]},
        [PNG],
    ),
    "JSON between fences": (
        {
            "choices": [
                {"message": {"content": f"Done.\n```json\n{json.dumps({'image_url': URL})}\n```"}}
            ]
        },
        [URL],
    ),
    "JSON between words": (
        {
            "choices": [
                {"message": {"content": f"Here: {json.dumps({'b64_json': ONE})} Enjoy [it]."}}
            ]
        },
        [PNG],
    ),
    "JSON before words": (
        {"choices": [{"message": {"content": f"{json.dumps([{'image_url': URL}])}\nEnjoy!"}}]},
        [URL],
    ),
}


def pieces(text: str, size: int) -> list[str]:
    """Return a text in pieces."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def chat_pieces(text: str, size: int) -> list[Any]:
    """Return the events of a chat completion with a text in pieces."""
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [
        *({"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces(text, size)),
        end,
    ]


def _chat(text: str, size: int) -> bytes:
    return sse(*chat_pieces(text, size))


def _responses(text: str, size: int) -> bytes:
    events = (
        {"type": "response.output_text.delta", "item_id": "i", "delta": piece}
        for piece in pieces(text, size)
    )
    return sse(*events, {"type": "response.output_text.done", "item_id": "i", "text": text})


def _messages(text: str, size: int) -> bytes:
    events = (
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": piece},
        }
        for piece in pieces(text, size)
    )
    return sse(*events, {"type": "message_stop"})


def _gemini(text: str, size: int) -> bytes:
    return sse(
        *(
            {"candidates": [{"content": {"parts": [{"text": piece}]}}]}
            for piece in pieces(text, size)
        )
    )


def _ollama(text: str, size: int) -> bytes:
    # A body of one line is a document, not a stream, so that there are always two.
    parts = [*pieces(text, size), ""]
    return b"".join(
        json.dumps({"response": piece, "done": number == len(parts) - 1}).encode() + b"\n"
        for number, piece in enumerate(parts)
    )


IN_PIECES: dict[str, Callable[[str, int], bytes]] = {
    "chat completions": _chat,
    "the Responses API": _responses,
    "Messages": _messages,
    "Gemini": _gemini,
    "Ollama": _ollama,
}
"""Text of a model in pieces of a size, as each API streams it."""

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
    **{
        f"{kind} in pieces of {size}, {identity[:5]}": (body(text, size), [(identity, False)])
        for size in (1, 7, 4_000)
        for kind, body in IN_PIECES.items()
        for text, identity in (
            (f"Here:\n![x]({URL})\nEnjoy", URL),
            (f"Here:\n![x](data:image/png;base64,{ONE})\nEnjoy", "PNG"),
        )
    },
    "two choices in pieces": (
        sse(
            *(
                {"choices": [{"index": index, "delta": {"content": text[place : place + 9]}}]}
                for place in range(0, 99, 9)
                for index, text in enumerate((f"![x]({URL})", f"![y]({OTHER})"))
            )
        ),
        [(URL, False), (OTHER, False)],
    ),
    "JSON in pieces": (
        sse(*chat_pieces(json.dumps({"data": [{"b64_json": ONE}]}), 11)),
        [("PNG", False)],
    ),
    "base64 in pieces": (sse(*chat_pieces(ONE, 11)), [("PNG", False)]),
    "broken side data": (b'data: {"b64_json":"%b","x":}\n\n' % ONE.encode(), [("PNG", False)]),
}

Parts = list[tuple[str, bytes]]


def multipart(parts: Parts, *, preamble: bytes = b"", end: bytes = b"--") -> bytes:
    """Return a body of several parts, each with its headers; the boundary is `edge`."""
    bodies = (b"--edge\r\n" + head.encode() + b"\r\n" + body for head, body in parts)
    return preamble + b"".join(body + b"\r\n" for body in bodies) + b"--edge" + end + b"\r\n"


_AS_PNG = "Content-Type: image/png\r\n"
_AS_JSON = "Content-Type: application/json\r\n"
MULTIPARTS: dict[str, tuple[bytes, Came]] = {
    "JSON and an image": (multipart([(_AS_JSON, b'{"created":1}'), (_AS_PNG, LONG)]), [LONG]),
    "two images": (
        multipart([(_AS_PNG, PNG), ("Content-Type: image/webp\r\n", WEBP)]),
        [PNG, WEBP],
    ),
    "base64": (
        multipart([(_AS_PNG + "Content-Transfer-Encoding: base64\r\n", base64.encodebytes(LONG))]),
        [LONG],
    ),
    "quoted-printable": (
        multipart(
            [
                (
                    _AS_JSON + "Content-Transfer-Encoding: quoted-printable\r\n",
                    json.dumps({"b64_json": ONE}).encode().replace(b"=", b"=3D"),
                )
            ]
        ),
        [PNG],
    ),
    "base64 in JSON": (
        multipart([(_AS_JSON, json.dumps({"data": [{"b64_json": ONE}]}).encode())]),
        [PNG],
    ),
    "an image that the JSON refers to": (
        multipart([(_AS_JSON, b'{"data":[{"url":"cid:one"}]}'), (_AS_PNG, PNG)]),
        [PNG],
    ),
    "no headers": (multipart([("", PNG)]), [PNG]),
    "a preamble": (multipart([(_AS_PNG, PNG)], preamble=b"In several parts.\r\n"), [PNG]),
    "the fields of a form": (
        multipart(
            [
                ('Content-Disposition: form-data; name="prompt"\r\n', OTHER.encode()),
                ('Content-Disposition: form-data; name="url"\r\n', URL.encode()),
                ('Content-Disposition: form-data; name="b64_json"\r\n', ONE.encode()),
            ]
        ),
        [URL, PNG],
    ),
    "parts in a part": (
        multipart(
            [
                (
                    "Content-Type: multipart/related; boundary=inner\r\n",
                    multipart([(_AS_PNG, PNG)]).replace(b"edge", b"inner"),
                )
            ]
        ),
        [PNG],
    ),
}
RAW: dict[str, tuple[bytes, str, Came]] = {
    "an image": (LONG, "image/png", [LONG]),
    "an image without a known signature": (
        bytes(range(128, 256)),
        "image/x-new",
        [bytes(range(128, 256))],
    ),
    "undeclared gzip": (
        gzip.compress(json.dumps({"data": [{"b64_json": ONE}]}).encode()),
        "application/json",
        [PNG],
    ),
    "a compressed image": (gzip.compress(LONG), "image/png", [LONG]),
    "UTF-16": (
        json.dumps({"data": [{"b64_json": ONE}]}).encode("utf-16"),
        "application/json",
        [PNG],
    ),
    **{
        f"{name} without a byte order mark": (
            json.dumps({"data": [{"b64_json": ONE}]}).encode(name),
            "application/json",
            [PNG],
        )
        for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
    },
    "UTF-32": (
        json.dumps({"data": [{"b64_json": ONE}]}).encode("utf-32"),
        "application/json",
        [PNG],
    ),
    "strings in lines": (
        f"{json.dumps(ONE)}\n{json.dumps(URL)}\n".encode(),
        "text/plain",
        [PNG, URL],
    ),
    "objects with commas between": (
        json.dumps({"b64_json": ONE}).encode() + b"," + json.dumps({"url": URL}).encode(),
        "application/json",
        [PNG, URL],
    ),
    "a string of a string of JSON": (
        json.dumps(json.dumps(json.dumps({"b64_json": ONE}))).encode(),
        "application/json",
        [PNG],
    ),
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
    "JSON after words": (f"Warning: slow. {json.dumps({'data': [{'b64_json': ONE}]})}\n", [PNG]),
    "JSON with a callback": (
        f"callback({json.dumps({'data': [{'b64_json': LONG_TEXT}]})});",
        [LONG],
    ),
    "XML": (
        f'<?xml version="1.0"?>\n<response><prompt>{TWO}</prompt>'
        f'<image type="image/png">{LONG_TEXT}</image></response>\n',
        [LONG],
    ),
    "XML with wrapped base64": (
        "<response><data><![CDATA[\n"
        + base64.encodebytes(LARGE).decode()
        + "]]></data></response>",
        [LARGE],
    ),
    "XML with an attribute": (f'<r><image b64_json="{LONG_TEXT}" format="png"/></r>', [LONG]),
    "YAML": (f"created: 1\nprompt: {TWO}\nimages:\n  - b64_json: {LONG_TEXT}\n", [LONG]),
    "YAML with wrapped base64": (
        "b64_json: |\n  "
        + base64.encodebytes(LARGE).decode().replace("\n", "\n  ")
        + "\ncreated: 1\n",
        [LARGE],
    ),
    "YAML with quotes": (f'images:\n  - b64_json: "{LONG_TEXT}"\n', [LONG]),
    "a form": (f"created=1&b64_json={quote(LONG_TEXT, safe='')}&n=1", [LONG]),
}
