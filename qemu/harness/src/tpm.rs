//! A machine's TPM: swtpm in a process of its own, which QEMU reaches over a socket.
//!
//! Its state is a folder that outlives machines: the same folder is the same TPM, whatever disks the machine has. The
//! process ends with its handle, by its process id, and with QEMU's connection if that ends first.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::StartError;

/// swtpm opens its socket within milliseconds; on a machine that emulates something else too, within seconds.
const READY: Duration = Duration::from_secs(30);

/// A running swtpm. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct SoftwareTpm {
    child: Child,
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl SoftwareTpm {
    /// Starts it with its state in `state`, made when it is missing, and its control socket at `socket`.
    pub(crate) async fn start(state: &Path, socket: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::Tpm { path: state.to_owned(), source };
        std::fs::create_dir_all(state).map_err(failed)?;
        let log = std::fs::File::create(state.join("swtpm.log")).map_err(failed)?;
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &format!("dir={}", path(state))])
            .args(["--ctrl", &format!("type=unixio,path={}", path(socket)), "--terminate"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let mut tpm = Self { child };
        let deadline = Instant::now() + READY;
        while !socket.exists() {
            let ended = tpm.child.try_wait().map_err(failed)?.is_some();
            if ended || Instant::now() > deadline {
                let text = std::fs::read_to_string(state.join("swtpm.log")).unwrap_or_default();
                return Err(failed(std::io::Error::other(format!("it does not get ready: {}", text.trim()))));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(tpm)
    }
}

/// QEMU's arguments for a TPM whose control socket is there.
pub(crate) fn arguments(socket: &Path) -> [String; 6] {
    let socket: PathBuf = socket.into();
    let path = socket.to_string_lossy().replace(',', ",,");
    let words = [
        "-chardev",
        &format!("socket,id=tpm-control,path={path}"),
        "-tpmdev",
        "emulator,id=tpm0,chardev=tpm-control",
        "-device",
        "tpm-crb,tpmdev=tpm0",
    ];
    words.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_software_tpm_ends_with_its_handle_and_keeps_its_state() {
        if Command::new("swtpm").arg("--version").output().is_err() {
            eprintln!("skipped: there is no swtpm; run scripts/setup");
            return;
        }
        let (state, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tpm = SoftwareTpm::start(state.path(), &sockets.path().join("a")).await.unwrap();
        let process = PathBuf::from(format!("/proc/{}", tpm.child.id()));
        assert!(process.exists());
        drop(tpm);
        assert!(!process.exists(), "it outlived its handle");
        SoftwareTpm::start(state.path(), &sockets.path().join("b")).await.unwrap();
    }

    #[test]
    fn a_comma_in_the_path_is_no_option() {
        let arguments = arguments(Path::new("/a,b/tpm"));
        assert_eq!(arguments[1], "socket,id=tpm-control,path=/a,,b/tpm");
    }
}
