//! Everything that needs processes: a grid of real parts on one machine, for the demo, the end-to-end tests and the
//! benchmarks. Traffic stays on loopback. It must never leave a process behind, nor stop one that it did not start.

pub mod clock;
pub mod grid;
pub mod http;
pub mod load;
pub mod market;
pub mod matrix;
pub mod measure;
pub mod oci;
pub mod rack;
pub mod releases;
pub mod report;
pub mod scan;
pub mod scene;
pub mod service;
pub mod table;
