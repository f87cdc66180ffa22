"""The layers of an engine from what its builder logs, in the form that TensorRT's inspector gives.

The inspector needs a loaded engine, and so a GPU. The builder of TensorRT 10 and later ends its verbose log with the
same descriptions, a line each:

    Name: NAME, LayerType: TYPE, Inputs: [ { Name: x, Dimensions: [-1,49,96], ..., Datatype: Half, Format: ... }], ...
"""
from __future__ import annotations

import re

LISTS = ("Inputs", "Constants", "Outputs")
LAYER = re.compile(r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>\w+), (?P<rest>.*)")
LIST = r"%s: \[(?P<tensors>(?: \{ .*? \},?)*)\]"
TENSOR = re.compile(r"\{ Name: (?P<Name>.*?), Dimensions: \[(?P<Dimensions>[-\d,]*)\].*?, Datatype: (?P<Datatype>\w+), "
                    r"Format: (?P<Format>.*?) \}")


def layers_of(message: str) -> list[dict]:
    """The layers that a builder's message `Layers: ...` describes, in the order in which they run.

    Returns:
        A dictionary for each layer: Name, LayerType, and Inputs, Constants and Outputs, lists of tensors with Name,
        Dimensions, Datatype and Format. Empty where the builder said nothing (8.6).
    """
    layers = []
    for line in message.splitlines():
        found = LAYER.match(line)
        if found:
            layer = {"Name": found["Name"], "LayerType": found["LayerType"]}
            for name in LISTS:
                tensors = re.search(LIST % name, found["rest"])
                layer[name] = [
                    {**tensor.groupdict(), "Dimensions": list(map(int, filter(None, tensor["Dimensions"].split(","))))}
                    for tensor in TENSOR.finditer(tensors["tensors"] if tensors else "")]
            layers.append(layer)
    return layers
