"""What a newcomer installs: lock, environment.yml, pyproject, the wheel, a quick command."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import crat

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
ENTRIES = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[
    1:
]  # after the head, one for each pin
MAKEFILE = (ROOT / "Makefile").read_text()
SCRIPT = Path(sysconfig.get_path("scripts"), "crat")

MACHINES = {
    f"{system}-{machine}-{python}": {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "platform_machine": machine,
    }
    for python in ("3.11", "3.12")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
}


def wanted(extra="all"):
    """The requirements of the project and of an extra, which may name others: `crat[test]`."""
    extras = PROJECT["project"]["optional-dependencies"]
    found = list(PROJECT["project"]["dependencies"])
    todo = [extra]
    while todo:
        for text in extras[todo.pop()]:
            requirement = Requirement(text)
            if requirement.name == "crat":
                todo.extend(requirement.extras)
            else:
                found.append(text)
    return [Requirement(text) for text in found + PROJECT["build-system"]["requires"]]


def pins(environment):
    """Name -> exact version of the lock's entries for a machine; no name twice."""
    found = {}
    for entry in ENTRIES:
        requirement = Requirement(entry.splitlines()[0].rstrip("\\"))
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", entry
            assert requirement.name not in found, entry
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_the_lock_pins_what_the_project_needs(machine):
    locked = pins(MACHINES[machine])
    for requirement in wanted():
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock"
        assert requirement.specifier.contains(version), (
            f"{requirement} but {version} is locked: make lock"
        )


def test_the_lock_holds_nothing_that_the_project_dropped():
    """uv notes under each pin who asked for it."""
    direct = {
        canonicalize_name(entry.split("==")[0])
        for entry in ENTRIES
        if "crat (pyproject.toml)" in entry
    }
    assert direct == {canonicalize_name(requirement.name) for requirement in wanted()}


def test_every_pin_has_hashes_and_no_address():
    assert len(ENTRIES) > 50
    for entry in ENTRIES:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry.splitlines()[0]
    assert not re.search(r"://| @ ", LOCK)


def test_the_lock_was_made_by_make_lock():
    head = re.search(r"^# +uv (pip compile .*)$", LOCK, re.MULTILINE)[1]
    recipe = re.search(r"^lock:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1].replace("\\\n", " ")
    recipe = re.sub(r"@?\$\(UV\)|--quiet|\$\(ARGS\)", " ", recipe)
    assert head.split() == recipe.split()


def test_all_means_all():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == set(extras) - {"all"}


def test_environment_yml_installs_the_lock():
    text = (ROOT / "environment.yml").read_text()
    python, *others = yaml.safe_load(text)["dependencies"]
    assert others == ["pip", {"pip": ["-r requirements.lock"]}]
    name, version = python.split("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)
    assert "pip install --no-deps -e ." in text


def test_pythons_version_and_licence_agree_everywhere():
    project, citation = PROJECT["project"], yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert re.search(r"--python '([^']+)'", MAKEFILE)[1] == project["requires-python"]
    assert citation["version"] == project["version"] == crat.__version__
    assert citation["license"] == project["license"] == "MIT"


def test_every_cited_paper_can_be_found():
    for paper in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]:
        assert {"type", "title", "authors", "year"} <= set(paper)
        assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}$", paper["url"])


HOSTS = r"\b(pypi|pythonhosted|npmjs|deb\.debian|anaconda|download\.pytorch)[.]org\b"
INDEXES = r"https?://\S+/simple\b|file://[/]|--(extra-)?index-url\b[ =]|--find-links\b[ =]"
PLACES = rf"(?<![\w./-])(/root|/home/[a-z]+|/Users/[a-z]+|{re.escape(str(ROOT))})/"
FORBIDDEN = re.compile(f"{HOSTS}|{INDEXES}|{PLACES}")


def committed_texts():
    """Path and text of all that git has or would add; in an unpacked archive, of all files."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else map(str, ROOT.rglob("*"))
    for path in {ROOT / name for name in names if name and ".venv" not in Path(name).parts}:
        if path.is_file():
            try:
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # an image, a PDF, an array


def test_no_index_and_no_place_of_one_machine_is_committed():
    texts = dict(committed_texts())
    assert {Path("pyproject.toml"), Path("requirements.lock"), Path("crat/config.py")} <= set(texts)
    for path, text in texts.items():
        found = [match[0] for match in FORBIDDEN.finditer(text)]
        assert not found, f"{path} holds {found}"


def test_an_index_and_a_place_are_seen():
    host = "https://pypi" + ".org"
    option = "--index-" + "url http://x"
    index = "http://x/simp" + "le/numpy"
    for text in (host, option, index, f"'{ROOT}/results'", "/ho" + "me/ann/x"):
        assert FORBIDDEN.search(text), text
    for text in ("https://arxiv.org/abs/2105.14240", "notebooks/home/x/", "a simple net"):
        assert not FORBIDDEN.search(text), text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_images_and_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assets = [name for name in names if name.startswith("crat/assets/")]
    assert {"crat/assets/fashion_mnist_mini.npz", "crat/assets/LICENSE-fashion-mnist"} <= set(
        assets
    )
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"crat", f"crat-{crat.__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("crat/**/*.py")}
    assert modules <= set(names)


def test_the_wheel_loads_its_images_alone(wheel, tmp_path):
    """Outside the repository: nothing that the package needs is left behind."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import crat
from crat.data import load
print(crat.__file__, len(load("fashion_mnist_mini").y_test))
"""
    out = run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    ).stdout
    assert out.split() == [str(tmp_path / "crat" / "__init__.py"), "2000"]


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done


def imported(*command):
    """The modules that Python imports, one a line of its own report."""
    report = run([sys.executable, "-X", "importtime", *command]).stderr
    return {line.rsplit("|", 1)[1].strip() for line in report.splitlines() if "|" in line}


def test_help_comes_at_once():
    """Counted in modules, not seconds: torch alone is 1,500, argparse 9."""
    assert "reproduce" in run([SCRIPT, "--help"]).stdout
    assert len(imported(SCRIPT, "--help") - imported("-c", "pass")) < 150


@pytest.mark.parametrize(
    "command", [[SCRIPT, "--help"], ["-c", "import crat"]], ids=["crat --help", "import crat"]
)
def test_help_imports_nothing_heavy(command):
    packages = {name.split(".")[0] for name in imported(*command)}
    assert "crat" in packages
    assert not packages & {"torch", "torchvision", "matplotlib", "pandas", "scipy"}
