import importlib
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

import snn_recon_plugin
from snn_recon_plugin import __version__

ROOT = Path(__file__).resolve().parents[1]

# Absolute paths that exist on one machine only: a home directory, or where this checkout lies. URLs don't match.
MACHINE_PATH = re.compile(rf"(?<![\w.~-])(?:/(?:home|root|work|Users)|[A-Z]:\\Users|{re.escape(str(ROOT))})[/\\][\w.]")

# All modules but the demo (__main__), which has no public names.
MODULES = [
    "snn_recon_plugin",
    *(
        module.name
        for module in pkgutil.walk_packages(snn_recon_plugin.__path__, "snn_recon_plugin.")
        if not module.name.endswith("__main__")
    ),
]


def tracked_files() -> list[Path]:
    """The files of the checkout, new ones included; without git (an unpacked sdist) every text source in it."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        files = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        suffixes = {".py", ".md", ".toml", ".cff", ".json", ".ipynb"}
        hidden = {path for path in ROOT.rglob(".*") if path.is_dir()}
        files = [p for p in ROOT.rglob("*") if p.suffix in suffixes and hidden.isdisjoint(p.parents)]
    return [path for path in files if path.is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    pytest.importorskip("hatchling", reason="a wheel is built to look inside it: install the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_version_has_a_single_source() -> None:
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    try:
        installed = importlib.metadata.version("snn-recon-plugin")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from a checkout that is not installed")
    assert installed == __version__


def test_wheel(wheel: zipfile.ZipFile) -> None:
    names, info = wheel.namelist(), f"snn_recon_plugin-{__version__}.dist-info"
    assert {"snn_recon_plugin/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"snn_recon_plugin", info}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "snn_recon_plugin").rglob("*.py")} <= set(names)
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.10"
    extras = {"all", "demo", "dev", "docs", "norse", "plots", "snntorch", "spikingjelly", "tutorials"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    core = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert not any(need.startswith(("norse", "snntorch", "spikingjelly", "matplotlib", "scikit-learn")) for need in core)
    # A cap or a local build in a library's requirement breaks other people's environments.
    assert not any(sign in need for need in core for sign in ("<", "==", "+"))


def test_public_names_are_importable() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", [])
        assert len(public) == len(set(public)), name
        assert [attribute for attribute in public if not hasattr(module, attribute)] == [], name
    assert "__version__" in snn_recon_plugin.__all__


SLOW = [pytest.param(library, marks=pytest.mark.slow) for library in ("norse", "spikingjelly")]


@pytest.mark.parametrize("library", ["snntorch", *SLOW])
def test_each_library_without_the_others(library: str) -> None:
    run = f"import pytest; sys.exit(pytest.main([{str(ROOT / 'tests' / 'alone')!r}, '-q', '-p', 'no:cacheprovider']))"
    hide = f"sys.modules.update(dict.fromkeys({{'snntorch', 'norse', 'spikingjelly'}} - {{{library!r}}}))"
    command = [sys.executable, "-c", f"import sys; {hide}; {run}"]
    environment = {**os.environ, "ALONE": library}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_an_import_brings_in_no_snn_library_and_warns_of_nothing_and_the_line_and_its_guard_need_few_packages() -> None:
    hidden = ("lightning", "lightning_utilities", "pytorch_lightning", "cvxpy", "clarabel", "scs", "scipy", "sklearn", "matplotlib")
    code = f"""
import sys
import warnings
import torch
sys.modules.update(dict.fromkeys({hidden!r}))
from snn_recon_plugin import convex_init_, diagnose, fast_steps, over_time, refit_
from snn_recon_plugin.errors import UnsupportedModuleError
libraries = ("snntorch", "norse", "spikingjelly")
print([library for library in libraries if library in sys.modules])
sys.modules.update(dict.fromkeys(libraries))
try:
    convex_init_(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), [(torch.rand(10, 2), torch.arange(10) % 2)])
except UnsupportedModuleError as error:
    print(error.found)
for library in libraries:
    del sys.modules[library]
warnings.simplefilter("ignore")
import snntorch as snn
last = snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none")
net = torch.nn.Sequential(torch.nn.Linear(8, 24), snn.Leaky(beta=0.9, init_hidden=True), torch.nn.Linear(24, 3), last)
labels = torch.arange(120) % 3
loader = [(torch.rand(120, 8) + torch.nn.functional.one_hot(labels, 8), labels)]
print(diagnose(net, loader, forward=over_time(5)))
report = convex_init_(net, loader, forward=over_time(5))
with report.protect(torch.optim.Adam(net.parameters()), loader, fast=True) as guard, guard.evaluated():
    print(refit_(net, loader, forward=over_time(5)))
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[]\nno spiking neuron")


def test_the_conda_recipe_needs_what_the_package_needs() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    recipe = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8").split("  run:\n")[1].split("\n\n")[0]
    needs = {need.replace(" ", "") for need in re.findall(r"- (.*)", recipe)} - {"python>=3.10"}
    assert listed is not None
    assert needs == {need.replace("torch>", "pytorch>") for need in re.findall(r'"(.*)"', listed.group(1))}


ADDRESS = re.compile(r"github(?:\.com)?/([\w-]+/snn_recon_plugin)")


def test_every_address_of_the_repository_is_that_of_the_package() -> None:
    (address, *_) = ADDRESS.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {path: set(ADDRESS.findall(path.read_bytes().decode("utf-8", errors="ignore"))) for path in tracked_files()}
    assert {path.name: other for path, other in found.items() if other - {address}} == {}
    assert len([path for path, other in found.items() if other]) > 10


INSTALLS = re.compile(r"^.*pip install .*$", re.MULTILINE)


def test_install_lines_work() -> None:
    """Those of a checkout name extras that exist; a name alone must be on the index."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("tutorials/*.ipynb"), *ROOT.glob("contrib/**/*.*")]
    lines = [line for path in pages for line in INSTALLS.findall(path.read_text(encoding="utf-8"))]
    assert len(lines) > 10
    for line in lines:
        for chosen in re.findall(r"(?:\.|snn-recon-plugin)\[([\w,]+)\]", line):
            assert set(chosen.split(",")) <= extras, line
    if any("snn-recon-plugin" in line and "git+https" not in line for line in lines):
        command = [sys.executable, "-m", "pip", "index", "versions", "snn-recon-plugin"]
        asked = subprocess.run(command, check=False, capture_output=True, text=True)
        assert __version__ in asked.stdout, "no released version: install from the address of the repository"


def test_no_file_holds_a_machine_path() -> None:
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert found == []
