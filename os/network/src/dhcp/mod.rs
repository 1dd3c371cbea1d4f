//! DHCPv4 client (RFC 2131): a state machine without I/O in `client`, the wire format in `message`, the socket in
//! `socket`. The task that joins them is `crate::link`. `boot` asks where firmware would boot from.

pub(crate) mod boot;
pub(crate) mod client;
pub(crate) mod message;
pub(crate) mod socket;

pub(crate) use client::{Client, Destination, Event, LostReason};
pub(crate) use message::{Ignored, Lease};
