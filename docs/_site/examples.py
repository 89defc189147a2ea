"""For griffe: the section that the docstrings call `Example` is the one that it calls `Examples`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section, so that its lines are shown as code and not read as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
