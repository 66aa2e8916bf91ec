"""An extension of Griffe: it takes only the plural for code, and the docstrings say `Example:`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Read `Example:` as `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring before it is parsed."""
        if obj.docstring:
            value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = value
