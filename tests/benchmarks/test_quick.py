"""The tests of one file: every file of the package has some, and a file that is none is refused."""

from pathlib import Path

from benchmarks import quick

ROOT = Path(__file__).parents[2]


def test_every_file_of_the_package_has_a_test():
    files = [
        path.relative_to(ROOT) for path in (ROOT / quick.PACKAGE).rglob("*.py") if "import" in path.read_text(encoding="utf-8")
    ]
    assert [file for file in files if next(quick.nearest_tests(ROOT, file), None) is None] == []


def test_the_mirrored_test_comes_first():
    first = next(quick.nearest_tests(ROOT, Path("snn_recon_plugin/networks/libraries/norse.py")))
    assert first == Path("tests/networks/libraries/test_norse.py")


def test_a_file_outside_the_package_is_refused(capsys):
    assert quick.main("snn_recon_plugin/convex/pat.py") == 2
    assert "did you mean snn_recon_plugin/convex/path.py?" in capsys.readouterr().out
    assert quick.main("") == 2
    assert "type e.g. make quick FILE=" in capsys.readouterr().out
