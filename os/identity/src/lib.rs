//! The node's keys and what they sign and open
