//! A home, a replica, a farmer and a user, each run as its own command would be.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use croft_protocol::image::{Chunk, ImageConfig, ImageManifest, Verity};
use croft_protocol::{Hash, Name};
use tokio::sync::watch;

use crate::commands::{Stop, run};
use crate::flags::Flags;
use crate::home::{Home, ImageEntry};
use crate::plan::{Environment, Plan};
use crate::terminal::Terminal;

/// Longer than anything here takes on the slowest machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a command printed so far; others can wait for it.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Shared {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }

    pub(super) fn wait_for(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = self.0.0.lock().unwrap();
        while !String::from_utf8_lossy(&bytes).contains(what) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no '{what}' in: {}", String::from_utf8_lossy(&bytes));
            bytes = self.0.1.wait_timeout(bytes, left).unwrap().0;
        }
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Variables {
    set: BTreeMap<&'static str, OsString>,
    /// What the person types where it is not shown, in turn.
    secrets: Mutex<VecDeque<String>>,
    /// What the person answers to questions, in turn; yes to all others.
    answers: Mutex<VecDeque<String>>,
}

impl Environment for Variables {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.set.get(name).cloned()
    }

    fn ask(&self, question: &str) -> Option<String> {
        if !question.ends_with("[y/N] ") {
            return None;
        }
        let answer = self.answers.lock().unwrap().pop_front();
        // Somebody who is asked by a program that nobody sits at.
        if answer.as_deref() == Some("nobody") { None } else { Some(answer.unwrap_or("y".to_owned())) }
    }

    fn ask_secret(&self, _: &str) -> Option<String> {
        self.secrets.lock().unwrap().pop_front()
    }
}

pub(super) struct Output {
    pub(super) code: u8,
    pub(super) out: String,
    pub(super) err: String,
}

/// A command that goes on in its own thread.
struct Background {
    stop: watch::Sender<bool>,
    thread: JoinHandle<u8>,
}

impl Background {
    fn stop(self) {
        self.stop.send(true).unwrap();
        assert_eq!(self.thread.join().unwrap(), 0);
    }
}

pub(super) struct World {
    dir: tempfile::TempDir,
    port: u16,
    replica: Option<Background>,
    farmer: Option<Background>,
    /// Farmers of other farms.
    others: Vec<Background>,
}

impl World {
    /// A grid 'demo' that runs, bot 'bob' with farm 'attic' that serves, bot 'alice' with a million grains,
    /// and an image 'nginx'.
    pub(super) fn with_farm() -> Self {
        Self::with_farm_on("")
    }

    /// The same on a grid that was made with these flags.
    pub(super) fn with_farm_on(flags: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut world = Self { dir, port, replica: None, farmer: None, others: Vec::new() };
        world.text(&format!("grid init demo --listen 127.0.0.1:{port} --treasury 1000000000 {flags}"));
        world.save_ledger();
        world.start_replica();
        world.text("bot new bob");
        world.text("bot new alice --grains 1000000");
        let boot = world.dir.path().join("boot.toml");
        world.text(&format!("farm new attic --country be --bot bob --boot-config {}", boot.display()));
        world.make_image();
        world.farmer = Some(world.background("farm serve --bot bob", "serves attic"));
        world
    }

    /// A grid 'demo' that was made with these flags and runs, and bot 'alice' without grains.
    pub(super) fn with_faucet(flags: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut world = Self { dir, port, replica: None, farmer: None, others: Vec::new() };
        world.text(&format!("grid init demo --listen 127.0.0.1:{port} {flags}"));
        world.start_replica();
        world.text("bot new alice");
        world
    }

    /// A home with two bots of which no ledger knows.
    pub(super) fn of_keys() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self { dir, port: 0, replica: None, farmer: None, others: Vec::new() };
        for bot in ["alice", "bob"] {
            Home::new(&world.home()).new_bot(&Name::new(bot).unwrap()).unwrap();
        }
        world
    }

    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(super) fn boot_config(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("boot.toml")).unwrap()
    }

    /// A file that only its owner reads.
    pub(super) fn secret_file(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.file(name, text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(super) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Runs a command to its end.
    pub(super) fn run(&self, line: &str) -> Output {
        self.run_telling(line, &[])
    }

    /// The same, with a person at the terminal who types these, in turn, where it is not shown.
    pub(super) fn run_telling(&self, line: &str, secrets: &[&str]) -> Output {
        self.run_with(line, secrets, &[])
    }

    /// The same, with a person who answers so to questions of yes or no.
    pub(super) fn run_answering(&self, line: &str, answers: &[&str]) -> Output {
        self.run_with(line, &[], answers)
    }

    fn run_with(&self, line: &str, secrets: &[&str], answers: &[&str]) -> Output {
        let (out, err) = (Shared::default(), Shared::default());
        let (_sender, stop) = Stop::new();
        let code = self.command(line, secrets, answers, stop, out.clone(), err.clone())();
        Output { code, out: out.text(), err: err.text() }
    }

    pub(super) fn text(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.code, 0, "{line}: {}", output.err);
        output.out
    }

    pub(super) fn json(&self, line: &str) -> serde_json::Value {
        let text = self.text(&format!("{line} --json"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
    }

    /// The long help of a command.
    pub(super) fn help(command: &str) -> String {
        let args = format!("croft {command} --help");
        Flags::parse_line(args.split_whitespace().map(OsString::from)).unwrap_err().to_string()
    }

    pub(super) fn start_replica(&mut self) {
        let ready = format!("ready: grid demo on 127.0.0.1:{}", self.port);
        self.replica = Some(self.background("grid up", &ready));
    }

    pub(super) fn stop_replica(&mut self) {
        self.replica.take().expect("it runs").stop();
    }

    pub(super) fn stop_farmer(&mut self) {
        self.farmer.take().expect("it runs").stop();
    }

    /// Puts the ledger back to how it was made.
    pub(super) fn reset_ledger(&self) {
        let ledger = self.home().join("grids/demo/ledger");
        std::fs::remove_dir_all(&ledger).unwrap();
        copy_dir(&self.dir.path().join("first-day"), &ledger);
    }

    fn save_ledger(&self) {
        copy_dir(&self.home().join("grids/demo/ledger"), &self.dir.path().join("first-day"));
    }

    /// The file of the image's only chunk.
    pub(super) fn chunk(&self) -> PathBuf {
        let home = Home::new(&self.home());
        let entry = home.image(&Name::new("nginx").unwrap()).unwrap();
        let bytes = home.blobs().get(&entry.manifest).unwrap();
        let manifest = ImageManifest::check(&bytes, entry.manifest).unwrap();
        home.blobs().path(&manifest.chunks[0].hash)
    }

    fn make_image(&self) {
        let home = Home::new(&self.home());
        let blobs = home.blobs();
        let content = vec![7; 3 * 4096];
        let chunk = zstd::bulk::compress(&content, 1).unwrap();
        let manifest = ImageManifest {
            version: 1,
            verity: Verity { data_blocks: 2, root: Hash([1; 32]), salt: [2; 32] },
            size_bytes: content.len() as u64,
            chunks: vec![Chunk { hash: blobs.put(&chunk).unwrap(), compressed_bytes: chunk.len() as u32 }],
            config: ImageConfig { entrypoint: vec!["/usr/sbin/nginx".to_owned()], ..ImageConfig::default() },
            source: Hash([3; 32]),
        };
        let hash = blobs.put(&croft_protocol::encode(&manifest)).unwrap();
        home.name_image(&ImageEntry {
            name: Name::new("nginx").unwrap(),
            manifest: hash,
            source: manifest.source,
            layout: "made up".to_owned(),
            tag: None,
            size_bytes: manifest.size_bytes,
            stored_bytes: chunk.len() as u64,
            files: 1,
            built_ms: 0,
            tool: String::new(),
        })
        .unwrap();
    }

    /// Runs a command that goes on until it has printed each of these, one after the other; in between `next` is
    /// called.
    pub(super) fn watch(&self, line: &str, first: &str, next: impl FnOnce(), then: &str) -> String {
        let (out, err) = (Shared::default(), Shared::default());
        let (sender, stop) = Stop::new();
        let thread = std::thread::spawn(self.command(line, &[], &[], stop, out.clone(), err));
        out.wait_for(first);
        next();
        out.wait_for(then);
        Background { stop: sender, thread }.stop();
        out.text()
    }

    fn background(&self, line: &str, ready: &str) -> Background {
        self.background_answering(line, ready, &[]).0
    }

    fn background_answering(&self, line: &str, ready: &str, answers: &[&str]) -> (Background, Shared) {
        let (out, err) = (Shared::default(), Shared::default());
        let (sender, stop) = Stop::new();
        let thread = std::thread::spawn(self.command(line, &[], answers, stop, out.clone(), err));
        out.wait_for(ready);
        (Background { stop: sender, thread }, out)
    }

    /// Another farm with its owner, who serves it with these flags; what its machines boot with.
    pub(super) fn add_farm(&mut self, bot: &str, farm: &str, flags: &str, serve: &str) -> String {
        self.text(&format!("bot new {bot}"));
        let boot = self.dir.path().join(format!("{farm}.toml"));
        self.text(&format!("farm new {farm} --bot {bot} {flags} --boot-config {}", boot.display()));
        let line = format!("farm serve --bot {bot} {serve}");
        let farmer = self.background(&line, &format!("serves {farm}"));
        self.others.push(farmer);
        std::fs::read_to_string(boot).unwrap()
    }

    /// Serves 'attic' again, after [`Self::stop_farmer`]; what it prints.
    pub(super) fn serve(&mut self, flags: &str, answers: &[&str]) -> Shared {
        let line = format!("farm serve --bot bob {flags}");
        let (farmer, out) = self.background_answering(&line, "serv", answers);
        self.farmer = Some(farmer);
        out
    }

    fn command(
        &self,
        line: &str,
        secrets: &[&str],
        answers: &[&str],
        stop: Stop,
        out: Shared,
        err: Shared,
    ) -> impl FnOnce() -> u8 + Send + 'static {
        let args: Vec<OsString> =
            std::iter::once("croft").chain(line.split_whitespace()).map(OsString::from).collect();
        let variables = Variables {
            set: [("CROFT_HOME", self.home().into_os_string()), ("WEB_TOKEN", "t0ken".into())].into(),
            secrets: Mutex::new(secrets.iter().map(|text| (*text).to_owned()).collect()),
            answers: Mutex::new(answers.iter().map(|text| (*text).to_owned()).collect()),
        };
        let line = line.to_owned();
        move || {
            let flags = Flags::parse_line(args).unwrap_or_else(|e| panic!("{line}: {e}"));
            let mut terminal = Terminal::with_streams(Box::new(out), Box::new(err), flags.common.json);
            let done = Plan::new(flags, &variables).and_then(|plan| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(run(plan, &mut terminal, &variables, stop))
            });
            match done {
                Ok(()) => 0,
                Err(failure) => {
                    terminal.failure(&failure);
                    failure.exit as u8
                }
            }
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Every field of a command's JSON is in its help.
pub(super) fn fields_are_documented(command: &str, json: &serde_json::Value) {
    let help = World::help(command);
    for field in json.as_object().unwrap().keys() {
        assert!(help.contains(field.as_str()), "{command}: '{field}' is not documented in: {help}");
    }
}
