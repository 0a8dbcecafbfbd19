//! ortolan-crds
