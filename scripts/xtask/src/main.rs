//! Chores: kernel, image, qemu, bench, tidy, check

fn main() {}
