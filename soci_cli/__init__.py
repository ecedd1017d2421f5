"""Make container images start before they are downloaded: SOCI indexes and zTOCs in Python.

The parts that programs use:

- `build_ztoc` builds the zTOC of a layer from any stream, in one pass;
- `decode_ztoc`, `FileTree` and `LayerReader` read a file inside a layer, fetching only what it needs;
- `open_source`, `open_target` and `parse_place` open the places where images live, `Registries` with
  `RegistryOptions` says how registries are talked to, `connect` connects to containerd;
- `convert` and `index_image` make an image lazily loadable, `inspect` says what an image holds;
- `pull` and `push` carry images between a registry and the local store, `copy_image` between any places;
- `open_image` reads the files of an image that is not here, `mount_image` mounts it;
- `RegistryServer` is a small registry for trials and tests.

Every error that input can cause is a `SociError`. docs/library.md shows each in use. A name is imported
when it is first asked for, so that a program loads only what it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from soci_cli.exports import importing

if TYPE_CHECKING:
    from soci_cli.errors import BusyError as BusyError
    from soci_cli.errors import ConfigError as ConfigError
    from soci_cli.errors import IntegrityError as IntegrityError
    from soci_cli.errors import InvalidDataError as InvalidDataError
    from soci_cli.errors import MountError as MountError
    from soci_cli.errors import NotFoundError as NotFoundError
    from soci_cli.errors import NotInRegistryError as NotInRegistryError
    from soci_cli.errors import RegistryError as RegistryError
    from soci_cli.errors import SociError as SociError
    from soci_cli.errors import StorageError as StorageError
    from soci_cli.errors import UnreachableError as UnreachableError
    from soci_cli.errors import UnsupportedLayerError as UnsupportedLayerError
    from soci_cli.errors import UsageError as UsageError
    from soci_cli.index.build import IndexOptions as IndexOptions
    from soci_cli.index.build import NothingToIndexError as NothingToIndexError
    from soci_cli.index.build import PlatformReport as PlatformReport
    from soci_cli.index.build import index_image as index_image
    from soci_cli.index.convert import ConvertOptions as ConvertOptions
    from soci_cli.index.convert import ConvertResult as ConvertResult
    from soci_cli.index.convert import convert as convert
    from soci_cli.index.copying import CopiedImage as CopiedImage
    from soci_cli.index.copying import copy_image as copy_image
    from soci_cli.index.discover import IndexSources as IndexSources
    from soci_cli.index.inspect import ImageFacts as ImageFacts
    from soci_cli.index.inspect import inspect as inspect
    from soci_cli.index.layers import LayerReport as LayerReport
    from soci_cli.index.pull import PullOptions as PullOptions
    from soci_cli.index.pull import PullResult as PullResult
    from soci_cli.index.pull import pull as pull
    from soci_cli.index.push import PushOptions as PushOptions
    from soci_cli.index.push import PushResult as PushResult
    from soci_cli.index.push import push as push
    from soci_cli.lazy import Cache as Cache
    from soci_cli.lazy import Fetcher as Fetcher
    from soci_cli.lazy import Fetching as Fetching
    from soci_cli.lazy import File as File
    from soci_cli.lazy import LazyImage as LazyImage
    from soci_cli.lazy import OpenOptions as OpenOptions
    from soci_cli.lazy import cache_root as cache_root
    from soci_cli.lazy import open_image as open_image
    from soci_cli.lazy.fuse import MountedImage as MountedImage
    from soci_cli.lazy.fuse import MountOptions as MountOptions
    from soci_cli.lazy.fuse import mount_image as mount_image
    from soci_cli.oci import Descriptor as Descriptor
    from soci_cli.oci import Platform as Platform
    from soci_cli.oci import Reference as Reference
    from soci_cli.oci import parse_platform as parse_platform
    from soci_cli.oci import parse_reference as parse_reference
    from soci_cli.progress import Observer as Observer
    from soci_cli.progress import Task as Task
    from soci_cli.settings import Settings as Settings
    from soci_cli.settings import load_settings as load_settings
    from soci_cli.settings import store_root as store_root
    from soci_cli.targets.copy import copy_graph as copy_graph
    from soci_cli.targets.copy import read_blob as read_blob
    from soci_cli.targets.places import Place as Place
    from soci_cli.targets.places import connect as connect
    from soci_cli.targets.places import local_store as local_store
    from soci_cli.targets.places import open_source as open_source
    from soci_cli.targets.places import open_target as open_target
    from soci_cli.targets.places import parse_place as parse_place
    from soci_cli.targets.protocol import Source as Source
    from soci_cli.targets.protocol import Target as Target
    from soci_cli.targets.registry import Credentials as Credentials
    from soci_cli.targets.registry import RegistryOptions as RegistryOptions
    from soci_cli.targets.registry import RetryPolicy as RetryPolicy
    from soci_cli.targets.registry.registries import Registries as Registries
    from soci_cli.trial_registry import RegistryServer as RegistryServer
    from soci_cli.ztoc import BuiltZtoc as BuiltZtoc
    from soci_cli.ztoc import Compression as Compression
    from soci_cli.ztoc import FileMetadata as FileMetadata
    from soci_cli.ztoc import FileTree as FileTree
    from soci_cli.ztoc import LayerReader as LayerReader
    from soci_cli.ztoc import Ztoc as Ztoc
    from soci_cli.ztoc import build_ztoc as build_ztoc
    from soci_cli.ztoc import decode_ztoc as decode_ztoc

__version__ = "0.1.0"

# The same names for Python itself, which a test compares with the list above.
_HOMES = {
    "errors": "BusyError ConfigError IntegrityError InvalidDataError MountError NotFoundError "
    "NotInRegistryError RegistryError SociError StorageError UnreachableError UnsupportedLayerError "
    "UsageError",
    "index.build": "IndexOptions NothingToIndexError PlatformReport index_image",
    "index.convert": "ConvertOptions ConvertResult convert",
    "index.copying": "CopiedImage copy_image",
    "index.discover": "IndexSources",
    "index.inspect": "ImageFacts inspect",
    "index.layers": "LayerReport",
    "index.pull": "PullOptions PullResult pull",
    "index.push": "PushOptions PushResult push",
    "lazy": "Cache Fetcher Fetching File LazyImage OpenOptions cache_root open_image",
    "lazy.fuse": "MountOptions MountedImage mount_image",
    "oci": "Descriptor Platform Reference parse_platform parse_reference",
    "progress": "Observer Task",
    "settings": "Settings load_settings store_root",
    "targets.copy": "copy_graph read_blob",
    "targets.places": "Place connect local_store open_source open_target parse_place",
    "targets.protocol": "Source Target",
    "targets.registry": "Credentials RegistryOptions RetryPolicy",
    "targets.registry.registries": "Registries",
    "trial_registry": "RegistryServer",
    "ztoc": "BuiltZtoc Compression FileMetadata FileTree LayerReader Ztoc build_ztoc decode_ztoc",
}

__all__ = sorted([*" ".join(_HOMES.values()).split(), "__version__"])

if not TYPE_CHECKING:  # for type checkers, only what is imported above is there
    __getattr__ = importing(__name__, _HOMES)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
