"""Names of classes, from a file: one a line, or JSON as Hugging Face, timm and Keras write it."""
from __future__ import annotations

import json
from pathlib import Path

from utils import UserError, existing_file, shown

REMEDY = "give a text file with a class name a line, in the order of the classes, or a JSON list of them"


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The names of classes 0, 1, ... in a file.

    A text file has one a line. A JSON file has a list of them, an object from index to name or to a list that ends in
    the name (Keras's imagenet_class_index.json), or one of these under id2label or label_names (config.json of Hugging
    Face's and of timm's models).

    Raises:
        UserError: no such file, not UTF-8, no names in it, or a class without one.
    """
    try:
        text = existing_file(path, "the classes' names (--labels)").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: is not a text file; {REMEDY}") from error
    if text.lstrip()[:1] in ("{", "["):
        try:
            labels = labels_in(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{shown(path)}: is not JSON; {REMEDY}") from error
    else:
        labels = tuple(line.strip() for line in text.splitlines())
    if not labels:
        raise UserError(f"{shown(path)}: names no classes; {REMEDY}")
    if "" in labels:
        raise UserError(f"{shown(path)}: class {labels.index('')} has no name; {REMEDY}")
    return labels


def labels_in(found: object) -> tuple[str, ...]:
    """The names in what JSON holds, see `read_labels`; none where there are no such names, or some are missing.

    LABEL_0 and so on, which Hugging Face's library writes where nobody named the classes, are none.
    """
    if isinstance(found, dict):
        for key in ("id2label", "label_names"):
            if key in found:
                said = found.get("label_descriptions")  # timm's names are WordNet's ids, and these say what they mean
                return tuple(said[name] if isinstance(said, dict) and isinstance(said.get(name), str) else name
                             for name in labels_in(found[key]))
        if not all(str(index) in found for index in range(len(found))):
            return ()
        found = [found[str(index)] for index in range(len(found))]
    if not isinstance(found, list):
        return ()
    names = [item[-1] if isinstance(item, list) and item else item for item in found]
    if not all(isinstance(name, str) for name in names):
        return ()
    labels = tuple(" ".join(name.split()) for name in names)
    return () if labels == tuple(f"LABEL_{index}" for index in range(len(labels))) else labels


def check_labels(labels: tuple[str, ...], classes: int | None, where: str) -> None:
    """UserError unless there is one name for each class."""
    if labels and classes is not None and len(labels) != classes:
        raise UserError(f"{where}: names {len(labels)} classes, the model has {classes}; give the names of all with "
                        "--labels")
