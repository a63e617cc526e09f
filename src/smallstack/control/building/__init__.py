"""Image building: manifests to trees, in namespaces, with packages kept by SHA-256."""
