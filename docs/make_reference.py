"""`python docs/make_reference.py`: docs/reference.md out of the description of the API, with the default routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.config.settings import Settings
from gateway.server.openapi import api_description

PAGE = Path(__file__).with_name("reference.md")
_HEAD = """# The API, call by call

For those who look up one call: what it takes, and what it may answer, with the default routes. It is made of the
[description for programs](api.md#a-description-for-programs), which every gateway has for its own routes at
`/openapi.json`. What all of it means is in [The API](api.md).
"""


def reference() -> str:
    """The page."""
    document = api_description(Settings())
    lines = [_HEAD]
    for tag in document["tags"]:
        lines.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}.\n")
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if operation["tags"] == [tag["name"]]:
                    lines += _of(document, f"{method.upper()} {path}", operation)
    lines.append("## Schemas\n")
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Problem") or name == "Problem":
            lines.append(f"### {name}\n")
            lines += ["| member | type | |", "|---|---|---|", *_members(schema), ""]
    return "\n".join(lines).rstrip() + "\n"


def _of(document: dict[str, Any], title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {title}\n\n{operation['summary']}. {operation['description']}.\n"
    if samples := operation.get("x-codeSamples"):
        yield "```sh\n" + "\n".join(sample["source"] for sample in samples) + "\n```\n"
    yield "| parameter | in | |\n|---|---|---|"
    for one in operation["parameters"]:
        parameter = _followed(document, one)
        yield f"| `{parameter['name']}` | {parameter['in']} | {_cell(parameter.get('description', ''))} |"
    if body := operation.get("requestBody"):
        yield f"| body | {', '.join(f'`{kind}`' for kind in body['content'])} | |"
    yield "\n| answer | |\n|---|---|"
    problems = []
    for status, one in operation["responses"].items():
        if "$ref" in one:  # a problem, or a page that says it
            problems.append(status)
            continue
        schemas = "".join(_named(media) for media in one.get("content", {}).values())
        yield f"| {status} | {_cell(one['description'])}{schemas} |"
    told = ", ".join(sorted(status for status in problems if status != "default"))
    yield f"| {told or 'any other'} | a [problem](errors.md) |\n"


def _named(media: dict[str, Any]) -> str:
    schema = media["schema"]
    reference = schema.get("$ref") or schema.get("items", {}).get("$ref", "")
    name = reference.rpartition("/")[2]
    return f" ([{name}](#{name.lower()}))" if name else ""


def _members(schema: dict[str, Any]) -> Iterator[str]:
    for name, member in schema["properties"].items():
        kind = member.get("type") or ("one of " + ", ".join(map(str, member["enum"])) if "enum" in member else "")
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        yield f"| `{name}` | {kind or _reference(member)} | {_cell(member.get('description', ''))} |"


def _reference(member: dict[str, Any]) -> str:
    kinds = member.get("anyOf", [member])
    ends = [one.get("$ref", "").rpartition("/")[2] or one.get("type", "object") for one in kinds]
    return " or ".join(f"[{end}](#{end.lower()})" if end[0].isupper() else end for end in ends)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _followed(document: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    for step in one["$ref"].removeprefix("#/").split("/"):
        document = document[step]
    return document


if __name__ == "__main__":
    PAGE.write_text(reference())
