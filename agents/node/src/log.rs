//! Sends what the agent logs to the kernel log, one record per event, at the event's own level.

use std::io::{self, Write};
use std::sync::Arc;

use croft_init::log::{Kmsg, Level, Log};
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What is logged unless `CROFT_LOG` says otherwise.
const DEFAULT_FILTER: &str = "info,quinn=warn,quinn_proto=warn,rustls=warn,netlink_packet_route=error";

struct KernelLog {
    kmsg: Arc<Kmsg>,
}

/// One event, written when it is whole.
struct Record {
    kmsg: Arc<Kmsg>,
    level: Level,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for KernelLog {
    type Writer = Record;

    fn make_writer(&'a self) -> Record {
        Record { kmsg: self.kmsg.clone(), level: Level::Notice, text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Record {
        let level = match *meta.level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Notice,
            _ => Level::Info,
        };
        Record { kmsg: self.kmsg.clone(), level, text: Vec::new() }
    }
}

impl Write for Record {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        self.kmsg.line(self.level, &format!("croft: {}", text.trim()));
    }
}

/// Starts logging for the whole process.
pub fn start() -> Arc<Kmsg> {
    let kmsg = Arc::new(Kmsg::open());
    let filter = EnvFilter::try_from_env("CROFT_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    tracing_subscriber::fmt()
        .with_writer(KernelLog { kmsg: kmsg.clone() })
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_level(false)
        .init();
    kmsg
}
