from __future__ import annotations

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.core.errors import DeltaMismatchError
from fedpeft.wire.messages import decode, encode, encoded_size

DTYPES = [torch.float32, torch.float64, torch.float16, torch.int8, torch.int32, torch.uint8]
PAYLOADS = st.dictionaries(
    st.text("abcdeltaäß.", min_size=1, max_size=5),
    st.tuples(st.sampled_from(DTYPES), st.integers(0, 20)),
    max_size=4,
).map(lambda d: {n: (torch.randn(k) * 50).to(t) for n, (t, k) in d.items()})
SIGNS = 'aZ9 ._"\\/{\0\n\x7fäß\u2028漢😀'
NOTES = st.dictionaries(
    st.text(SIGNS, min_size=1, max_size=4), st.text(SIGNS, max_size=6), max_size=3
)


@settings(max_examples=60, deadline=None)
@given(PAYLOADS, NOTES)
def test_decode_undoes_encode(payload, notes):
    tensors, back = decode(encode(payload, notes))
    assert back == notes and set(tensors) == set(payload)
    for name, tensor in payload.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


@settings(max_examples=60, deadline=None)
@given(PAYLOADS, st.sampled_from([None, {"weight": "12"}]))
def test_encoded_size_is_the_length(payload, notes):
    assert encoded_size(payload, notes) == len(encode(payload, notes))


def test_equal_content_is_equal_bytes():
    """The library below orders notes anew in each call: six notes have 720 orders."""
    notes = {name: name for name in "abcdef"}
    blobs = {
        encode({"x": torch.ones(3)}, dict(sorted(notes.items(), reverse=True))) for _ in range(9)
    }
    assert blobs == {encode({"x": torch.ones(3)}, notes)}
    plain = {safetensors.torch.save({"x": torch.ones(3)}, notes) for _ in range(9)}
    assert len(plain) > 1, "the negative control"


def test_framing_of_a_flat_delta_is_small():
    assert len(encode({"delta": torch.zeros(179_812)})) - 4 * 179_812 < 100


@pytest.mark.parametrize("cut", [0, 5, 30, -1])
def test_a_truncated_message_is_refused(cut):
    blob = encode({"delta": torch.zeros(10)})
    with pytest.raises(DeltaMismatchError, match="cannot be decoded"):
        decode(blob[:cut])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1], "data_offsets": []},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {},
        7,
    ],
)
def test_headers_that_do_not_fit_their_bytes_are_refused(entry):
    header = json.dumps({"delta": entry}).encode()
    blob = struct.pack("<Q", len(header)) + header + bytes(4)
    with pytest.raises(DeltaMismatchError, match="cannot be decoded"):
        decode(blob)


def test_what_is_decoded_lies_in_the_message():
    """No copy is made: the numbers are where the bytes are."""
    blob = encode({"delta": torch.arange(3.0)})
    tensors, _ = decode(blob)
    view = torch.frombuffer(blob, dtype=torch.float32, offset=len(blob) - 12, count=3)
    assert tensors["delta"].data_ptr() == view.data_ptr()
