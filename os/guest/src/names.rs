//! Host name, `/etc/hosts`, `/etc/resolv.conf`, files and secrets that the host puts into the writable layer.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use croft_guest::users::User;
use croft_guest::wire::{GuestConfig, Network, SecretTarget, Step};

use crate::failure::{During, Failure};
use crate::mounts::ensure_directory;

/// Sets the host name and writes the files that name it.
pub(crate) fn apply(hostname: &str, network: &Network) -> Result<(), Failure> {
    nix::unistd::sethostname(hostname)
        .during(Step::Network, || format!("setting the host name {hostname}"))?;
    let files = [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts(hostname, network)),
        ("/etc/resolv.conf", resolver(network)),
    ];
    for (path, text) in files {
        if path == "/etc/resolv.conf" && network.dns.is_empty() {
            // Keep what the image brings: it may know better.
            continue;
        }
        replace(Path::new(path), text.as_bytes(), 0o644)
            .during(Step::Network, || format!("writing {path}"))?;
    }
    Ok(())
}

/// Writes the files and secrets of the configuration.
pub(crate) fn write_files(config: &GuestConfig, user: &User) -> Result<(), Failure> {
    for file in &config.files {
        replace(Path::new(&file.path), &file.contents, u32::from(file.mode))
            .during(Step::Files, || format!("writing {}", file.path))?;
    }
    for secret in &config.secrets {
        if let SecretTarget::File { path } = &secret.target {
            let target = Path::new(path);
            replace(target, &secret.value, 0o400)
                .and_then(|()| chown(target, Some(user.uid), Some(user.gid)))
                .during(Step::Files, || format!("writing secret {} to {path}", secret.name))?;
        }
    }
    Ok(())
}

/// Replaces a file, and a symbolic link as such: images link `/etc/resolv.conf` into `/run`.
fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        ensure_directory(parent, 0o755)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    // After the contents, and whatever the umask says.
    file.set_permissions(fs::Permissions::from_mode(mode))
}

fn hosts(hostname: &str, network: &Network) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let own = network.interfaces.iter().flat_map(|interface| &interface.addresses).next();
    let own = own.map_or_else(|| "127.0.1.1".to_owned(), |cidr| cidr.address.to_string());
    // Writing to a String does not fail.
    let _ = writeln!(text, "{own} {hostname}");
    for (address, names) in &network.hosts {
        let _ = writeln!(text, "{address} {}", names.join(" "));
    }
    text
}

fn resolver(network: &Network) -> String {
    let mut text = String::new();
    if !network.search.is_empty() {
        let _ = writeln!(text, "search {}", network.search.join(" "));
    }
    for server in &network.dns {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use croft_guest::wire::{Cidr, Interface};

    fn network() -> Network {
        Network {
            interfaces: vec![Interface {
                mac: [2, 0, 0, 0, 0, 1],
                addresses: vec![Cidr { address: "10.0.0.2".parse().unwrap(), prefix: 24 }],
                routes: vec![],
                mtu: 0,
            }],
            dns: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            search: vec!["web.croft".into()],
            hosts: vec![("10.0.0.3".parse().unwrap(), vec!["db".into(), "db.web".into()])],
        }
    }

    #[test]
    fn the_workload_finds_itself_and_its_peers_by_name() {
        let text = hosts("web", &network());
        assert!(text.contains("127.0.0.1 localhost\n"));
        assert!(text.ends_with("10.0.0.2 web\n10.0.0.3 db db.web\n"), "{text}");
        assert!(hosts("web", &Network::default()).ends_with("127.0.1.1 web\n"));
    }

    #[test]
    fn name_servers_come_in_their_order() {
        assert_eq!(resolver(&network()), "search web.croft\nnameserver 10.0.0.1\nnameserver fd00::1\n");
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "old").unwrap();
        let link = dir.path().join("etc/link");
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink(&target, &link).unwrap();
        replace(&link, b"new", 0o640).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read(&link).unwrap(), b"new");
        assert_eq!(fs::symlink_metadata(&link).unwrap().permissions().mode() & 0o7777, 0o640);
    }
}
