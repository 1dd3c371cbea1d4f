//! Drives a virtual machine monitor: one jailed process per microVM
