"""Import time including the first client, and the size of a minimal installation.

Each run is a fresh interpreter; the clock starts inside it, before the first import.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from .client import KEY, MODEL, PROMPT
from .contenders import BARE, OPENAI, OURS
from .lab import ROOT, Lab, Sample, child_environment, run_json

TITLE = "Import time and footprint"
# A target depends on these two, so they run more often; imports are quick.
OFTEN, RUNS_FOR_EACH_ROUND = (BARE, OURS), 4

IMPORTS = {
    BARE: "import aiohttp",
    OURS: "import elkimg_async",
    OPENAI: "import openai",
    "litellm": "import litellm",
}
CLIENT_IMPORTS = IMPORTS | {OURS: "from elkimg_async import AsyncImages"}

_BARE_FIRST = """
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer " + KEY}) as session:
        body = {"model": MODEL, "prompt": PROMPT}
        async with session.post(URL + "/images/generations", json=body) as response:
            await response.read()
asyncio.run(main())
"""
_OUR_FIRST = """
import asyncio, elkimg_async
async def main():
    async with elkimg_async.AsyncImages(api_key=KEY, base_url=URL) as client:
        (await client.generate(PROMPT, model=MODEL))[0].url
asyncio.run(main())
"""
_OPENAI_FIRST = """
import asyncio, openai
async def main():
    async with openai.AsyncOpenAI(api_key=KEY, base_url=URL) as client:
        (await client.images.generate(prompt=PROMPT, model=MODEL)).data[0].url
asyncio.run(main())
"""
_LITELLM_FIRST = """
import asyncio, litellm
async def main():
    result = await litellm.aimage_generation(
        prompt=PROMPT, model="openai/" + MODEL, api_base=URL, api_key=KEY
    )
    result.data[0].url
asyncio.run(main())
"""
FIRST_CALLS = {
    BARE: _BARE_FIRST,
    OURS: _OUR_FIRST,
    OPENAI: _OPENAI_FIRST,
    "litellm": _LITELLM_FIRST,
}

_BEFORE = """
import os, time
if {core} is not None:
    os.sched_setaffinity(0, {{{core}}})
KEY, MODEL, PROMPT, URL = {key!r}, {model!r}, {prompt!r}, {url!r}
wall, cpu = time.perf_counter(), time.process_time()
"""
_AFTER = """
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
import json
print(json.dumps({"values": {"import_ms": wall * 1e3, "import_cpu_ms": cpu * 1e3}}))
"""


def run(lab: Lab) -> None:
    _time(lab, {"import": IMPORTS, "import client": CLIENT_IMPORTS, "first call": FIRST_CALLS})
    if lab.present(OURS):
        _footprint(lab)


def _time(lab: Lab, snippets: dict[str, dict[str, str]]) -> None:
    url = f"http://127.0.0.1:{lab.port}/url-1-0/v1"
    names = [name for name in IMPORTS if lab.present(name)]
    before = _BEFORE.format(core=lab.client_core, key=KEY, model=MODEL, prompt=PROMPT, url=url)
    jobs = [
        # The first round fills the caches of the file system and of compiled modules.
        (number, scenario, name)
        for number in range(-1, lab.rounds * RUNS_FOR_EACH_ROUND)
        for scenario in snippets
        for name in names
        if name in OFTEN or number % RUNS_FOR_EACH_ROUND == 0
    ]
    for done, (number, scenario, name) in enumerate(jobs, 1):
        output = run_json([sys.executable, "-c", before + snippets[scenario][name] + _AFTER])
        if number >= 0:
            sample = Sample.of(output, "imports", "import", scenario, name, number)
            lab.add(sample, done, len(jobs))


def _footprint(lab: Lab) -> None:
    """Install the core dependencies alone, and measure them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        lab.say("imports: installing the core dependencies into an empty folder")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
        done = subprocess.run(
            [*command, *project["dependencies"]],
            capture_output=True,
            check=False,
            env=child_environment(),
            text=True,
        )
        if done.returncode:
            lab.say("imports: the footprint is left out: pip could not install the dependencies")
            return
        values = footprint(folder)
    lab.add(Sample("imports", "footprint", "footprint", OURS, 0, values), 1, 1)


def footprint(folder: str) -> dict[str, float]:
    """Return the distributions in a folder, and their megabytes without compiled modules."""
    found = list(importlib.metadata.distributions(path=[folder]))
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    source = sum(path.stat().st_size for path in files if path.suffix != ".pyc")
    everything = sum(path.stat().st_size for path in files)
    return {
        "distributions": float(len(found)),
        "installed_mb": source / 1e6,
        "compiled_mb": everything / 1e6,
    }
