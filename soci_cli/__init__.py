"""Make container images start before they are downloaded: SOCI indexes and zTOCs in Python."""
