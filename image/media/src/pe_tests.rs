use super::*;

use crate::testing::{self, SECTION_AT};

/// The hash that another implementation computes.
fn other_hash(file: &[u8]) -> [u8; 32] {
    let parsed = authenticode_object(file);
    let mut hasher = Sha256::new();
    authenticode::authenticode_digest(&parsed, &mut hasher).unwrap();
    hasher.finalize().into()
}

fn authenticode_object(file: &[u8]) -> object::read::pe::PeFile64<'_> {
    object::read::pe::PeFile64::parse(file).unwrap()
}

#[test]
fn the_hash_is_the_specifications() {
    for trailing in [0, 8, 24] {
        let file = testing::boot_file(trailing);
        assert_eq!(
            Pe::parse(&file).unwrap().hash(),
            other_hash(&file),
            "{trailing} bytes behind the sections"
        );
    }
}

#[test]
fn the_hash_leaves_out_checksum_and_certificates_and_nothing_else() {
    let file = testing::boot_file(8);
    let pe = Pe::parse(&file).unwrap();
    let with = pe.with_certificates(&[7; 16]);
    let again = Pe::parse(&with).unwrap();
    assert_eq!(again.hash(), pe.hash());
    assert_eq!(again.certificates(), [7; 16]);
    assert_eq!(again.checksums().0, again.checksums().1);
    assert_eq!(Pe::parse(&again.with_certificates(&[])).unwrap().hash(), pe.hash());
    let (checksum, security) = (pe.checksum_at..pe.checksum_at + 4, pe.security_at..pe.security_at + 8);
    for at in 0..file.len() {
        let mut altered = file.clone();
        altered[at] ^= 0x80;
        let Ok(parsed) = Pe::parse(&altered) else { continue };
        let outside = checksum.contains(&at) || security.contains(&at);
        assert_eq!(parsed.hash() == pe.hash(), outside, "byte {at}");
    }
}

#[test]
fn what_is_no_boot_file_is_refused_with_the_part_that_is_wrong() {
    let message = |bytes: &[u8]| Pe::parse(bytes).unwrap_err().to_string();
    assert!(message(b"").contains("does not begin with MZ"));
    assert!(message(b"\x7fELF").contains("is it a bzImage built with CONFIG_EFI_STUB?"));
    assert_eq!(message(b"MZ"), "the boot file ends within the DOS header: build it again, or copy it again");
    let file = testing::boot_file(0);
    let altered = |at: usize, with: &[u8]| {
        let mut file = file.clone();
        file[at..at + with.len()].copy_from_slice(with);
        message(&file)
    };
    let pe = testing::PE_AT;
    assert!(altered(pe + 4, &0xaa64u16.to_le_bytes()).contains("machine 0xaa64"));
    assert!(altered(pe + 6, &0u16.to_le_bytes()).contains("no sections, or too many"));
    assert!(altered(pe + 24, &0x10bu16.to_le_bytes()).contains("not PE32+"));
    assert!(altered(pe + 24 + 108, &4u32.to_le_bytes()).contains("no place for a signature"));
    assert!(altered(SECTION_AT + 16, &u32::MAX.to_le_bytes()).contains("section"));
    assert!(altered(SECTION_AT + 20, &0x210u32.to_le_bytes()).contains("leaves a gap before it"));
    assert!(altered(SECTION_AT + 20, &0x100u32.to_le_bytes()).contains("overlaps what stands before it"));
    assert!(altered(pe + 24 + 144, &[8, 0, 0, 0, 16, 0, 0, 0]).contains("is not what the file ends with"));
    assert!(altered(0x3c, &u32::MAX.to_le_bytes()).contains("no PE signature"));
    assert!(message(&file[..file.len() - 1]).contains("is longer than the file"));
}

#[test]
fn the_checksum_adds_words_with_carry_and_the_length() {
    assert_eq!(checksum(&[1, 0, 2, 0, 9, 9, 9, 9], 4), 3 + 8);
    assert_eq!(checksum(&[0xff, 0xff, 1, 0, 9, 9, 9, 9], 4), 1 + 8);
    assert_eq!(checksum(&[0, 0, 0, 0, 5], 0), 5 + 5);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        let _ = Pe::parse(&bytes);
        let mut like = testing::boot_file(0);
        let len = bytes.len().min(like.len() - testing::PE_AT);
        like[testing::PE_AT + 4..testing::PE_AT + 4 + len.saturating_sub(4)].copy_from_slice(&bytes[..len.saturating_sub(4)]);
        if let Ok(pe) = Pe::parse(&like) {
            let _ = (pe.hash(), pe.with_certificates(&[0; 8]));
        }
    }
}
