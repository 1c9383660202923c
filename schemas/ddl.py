"""Access to the DDL files beside this one (read as resources: the package may lie in a zip)."""

from importlib.resources import files


def statements(file: str, part: str) -> str:
    """The SQL of one `-- part: NAME` of `schemas/<file>`; KeyError when the file has no such part."""
    text = files("schemas").joinpath(file).read_text(encoding="utf-8")
    parts = dict(_split(chunk) for chunk in text.split("-- part: ")[1:])
    return parts[part]


def _split(chunk: str) -> tuple[str, str]:
    name, _, body = chunk.partition("\n")
    return name.strip(), body
