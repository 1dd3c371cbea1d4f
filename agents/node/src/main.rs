//! The node's agent: from boot to running workloads

fn main() {}
