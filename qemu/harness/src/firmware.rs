//! OVMF's store of variables with keys for Secure Boot in it: what enrolment in setup mode leaves behind.
//!
//! The store is a firmware volume (PI 1.8, volume 3) with one store of authenticated variables (EDK II,
//! `Guid/VariableFormat.h`): a header, then variables one after another, then erased flash. Must never touch a store in
//! which there are variables already.

use std::path::PathBuf;

/// Header of the firmware volume, and of the store in it.
const VARIABLES_AT: usize = 0x48 + 0x1c;
/// gEfiAuthenticatedVariableGuid, aaf32c78-947b-439a-a180-2e144ec37792.
const STORE_KIND: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// EFI_IMAGE_SECURITY_DATABASE_GUID, d719b2cb-3d3a-4596-a3bc-dad00e67656f.
const DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// Non-volatile, for boot services and run time, authenticated by time.
const ATTRIBUTES: u32 = 0x27;
const START: u16 = 0x55aa;
/// The variable is whole and counts.
const ADDED: u8 = 0x3f;
/// Any time will do: only later writes are compared with it. 1 January 2024.
const TIME: [u8; 16] = [0xe8, 0x07, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Secure Boot keys as lists of signatures (`*.esl`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecureBoot {
    pub pk: Vec<u8>,
    pub kek: Vec<u8>,
    pub db: Vec<u8>,
}

/// Why a store can't take keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{path} is no empty store of variables that OVMF would take")]
    NotEmpty { path: PathBuf },
    #[error("{path} has no room for these keys")]
    Full { path: PathBuf },
}

impl SecureBoot {
    /// An empty store with these keys enrolled; `path` is for messages only.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn enrol(&self, mut store: Vec<u8>, path: &std::path::Path) -> Result<Vec<u8>, StoreError> {
        let is_empty = store.get(0x48..0x58) == Some(&STORE_KIND)
            && store
                .get(VARIABLES_AT..VARIABLES_AT + 64)
                .is_some_and(|flash| flash.iter().all(|b| *b == 0xff));
        if !is_empty {
            return Err(StoreError::NotEmpty { path: path.to_owned() });
        }
        let size = u32::from_le_bytes([store[0x58], store[0x59], store[0x5a], store[0x5b]]) as usize;
        let mut variables = Vec::new();
        for (name, vendor, content) in
            [("PK", &GLOBAL, &self.pk), ("KEK", &GLOBAL, &self.kek), ("db", &DATABASE, &self.db)]
        {
            put(&mut variables, name, vendor, content);
        }
        let room = store.get_mut(VARIABLES_AT..(0x48 + size).max(VARIABLES_AT));
        let Some(place) = room.and_then(|room| room.get_mut(..variables.len())) else {
            return Err(StoreError::Full { path: path.to_owned() });
        };
        place.copy_from_slice(&variables);
        Ok(store)
    }
}

/// One variable with its header, at a multiple of four bytes.
fn put(variables: &mut Vec<u8>, name: &str, vendor: &[u8; 16], content: &[u8]) {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    variables.extend_from_slice(&START.to_le_bytes());
    variables.extend_from_slice(&[ADDED, 0]);
    variables.extend_from_slice(&ATTRIBUTES.to_le_bytes());
    // A count that nobody uses any more.
    variables.extend_from_slice(&[0; 8]);
    variables.extend_from_slice(&TIME);
    // No index of a public key: who may write is decided by PK and KEK.
    variables.extend_from_slice(&[0; 4]);
    variables.extend_from_slice(&(name.len() as u32).to_le_bytes());
    variables.extend_from_slice(&(content.len() as u32).to_le_bytes());
    variables.extend_from_slice(vendor);
    variables.extend_from_slice(&name);
    variables.extend_from_slice(content);
    variables.resize(variables.len().next_multiple_of(4), 0xff);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn keys(len: usize) -> SecureBoot {
        SecureBoot { pk: vec![1; len], kek: vec![2; len], db: vec![3; len] }
    }

    fn empty() -> Vec<u8> {
        let mut store = vec![0xff; 4_096];
        store[0x48..0x58].copy_from_slice(&STORE_KIND);
        store[0x58..0x5c].copy_from_slice(&2_048_u32.to_le_bytes());
        store
    }

    #[test]
    fn keys_lie_in_the_store_as_firmware_reads_them() {
        let store = keys(9).enrol(empty(), Path::new("v")).unwrap();
        let first = &store[VARIABLES_AT..];
        assert_eq!(first[..8], [0xaa, 0x55, 0x3f, 0, 0x27, 0, 0, 0]);
        assert_eq!(first[36..44], [6, 0, 0, 0, 9, 0, 0, 0], "lengths of name and content");
        assert_eq!(first[60..66], *b"P\0K\0\0\0");
        assert_eq!(first[66..75], [1; 9]);
        assert_eq!(first[75..78], [0xff, 0xaa, 0x55], "the next one is at a multiple of four");
        assert_eq!(store.len(), 4_096);
    }

    #[test]
    fn a_store_that_is_full_or_in_use_is_left_alone() {
        let path = Path::new("v");
        assert_eq!(keys(900).enrol(empty(), path).unwrap_err().to_string(), "v has no room for these keys");
        let used = keys(9).enrol(empty(), path).unwrap();
        let error = keys(9).enrol(used, path).unwrap_err().to_string();
        assert_eq!(error, "v is no empty store of variables that OVMF would take");
        assert!(keys(9).enrol(vec![0; 10], path).is_err());
    }
}
