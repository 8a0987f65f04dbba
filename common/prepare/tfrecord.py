"""Images in TFRecord files, without tensorflow, whose import takes seconds and most of a gigabyte of memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data.archives import read_range
from common.data.sources import AGAIN, Source
from common.images import decode

# What is read of tf.train.Example; a map is a list of pairs. Source: tensorflow/core/example/feature.proto
_EXAMPLE = """
name: "example.proto"
message_type { name: "Bytes" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "Int64" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: "Bytes" label: LABEL_OPTIONAL }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: "Int64" label: LABEL_OPTIONAL } }
message_type { name: "Pair"
  field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" label: LABEL_OPTIONAL } }
message_type { name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE type_name: "Pair" label: LABEL_REPEATED } }
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" label: LABEL_OPTIONAL } }
"""


def open_tfrecord(path: Path) -> Source:
    """A source from a TFRecord file of tf.train.Example; labels are not read. Cost: one seek a record.

    The image is the feature ``image/encoded``, ``image`` or ``image_raw`` (a file's bytes), or ``data`` with
    ``shape`` (uint8 pixels, channels first or last, as progressive GANs and Glow write them).
    """
    places, start, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while start < size:  # a record: its length (8 bytes) and that one's checksum (4), the data, its checksum (4)
            file.seek(start)
            length = int.from_bytes(file.read(8), "little")
            if start + 16 + length > size:
                raise ValueError(
                    f"--data {path}: ends within record {len(places)}, or is not an uncompressed TFRecord file; {AGAIN}"
                )
            places.append((start + 12, length))
            start += 16 + length
    if not places:
        raise ValueError(f"--data {path}: no images in it")
    return Source(str(path), partial(_load_record, path, places), len(places), kind="tfrecord", files=[path])


def _load_record(path: Path, places: Sequence[tuple[int, int]], index: int) -> Image.Image:
    features = example(read_range(path, *places[index]))
    for name in ("image/encoded", "image", "image_raw"):
        if features.get(name):
            return decode(features[name][0])
    if "data" not in features or len(features.get("shape", ())) != 3:
        raise ValueError(f"no image among the features {', '.join(sorted(features)) or 'of the record'}")
    first, height, last = features["shape"]
    pixels = np.frombuffer(features["data"][0], np.uint8).reshape(first, height, last)
    pixels = pixels.transpose(1, 2, 0) if first in (1, 3) else pixels
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))


def example(record: bytes) -> dict[str, list[Any]]:
    """The features of a serialised tf.train.Example: lists of bytes or of whole numbers; of floats nothing."""
    pairs = _example_class().FromString(record).features.feature
    return {pair.key: [*pair.value.bytes_list.value, *pair.value.int64_list.value] for pair in pairs}


@cache
def _example_class() -> Any:
    """The class of tf.train.Example."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_EXAMPLE, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))
