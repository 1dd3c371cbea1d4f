//! PID 1 of a Croft node: mounts, supervision, reaping, watchdog, shutdown

fn main() {}
