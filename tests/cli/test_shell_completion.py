"""Completion in shells, from the scripts that `elkimg --install-completion` installs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.command import run

SCRIPTS = {
    "bash": ".local/share/bash-completion/completions/elkimg",
    "zsh": ".zsh/completions/_cyclopts_elkimg",
    "fish": ".config/fish/completions/elkimg.fish",
}
ASK = {
    "bash": ". {script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _elkimg; "
    'if ((${{#COMPREPLY[@]}})); then printf "%s\\n" "${{COMPREPLY[@]}}"; '
    'elif [[ $(complete -p elkimg) = *" -o default "* ]]; then compgen -f -- {last}; fi',
    "fish": "source {script}; complete -C '{line}'",
}
LINES = {
    "elkimg gen": ["generate"],
    "elkimg batch --contact": ["--contact-sheet"],
    "elkimg generate a --quality x": ["xhigh"],
    "elkimg generate a --size 2048": ["2048x2048"],
    "elkimg generate a --model dall-e-": ["dall-e-2", "dall-e-3"],
    "elkimg edit a.png hat --input-fidelity h": ["high"],
    "elkimg batch --format j": ["json", "jsonl"],
    "elkimg edit kit": ["kitten 1.png"],
    "elkimg edit a.png hat --mask kit": ["kitten 1.png"],
    "elkimg generate a -o kit": ["kitten 1.png"],
    "elkimg batch pro": ["prompts.csv"],
}


async def install(shell: str, home: Path) -> Path:
    """Install the completion of a shell and return its script."""
    variables = {"HOME": str(home), "SHELL": f"/bin/{shell}"}
    ended = await run("--install-completion", "--shell", shell, folder=home, variables=variables)
    assert (ended.code, ended.err) == (0, "")
    return home / SCRIPTS[shell]


@pytest.mark.parametrize("shell", SCRIPTS)
async def test_completion_is_installed(tmp_path: Path, shell: str) -> None:
    """`--install-completion` writes a script with the commands, options and known values."""
    text = (await install(shell, tmp_path)).read_text("utf-8")
    assert "generate" in text
    assert "contact-sheet" in text
    assert "xhigh" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", tmp_path / SCRIPTS[shell]], check=True)


@pytest.mark.parametrize("shell", ASK)
async def test_completion_of_values_and_files(tmp_path: Path, shell: str) -> None:
    """Shells complete the known values of options, and the names of files."""
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    script = await install(shell, tmp_path)
    (tmp_path / "kitten 1.png").touch()
    (tmp_path / "prompts.csv").touch()
    completed = {}
    for line in LINES:
        code = ASK[shell].format(script=script, words=line, line=line, last=line.split()[-1])
        ended = subprocess.run([shell, "-c", code], cwd=tmp_path, capture_output=True, check=True)
        words = ended.stdout.decode().splitlines()
        completed[line] = sorted(word.partition("\t")[0].strip() for word in words)
    assert completed == LINES


async def test_value_outside_the_known_set(tmp_path: Path) -> None:
    """Values that are not completed are accepted, since servers and models have their own."""
    options = ("--quality", "ultra", "--model", "mine", "--dry-run")
    ended = await run("batch", "-", *options, folder=tmp_path, typed="a kitten")
    assert ended.code == 0
