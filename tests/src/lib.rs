//! ortolan-tests

pub mod images;
