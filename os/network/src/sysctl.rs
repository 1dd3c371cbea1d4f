//! Kernel settings under `/proc/sys/net`. They belong to the network namespace of the thread that writes them.

use std::fs;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

const ROOT: &str = "/proc/sys/net";

#[derive(Debug, Error)]
#[error("can't set {} to {value}", path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: String,
    source: io::Error,
}

/// `name` with slashes, such as `ipv4/ip_forward`: link names may contain dots.
pub(crate) fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = PathBuf::from(ROOT).join(name);
    fs::write(&path, value).map_err(|source| SysctlError { path, value: value.to_owned(), source })
}

/// For what a kernel may lack as a whole, such as IPv6: absence is not a failure.
pub(crate) fn set_if_present(name: &str, value: &str) -> Result<(), SysctlError> {
    match set(name, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_setting_is_named_or_forgiven() {
        let error = set("ipv4/no_such_setting", "1").unwrap_err();
        assert_eq!(error.to_string(), "can't set /proc/sys/net/ipv4/no_such_setting to 1");
        set_if_present("ipv4/no_such_setting", "1").unwrap();
    }
}
