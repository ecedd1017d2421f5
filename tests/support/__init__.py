"""What tests share: servers, tools, and the makers of layers and images."""
