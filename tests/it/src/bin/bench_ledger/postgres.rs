//! The other yardstick: one PostgreSQL with synchronous commit, under pgbench.
//!
//! The server refuses to run as root, so there it runs as the user whom its package made.

use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::load::Load;
use crate::machine::{self, Process};
use croft_it::report::{Row, Times};

/// Each client is a process of the server.
const CLIENTS: usize = 256;
const READY: Duration = Duration::from_secs(60);
const SETUP: Duration = Duration::from_secs(120);
const USER: &str = "postgres";

/// Where the programs lie.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    server: PathBuf,
    bench: PathBuf,
}

/// The newest that is installed.
pub(crate) fn programs() -> Option<Programs> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .filter(|(_, bin)| {
            ["initdb", "postgres", "psql", "pgbench"].iter().all(|name| bin.join(name).is_file())
        })
        .collect();
    versions.sort();
    let (_, bin) = versions.pop()?;
    Some(Programs { bench: bin.join("pgbench"), server: bin })
}

/// Who runs the server: `None` for whoever runs this.
#[derive(Debug, Clone, Copy)]
struct Account(Option<(u32, u32)>);

impl Account {
    fn find() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let passwd = std::fs::read_to_string("/etc/passwd").context("can't read /etc/passwd")?;
        let line = passwd.lines().find(|line| line.split(':').next() == Some(USER));
        let fields: Vec<&str> =
            line.with_context(|| format!("there is no user {USER}"))?.split(':').collect();
        let id = |at: usize| fields.get(at).and_then(|f| f.parse().ok()).context("/etc/passwd is malformed");
        Ok(Self(Some((id(2)?, id(3)?))))
    }

    fn give(self, path: &Path) -> Result<()> {
        if let Some((user, group)) = self.0 {
            chown(path, Some(user), Some(group))
                .with_context(|| format!("can't give {} away", path.display()))?;
        }
        Ok(())
    }

    fn command(self, program: &Path, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(dir).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        command.kill_on_drop(true);
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
        command
    }
}

/// A running server with an empty table.
pub(crate) struct Postgres {
    dir: PathBuf,
    programs: Programs,
    account: Account,
    process: Process,
    port: String,
    record_bytes: usize,
}

impl Postgres {
    /// Starts it in a folder that its user can reach.
    pub(crate) async fn start(dir: &Path, programs: Programs, record_bytes: usize) -> Result<Self> {
        let account = Account::find()?;
        account.give(dir)?;
        let data = dir.join("data");
        let mut initdb = account.command(&programs.server.join("initdb"), dir);
        initdb.arg("-D").arg(&data).args(["-A", "trust", "-U", "bench", "-E", "UTF8", "--locale", "C"]);
        capture(&mut initdb, SETUP).await?;
        let port = machine::free_tcp_port()?.to_string();
        let mut command = account.command(&programs.server.join("postgres"), dir);
        command.arg("-D").arg(&data).args(["-p", &port, "-h", &Ipv4Addr::LOCALHOST.to_string()]);
        let settings = ["synchronous_commit=on", "fsync=on", "unix_socket_directories="];
        let connections = format!("max_connections={}", CLIENTS + 20);
        for setting in settings.into_iter().chain([connections.as_str()]) {
            command.args(["-c", setting]);
        }
        let process = Process::start("PostgreSQL", command, None, dir.join("postgres.log")).await?;
        let server = Self { dir: dir.to_owned(), programs, account, process, port, record_bytes };
        let deadline = Instant::now() + READY;
        let table = "CREATE TABLE records (id bytea PRIMARY KEY, body bytea NOT NULL)";
        while let Err(error) = server.psql(table).await {
            if Instant::now() > deadline {
                bail!(
                    "PostgreSQL is not ready after {READY:?}: {error:#}; it says: {}",
                    server.process.last_words()
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
        std::fs::write(server.script(), server.insert())?;
        Ok(server)
    }

    fn script(&self) -> PathBuf {
        self.dir.join("insert.sql")
    }

    /// One record: a random id as long as a hash, and a body that doesn't shrink.
    fn insert(&self) -> String {
        let random = "decode(md5(random()::text || :client_id) || md5(random()::text || :client_id), 'hex')";
        let digits = (0u32..).map(|n| croft_protocol::Hash::of("bench body", &n).to_string());
        let mut body = String::new();
        for hash in digits.take(self.record_bytes.div_ceil(32)) {
            body.push_str(&hash);
        }
        body.truncate(2 * self.record_bytes.saturating_sub(33));
        format!("INSERT INTO records (id, body) VALUES ({random}, '\\x{body}');\n")
    }

    async fn psql(&self, sql: &str) -> Result<String> {
        let mut psql = self.account.command(&self.programs.server.join("psql"), &self.dir);
        psql.args([
            "-X",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            &self.port,
            "-U",
            "bench",
            "-d",
            "postgres",
            "-c",
            sql,
        ]);
        capture(&mut psql, SETUP).await
    }

    /// As many clients as the load has in flight, since one of them has one transaction at a time.
    pub(crate) async fn measure(&self, load: Load, window: Duration) -> Result<Row> {
        let clients = load.in_flight().min(CLIENTS);
        let logs = self.dir.join(format!("log-{clients}"));
        std::fs::create_dir(&logs)?;
        self.account.give(&logs)?;
        let mut pgbench = self.account.command(&self.programs.bench, &logs);
        let seconds = window.as_secs().max(1).to_string();
        pgbench.args(["-n", "-M", "prepared", "-j", "2", "-l", "-T", &seconds, "-c", &clients.to_string()]);
        pgbench.arg("-f").arg(self.script()).args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port,
            "-U",
            "bench",
            "postgres",
        ]);
        let text = capture(&mut pgbench, window * 3 + SETUP).await?;
        let per_second = transactions_per_second(&text)?;
        let times = latencies(&logs)?;
        let what = format!("PostgreSQL inserts, synchronous commit, {clients} clients");
        Ok(Row::new(what, per_second, "inserts/s")
            .note(times.show())
            .details(json!({ "latency": times.json() })))
    }

    pub(crate) async fn stop(self) -> Result<()> {
        // A fast shutdown: it does not wait for clients.
        self.process.stop_with(Signal::INT).await
    }
}

async fn capture(command: &mut Command, within: Duration) -> Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = timeout(within, command.stdin(std::process::Stdio::null()).output()).await;
    let output = output.with_context(|| format!("{name} does not end within {within:?}"))??;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From pgbench's summary.
fn transactions_per_second(text: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("pgbench's summary has no tps: {text}"))
}

/// From pgbench's logs: the third field is the latency in microseconds.
fn latencies(dir: &Path) -> Result<Times> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let text = std::fs::read_to_string(entry?.path())?;
        let micros = text.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse().ok());
        times.extend(micros.map(Duration::from_micros));
    }
    Ok(Times::new(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_says_is_read() {
        let text = "latency average = 8.1 ms\ntps = 1234.5 (without initial connection time)\n";
        assert!((transactions_per_second(text).unwrap() - 1234.5).abs() < 1e-9);
        assert!(transactions_per_second("nothing").unwrap_err().to_string().contains("no tps: nothing"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pgbench_log.1"), "0 1 2000 0 1700 5\n0 2 4000 0 1700 6\n").unwrap();
        assert!((latencies(dir.path()).unwrap().percentile_ms(100.0) - 4.0).abs() < 1e-9);
    }
}
