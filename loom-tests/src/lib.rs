//! Shared harness of the loom models.
