//! Four replicas in network namespaces of their own, under load, while one after the other is killed, stopped, cut off,
//! left without disk and given a wrong clock. Needs root for the namespaces; says so where it is not.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use croft_it::grid::binary;
use croft_it::load::{Held, Outcome, Plan, author, payee};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::header::Allocation;
use croft_protocol::{Grains, Name, TrustPolicy};
use croft_replica::{GridPlan, NewGrid, init_grid};
use rustix::process::{Pid, Signal, kill_process};

const REPLICAS: usize = 4;
const AUTHORS: u16 = 100;
/// Of each author: 10,000 in all.
const COMMANDS: u64 = 100;
/// For anything to happen on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(300);
/// Of the replica whose disk fills up: what it keeps in reserve, and some megabytes of ledger.
const SMALL_DISK: &str = "size=112m";
/// Gives one process another time of day.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// How far the grid's time may be from this machine's.
const CLOCK_ERROR_MS: u64 = 600_000;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Namespaces that go with this.
struct Network {
    hub: String,
    /// One for each replica, and one for the clients.
    places: Vec<String>,
}

impl Network {
    fn new() -> Self {
        let name = |what: &str| format!("croft{}-{what}", std::process::id());
        let places = (0..=REPLICAS).map(|n| name(&n.to_string())).collect();
        let network = Self { hub: name("hub"), places };
        let hub = &network.hub;
        run("ip", &["netns", "add", hub]);
        run("ip", &["-n", hub, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", hub, "link", "set", "br0", "up"]);
        for (n, place) in network.places.iter().enumerate() {
            let port = format!("p{n}");
            run("ip", &["netns", "add", place]);
            run(
                "ip",
                &["-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", place],
            );
            run("ip", &["-n", hub, "link", "set", &port, "master", "br0", "up"]);
            run("ip", &["-n", place, "address", "add", &format!("{}/24", ip(n)), "dev", "eth0"]);
            run("ip", &["-n", place, "link", "set", "eth0", "up"]);
            run("ip", &["-n", place, "link", "set", "lo", "up"]);
        }
        network
    }

    /// Cuts a place off, or joins it again.
    fn link(&self, n: usize, up: bool) {
        run("ip", &["-n", &self.hub, "link", "set", &format!("p{n}"), if up { "up" } else { "down" }]);
    }

    fn command(&self, n: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.places[n]]).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.places.iter().chain([&self.hub]) {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ip(n: usize) -> String {
    format!("10.77.0.{}", n + 1)
}

/// A file system of its own for one replica; unmounted with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        run("mount", &["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs", dir.to_str().unwrap()]);
        Self(dir.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A process that ends with this, and its lines.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    fn wait_for(&self, what: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no line with '{what}': {error}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Ledger<'a> {
    network: &'a Network,
    grid: &'a NewGrid,
    running: Vec<Option<Process>>,
}

impl Ledger<'_> {
    fn start(&mut self, n: usize) {
        self.start_at(n, None);
    }

    /// Starts a replica whose clock is off.
    fn start_at(&mut self, n: usize, clock: Option<&str>) {
        let mut command = self.network.command(n, &binary("replica").unwrap());
        if let Some(clock) = clock {
            assert!(Path::new(FAKETIME).exists(), "{FAKETIME} is missing: run scripts/setup");
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME", clock);
            // Only what time of day it is; a second lasts as long as for everybody.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.arg("--config").arg(&self.grid.replicas[n].config).env("CROFT_LOG", "warn");
        let process = Process::start(command);
        process.wait_for("serves on");
        self.running[n] = Some(process);
    }

    fn running(&self, n: usize) -> &Process {
        self.running[n].as_ref().unwrap()
    }
}

fn make_grid(dir: &Path) -> NewGrid {
    let allocation = |name: String, key: croft_protocol::SecretKey| Allocation {
        name: Name::new(&name).unwrap(),
        bot: key.public(),
        grains: Grains(COMMANDS),
    };
    let mut allocations: Vec<_> = (0..AUTHORS).map(|n| allocation(format!("author{n}"), author(n))).collect();
    allocations.push(allocation("payee".to_owned(), payee()));
    let listen = (0..REPLICAS).map(|n| format!("{}:4600", ip(n)).parse().unwrap()).collect();
    init_grid(
        dir,
        GridPlan {
            name: Name::new("storm").unwrap(),
            time_ms: now_ms(),
            allocations,
            listen,
            trust: TrustPolicy::default(),
            faucet: None,
        },
    )
    .unwrap()
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_while_replicas_are_killed_stopped_cut_off_out_of_disk_and_out_of_time() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = Network::new();
    let disk = SmallDisk::new(&dir.path().join("replica-2"));
    let grid = make_grid(dir.path());
    let addresses = grid.replicas.iter().map(|r| ReplicaAddress { address: r.listen, key: r.key.public() });
    let plan = Plan {
        chain: grid.genesis.chain_id(),
        replicas: addresses.collect(),
        authors: AUTHORS,
        commands: COMMANDS,
    };
    let plan_file = dir.path().join("plan.json");
    std::fs::write(&plan_file, serde_json::to_vec(&plan).unwrap()).unwrap();
    let mut ledger =
        Ledger { network: &network, grid: &grid, running: (0..REPLICAS).map(|_| None).collect() };
    for n in 0..REPLICAS {
        ledger.start(n);
    }
    let client = |mode: &str| {
        let mut command = network.command(REPLICAS, &binary("ledger_load").unwrap());
        command.arg(mode).arg(&plan_file);
        Process::start(command)
    };
    let load = client("submit");
    let acknowledged = |n: u64| load.wait_for(&format!("acknowledged {n}00"));

    // Each fault lasts until so many more commands are final: the grid goes on with any one of four away.
    acknowledged(5);
    eprintln!("replica 1: kill -9");
    ledger.running[0] = None;
    acknowledged(15);
    ledger.start(0);
    acknowledged(20);
    eprintln!("replica 3: SIGSTOP");
    ledger.running(2).signal(Signal::STOP);
    acknowledged(35);
    ledger.running(2).signal(Signal::CONT);
    acknowledged(40);
    eprintln!("replica 4: cut off");
    network.link(3, false);
    acknowledged(55);
    network.link(3, true);
    acknowledged(60);
    eprintln!("replica 2: no room on its disk");
    let filler = disk.0.join("filler");
    run("fallocate", &["-l", "80m", filler.to_str().unwrap()]);
    acknowledged(75);
    std::fs::remove_file(&filler).unwrap();
    acknowledged(80);
    eprintln!(
        "replicas 1 and 2: killed at once, and two of four decide nothing; then they are back, 1 three days ahead"
    );
    ledger.running[0] = None;
    ledger.running[1] = None;
    ledger.start_at(0, Some("+3d"));
    ledger.start(1);
    acknowledged(85);
    eprintln!("replica 1: its clock was three days ahead, now it is three days behind");
    ledger.running[0] = None;
    ledger.start_at(0, Some("-3d"));
    acknowledged(90);
    ledger.running[0] = None;
    ledger.start(0);
    acknowledged(100);
    let outcome: Outcome = serde_json::from_str(&load.wait_for("found_later")).unwrap();
    eprintln!("{} commands were final though nobody could say so", outcome.found_later);

    let held: Vec<Held> = serde_json::from_str(&client("check").wait_for("header")).unwrap();
    assert_eq!(held.len(), REPLICAS);
    let all = u64::from(AUTHORS) * COMMANDS;
    for replica in &held {
        assert_eq!(replica.header, held[0].header, "one history");
        assert!(replica.time_ms.abs_diff(now_ms()) < CLOCK_ERROR_MS, "no wrong clock moved the grid's");
        assert_eq!(replica.next_sequence, vec![COMMANDS; usize::from(AUTHORS)], "each command once");
        assert_eq!(replica.paid, COMMANDS + all, "and what it did is there");
    }
}
