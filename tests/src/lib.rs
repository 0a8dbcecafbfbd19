//! ortolan-tests
