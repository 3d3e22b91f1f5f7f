//! The Intel VT-d page-table builder.
