"""Classes that integrate balancing into other libraries, one module per library."""
