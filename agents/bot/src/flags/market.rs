//! `croft deploy`, `croft find` and `croft cost` as people type them.

use std::path::PathBuf;

use clap::Args;
use croft_protocol::{Grains, Name, units};

use super::{TrustFlag, parse_grains, parse_seconds};

#[derive(Debug, Args)]
#[command(after_long_help = concat!("\
Example:
  croft deploy web.toml --dry-run      # what it would cost, and where
  croft deploy web.toml

Offers of up to eight nodes that fit are collected for a fixed window: half of them the cheapest, half drawn by lot.
The bot asks for less than the list price where farms haggle, and takes the offer that is worth most: price, with
surcharges for weaker identities and for time in which a node did not run. Its farmer signs and holds the capacity for a
minute. The price for the whole duration goes into escrow, and you pay for the time in which the node reports that it
runs; the rest is refunded at the end. Before anything is promised you are asked, unless --yes says so for you. Each
step is written down before it is taken: after an interruption the same command goes on, and never orders twice.

JSON: {name, contract, node, node_id, farm, country, state, height, rate, price, deposit, duration_s, ports, images, dry_run,
       resumed, explain: {chosen, others: [{node, name, farm_name, why}]}, excluded: [{node, farm, reasons}]}
      ports: [{published, transport, urls}]; rate is grains per second, price is grains for the whole duration;
      excluded is filled with --dry-run, explain without; explain is empty where an interrupted order went on

"), after_help = "See 'croft deploy --help' for the format of the deploy file.")]
pub struct DeployFlags {
    /// The deploy file
    #[arg(value_name = "FILE", default_value = "croft.toml")]
    pub file: PathBuf,
    /// Show price and choice, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as the contract is on the ledger
    #[arg(long)]
    pub detach: bool,
    /// How long to wait until it runs
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_seconds, conflicts_with = "detach")]
    pub timeout: u64,
    /// Pay at most this for the whole duration under 'terms' (not per hour) [default: max_price of the file, else what
    /// the wallet has; the lower of both counts]
    #[arg(long, value_name = "GRAINS", value_parser = parse_grains)]
    pub max_price: Option<Grains>,
    /// How long offers are collected, 1s to 60s; it ends sooner when everybody who was asked has answered
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = parse_window)]
    pub window: u64,
    /// Say why this node was taken, and why each other one was not
    #[arg(long)]
    pub explain: bool,
    /// A skill's score counts too: it changes which offer is taken, and no limit
    #[arg(long, value_name = "NAME")]
    pub skill: Option<Name>,
    /// Don't ask: what is within the limits is bought
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft find --country be,de --cpu 2 --memory 4G
  croft find --cpu 0.5 --memory 256M --port 8080 --duration 30d --max-price 5000000 --json

Prices are those of the farms' lists on the ledger; farms may sell for less ('croft deploy' haggles). 'uptime' is how
much of the time in which its present contracts might have run a node's reports cover; '-' where there is too little to
tell. 'online' is what the replica says; everything else is proved.
JSON: {duration_s, resources, matches: [{node, node_id, farm, country, trust, uptime_permille?, rate, price, free,
       contracts, addresses}], excluded: [{node, node_id, farm, country, trust, uptime_permille?, reasons: [text]}]}
      rate is grains per second, price is grains for the whole --duration")]
pub struct FindFlags {
    /// Only there: two letters each of ISO 3166-1, such as be,de
    #[arg(long, value_name = "CODES", value_delimiter = ',')]
    pub country: Vec<String>,
    /// Only of this farm
    #[arg(long, value_name = "NAME")]
    pub farm: Option<Name>,
    /// CPUs, such as 2 or 0.5
    #[arg(long, value_name = "CPUS", default_value = "1", value_parser = parse_cpus)]
    pub cpu: u32,
    /// Memory, such as 4G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_bytes)]
    pub memory: u64,
    /// SSD for volumes
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub ssd: u64,
    /// Rotating disk for volumes
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub hdd: u64,
    /// A TCP port that must be free; may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_seconds)]
    pub duration: u64,
    /// At most this for the whole --duration: with the default of 1h, grains per hour
    #[arg(long, value_name = "GRAINS", value_parser = parse_grains)]
    pub max_price: Option<Grains>,
    /// This class or a better one
    #[arg(long, value_enum)]
    pub trust: Option<TrustFlag>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft cost web.toml
  croft cost web.toml --json

Asks nobody and pays nothing: prices of the farms' lists on the ledger for what the file needs. Farms may sell for less.
JSON: {name, duration_s, resources, balance, cheapest?, median?, dearest?, 
       matches: [{node, node_id, farm, country, trust, uptime_permille?, rate, price, free, contracts, addresses}],
       excluded: [{node, node_id, farm, country, trust, uptime_permille?, reasons: [text]}]}
      rate is grains per second, all other prices are grains for the whole duration of the file")]
pub struct CostFlags {
    /// The deploy file
    #[arg(value_name = "FILE", default_value = "croft.toml")]
    pub file: PathBuf,
}

fn parse_window(text: &str) -> Result<u64, String> {
    match parse_seconds(text)? {
        window @ 1..=60 => Ok(window),
        _ => Err("offers are collected for 1s to 60s".to_owned()),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).map_err(|e| e.to_string())
}

/// The same, or nothing.
fn parse_size(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text) }
}

fn parse_cpus(text: &str) -> Result<u32, String> {
    units::parse_cpu_millis(text).map_err(|e| e.to_string())
}
