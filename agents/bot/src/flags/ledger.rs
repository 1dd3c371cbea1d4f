//! `croft ledger` as people type it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use croft_protocol::{Grains, Name, units};

use super::{parse_grains, parse_seconds};

#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// The latest version of a record, proved
    #[command(after_help = "\
Example:
  croft ledger get farm attic
  croft ledger get node attic/node-1 --json
  croft ledger get contract web --bot alice
  croft ledger get validators:0000000000000000000000000000000000000000000000000000000000000000

JSON: {kind, name?, id, proved: true, tip_height, tip_time_ms, version, height, time_ms, author, author_name?,
       prev, hash, body}
The record was proved to be the latest of its kind and id as of block tip_height.")]
    Get(ThingFlags),
    /// Records in the order in which they were made, each proved
    #[command(after_help = "\
Example:
  croft ledger log                       # the last 20
  croft ledger log --from 0 --count 100
  croft ledger log --follow

JSON, one object per line: {position, height, time_ms, kind, id, version, author, prev, hash, what, body}
Each record was proved to be in the log at its position.")]
    Log(LogFlags),
    /// Every version of a record, verified
    #[command(after_help = "\
Example:
  croft ledger history contract web --bot alice
  croft ledger history report attic/node-1

JSON: {kind, name, id, verified: true, tip_height, versions: [{version, height, time_ms, author, author_name?,
       prev, hash, what, body}]}
Each version was proved to be in the log and to name the one before it, and the last to be the latest.")]
    History(ThingFlags),
    /// Search for nodes, farms or contracts
    #[command(subcommand)]
    Query(QueryCommand),
    /// Check a whole ledger that is on this machine, from its first block to its last
    #[command(after_help = "\
Example:
  croft ledger verify ./replica-2/replica.toml
  croft ledger verify /backup/ledger      # a folder with replica.toml or ledger.redb

Nobody is asked and nothing is changed; the replica must not be running. Checked are each header and its
certificate by the validators in force, the log root after each block and the state root made anew from
records and values, each record's place in its chain of versions, that no grain came or went, that no
capacity was sold twice, and that what the file keeps to search and prove agrees with all that.
Ends with 1 and the first thing that is wrong.

JSON: {whole: true, grid, chain, pinned, first, height, records, values, handovers, contracts, supply, file}
      'pinned' says what the chain was compared with: \"genesis\", \"pin\", or null for nothing;
      'first' is above 0 in a ledger that began with a snapshot")]
    Verify {
        /// replica.toml, or a folder with it or with ledger.redb
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct ThingFlags {
    /// bot NAME, farm NAME, node FARM/NAME, report FARM/NODE, contract NAME (of the acting bot), or KIND:ID
    #[arg(value_name = "THING", num_args = 1..=2, required = true)]
    pub thing: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LogFlags {
    /// Position of the first record [default: so that the last ones are shown]
    #[arg(long, value_name = "POSITION")]
    pub from: Option<u64>,
    /// How many; with --follow of those that are there already
    #[arg(long, short = 'n', value_name = "RECORDS", default_value_t = 20)]
    pub count: u64,
    /// Go on as new ones come
    #[arg(long, short)]
    pub follow: bool,
}

#[derive(Debug, Subcommand)]
pub enum QueryCommand {
    /// Nodes by place, price, free capacity, trust, farm and owner
    #[command(after_help = "\
Example:
  croft ledger query nodes --country be --cpu 2 --memory 4G --max-price 500000 --proved
  croft ledger query nodes --owner bob --trust sealed

A price is in grains for one hour of the asked capacity, by the farm's price list as it is now.
JSON: {proved, tip_height?, more, nodes: [{node, id, farm, owner, country, region, trust, release,
       troubles: [{kind, subject, reason, remedy}], total, free?, per_hour, version, height, hash}]}
With --proved every record and what is free was proved, and each condition checked against it; without, it is
what the replica says. Nothing proves that none was left out. 'more' says that --limit cut the answer off.")]
    Nodes(NodeQueryFlags),
    /// Farms by owner and place
    #[command(after_help = "\
Example:
  croft ledger query farms --country be --region flanders

JSON: {proved, tip_height?, more, farms: [{farm, id, owner, country, region, prices, version, height, hash}]}")]
    Farms(FarmQueryFlags),
    /// Contracts by parties, node, state and expiry
    #[command(after_help = "\
Example:
  croft ledger query contracts --node attic/node-1 --state active,degraded
  croft ledger query contracts --user alice --expires-within 24h --proved

JSON: {proved, tip_height?, more, contracts: [{name, contract, state, user, farmer, node, resources, rate,
       agreed_ms, expires_ms, ended_ms, version, height, hash}]}")]
    Contracts(ContractQueryFlags),
}

#[derive(Debug, Args)]
pub struct PageFlags {
    /// Have each found record proved
    #[arg(long)]
    pub proved: bool,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

#[derive(Debug, Args)]
pub struct NodeQueryFlags {
    /// Of this farm
    #[arg(long, value_name = "NAME")]
    pub farm: Option<Name>,
    /// In farms of this bot
    #[arg(long, value_name = "BOT")]
    pub owner: Option<Name>,
    /// Two letters of ISO 3166-1, such as be
    #[arg(long, value_name = "CODE")]
    pub country: Option<String>,
    /// As the farms' owners call it
    #[arg(long, value_name = "NAME", requires = "country")]
    pub region: Option<Name>,
    /// So many CPUs are free, such as 0.5
    #[arg(long, value_name = "CPUS", value_parser = parse_cpus)]
    pub cpu: Option<u32>,
    /// So much memory is free
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// So much SSD is free
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub ssd: Option<u64>,
    /// So much rotating disk is free
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub hdd: Option<u64>,
    /// So many public addresses are free
    #[arg(long, value_name = "NUMBER")]
    pub public_addresses: Option<u32>,
    /// At most so many grains for an hour of the asked capacity
    #[arg(long, value_name = "GRAINS", value_parser = parse_grains)]
    pub max_price: Option<Grains>,
    /// This class or a better one
    #[arg(long, value_enum)]
    pub trust: Option<TrustFlag>,
    #[command(flatten)]
    pub page: PageFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrustFlag {
    Plain,
    Sealed,
    Attested,
}

#[derive(Debug, Args)]
pub struct FarmQueryFlags {
    /// Of this bot
    #[arg(long, value_name = "BOT")]
    pub owner: Option<Name>,
    /// Two letters of ISO 3166-1, such as be
    #[arg(long, value_name = "CODE")]
    pub country: Option<String>,
    /// As the farms' owners call it
    #[arg(long, value_name = "NAME", requires = "country")]
    pub region: Option<Name>,
    #[command(flatten)]
    pub page: PageFlags,
}

#[derive(Debug, Args)]
pub struct ContractQueryFlags {
    /// Of this user
    #[arg(long, value_name = "BOT")]
    pub user: Option<Name>,
    /// Of this farmer
    #[arg(long, value_name = "BOT")]
    pub farmer: Option<Name>,
    /// On this node
    #[arg(long, value_name = "FARM/NODE")]
    pub node: Option<String>,
    /// In one of these states
    #[arg(long, value_enum, value_delimiter = ',', default_value = "live")]
    pub state: Vec<StateFlag>,
    /// Whose time is over within this time, or is over already
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub expires_within: Option<u64>,
    #[command(flatten)]
    pub page: PageFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateFlag {
    /// All that have not ended
    Live,
    All,
    Agreed,
    Approved,
    Active,
    Degraded,
    Ended,
    /// Out of funds
    Paused,
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).map_err(|e| e.to_string())
}

fn parse_cpus(text: &str) -> Result<u32, String> {
    units::parse_cpu_millis(text).map_err(|e| e.to_string())
}
