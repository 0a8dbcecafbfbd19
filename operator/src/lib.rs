//! ortolan-operator
