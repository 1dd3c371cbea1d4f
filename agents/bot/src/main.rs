//! The person's agent: the croft command

fn main() {}
