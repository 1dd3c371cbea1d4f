//! Disks, cache and volumes of the node
