"""`crat completion`: the script of bash is asked as bash asks it."""

import shutil
import subprocess
import sys

import pytest

from crat import cli
from crat.cli import main
from crat.defenses import DEFENSES

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
function=$(complete -p crat | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function crat
printf '%s\\n' "${COMPREPLY[@]}"
"""
PUBLISHED = "fashion_mnist-small_cnn-cfa-s1-014caa59174fa0b6"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    path = tmp_path_factory.mktemp("shell") / "crat.bash"
    told = subprocess.run(
        [sys.executable, "-m", "crat", "completion", "bash"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    path.write_text(told.stdout, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("crat tr", {"train"}),
        ("crat train --defen", {"--defense"}),
        ("crat train --defense tra", {"trades"}),
        ("crat train --data cifar100", {"cifar100"}),
        ("crat audit x --attacks AA-s", {"AA-sampled"}),
        (f"crat evaluate {PUBLISHED[:38]}", {PUBLISHED}),
        ("crat data fet", {"fetch"}),
        ("crat data fetch mni", {"mnist"}),
        ("crat methods spa", {"spat"}),
    ],
)
def test_bash_completes(script, words, offered):
    told = subprocess.run(
        ["bash", "-c", ASK, "bash", script, *words.split()], capture_output=True, text=True
    )
    assert offered <= set(told.stdout.split()), told.stderr
    assert all(word.startswith(words.split()[-1]) for word in told.stdout.split())


def test_every_command_and_every_method_is_in_it(script):
    text = script.read_text(encoding="utf-8")
    for word in (*cli.COMMANDS, *DEFENSES):
        assert word in text, word


@pytest.mark.parametrize("shell", ["zsh", "fish", "powershell"])
def test_other_shells_get_a_script(shell, capsys):
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    assert main(["completion", shell]) == 0
    told = capsys.readouterr().out
    assert "trades" in told
    assert "crat" in told


def test_without_the_library_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("crat.extras.missing", lambda *modules: list(modules))
    assert main(["completion", "bash"]) == 1
    line = "crat: crat completion needs shtab: pip install 'crat[completion]'\n"
    assert capsys.readouterr().err == line


def test_another_shell_is_refused_with_the_names(capsys):
    assert main(["completion", "bsh"]) == 2
    assert "did you mean bash" in capsys.readouterr().err
