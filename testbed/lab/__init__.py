"""Everything that touches Linux networking: namespaces, links, processes in them, packet rings, floods."""
