//! PID 1 inside a microVM, and the messages it exchanges with the host

fn main() {}
