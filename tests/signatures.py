"""Write the options into the signatures of functions that take all of them: ``python tests/signatures.py``."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "snn_recon_plugin"
FILES = [PACKAGE / "initializer.py", PACKAGE / "callback.py"]
_BLOCK = re.compile(r"( *)(# options: .*\n)(?:.*\n)*?( *# end of options\n)")


def with_options(source: str) -> str:
    """Return the source of a module with the fields of ``Options`` between the comments that mark them."""
    tree = ast.parse((PACKAGE / "options.py").read_text(encoding="utf-8"))
    (options,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options"]
    nodes = [node for node in options.body if isinstance(node, ast.AnnAssign)]
    fields = [f"{_typed(node.target)}: {_typed(node.annotation)} = {_typed(_default(node.value))},\n" for node in nodes]
    return _BLOCK.sub(lambda found: found[1] + found[2] + "".join(found[1] + line for line in fields) + found[3], source)


def _default(value: ast.expr) -> ast.expr:
    return value.args[0] if isinstance(value, ast.Call) else value


def _typed(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", '"')


if __name__ == "__main__":
    for path in FILES:
        path.write_text(with_options(path.read_text(encoding="utf-8")), encoding="utf-8")
