//! `cargo xtask qemu`: boots an image by hand, with the serial line on the terminal.
//!
//! Everything about the machine comes from the harness, so that what one sees is what tests see.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use croft_qemu_harness::{Boot, Forward, Profile, Protocol};

use crate::{image, repo};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The machine: a name from qemu/profiles/, or the path of a profile.
    #[arg(long, default_value = "standard", value_name = "PROFILE")]
    profile: String,
    /// The image's directory [default: the one under target/image/].
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
    /// The node's boot configuration.
    #[arg(long, value_name = "FILE")]
    boot: Option<PathBuf>,
    /// Where its disks are kept [default: target/qemu/PROFILE].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// A guest port to reach from this machine: 80, udp:53, tcp:80=8080 (guest=host).
    #[arg(long = "forward", value_name = "PORT", value_parser = parse_forward)]
    forwards: Vec<Forward>,
    /// One more argument for the kernel.
    #[arg(long = "append", value_name = "ARGUMENT")]
    append: Vec<String>,
    /// Print QEMU's command line, and boot nothing.
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let profile = if arguments.profile.contains(['/', '.']) {
        Profile::load(arguments.profile.as_ref())?
    } else {
        Profile::named(&arguments.profile)?
    };
    let image = match &arguments.image {
        Some(directory) => directory.clone(),
        None => image::existing()?,
    };
    let state = match &arguments.state {
        Some(directory) => directory.clone(),
        None => repo::root().join("target/qemu").join(&profile.name),
    };
    let mut boot = Boot::image(profile, &image, &state);
    if let Some(file) = &arguments.boot {
        let text = fs::read(file)
            .with_context(|| format!("cannot read the boot configuration {}", file.display()))?;
        boot = boot.boot_file(text);
    }
    for forward in &arguments.forwards {
        boot = boot.forward(*forward);
    }
    for argument in &arguments.append {
        boot = boot.kernel_argument(argument);
    }
    let (mut command, decision) = boot.on_terminal()?;
    if arguments.print {
        println!("{command:?}");
        return Ok(());
    }
    eprintln!("qemu: {}", decision.reason);
    eprintln!("qemu: disks in {}; Ctrl-A X ends the machine, Ctrl-A H lists more", state.display());
    let status = command.status().context("qemu-system-x86_64 can't be started: run scripts/setup")?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

/// `[tcp:|udp:]guest-port[=host-port]`; without a host port it is the same one.
fn parse_forward(text: &str) -> Result<Forward, String> {
    let (protocol, ports) = match text.split_once(':') {
        Some(("tcp", ports)) => (Protocol::Tcp, ports),
        Some(("udp", ports)) => (Protocol::Udp, ports),
        Some((other, _)) => return Err(format!("there is no protocol {other:?}: write tcp or udp")),
        None => (Protocol::Tcp, text),
    };
    let (guest, host) = ports.split_once('=').unwrap_or((ports, ports));
    let port = |text: &str| {
        let port = text.parse::<u16>().ok().filter(|port| *port != 0);
        port.ok_or_else(|| format!("{text:?} is no port: write a number from 1 to 65535"))
    };
    Ok(Forward { protocol, ..Forward::tcp(port(guest)?).at_host_port(port(host)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_be_written_short_or_in_full() {
        assert_eq!(parse_forward("80").unwrap(), Forward::tcp(80).at_host_port(80));
        assert_eq!(parse_forward("udp:53").unwrap(), Forward::udp(53).at_host_port(53));
        assert_eq!(parse_forward("tcp:80=8080").unwrap(), Forward::tcp(80).at_host_port(8080));
    }

    #[test]
    fn a_wrong_port_is_named() {
        assert_eq!(parse_forward("0").unwrap_err(), "\"0\" is no port: write a number from 1 to 65535");
        assert_eq!(parse_forward("80=x").unwrap_err(), "\"x\" is no port: write a number from 1 to 65535");
        assert_eq!(parse_forward("sctp:80").unwrap_err(), "there is no protocol \"sctp\": write tcp or udp");
    }
}
