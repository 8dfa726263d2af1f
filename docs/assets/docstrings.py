"""Griffe extension: a section headed ``Example:`` is read as code, and a name after ``:func:`` or another role is shown alone."""

import re
from typing import Any

from griffe import Extension, Object

_HEAD = re.compile(r"^Example:$", re.MULTILINE)
_ROLE = re.compile(r":[a-z]+:(?=`)")
_ENDING = re.compile(r'"_(?=\w+")|(?<=\w)_"')  # "_max" and "linear_" in one paragraph would be read as emphasis


class PlainDocstrings(Extension):
    """Change docstrings before a page is rendered: Google's parser knows the plural heading alone, and no roles."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            text = _ROLE.sub("", _HEAD.sub("Examples:", obj.docstring.value))
            obj.docstring.value = _ENDING.sub(lambda found: found.group().replace("_", r"\_"), text)
