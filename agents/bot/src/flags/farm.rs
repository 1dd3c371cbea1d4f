//! `croft farm drain` and `croft farm verify` as people type them, and what `croft farm nodes` prints.

use clap::Args;

use super::parse_seconds;

pub const NODES_HELP: &str = "\
Example:
  croft farm nodes attic

What is wrong with a machine stands below the table, with what to do, as on its own screen.
JSON: {nodes: [{node, id, farm, country, region, online, draining?, trust, trust_reasons, quoted_ms?, stale,
       troubles: [{kind, subject, reason, remedy}], boot_file, release, capacity_version, total, used, free, contracts,
       addresses, cpu_model, threads, vendor, product, session, height}],
       refused: [{node, id, farm, reason, time_ms, count}]}
      kind: virtualisation, memory, disk, network, clock, trust, medium, upgrade, other
      subject: which disk or card; empty: the whole machine
refused: machines of your farms whose registration the ledger refused within a day (expired permission, name taken,
      key of another machine): with the reason and what to do, until they are registered; not with --all
'online' and 'refused' are what replicas say; everything else is proved.";

pub const DRAIN_HELP: &str = "\
Example:
  croft farm drain attic/n1 --until 2d --bot bob
  croft farm drain attic/n1 --undo --bot bob

The farm's bot takes nothing new on the node, searches leave it out and say why, and everybody with a contract there
gets a message. Bots that keep standing orders ('croft keep') order a replacement within their limits, and then end
the old contract; what is not used is refunded. A contract whose owner does not answer stays until its term ends.
JSON: {farm, node, id, draining, since_ms?, until_ms?, contracts: [{name, contract, user, told?, problem?}]}
      told: \"directly\" | \"mailbox\"";

pub const VERIFY_HELP: &str = "\
Example:
  croft farm verify attic/n1 && croft deploy web.toml

Reads the node's record, its last quote, the grid's policy, validators and releases with proofs, and the header in the
quote's nonce with its certificate; then weighs the quote by what holds now, without asking what the ledger found.
Ends with 0 when the ledger's class follows from that and is not stale, and with 3 when it does not: a release may
have been halted since, validators replaced, or somebody lies.
JSON: {node, id, farm, holds, class, ledger_class, stale, quote: {height, time_ms, age_s, stale_after_s, taken, key,
       endorsement_key?}?, boot_file?, release: {channel, version}?, secure_boot?, endorsement?,
       checks: [{check, passed: true | false | null, detail}], tip_height}
      check: quote, signature, nonce, header, fresh, statement, replay, boot_file, measurements, options, secure_boot,
             endorsement, key; null: it could not be made, or it decides nothing";

#[derive(Debug, Args)]
pub struct DrainFlags {
    /// Which, as FARM/NODE
    pub node: String,
    /// When you want to work on it, from now
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, conflicts_with = "undo")]
    pub until: Option<u64>,
    /// Take new contracts there again
    #[arg(long)]
    pub undo: bool,
}
