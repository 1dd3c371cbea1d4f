//! Network namespaces with a name: a file under `/run/croft/netns` that a namespace is mounted on, so that it lives
//! while no process is in it.
//!
//! A thread that enters a namespace is made for that and ends with it: no thread of a pool ever changes its namespace,
//! or some other task would run in the wrong network.

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;
use thiserror::Error;

/// `NSFS_MAGIC`: what a mounted namespace looks like to statfs.
const NSFS_MAGIC: i64 = 0x6e73_6673;

#[derive(Debug, Error)]
pub enum NamespaceError {
    #[error("can't create network namespace {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("can't open network namespace {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is no network namespace: something else wrote there", path.display())]
    NotNamespace { path: PathBuf },
    #[error("can't enter network namespace {}", path.display())]
    Enter { path: PathBuf, source: io::Error },
    #[error("can't remove network namespace {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("the thread in network namespace {} died", path.display())]
    Died { path: PathBuf },
}

/// An open namespace. Lives on while this does, whatever happens to its file.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: OwnedFd,
}

impl Namespace {
    /// Opens the namespace at `path`, or makes it.
    pub async fn ensure(path: &Path) -> Result<Self, NamespaceError> {
        match Self::open(path) {
            Err(NamespaceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            // An empty file is what a creation that was cut short leaves behind.
            Err(NamespaceError::NotNamespace { .. })
                if fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0) => {}
            result => return result,
        }
        let owned = path.to_owned();
        let created = on_own_thread(move || create(&owned)).await;
        match created {
            Some(Ok(())) => Self::open(path),
            Some(Err(source)) => Err(NamespaceError::Create { path: path.to_owned(), source }),
            None => Err(NamespaceError::Died { path: path.to_owned() }),
        }
    }

    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let open = || -> io::Result<OwnedFd> {
            Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        };
        let file = open().map_err(|source| NamespaceError::Open { path: path.to_owned(), source })?;
        let kind = rustix::fs::fstatfs(&file)
            .map_err(|error| NamespaceError::Open { path: path.to_owned(), source: error.into() })?;
        if kind.f_type != NSFS_MAGIC {
            return Err(NamespaceError::NotNamespace { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Of the file that it is mounted on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> impl AsFd + '_ {
        self.file.as_fd()
    }

    /// Runs `task` inside, on a thread and a runtime of its own.
    pub async fn run<T, F, Fut>(&self, task: F) -> Result<T, NamespaceError>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T>,
    {
        let enter = |source: io::Error| NamespaceError::Enter { path: self.path.clone(), source };
        let file = self.file.try_clone().map_err(enter)?;
        let result = on_own_thread(move || -> io::Result<T> {
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(task()))
        })
        .await;
        result.ok_or_else(|| NamespaceError::Died { path: self.path.clone() })?.map_err(enter)
    }

    /// Unmounts and unlinks. The namespace itself goes with its last process.
    pub fn remove(path: &Path) -> Result<(), NamespaceError> {
        let failed = |source: io::Error| NamespaceError::Remove { path: path.to_owned(), source };
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            // EINVAL: nothing is mounted there any more.
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(failed(error.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// In a thread that nobody else uses: makes a new namespace for it and pins that to a file.
fn create(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path)?;
    Ok(())
}

/// `None` when the thread panicked or could not be started.
async fn on_own_thread<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        // The receiver is gone only when the caller was cancelled.
        let _ = sender.send(task());
    });
    spawned.ok()?;
    receiver.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_is_not_taken_for_a_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        assert!(matches!(Namespace::open(&path), Err(NamespaceError::Open { .. })));
        fs::write(&path, "text").unwrap();
        let error = Namespace::open(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is no network namespace: something else wrote there", path.display())
        );
    }
}
