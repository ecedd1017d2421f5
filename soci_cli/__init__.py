"""Make container images start before they are downloaded: SOCI indexes and zTOCs in Python.

The parts that programs use:

- `build_ztoc` builds the zTOC of a layer from any stream, in one pass;
- `decode_ztoc`, `FileTree` and `LayerReader` read a file inside a layer, fetching only what it needs;
- `open_source`, `open_target` and `parse_place` open the places where images live, `Registries` with
  `RegistryOptions` says how registries are talked to;
- `convert` makes an image lazily loadable, `inspect` says what an image holds.

Every error that input can cause is a `SociError`. docs/library.md shows each in use.
"""

from soci_cli.errors import (
    ConfigError,
    IntegrityError,
    InvalidDataError,
    NotFoundError,
    RegistryError,
    SociError,
    StorageError,
    UnsupportedLayerError,
    UsageError,
)
from soci_cli.index import (
    ConvertOptions,
    ConvertResult,
    IndexOptions,
    LayerReport,
    NothingToIndexError,
    PlatformReport,
    convert,
    index_image,
)
from soci_cli.index.inspect import ImageFacts, inspect
from soci_cli.oci import Descriptor, Platform
from soci_cli.oci.platforms import parse as parse_platform
from soci_cli.progress import Observer, Task
from soci_cli.targets import Source, Target, open_source, open_target, parse_place, read_blob
from soci_cli.targets.registry import Credentials, RegistryOptions
from soci_cli.targets.registry.registries import Registries
from soci_cli.ztoc import (
    BuiltZtoc,
    Compression,
    FileMetadata,
    FileTree,
    LayerReader,
    Ztoc,
    build_ztoc,
    decode_ztoc,
)

__version__ = "0.1.0"

__all__ = [
    "BuiltZtoc",
    "Compression",
    "ConfigError",
    "ConvertOptions",
    "ConvertResult",
    "Credentials",
    "Descriptor",
    "FileMetadata",
    "FileTree",
    "ImageFacts",
    "IndexOptions",
    "IntegrityError",
    "InvalidDataError",
    "LayerReader",
    "LayerReport",
    "NotFoundError",
    "NothingToIndexError",
    "Observer",
    "Platform",
    "PlatformReport",
    "Registries",
    "RegistryError",
    "RegistryOptions",
    "SociError",
    "Source",
    "StorageError",
    "Target",
    "Task",
    "UnsupportedLayerError",
    "UsageError",
    "Ztoc",
    "__version__",
    "build_ztoc",
    "convert",
    "decode_ztoc",
    "index_image",
    "inspect",
    "open_source",
    "open_target",
    "parse_place",
    "parse_platform",
    "read_blob",
]
