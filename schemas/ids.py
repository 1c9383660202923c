"""What an id may be: UTF-8 text of 1 to 512 bytes without control characters."""

import re

MAX_ID_BYTES = 512
CONTROL_CHARACTERS = r"[\x00-\x1f\x7f-\x9f]"
"""Regular expression (Python and Java) of what no id may hold: Unicode's category Cc."""

_CONTROL = re.compile(CONTROL_CHARACTERS)


def problem_of(value: str) -> str | None:
    """Why `value` can't be an id, in a few words for a message, or None when it can."""
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if size == 0:
        return "is empty"
    if size > MAX_ID_BYTES:
        return f"has {size} bytes; at most {MAX_ID_BYTES} are allowed"
    if _CONTROL.search(value):
        return "holds a control character"
    return None
