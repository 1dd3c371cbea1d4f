//! What a machine is made of, read from /sys and /proc
