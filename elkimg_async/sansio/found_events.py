"""What becomes of a document: events of its images, or the error of a body that has none."""

from collections.abc import Mapping, Sequence
from typing import Any

from elkimg_async.errors import ElkImagesError, EmptyResultError, StreamIncompleteError
from elkimg_async.sansio.error_mapping import api_error
from elkimg_async.sansio.events import event_of, says_unfinished, type_around
from elkimg_async.sansio.find_images import Findings, find_images
from elkimg_async.sansio.image_strings import plain_images
from elkimg_async.sansio.json_images import Document, InvalidJSON, JSONDecoder, unpacked_json
from elkimg_async.sansio.responses import CompletedImage, PartialImage


def events_of(
    found: Findings, fields: Mapping[str, Any], name: str, *, streamed: bool
) -> list[PartialImage | CompletedImage]:
    """Return the events of the images in one document.

    `fields` are those of the document, and `name` is that of its `event:` line. Only in a stream
    can fields such as a status say that an image is not finished.
    """
    events = []
    for entry in found.found:
        chain = entry.chain or (fields,)
        unfinished = streamed and says_unfinished(chain)
        type_ = type_around(chain, name, unfinished=unfinished)
        events.append(
            event_of(
                type_,
                entry.image,
                entry.chain,
                key=entry.key,
                rest=found.extra,
                unfinished=unfinished,
            )
        )
    return events


def repeats(
    events: Sequence[PartialImage | CompletedImage], completed: Sequence[CompletedImage]
) -> bool:
    """Return whether an event of another type only repeats images, as a summary at the end does."""
    before = {
        event.image.content or event.image.url
        for event in completed
        if events and event.type != events[0].type
    }
    return bool(before) and all(
        isinstance(event, CompletedImage) and (event.image.content or event.image.url) in before
        for event in events
    )


def error_without_image(
    *,
    failed_item: Any,
    task: tuple[str, str | None] | None,
    body: str | None,
    is_empty: bool,
    streamed: bool,
    partials: int,
) -> ElkImagesError:
    """Return the error for a body without a completed image.

    `failed_item` is what reports an error, `task` the asynchronous job that was started instead,
    and `is_empty` whether a document that should have an image had none.
    """
    if task is not None:
        job, status = task
        return EmptyResultError(
            f"The server started an asynchronous job instead of returning an image: task {job}"
            + (f" ({status})." if status else ".")
            + " Fetch its result from the server, or use a model that returns images at once.",
            body=body,
            task_id=job,
        )
    if failed_item is not None:
        return api_error(200, failed_item)
    if is_empty and not partials:
        return EmptyResultError("The server reported success but returned no image.", body=body)
    if not streamed:
        return EmptyResultError("The server reported success with an empty body.")
    return StreamIncompleteError(
        "The stream ended without a completed image"
        + (f", after {partials} partial images." if partials else ".")
    )


def text_documents(decoder: JSONDecoder) -> list[Document]:
    """Return the documents in text: JSON strings, plain base64, addresses, or JSON behind words.

    The list is empty if it is none of these.
    """
    try:
        documents = [unpacked_json(document) for document in decoder.finish_all()]
    except InvalidJSON:
        plain = [Document(value) for value in plain_images(decoder.text(decoder.size))]
        documents = plain or decoder.embedded()
    usable = any(
        isinstance(document.value, (dict, list)) or find_images(document).found
        for document in documents
    )
    return documents if usable else []
