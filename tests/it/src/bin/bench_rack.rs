//! `cargo xtask bench rack`: what a rack of machines takes that boot from one netboot server at once.
//!
//! The real server (`croft media serve`) on a switch of its own; the machines are clients that fetch what firmware fetches,
//! each by its own connections, in another network namespace, whose card counts the bytes. It must never send anything
//! outside of those namespaces.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use croft_it::grid::binary;
use croft_it::matrix;
use croft_it::rack::{Rack, SERVER, client, is_possible};
use croft_it::report::{self, Limit, Report, Row, Times};
use croft_media::esp::Contents;
use croft_media::netboot;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Machines of a rack.
const MACHINES: u8 = 50;
/// One machine has everything within this, or something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fetch", machines] => {
            machines.parse().context("a number of machines").and_then(fetch_all).map(|()| true)
        }
        _ => run().await,
    };
    report::exit_code(&done)
}

async fn run() -> Result<bool> {
    report::only_in_release("cargo xtask bench rack")?;
    ensure!(is_possible(), "a switch of its own needs root and /dev/net/tun: run this as root");
    let path = matrix::built_boot_file()?;
    let boot_file = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
    let mut report = Report::default();
    report.circumstance("boot file", path.display().to_string());
    report.circumstance("machines", format!("{MACHINES}, played by clients"));
    report.part("rack", rack_rows(&boot_file).await);
    report.finish("rack")
}

async fn rack_rows(boot_file: &[u8]) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("netboot");
    // As large as an addition is; the server looks into none.
    let addition = vec![0x5a; 1_200];
    netboot::write(&folder, &Contents { boot_file, addition: Some(&addition) })?;
    let mut rack = Rack::new("bench").await?;
    let clients = rack.plug_clients().await?;
    rack.serve(&binary("croft")?, &folder, &[]).await?;
    let (alone, _) = measured(&clients, 1)?;
    let (together, bytes) = measured(&clients, MACHINES)?;
    let content = (boot_file.len() + addition.len()) as f64;
    let each = bytes as f64 / f64::from(MACHINES);
    let times = Times::new(together.clone());
    let last = times.percentile_ms(100.0);
    let first = Times::new(alone).percentile_ms(100.0);
    let rate = each * f64::from(MACHINES) / (last / 1e3) / 1e6;
    Ok(vec![
        Row::new("bytes on the wire per machine / boot file and addition", each / content, "x")
            .limit(Limit::AtMost { budget: 1.15, goal: 1.10 })
            .note(format!(
                "{:.2} MB for {:.2} MB, headers of Ethernet and TCP included",
                each / 1e6,
                content / 1e6
            )),
        Row::new(
            format!("the last of {MACHINES} served at once / one alone, for each machine"),
            last / first / f64::from(MACHINES),
            "x",
        )
        .limit(Limit::AtMost { budget: 2.0, goal: 1.2 })
        .note(format!("{last:.0} ms and {first:.0} ms; {rate:.0} MB/s, on one machine with its clients")),
        Row::new("the last of them / the median", last / times.percentile_ms(50.0), "x")
            .note("1: nobody waits for the others"),
    ])
}

/// How long each machine took, and the bytes that the clients' card received.
fn measured(namespace: &str, machines: u8) -> Result<(Vec<Duration>, u64)> {
    let before = received(namespace)?;
    let me = std::env::current_exe()?;
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", namespace])
        .arg(me)
        .args(["fetch", &machines.to_string()])
        .output()
        .context("can't run ip")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<Duration> =
        text.lines().filter_map(|line| Some(Duration::from_micros(line.parse().ok()?))).collect();
    ensure!(times.len() == usize::from(machines), "{} of {machines} machines got everything", times.len());
    Ok((times, received(namespace)? - before))
}

fn received(namespace: &str) -> Result<u64> {
    let output = std::process::Command::new("ip")
        .args(["-n", namespace, "-s", "-j", "link", "show", "eth0"])
        .output()
        .context("can't run ip")?;
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).context("ip prints JSON")?;
    shown[0]["stats64"]["rx"]["bytes"].as_u64().context("the card counts bytes")
}

/// Runs inside the clients' namespace: a line of microseconds for each machine.
fn fetch_all(machines: u8) -> Result<()> {
    let threads: Vec<_> = (0..machines)
        .map(|machine| {
            std::thread::spawn(move || -> Result<Duration> {
                let started = Instant::now();
                for (file, least) in [(netboot::BOOT_FILE, 100_000), ("farm.bin", 100)] {
                    let bytes = fetch(machine, file)?;
                    ensure!(bytes >= least, "{file} has only {bytes} bytes");
                }
                Ok(started.elapsed())
            })
        })
        .collect();
    for thread in threads {
        let took = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        println!("{}", took.as_micros());
    }
    Ok(())
}

/// One file by HTTP; the number of bytes of its content, all of which came.
fn fetch(machine: u8, file: &str) -> Result<u64> {
    let mut stream = connect(machine).context("can't reach the server")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET /{file} HTTP/1.1\r\nHost: {SERVER}:8080\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(
            stream.read(&mut byte)? == 1 && head.len() < 8192,
            "{file}: the answer has no end of its head"
        );
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "{file}: {}", head.lines().next().unwrap_or_default());
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
    let length = length.context("the answer says how long it is")?;
    let got = std::io::copy(&mut stream.take(length), &mut std::io::sink())?;
    ensure!(got == length, "{file}: {got} of {length} bytes came");
    Ok(got)
}

/// From the machine's own address, which the standard library can't choose.
fn connect(machine: u8) -> Result<TcpStream> {
    let server: SocketAddrV4 = format!("{SERVER}:8080").parse()?;
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::bind(&socket, &SocketAddrV4::new(client(machine), 0))?;
    rustix::net::connect(&socket, &server)?;
    Ok(TcpStream::from(socket))
}
