//! Boots the real image in QEMU with typed handles
