//! Two builds of one commit, byte by byte.
//!
//! Must never call two files equal of which one could not be read to its end.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file that a build makes: its name in the nightly, and where this build put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Artifact {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

#[derive(Debug, Error)]
pub(super) enum Difference {
    #[error("the two builds made different files: only the {which} has {name}")]
    OnlyInOne { which: &'static str, name: String },
    #[error(
        "{name} differs between the two builds: first at offset {offset} ({offset:#x}), where one has {first} and the \
         other {second}: see what of path, time or order gets into it"
    )]
    At { name: String, offset: u64, first: String, second: String },
    #[error("{path} can't be compared")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Compares what two builds made, in the order of the first; the first difference ends it.
pub(super) fn compare(one: &[Artifact], two: &[Artifact]) -> Result<(), Difference> {
    for artifact in one {
        let Some(other) = two.iter().find(|other| other.name == artifact.name) else {
            return Err(Difference::OnlyInOne { which: "first", name: artifact.name.clone() });
        };
        files(&artifact.name, &artifact.path, &other.path)?;
    }
    match two.iter().find(|other| one.iter().all(|artifact| artifact.name != other.name)) {
        Some(other) => Err(Difference::OnlyInOne { which: "second", name: other.name.clone() }),
        None => Ok(()),
    }
}

fn files(name: &str, one: &Path, two: &Path) -> Result<(), Difference> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| Difference::Unreadable { path, source }
    };
    let mut first = BufReader::new(File::open(one).map_err(unreadable(one))?);
    let mut second = BufReader::new(File::open(two).map_err(unreadable(two))?);
    let mut offset = 0_u64;
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let a = fill(&mut first, &mut left).map_err(unreadable(one))?;
        let b = fill(&mut second, &mut right).map_err(unreadable(two))?;
        let same = left[..a].iter().zip(&right[..b]).take_while(|(x, y)| x == y).count();
        if same < a || same < b {
            let shown = |bytes: &[u8]| {
                bytes.get(same).map_or_else(|| "no more bytes".to_owned(), |byte| format!("byte {byte:#04x}"))
            };
            let (name, offset) = (name.to_owned(), offset + same as u64);
            let (first, second) = (shown(&left[..a]), shown(&right[..b]));
            return Err(Difference::At { name, offset, first, second });
        }
        if a == 0 {
            return Ok(());
        }
        offset += a as u64;
    }
}

/// Fills the buffer unless the file ends before.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn artifact(dir: &Path, name: &str, bytes: &[u8]) -> Artifact {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        Artifact { name: name.to_owned(), path }
    }

    #[test]
    fn the_first_difference_is_named_with_its_offset_and_both_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut bytes = vec![7; 200_000];
        let a = [artifact(one.path(), "same", b"x"), artifact(one.path(), "croft.efi", &bytes)];
        bytes[131_073] = 8;
        bytes[150_000] = 9;
        let b = [artifact(two.path(), "croft.efi", &bytes), artifact(two.path(), "same", b"x")];
        let text = compare(&a, &b).unwrap_err().to_string();
        assert!(
            text.starts_with(
                "croft.efi differs between the two builds: first at offset 131073 (0x20001), where one has byte 0x07 \
                 and the other byte 0x08"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_shorter_file_differs_where_it_ends() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let a = [artifact(one.path(), "f", &vec![1; 65_536])];
        let b = [artifact(two.path(), "f", &vec![1; 65_537])];
        let text = compare(&a, &b).unwrap_err().to_string();
        assert!(
            text.contains("offset 65536 (0x10000), where one has no more bytes and the other byte 0x01"),
            "{text}"
        );
        assert!(compare(&a, &a).is_ok());
    }

    #[test]
    fn a_file_that_only_one_build_made_is_named() {
        let one = tempfile::tempdir().unwrap();
        let both = artifact(one.path(), "f", b"1");
        let more = artifact(one.path(), "g", b"1");
        let text = compare(&[both.clone(), more.clone()], from_ref(&both)).unwrap_err().to_string();
        assert_eq!(text, "the two builds made different files: only the first has g");
        let text = compare(from_ref(&both), &[both.clone(), more]).unwrap_err().to_string();
        assert_eq!(text, "the two builds made different files: only the second has g");
    }

    #[test]
    fn a_file_that_can_not_be_read_is_no_equal_file() {
        let missing = Artifact { name: "f".to_owned(), path: "/nowhere/f".into() };
        let text = compare(from_ref(&missing), from_ref(&missing)).unwrap_err().to_string();
        assert_eq!(text, "/nowhere/f can't be compared");
    }
}
