"""The code of the package, shown as it is at this moment."""

import inspect
from pathlib import Path
from typing import Any

from sslref.show import _html


def source(*objects: Any) -> _html.Html:
    """Show the source of functions, classes or methods, with the file and the line where each begins.

    Raises:
        ValueError: nothing was given. TypeError: an object without Python source, such as a constant.
    """
    if not objects:
        raise ValueError("objects: expected at least one function or class, got none")
    blocks = []
    for thing in objects:
        inner = inspect.unwrap(thing) if callable(thing) else thing
        try:
            lines, first = inspect.getsourcelines(inner)
            path = Path(inspect.getsourcefile(inner)).resolve()
        except (TypeError, OSError) as error:
            raise TypeError(f"objects: expected functions, classes or methods, got {thing!r} ({error})") from None
        code = inspect.cleandoc("\n" + "".join(lines)).rstrip()
        fence = "`" * max(3, 1 + max((len(line) - len(line.lstrip("`")) for line in code.splitlines()), default=0))
        root = Path(__file__).resolve().parents[2]
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        where = f"`{name}`, line {first}" if first else f"`{name}`"
        blocks.append(f"{where}\n\n{fence}python\n{code}\n{fence}")
    content = "\n\n".join(blocks)
    return _html.emit(content, content, mime="text/markdown")
