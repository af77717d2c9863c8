"""Image generations that outlive the request, the connection or the process that started them."""

from elkimg_async.jobs.directory import DirectoryStore
from elkimg_async.jobs.events import JobEvents
from elkimg_async.jobs.memory import MemoryStore
from elkimg_async.jobs.model import Job, JobCompletedImage, JobEvent, JobPartialImage, State
from elkimg_async.jobs.redis_store import RedisStore
from elkimg_async.jobs.registry import ImageJobs
from elkimg_async.jobs.store import Store

__all__ = [
    "DirectoryStore",
    "ImageJobs",
    "Job",
    "JobCompletedImage",
    "JobEvent",
    "JobEvents",
    "JobPartialImage",
    "MemoryStore",
    "RedisStore",
    "State",
    "Store",
]
