"""Griffe extension: sections headed ``Example:`` in docstrings are read as code, as those headed ``Examples:`` are."""

import re
from typing import Any

from griffe import Extension, Object

_HEAD = re.compile(r"^Example:$", re.MULTILINE)


class ExampleSections(Extension):
    """Rename the heading before a page is rendered; Google's parser of docstrings knows the plural alone."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = _HEAD.sub("Examples:", obj.docstring.value)
