"""Errors and interrupts at chosen lines of the package, as a debugger or an unlucky moment would bring them."""

import sys
from pathlib import Path

import snn_recon_plugin

PACKAGE = str(Path(snn_recon_plugin.__file__).parent)


class FaultError(Exception):
    """No error of the package's."""


class LineFault:
    """Counts the lines that run in some files of the package inside a block, and raises at one of them.

    Args:
        files: endings of the files' paths in the package; default all of them.
        number: raise at this line, from 1; 0 counts only.
        error: what is raised.
    """

    def __init__(self, files=("",), number=0, error=KeyboardInterrupt):
        self.files, self.number, self.error, self.seen, self.where = tuple(files), number, error, 0, None
        self.first, self.last = {}, {}  # of each line of source, the number at which it ran first and last

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _call(self, frame, event, argument):
        name = frame.f_code.co_filename
        return self._line if name.startswith(PACKAGE) and name.endswith(self.files) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.seen += 1
            place = frame.f_code.co_filename, frame.f_lineno
            self.first.setdefault(place, self.seen)
            self.last[place] = self.seen
            if self.seen == self.number:
                self.where = f"{place[0].removeprefix(PACKAGE)}:{place[1]}"
                sys.settrace(None)
                raise self.error
        return self._line
