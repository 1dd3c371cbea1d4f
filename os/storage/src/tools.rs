//! mke2fs and e2fsck, run with a clean environment and their exit codes understood.
//!
//! Without a configuration file of the host: the same options give the same filesystem everywhere.

use crate::marker::uuid_text;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest part of a tool's output that goes into an error.
const OUTPUT_MAX_CHARS: usize = 400;

/// Where the tools are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    pub mke2fs: PathBuf,
    pub e2fsck: PathBuf,
}

impl Default for Tools {
    fn default() -> Self {
        Self { mke2fs: "/usr/sbin/mke2fs".into(), e2fsck: "/usr/sbin/e2fsck".into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{tool} can't be run: the image lacks it, build it again")]
    Missing {
        tool: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{tool} failed on {target} ({status}): {output}")]
    Failed { tool: PathBuf, target: PathBuf, status: String, output: String },
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{target} has errors that can't be repaired without a person: {output}")]
    Unrepairable { target: PathBuf, output: String },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// What e2fsck did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    Clean,
    Repaired,
}

/// How a filesystem is made.
#[derive(Debug, Clone, Copy)]
pub struct Ext4<'a> {
    pub label: &'a str,
    pub uuid: Option<[u8; 16]>,
    /// Of this many bytes from the start; the whole target when `None`.
    pub size_bytes: Option<u64>,
    /// Project quota, for folders with a limit. The kernel needs CONFIG_QUOTA and CONFIG_QFMT_V2 to mount it.
    pub project_quota: bool,
    /// Kept for root, so that full volumes don't stop the node's own writes.
    pub reserved_percent: u8,
}

impl Tools {
    /// Makes an ext4 filesystem; what was there is lost.
    pub fn make_ext4(&self, target: &Path, options: &Ext4<'_>) -> Result<(), ToolError> {
        const BLOCK_BYTES: u64 = 4096;
        let mut features =
            "has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,sparse_super,\
                            large_file,filetype,dir_index,ext_attr,resize_inode"
                .to_owned();
        // Tables are zeroed in the background after the first mount. Discarding would punch holes into preallocated
        // images and takes minutes on some disks.
        let mut extended = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0".to_owned();
        if options.project_quota {
            features.push_str(",quota,project");
            extended.push_str(",quotatype=prjquota");
        }
        let mut command = command(&self.mke2fs);
        command
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-e", "remount-ro", "-O", &features])
            .args(["-E", &extended, "-L", options.label, "-m", &options.reserved_percent.to_string()]);
        if let Some(uuid) = &options.uuid {
            command.args(["-U", &uuid_text(uuid)]);
        }
        command.arg(target);
        if let Some(size) = options.size_bytes {
            command.arg((size / BLOCK_BYTES).to_string());
        }
        let (code, output) = run(&self.mke2fs, &mut command)?;
        match code {
            Some(0) => Ok(()),
            _ => Err(failed(&self.mke2fs, target, code, output)),
        }
    }

    /// Replays the journal and repairs what can be repaired without a question (`-p`), from a copy of the superblock
    /// when the first one is gone. Never answers "yes" to the other questions: that can cost a tenant's data. Exit
    /// codes: e2fsck(8).
    pub fn check(&self, target: &Path) -> Result<Checked, CheckError> {
        /// Copies of the superblock with 4 KiB blocks and sparse_super: in groups 1, 3 and 5.
        const COPIES: [&[&str]; 4] = [
            &[],
            &["-B", "4096", "-b", "32768"],
            &["-B", "4096", "-b", "98304"],
            &["-B", "4096", "-b", "163840"],
        ];
        let mut words = String::new();
        for arguments in COPIES {
            let mut command = command(&self.e2fsck);
            let (code, output) = run(&self.e2fsck, command.arg("-p").args(arguments).arg(target))?;
            match code {
                Some(0) => return Ok(Checked::Clean),
                // 2 asks for a reboot when the mounted root was repaired, which a data disk is not.
                Some(1..=3) => return Ok(Checked::Repaired),
                Some(4..=7) => return Err(CheckError::Unrepairable { target: target.into(), output }),
                // 8: the superblock can't be used.
                Some(8) if words.is_empty() => words = output,
                Some(8) => {}
                _ => return Err(failed(&self.e2fsck, target, code, output).into()),
            }
        }
        Err(CheckError::Unrepairable { target: target.into(), output: words })
    }
}

fn failed(tool: &Path, target: &Path, code: Option<i32>, output: String) -> ToolError {
    let status = code.map_or("killed by a signal".into(), |code| format!("status {code}"));
    ToolError::Failed { tool: tool.into(), target: target.into(), status, output }
}

fn command(tool: &Path) -> Command {
    let mut command = Command::new(tool);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env("MKE2FS_CONFIG", OsStr::new("/nonexistent"))
        .env("E2FSCK_CONFIG", OsStr::new("/nonexistent"))
        .stdin(Stdio::null());
    command
}

fn run(tool: &Path, command: &mut Command) -> Result<(Option<i32>, String), ToolError> {
    let output = command.output().map_err(|source| ToolError::Missing { tool: tool.into(), source })?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let skip = line.chars().count().saturating_sub(OUTPUT_MAX_CHARS);
    Ok((output.status.code(), line.chars().skip(skip).collect()))
}

/// For tests: the tools where the host has them, or a word about the skip.
#[cfg(test)]
pub(crate) fn for_test() -> Option<Tools> {
    let tools = Tools::default();
    if tools.mke2fs.exists() && tools.e2fsck.exists() {
        return Some(tools);
    }
    println!("skipped: mke2fs and e2fsck are not installed in /usr/sbin");
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const PLAIN: Ext4<'_> =
        Ext4 { label: "test", uuid: None, size_bytes: None, project_quota: false, reserved_percent: 0 };

    fn image() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(256 << 20).unwrap();
        (folder, path)
    }

    #[test]
    fn a_fresh_filesystem_is_clean() {
        let Some(tools) = for_test() else { return };
        let (_folder, path) = image();
        tools.make_ext4(&path, &PLAIN).unwrap();
        assert_eq!(tools.check(&path).unwrap(), Checked::Clean);
    }

    #[test]
    fn the_end_of_the_target_stays_outside_of_the_filesystem() {
        let Some(tools) = for_test() else { return };
        let (_folder, path) = image();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&vec![9; 1 << 20], 255 << 20).unwrap();
        tools.make_ext4(&path, &Ext4 { size_bytes: Some(255 << 20), project_quota: true, ..PLAIN }).unwrap();
        let mut end = vec![0; 1 << 20];
        file.read_exact_at(&mut end, 255 << 20).unwrap();
        assert!(end.iter().all(|byte| *byte == 9));
    }

    #[test]
    fn small_damage_is_repaired_and_great_damage_is_left_to_a_person() {
        let Some(tools) = for_test() else { return };
        let (_folder, path) = image();
        tools.make_ext4(&path, &PLAIN).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[0; 1024], 1024).unwrap();
        assert_eq!(tools.check(&path).unwrap(), Checked::Repaired, "from a copy of the superblock");
        // Now the first group turns to noise, and the root folder with it.
        let noise: Vec<u8> =
            (0..16_u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        file.write_all_at(&noise, 0).unwrap();
        let error = tools.check(&path).unwrap_err().to_string();
        assert!(error.contains("has errors that can't be repaired without a person: "), "{error}");
    }

    #[test]
    fn a_tool_that_is_missing_is_named() {
        let tools = Tools { mke2fs: "/nonexistent/mke2fs".into(), ..Tools::default() };
        let error = tools.make_ext4(Path::new("/nonexistent/disk"), &PLAIN).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/mke2fs can't be run: the image lacks it, build it again");
    }

    #[test]
    fn a_tool_that_fails_is_quoted() {
        let Some(tools) = for_test() else { return };
        let error = tools.make_ext4(Path::new("/nonexistent/disk"), &PLAIN).unwrap_err().to_string();
        assert!(error.starts_with("/usr/sbin/mke2fs failed on /nonexistent/disk (status 1): "), "{error}");
        assert!(error.contains("does not exist"), "{error}");
    }
}
