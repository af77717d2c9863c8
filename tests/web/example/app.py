from contextlib import asynccontextmanager
from fastapi import Body, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from elkimg_async import AsyncImages, ElkImagesError, web
from elkimg_async.jobs import DirectoryStore, ImageJobs

@asynccontextmanager
async def lifespan(app):
    async with AsyncImages() as client, ImageJobs(client, store=DirectoryStore("images")) as jobs:
        yield {"jobs": jobs}

app = FastAPI(lifespan=lifespan)
app.get("/")(lambda: FileResponse("page.html"))
app.get("/elkimg.js")(lambda: Response(web.javascript(), media_type="text/javascript"))
app.exception_handler(ElkImagesError)(lambda _, error: JSONResponse(web.error_body(error), 400))

@app.post("/stream")
async def stream(request: Request, id: str = Body(), prompt: str = Body()):
    job = await request.state.jobs.start(prompt, id=id, partial_images=2)
    events = request.state.jobs.events(job.id, after=request.headers.get("last-event-id"))
    return web.starlette_response(events)
