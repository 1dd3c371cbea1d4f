//! The targets, by who reads the bytes.

pub mod attest;
pub mod bot;
pub mod guest;
pub mod image;
pub mod light;
pub mod machine;
pub mod market;
pub mod netboot;
pub mod network;
pub mod protocol;
pub mod replica;
pub mod reservation;
pub mod skills;
pub mod texts;
pub mod transport;
