"""Parses messages, a line of JSON each with a protocol and its bytes in hexadecimal, by the parsers that Kaitai's
compiler made, and prints what they say, a line of JSON each; null for one that is refused."""
import enum
import importlib
import json
import sys

from kaitaistruct import KaitaiStruct

PARSERS = {"vfio_user": "VfioUser", "virtio_vfio_user": "VirtioVfioUser"}


def dump(value):
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, list):
        return [dump(each) for each in value]
    if not isinstance(value, KaitaiStruct):
        return value
    names = [name for name in vars(value) if not name.startswith("_")]
    names += [name for name, each in vars(type(value)).items() if isinstance(each, property)]
    return {name: dump(getattr(value, name, None)) for name in names}


for line in sys.stdin:
    request = json.loads(line)
    module = importlib.import_module(request["protocol"])
    parser = getattr(module, PARSERS[request["protocol"]])
    try:
        result = dump(parser.from_bytes(bytes.fromhex(request["hex"])))
    except Exception:
        result = None
    print(json.dumps(result))
