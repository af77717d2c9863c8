"""Requests for jobs, in a form that can be compared, stored and sent."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from elkimg_async.batch.create import CALL_OPTIONS
from elkimg_async.config import IdempotencyMode
from elkimg_async.errors import InvalidRequestError
from elkimg_async.jobs.model import MAX_EVENTS, Input, Job
from elkimg_async.jobs.options import has_secrets, write_options
from elkimg_async.jobs.store import MAX_ID
from elkimg_async.sansio.encode import is_json
from elkimg_async.sansio.headers import check_headers, take_idempotency_key
from elkimg_async.sansio.image_headers import ImageReference
from elkimg_async.sansio.model_rules import validate
from elkimg_async.sansio.requests import (
    INPUT_FIELDS,
    EditRequest,
    ImageRequest,
    InputField,
    make_edit,
    make_request,
)
from elkimg_async.transport.uploads import image_list, in_memory, open_image


class Prepared(NamedTuple):
    """A new job, the images that it sends, and all options of its call, secret ones included."""

    job: Job
    contents: list[bytes]
    options: dict[str, Any]


def check_id(id: str | None) -> str:
    """Return the id of a new job; None means a random one.

    Raises:
        InvalidRequestError: If it is not text of 1 to 200 characters.
    """
    if id is None:
        return os.urandom(16).hex()
    if not isinstance(id, str) or not 0 < len(id) <= MAX_ID or not id.isprintable():
        raise InvalidRequestError(
            f"id must be printable text of 1 to {MAX_ID} characters.", param="id"
        )
    return id


async def prepare(
    name: str,
    prompt: Any,
    image: Any,
    options: Mapping[str, Any],
    *,
    strict: bool,
    idempotency: IdempotencyMode,
) -> Prepared:
    """Check a request, and read the images that it sends.

    Args:
        name: The id of the job.
        prompt: The prompt, or a request or a mapping with all its fields.
        image: The image or images to edit. None: generate.
        options: The other options of `generate` or `edit`; None means unset.
        strict: Whether to raise for a request that its model is known to reject.
        idempotency: Whether it has an idempotency key.

    Raises:
        InvalidRequestError: If the request is invalid, or an image cannot be read.
        DownloadError: If an `Image` is still a URL that cannot be fetched.
    """
    prompt, image, merged = _split(prompt, image, options)
    fields = {name: value for name, value in merged.items() if value is not None}
    call = {name: fields.pop(name) for name in CALL_OPTIONS if name in fields}
    files: dict[str, Any] = {name: fields.pop(name) for name in INPUT_FIELDS[1:] if name in fields}
    if image is None:
        if files:
            raise InvalidRequestError(
                f"{min(files)} goes with an image to edit; pass image=… as well.", param=min(files)
            )
        request: ImageRequest = make_request(prompt, fields)
        inputs: list[tuple[Input, bytes]] = []
    else:
        inputs = await _read_inputs({"image": image, **files})
        request = await _check_edit(inputs, prompt, fields)
    parameters = _parameters(request)
    stream = _can_stream(request, strict=strict)
    if not is_json(parameters) or not is_json(request.prompt):
        raise InvalidRequestError(
            "The request cannot be written as JSON; extra_body must be plain data.",
            param="extra_body",
        )
    contents = [content for each, content in inputs if each.reference is None]
    identity = [(each.param, each.sha256, each.reference) for each, _ in inputs]
    # Before the headers are searched for secrets, since its own name looks like one.
    idempotency_key = _idempotency_key(call, idempotency)
    # Event ids are unique among all jobs that ever had the same name, so that a browser that
    # reconnects with an old id gets the whole new job, and so that Redis Streams, which require
    # growing ids, accept them after a deletion.
    now = time.time()
    job = Job(
        id=name,
        prompt=request.prompt,
        parameters=parameters,
        created_at=now,
        idempotency_key=idempotency_key,
        first_id=int(now * 1000) * MAX_EVENTS,
        fingerprint=_digest([image is not None, request.prompt, parameters, identity]),
        edit=image is not None,
        stream=stream,
        resend=not has_secrets(call),
        options=write_options(call),
        inputs=tuple(each for each, _ in inputs),
    )
    return Prepared(job, contents, call)


def _split(prompt: Any, image: Any, options: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return prompt, image and options, with the fields of an `EditRequest` or a mapping."""
    if isinstance(prompt, EditRequest):
        fields = msgspec.structs.asdict(prompt)
    elif isinstance(prompt, Mapping) and "image" in prompt:
        fields = dict(prompt)
    else:
        return prompt, image, dict(options)
    fields |= {name: value for name, value in options.items() if value is not None}
    own = fields.pop("image", None)
    return fields.pop("prompt", None), own if image is None else image, fields


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:32]


def _idempotency_key(call: dict[str, Any], idempotency: IdempotencyMode) -> str | None:
    """Return a new idempotency key, or the user's own, which is removed from the headers."""
    headers = call.get("extra_headers") or {}
    if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
        check_headers(headers)  # raises; the other checks follow when the request is sent
    headers = dict(headers)
    own = take_idempotency_key(headers)
    if own is not None:
        call["extra_headers"] = headers
        return own
    return None if idempotency == "off" else os.urandom(16).hex()


def _can_stream(request: ImageRequest, *, strict: bool) -> bool:
    """Return whether to stream; raise if the model is known to reject the request either way."""
    try:
        validate(request, stream=True)
    except InvalidRequestError as error:
        streamed = error
    else:
        return True
    try:
        validate(request, stream=False)
    except InvalidRequestError:
        if strict:
            raise streamed from None
        return True
    return False


def _parameters(request: ImageRequest) -> dict[str, Any]:
    fields = request.fields()
    del fields["prompt"]
    if request.model is None:  # the client's default at the time the request is sent
        fields.pop("model", None)
    if request.extra_body:
        fields["extra_body"] = dict(request.extra_body)
    return fields


async def _check_edit(
    inputs: Sequence[tuple[Input, bytes]], prompt: Any, fields: dict[str, Any]
) -> ImageRequest:
    """Return the request of an edit, checked with those of its images that are not references."""
    opened: dict[InputField, list[Any]] = {param: [] for param in INPUT_FIELDS}
    for each, content in inputs:
        value = content if each.reference is None else ImageReference(**each.reference)
        opened[each.param].append(await open_image(value, each.param))
    mask, markup = (next(iter(opened[param]), None) for param in INPUT_FIELDS[1:])
    files = {"mask": mask, "markup": markup}
    return make_edit(tuple(opened["image"]), {**fields, **files, "prompt": prompt})


# --- the images of an edit --------------------------------------------------


async def _read_inputs(files: Mapping[str, Any]) -> list[tuple[Input, bytes]]:
    found: list[tuple[Input, bytes]] = []
    for param in INPUT_FIELDS:
        if param not in files:
            continue
        values = image_list(files[param]) if param == "image" else [files[param]]
        found += [await _read_input(param, value) for value in values]
    if not found:
        raise InvalidRequestError("There is no image to edit; pass at least one.", param="image")
    return found


async def _read_input(param: InputField, value: Any) -> tuple[Input, bytes]:
    opened = await open_image(value, param)
    if isinstance(opened, ImageReference):
        return Input(param=param, reference=msgspec.to_builtins(opened)), b""
    content = (await in_memory(opened, param)).source
    digest = hashlib.sha256(content).hexdigest()
    return Input(param=param, size=len(content), sha256=digest), content


def arguments(job: Job, contents: Sequence[bytes]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `AsyncImages.generate` or `edit` for a job."""
    if not job.edit:
        return (job.prompt,), dict(job.parameters)
    rest = iter(contents)
    images, options = list[Any](), dict(job.parameters)
    for each in job.inputs:
        value = next(rest) if each.reference is None else ImageReference(**each.reference)
        if each.param == "image":
            images.append(value)
        else:
            options[each.param] = value
    return (images, job.prompt), options
