//! Builds the node image: initramfs, size table, choice of VMM
