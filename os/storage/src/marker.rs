//! How a data disk says that it is ours, beyond a label that anybody can choose.
//!
//! A filled [`Marker`] sits in the first sector, which ext4 leaves to boot loaders; it names the filesystem by its
//! UUID. While a disk is being formatted, the same structure with [`State::Formatting`] sits in the last mebibyte,
//! which stays outside of the filesystem:
//!
//! ```text
//! empty -> [intent at the end] -> mke2fs -> [marker at the start] -> [intent cleared]
//!              power cut: formatted again      power cut: ours
//! ```
//!
//! An intent alone never proves that a disk may be formatted: see `examine`.

use sha2::{Digest, Sha256};

/// Bytes at the end of a data disk that the filesystem leaves free.
pub const RESERVED_BYTES: u64 = 1 << 20;
/// One sector of old disks, so that writing it is atomic everywhere.
pub const MARKER_BYTES: usize = 512;

const MAGIC: &[u8; 16] = b"croft data disk\n";
const VERSION: u32 = 1;
/// Magic, version, state, UUID, time.
const BODY_BYTES: usize = 16 + 4 + 4 + 16 + 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Formatting,
    Ready,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    pub state: State,
    /// UUID of the ext4 filesystem.
    pub uuid: [u8; 16],
    /// When it was formatted, seconds since 1970: the oldest of several data disks is the one in use.
    pub created_unix: u64,
}

impl Marker {
    #[must_use]
    pub fn encode(&self) -> [u8; MARKER_BYTES] {
        let mut bytes = [0; MARKER_BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..20].copy_from_slice(&VERSION.to_le_bytes());
        let state: u32 = match self.state {
            State::Formatting => 1,
            State::Ready => 2,
        };
        bytes[20..24].copy_from_slice(&state.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.uuid);
        bytes[40..48].copy_from_slice(&self.created_unix.to_le_bytes());
        let checksum = Sha256::digest(&bytes[..BODY_BYTES]);
        bytes[BODY_BYTES..BODY_BYTES + 32].copy_from_slice(&checksum);
        bytes
    }

    /// `None` for anything that is not exactly a marker.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MARKER_BYTES] = bytes.get(..MARKER_BYTES)?.try_into().ok()?;
        let marker = Self {
            state: match bytes[20] {
                1 => State::Formatting,
                2 => State::Ready,
                _ => return None,
            },
            uuid: bytes[24..40].try_into().ok()?,
            created_unix: u64::from_le_bytes(bytes[40..48].try_into().ok()?),
        };
        (marker.encode() == *bytes).then_some(marker)
    }
}

/// `8d0f1c3a-…` as tools write it.
#[must_use]
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let digits = hex::encode(uuid);
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: Marker = Marker { state: State::Ready, uuid: [0xab; 16], created_unix: 1_800_000_000 };

    #[test]
    fn a_marker_survives_the_way_through_bytes() {
        for state in [State::Ready, State::Formatting] {
            let marker = Marker { state, ..MARKER };
            assert_eq!(Marker::decode(&marker.encode()), Some(marker));
        }
    }

    #[test]
    fn any_flipped_bit_makes_it_no_marker() {
        let good = MARKER.encode();
        for byte in 0..MARKER_BYTES {
            let mut bytes = good;
            bytes[byte] ^= 0x10;
            assert_eq!(Marker::decode(&bytes), None, "byte {byte}");
        }
        assert_eq!(Marker::decode(&good[..511]), None);
        assert_eq!(Marker::decode(&[0; MARKER_BYTES]), None);
    }

    #[test]
    fn the_bytes_on_disks_in_the_field_stay_readable() {
        // A golden vector: disks outlive releases.
        let digest = hex::encode(Sha256::digest(MARKER.encode()));
        assert_eq!(digest, "79e94ad1a89fe1c54e2926dff8505b78773a946827d831d41e5de0a0e687c43c");
    }

    #[test]
    fn a_uuid_reads_as_tools_write_it() {
        let uuid = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(uuid_text(&uuid), "01020304-0506-0708-090a-0b0c0d0e0f10");
    }
}
