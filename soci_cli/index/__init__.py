"""What SOCI says of an image: its zTOCs gathered in an index, and images converted to carry one."""
