"""Hypothesis strategies that several tests share."""

from __future__ import annotations

import hypothesis.strategies as st

from soci_cli.oci import Descriptor, Platform

# Text as a decoded UTF-8 document can hold it: no lone surrogates.
texts = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | texts
json_values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
text_maps = st.dictionaries(texts, texts, max_size=3)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)
platforms = st.builds(
    Platform,
    architecture=texts,
    os=texts,
    os_version=texts,
    os_features=st.lists(texts, max_size=3).map(tuple),
    variant=texts,
)
descriptors = st.builds(
    Descriptor,
    media_type=texts,
    digest=digests,
    size=st.integers(0, 2**63 - 1),
    urls=st.lists(texts, max_size=2).map(tuple),
    annotations=text_maps,
    data=st.none() | st.binary(min_size=1, max_size=6).map(bytes.hex),
    platform=st.none() | platforms,
    artifact_type=texts,
)
