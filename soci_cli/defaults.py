"""What an index is made with unless somebody says otherwise. Sizes are in bytes."""

from __future__ import annotations

SPAN_SIZE = 4 << 20
MIN_LAYER_SIZE = 10 << 20
BUILD_TOOL_IDENTIFIER = "soci-cli"
