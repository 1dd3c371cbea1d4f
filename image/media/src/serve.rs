//! A netboot server for a rack, without sockets: what to answer to bytes that machines send.
//!
//! ```text
//!   DHCPDISCOVER of firmware ──dhcp──> boot file for its architecture (proxy: no address is ever handed out)
//!   read request             ──tftp──> blocks of a file
//!   GET, HEAD                ──http──> a file, or a part of it
//!                                        └─ folder: plain names in one folder, nothing else
//! ```
//! Whoever is on the wire sends these bytes: they are bounded, and what is not understood is refused or ignored with its
//! reason. It must never give out an address, nor a file from outside the folder.

pub mod dhcp;
pub mod folder;
pub mod http;
pub mod tftp;
