//! Reads `/proc/self/mountinfo` (proc(5), section mountinfo). Parsing only; lines that make no sense are skipped,
//! since the kernel may append fields.

use std::path::PathBuf;

/// One mount, in the kernel's order: later ones may cover earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub target: PathBuf,
    pub filesystem: String,
    /// Device path for filesystems on a disk, any word otherwise.
    pub source: String,
}

impl Mount {
    /// Whether an unclean end could lose data of it.
    #[must_use]
    pub fn on_disk(&self) -> bool {
        self.source.starts_with("/dev/")
            || matches!(self.filesystem.as_str(), "fuse" | "fuseblk" | "virtiofs" | "9p")
    }
}

#[must_use]
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /target options optional... - type source super-options`
fn parse_line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let target = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    let filesystem = after.next()?.to_owned();
    let source = unescape(after.next()?);
    Some(Mount { target: PathBuf::from(unescape(target)), filesystem, source })
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits =
            bytes.get(at + 1..at + 4).filter(|digits| digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match (bytes[at], digits) {
            (b'\\', Some(digits)) => {
                let code = digits.iter().fold(0_u32, |code, digit| code * 8 + u32::from(digit - b'0'));
                out.push(u8::try_from(code).unwrap_or(b'?'));
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_filesystems_and_sources_are_read() {
        let mounts = parse(
            "1 1 0:2 / / rw - rootfs rootfs rw\n\
             29 1 254:0 / /data rw,nosuid,nodev shared:3 master:1 - ext4 /dev/vda rw,prjquota\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].filesystem, "rootfs");
        assert!(!mounts[0].on_disk());
        assert_eq!(mounts[1].target, PathBuf::from("/data"));
        assert!(mounts[1].on_disk());
    }

    #[test]
    fn escaped_blanks_are_restored() {
        let mounts = parse(r"29 1 254:0 / /data/my\040disk\134x rw - ext4 /dev/vda rw");
        assert_eq!(mounts[0].target, PathBuf::from(r"/data/my disk\x"));
    }

    #[test]
    fn nonsense_is_skipped_without_a_panic() {
        for text in ["", "\n", " - ", "1 2 3", "a b c d e - ", "a b c d \\04 - x y", "a b c d \\777 - x y"] {
            let _ = parse(text);
        }
        assert_eq!(parse("garbage\n1 1 0:2 / / rw - rootfs rootfs rw").len(), 1);
    }
}
