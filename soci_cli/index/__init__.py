"""What SOCI says of an image: its zTOCs gathered in an index, and images converted to carry one."""

from soci_cli.index.build import IndexOptions, NothingToIndexError, PlatformReport, index_image
from soci_cli.index.convert import ConvertOptions, ConvertResult, convert
from soci_cli.index.image import Image, ImageManifest, read_image
from soci_cli.index.layers import LayerReport
from soci_cli.index.model import SociIndex, make_index

__all__ = [
    "ConvertOptions",
    "ConvertResult",
    "Image",
    "ImageManifest",
    "IndexOptions",
    "LayerReport",
    "NothingToIndexError",
    "PlatformReport",
    "SociIndex",
    "convert",
    "index_image",
    "make_index",
    "read_image",
]
