"""What the OCI specifications say: descriptors, manifests, platforms, references, canonical JSON.

Pure data: nothing here reads a file or a network. `platforms` and `media_types` are meant to be
used as modules; everything else of the public interface can be imported from here.
"""

from soci_cli.oci import canonical, media_types, platforms
from soci_cli.oci.descriptor import Descriptor, Platform
from soci_cli.oci.digest import (
    VerifyingReader,
    algorithm_of,
    digest_of,
    encoded_of,
    new_hash,
    parse_digest,
)
from soci_cli.oci.manifest import (
    Index,
    Manifest,
    encode,
    parse_config_diff_ids,
    parse_config_platform,
    parse_index,
    parse_manifest,
)
from soci_cli.oci.platforms import parse as parse_platform
from soci_cli.oci.references import Reference, familiar, parse_reference

__all__ = [
    "Descriptor",
    "Index",
    "Manifest",
    "Platform",
    "Reference",
    "VerifyingReader",
    "algorithm_of",
    "canonical",
    "digest_of",
    "encode",
    "encoded_of",
    "familiar",
    "media_types",
    "new_hash",
    "parse_config_diff_ids",
    "parse_config_platform",
    "parse_digest",
    "parse_index",
    "parse_manifest",
    "parse_platform",
    "parse_reference",
    "platforms",
]
