//! The node's id as a QR code of half blocks: two modules in one cell, because a cell is twice as high as wide.
//!
//! Light modules are drawn, dark ones are left black, so that the quiet zone around it is light as readers expect. In
//! capitals the code is smaller: they have a mode of their own (ISO/IEC 18004, alphanumeric mode), and hexadecimal means
//! the same in both.

use qrcodegen::{QrCode, QrCodeEcc};

/// Modules of light around the code; the standard asks for four.
const QUIET: i32 = 4;
/// Longest text: a code of 45 modules, the largest that leaves room for anything else.
const TEXT_MAX_BYTES: usize = 120;

/// Rows of cells; `None` for no text, or one too long.
pub(crate) fn rows(text: &str) -> Option<Vec<String>> {
    if text.is_empty() || text.len() > TEXT_MAX_BYTES {
        return None;
    }
    let code = QrCode::encode_text(&text.to_ascii_uppercase(), QrCodeEcc::Low).ok()?;
    let end = code.size() + QUIET;
    // Outside of the code everything is light; below an odd last row nothing is drawn.
    let light = |x: i32, y: i32| y < end && !code.get_module(x, y);
    let mut rows = Vec::new();
    for y in (-QUIET..end).step_by(2) {
        let row = (-QUIET..end).map(|x| match (light(x, y), light(x, y + 1)) {
            (true, true) => '\u{2588}',
            (true, false) => '\u{2580}',
            (false, true) => '\u{2584}',
            (false, false) => ' ',
        });
        rows.push(row.collect());
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_fits_beside_the_text_of_the_smallest_console() {
        let rows = rows(&"0123456789abcdef".repeat(4)).unwrap();
        assert_eq!((rows.len(), rows[0].chars().count()), (19, 37));
        assert!(rows.iter().all(|row| row.chars().count() == 37));
        assert_eq!(rows[0], "\u{2588}".repeat(37), "the quiet zone is light");
    }

    #[test]
    fn there_is_no_code_of_nothing_and_none_of_too_much() {
        assert_eq!(rows(""), None);
        assert_eq!(rows(&"x".repeat(121)), None);
    }
}
