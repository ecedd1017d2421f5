"""Media types of OCI and Docker images, and what they say of a layer.

Sources: OCI image spec, media-types.md; Docker's image manifest version 2, schema 2; for the
compression of a layer the rules that containerd applies.
"""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
OCI_LAYER_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_LAYER_NONDISTRIBUTABLE_GZIP = OCI_LAYER_NONDISTRIBUTABLE + "+gzip"
OCI_LAYER_NONDISTRIBUTABLE_ZSTD = OCI_LAYER_NONDISTRIBUTABLE + "+zstd"

DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_MANIFEST_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"
DOCKER_LAYER_ZSTD = DOCKER_LAYER + ".zstd"
DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_LAYER_FOREIGN_GZIP = DOCKER_LAYER_FOREIGN + ".gzip"

# The base of each of Docker's layer types: OCI's base, and how the layer is packed.
_DOCKER_LAYERS = {
    DOCKER_LAYER: (OCI_LAYER, ""),
    DOCKER_LAYER_GZIP: (OCI_LAYER, "+gzip"),
    DOCKER_LAYER_ZSTD: (OCI_LAYER, "+zstd"),
    DOCKER_LAYER_FOREIGN: (OCI_LAYER_NONDISTRIBUTABLE, ""),
    DOCKER_LAYER_FOREIGN_GZIP: (OCI_LAYER_NONDISTRIBUTABLE, "+gzip"),
}
_OCI_LAYER_PREFIX = "application/vnd.oci.image.layer."


def is_index(media_type: str) -> bool:
    """Whether it is an OCI index or a Docker manifest list."""
    return media_type in (OCI_INDEX, DOCKER_MANIFEST_LIST)


def is_manifest(media_type: str) -> bool:
    """Whether it is an OCI or Docker (schema 2) image manifest."""
    return media_type in (OCI_MANIFEST, DOCKER_MANIFEST)


def is_layer(media_type: str) -> bool:
    """Whether it is a file system layer, whatever its compression or wrapping."""
    return media_type.startswith(_OCI_LAYER_PREFIX) or is_docker_layer(media_type)


def is_docker_layer(media_type: str) -> bool:
    """Whether it is one of Docker's types of file system layers."""
    return media_type.partition("+")[0] in _DOCKER_LAYERS


def oci_layer_type(media_type: str, packing: str = "") -> str:
    """OCI's type for a layer of one of Docker's types; any other type stays.

    `packing` is what the layer's bytes are: "gzip", "zstd" or "uncompressed"; by default what the type
    says. Wrapped layers, such as encrypted ones, keep their suffixes.
    """
    base, _, tail = media_type.partition("+")
    if base not in _DOCKER_LAYERS:
        return media_type
    oci, suffix = _DOCKER_LAYERS[base]
    if packing and layer_compression(media_type) in ("gzip", "zstd", "uncompressed", "unknown"):
        return oci if packing == "uncompressed" else f"{oci}+{packing}"
    return oci + suffix + (f"+{tail}" if tail else "")


def layer_compression(media_type: str) -> str:
    """How a layer of this type is packed.

    "gzip", "zstd" or "uncompressed"; "unknown" for Docker's plain types, which some builders use
    for compressed layers too, so that the bytes must be looked at; else the suffix that is not a
    known compression, such as "encrypted" or "lz4"; "unsupported" for any other type.
    """
    base, _, tail = media_type.partition("+")
    if base in (OCI_LAYER, OCI_LAYER_NONDISTRIBUTABLE):
        packed = "uncompressed"
    elif base in (DOCKER_LAYER_GZIP, DOCKER_LAYER_FOREIGN_GZIP):
        packed = "gzip"
    elif base == DOCKER_LAYER_ZSTD:
        packed = "zstd"
    elif base in (DOCKER_LAYER, DOCKER_LAYER_FOREIGN):
        packed = "unknown"
    else:
        return "unsupported"
    if not tail:
        return packed
    # `tar+gzip+encrypted` is gzip only after decryption, so the wrapping names the layer.
    wrappings = [suffix for suffix in tail.split("+") if suffix not in ("gzip", "zstd")]
    return wrappings[0] if wrappings else tail
