"""A real Linux kernel, User Mode Linux, in the client's place."""
