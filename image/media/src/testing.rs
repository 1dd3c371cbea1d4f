//! A small EFI program for tests: right in every header, useless in its code.

pub(crate) const PE_AT: usize = 0x80;
pub(crate) const SECTION_AT: usize = PE_AT + 24 + 0xa0;
const HEADERS: usize = 0x200;

/// Two sections of 512 and 1,024 bytes, and `trailing` bytes that belong to none.
pub(crate) fn boot_file(trailing: usize) -> Vec<u8> {
    let mut file = vec![0; HEADERS];
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x3c, &(PE_AT as u32).to_le_bytes());
    put(&mut file, PE_AT, b"PE\0\0");
    put(&mut file, PE_AT + 4, &0x8664u16.to_le_bytes());
    put(&mut file, PE_AT + 6, &2u16.to_le_bytes());
    put(&mut file, PE_AT + 20, &0xa0u16.to_le_bytes());
    put(&mut file, PE_AT + 22, &0x0206u16.to_le_bytes());
    let opt = PE_AT + 24;
    put(&mut file, opt, &0x20bu16.to_le_bytes());
    put(&mut file, opt + 16, &0x1000u32.to_le_bytes());
    put(&mut file, opt + 32, &0x1000u32.to_le_bytes());
    put(&mut file, opt + 36, &0x200u32.to_le_bytes());
    put(&mut file, opt + 56, &0x3000u32.to_le_bytes());
    put(&mut file, opt + 60, &(HEADERS as u32).to_le_bytes());
    put(&mut file, opt + 68, &10u16.to_le_bytes());
    put(&mut file, opt + 108, &6u32.to_le_bytes());
    for (index, (size, at)) in [(0x200u32, 0x200u32), (0x400, 0x400)].into_iter().enumerate() {
        let section = SECTION_AT + index * 40;
        put(&mut file, section, [b".text\0\0\0", b".data\0\0\0"][index]);
        put(&mut file, section + 8, &size.to_le_bytes());
        put(&mut file, section + 12, &(0x1000 * (index as u32 + 1)).to_le_bytes());
        put(&mut file, section + 16, &size.to_le_bytes());
        put(&mut file, section + 20, &at.to_le_bytes());
    }
    file.extend((0..0x600 + trailing).map(|i| (i % 251) as u8));
    file
}
