//! What is on a machine's monitor, as numbers: QEMU's screendump in grey.
//!
//! Must never trust a length that a picture states beyond `SIDE_MAX_PIXELS`.

use std::path::Path;

/// No graphics card of QEMU has more.
const SIDE_MAX_PIXELS: usize = 8192;

/// A picture, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// One byte for each pixel: 0 is black.
    pub grey: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("cannot read the picture {path}")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("the picture is no portable pixmap with 8 bits (P6): {what}")]
    Format { what: &'static str },
}

impl Picture {
    /// Reads a portable pixmap (Netpbm, ppm(5)), as QEMU writes it.
    ///
    /// # Errors
    /// [`PictureError`].
    pub fn read(path: &Path) -> Result<Self, PictureError> {
        let bytes = std::fs::read(path).map_err(|source| PictureError::Read { path: path.into(), source })?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, PictureError> {
        let format = |what| PictureError::Format { what };
        let mut rest = bytes.strip_prefix(b"P6").ok_or(format("it begins otherwise"))?;
        let mut numbers = [0; 3];
        for number in &mut numbers {
            let start =
                rest.iter().position(|byte| !byte.is_ascii_whitespace()).ok_or(format("it is cut off"))?;
            rest = &rest[start..];
            let end = rest.iter().position(u8::is_ascii_whitespace).ok_or(format("it is cut off"))?;
            let text = std::str::from_utf8(&rest[..end]).unwrap_or_default();
            *number = text.parse().map_err(|_| format("its size is no number"))?;
            rest = &rest[end..];
        }
        let [width, height, depth] = numbers;
        if depth != 255 || !(1..=SIDE_MAX_PIXELS).contains(&width) || !(1..=SIDE_MAX_PIXELS).contains(&height)
        {
            return Err(format("its size or depth is out of bounds"));
        }
        // One white space ends the header.
        let pixels = rest.get(1..1 + 3 * width * height).ok_or(format("it is cut off"))?;
        let grey = pixels.chunks_exact(3).map(|pixel| {
            let sum: u16 = pixel.iter().map(|channel| u16::from(*channel)).sum();
            (sum / 3) as u8
        });
        Ok(Self { width, height, grey: grey.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixmap_becomes_grey() {
        let picture = Picture::parse(b"P6\n2 1\n255\n\xff\xff\xff\x00\x03\x00").unwrap();
        assert_eq!(picture, Picture { width: 2, height: 1, grey: vec![255, 1] });
    }

    #[test]
    fn what_is_none_or_promises_too_much_is_refused() {
        for bytes in [
            &b""[..],
            b"P5\n1 1\n255\n\0",
            b"P6\n1 1\n255\n\0",
            b"P6\n1 x\n255\n",
            b"P6\n1 99999\n255\n",
            b"P6",
        ] {
            assert!(Picture::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
