//! The command line as people type it. [`crate::plan`] turns it into one validated value before anything is
//! touched; nothing here looks at files, the network or the clock.

mod bot;
mod farm;
mod ledger;
mod life;
mod market;
mod recipe;
mod release;
mod skill;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use croft_protocol::{Endorsement, Grains, Name, PublicKey, units};

pub use bot::{
    BotCommand, BotFindFlags, BotUpdateFlags, FaucetFlags, MessageCommand, RoleFlag, WalletCommand,
};
pub use ledger::{
    ContractQueryFlags, FarmQueryFlags, LedgerCommand, LogFlags, NodeQueryFlags, PageFlags, QueryCommand,
    StateFlag, ThingFlags, TrustFlag,
};
pub use market::{CostFlags, DeployFlags, FindFlags};

pub use life::{ApprovalsFlags, ApproveFlags, FundFlags, KeepFlags, SettleFlags};
pub use recipe::{RecipeCommand, RecipeDeployFlags, RecipeRef};
pub use release::{
    PolicyFlags, PrepareFlags, PublishFlags, ReleaseCommand, ReleaseKeysCommand, ReleaseTarget,
};
pub use skill::SkillCommand;

/// Printed below every help text of the whole program.
const AFTER_HELP: &str = "\
Environment:
  CROFT_HOME   the home directory, as --home
  CROFT_GRID   the grid, as --grid
  CROFT_BOT    the acting bot, as --bot
  CROFT_PASSPHRASE_FILE  as --passphrase-file
  RUST_LOG     what to log to stderr, such as debug

Exit codes:
  0  done
  1  failed
  2  the command line or a file that you wrote is wrong
  3  the ledger, a farmer or a node refused
  4  what you named does not exist, or no node fits
  5  a replica, a node or a farmer's bot can't be reached

With --json the result is one JSON document on stdout ('logs', 'keep', 'farm serve', 'grid up', following: one object per
line), and an error is one object {\"error\": {\"exit\", \"message\", \"remedy\"?}} on stderr. Times are
milliseconds since 1970 UTC in fields that end with _ms; amounts are whole grains; ids and hashes are hex.

Example, from nothing to a web server:
  croft grid init demo && croft grid up &
  croft bot new bob --grains 1000000 && croft farm new attic --country be --bot bob
  croft farm serve --bot bob &          # and boot a machine with the boot.toml that 'farm new' wrote
  croft bot new alice --grains 1000000
  croft image build ./nginx-oci:latest --name nginx
  croft deploy web.toml --bot alice";

/// Compute and storage of a grid, from anyone who has some to anyone who needs some.
#[derive(Debug, Parser)]
#[command(name = "croft", version, after_long_help = AFTER_HELP, after_help = "See 'croft --help' for exit codes and an example.", max_term_width = 110)]
pub struct Flags {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Common {
    /// Where keys, grids and images are [default: $CROFT_HOME, else ~/.croft]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// The grid [default: $CROFT_GRID, else the home's default]
    #[arg(long, global = true, value_name = "NAME")]
    pub grid: Option<Name>,
    /// The bot that acts [default: $CROFT_BOT, else the home's default]
    #[arg(long, global = true, value_name = "NAME")]
    pub bot: Option<Name>,
    /// File with the passphrase of a locked key, for bots that nobody sits at [default: $CROFT_PASSPHRASE_FILE, else
    /// it is asked for]
    #[arg(long, global = true, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress on stderr
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, run and look at a grid
    #[command(subcommand)]
    Grid(GridCommand),
    /// Bots: identities with a wallet
    #[command(subcommand)]
    Bot(BotCommand),
    /// Grains: what there is, what is held, sending some
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// Messages between bots, which nobody else can read
    #[command(subcommand)]
    Message(MessageCommand),
    /// Farms and their machines
    #[command(subcommand)]
    Farm(FarmCommand),
    /// Images that microVMs start from
    #[command(subcommand)]
    Image(ImageCommand),
    /// What machines boot from: signing, sticks
    #[command(subcommand)]
    Media(MediaCommand),
    /// Versions of the image: signing, publishing, halting them
    #[command(subcommand)]
    Release(ReleaseCommand),
    /// Whole architectures that experts wrote down, with parameters
    #[command(subcommand)]
    Recipe(RecipeCommand),
    /// Run a workload: find a node, agree with its farmer, pay, wait until it runs
    Deploy(DeployFlags),
    /// Contracts of the bot
    Ps(PsFlags),
    /// Output of a microVM
    Logs(LogsFlags),
    /// Where a contract stands, why, and what to do
    Explain(ContractFlags),
    /// End a contract; what was not used is refunded
    Stop(StopFlags),
    /// Records of the ledger: one, all, searched for, checked
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Every version of a record, verified: short for 'ledger history'
    History(HistoryFlags),
    /// Nodes with room, their prices, and why the others don't fit
    Find(FindFlags),
    /// What a deploy file would cost, before anything is paid
    Cost(CostFlags),
    /// Approve or refuse a contract that names this bot as an approver
    Approve(ApproveFlags),
    /// Contracts that wait for this bot's approval
    Approvals(ApprovalsFlags),
    /// Pay more into a contract
    Fund(FundFlags),
    /// Do what time has made due for a contract: anyone may
    Settle(SettleFlags),
    /// Keep so many replicas running, whoever fails: a standing order
    Keep(KeepFlags),
    /// Code that a bot is extended with
    #[command(subcommand)]
    Skill(SkillCommand),
}

#[derive(Debug, Subcommand)]
pub enum GridCommand {
    /// Make a new grid: genesis, validator key, treasury and pin
    #[command(after_help = "\
Example:
  croft grid init demo --listen 127.0.0.1:4600 --treasury 1000000000000
  croft grid init four --replicas 4         # ports 4600 to 4603
  croft grid init lab --tpm activated --boot-file croft.efi

JSON: {grid, chain, validators, replicas: [{address, key}], dir, treasury: {bot, id, grains}}")]
    Init(GridInitFlags),
    /// Run this grid's replicas until they are interrupted
    #[command(after_help = "\
Example:
  croft grid up            # prints 'ready: grid demo …' on stdout once it answers
  croft grid up --replica 2

JSON: one line {ready: true, grid, chain, replica, listen} for each replica")]
    Up(GridUpFlags),
    /// Height, validators and age of the newest block, verified
    #[command(after_help = "\
Example:
  croft grid status --json

JSON: {grid, chain, height, header, time_ms, age_ms, records, validators: [{key, power}], replicas:
       [{address, key, trouble} or {address, key, height, lag, validator, deciding, not_signing, trouble,
       waiting, connections, blob_bytes, kept: {headers, commands,
       proofs, stale_rows}, problem?, evidence, peers: [{key, address, connected, height}]}]}")]
    Status,
    /// Trust a grid that somebody else runs
    #[command(after_help = "\
Example:
  croft grid join demo-pin.toml      # the pin.toml of a home that has the grid, or of its owner

JSON: {grid, chain, validators, replicas}")]
    Join {
        /// A pin: name, chain, validators and replicas as TOML
        #[arg(value_name = "FILE")]
        pin: PathBuf,
    },
    /// Who orders the ledger, and replacing them
    #[command(subcommand)]
    Validators(ValidatorsCommand),
}

#[derive(Debug, Subcommand)]
pub enum ValidatorsCommand {
    /// The present validators, verified
    #[command(after_help = "\
Example:
  croft grid validators show

JSON: {grid, record, version, height, validators: [{key, power}]}")]
    Show,
    /// Write a change of the validators for their owners to sign
    #[command(after_help = "\
Example:
  croft grid validators propose --set 5f0c…e1 --set 77ab…04 --remove 09d2…3c --out change.json

Of the present power at least two thirds must stay where it is: replace few at a time.
JSON: {grid, file, supersedes, adds: [{key, power}], removes: [{key, power}], changes: [{key, power}], signed,
       signed_power, total_power, enough}")]
    Propose {
        /// A validator, new or with another power [default power: 1]; may be repeated
        #[arg(long, value_name = "KEY[=POWER]", value_parser = parse_power)]
        set: Vec<NewPower>,
        /// A validator that is to go; may be repeated
        #[arg(long, value_name = "KEY")]
        remove: Vec<PublicKey>,
        /// Where to write it
        #[arg(long, value_name = "FILE", default_value = "validators.json")]
        out: PathBuf,
    },
    /// Sign a change with the key of a present validator
    #[command(after_help = "\
Example:
  croft grid validators sign change.json --key ledger/validator.key

Shows what it signs, and refuses what the ledger would. Owners pass the file on, or each sign a copy of it.
JSON: {grid, file, supersedes, adds: [{key, power}], removes: [{key, power}], changes: [{key, power}], signed,
       signed_power, total_power, enough}")]
    Sign {
        /// The change, as 'propose' wrote it; the signature is added to it
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The validator's key [default: that of the replica that was made in this home]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Bring a change that more than two thirds of the power signed to the ledger
    #[command(after_help = "\
Example:
  croft grid validators submit change.json
  croft grid validators submit copy-of-ann.json copy-of-ben.json copy-of-cas.json

Anybody may. The new validators certify from the next block on.
JSON: {grid, record, version, height, validators: [{key, power}]}")]
    Submit {
        /// The signed change, or several copies of it with different signatures
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

/// A validator with its new power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewPower {
    pub key: PublicKey,
    pub power: u64,
}

fn parse_power(text: &str) -> Result<NewPower, String> {
    let (key, power) = text.split_once('=').unwrap_or((text, "1"));
    let key = key.parse().map_err(|e: croft_protocol::hash::ParseHexError| e.to_string())?;
    let power = power.parse().ok().filter(|power| (1..=1_000_000).contains(power));
    let power = power.ok_or("write KEY or KEY=POWER with a power of 1 to 1000000".to_owned())?;
    Ok(NewPower { key, power })
}

#[derive(Debug, Args)]
pub struct GridInitFlags {
    /// What it is called
    pub name: Name,
    /// Where the ledger is kept [default: in the home]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// UDP address of its first replica; the others have the ports after it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4600")]
    pub listen: SocketAddr,
    /// How many replicas keep the ledger: 1 orders alone; with 4, one may fail or lie, with 7 two
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub replicas: u8,
    /// All grains there will ever be; they belong to the treasury bot
    #[arg(long, value_name = "GRAINS", default_value = "1000000000000", value_parser = parse_grains)]
    pub treasury: Grains,
    /// Name of the treasury bot
    #[arg(long, value_name = "NAME", default_value = "treasury")]
    pub treasury_bot: Name,
    /// How well a node's TPM must be known for more than trust 'plain'; 'unchecked' is for test grids, where a program
    /// may play the TPM
    #[arg(long, value_name = "HOW", value_enum, default_value_t = TpmFlag::Certified)]
    pub tpm: TpmFlag,
    /// A boot file that makes a node 'attested', or its Authenticode SHA-256; may be given several times
    #[arg(long = "boot-file", value_name = "FILE|DIGEST")]
    pub boot_files: Vec<String>,
    /// How old a node's quote may get until its trust is called stale: an hour to 90 days
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = parse_seconds)]
    pub stale_after: u64,
    #[command(flatten)]
    pub faucet: FaucetFlags,
}

/// As [`croft_protocol::Endorsement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TpmFlag {
    /// Any quote counts
    Unchecked,
    /// Validators vouch that the attestation key lives beside an endorsement key
    Activated,
    /// And that key has a certificate of a TPM's maker
    Certified,
}

impl From<TpmFlag> for Endorsement {
    fn from(flag: TpmFlag) -> Self {
        match flag {
            TpmFlag::Unchecked => Self::Unchecked,
            TpmFlag::Activated => Self::Activated,
            TpmFlag::Certified => Self::Certified,
        }
    }
}

#[derive(Debug, Args)]
pub struct GridUpFlags {
    /// Where the ledger is kept, if 'grid init' was told so
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Another UDP address than at 'grid init', of a grid of one replica
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Run only this one of several replicas, counted from 1 [default: all of them]
    #[arg(long, value_name = "N")]
    pub replica: Option<u8>,
}

#[derive(Debug, Subcommand)]
pub enum FarmCommand {
    /// Open a farm and write what its machines need to boot
    #[command(after_help = "\
Example:
  croft farm new attic --country be --bot bob
  croft farm new attic --country be --bot bob --replica-address 10.0.2.2:4600 \\
      --public-address 127.0.0.1 --boot-config boot.toml      # for a machine in QEMU

The boot configuration holds a permission to join: whoever has it can add machines to the farm until it
expires. For a farm that exists, only a new boot configuration is written.
JSON: {farm, id, owner, country, region, prices, created, boot_config, join_expires_ms}")]
    New(FarmNewFlags),
    /// Make what the farm's machines boot from: a USB image, an ISO or a netboot folder
    #[command(after_help = "\
Example:
  croft farm image --farm attic --boot-file croft.efi --out usb.img
  croft farm image --farm attic --boot-file croft.efi --medium netboot --out /srv/boot

The boot file is the same for every farm ('cargo xtask image --boot-file' makes one). What is the
farm's own comes from its boot configuration, is signed by its owner, and lies beside the boot
file: grid, farm, permission to join, addresses. Equal input gives equal bytes.
JSON: {farm, medium, out, boot_file_sha256, signed, addition_bytes, bytes}")]
    Image(FarmImageFlags),
    /// The machines of a farm
    #[command(after_help = farm::NODES_HELP)]
    Nodes {
        /// Which farm [default: all of the acting bot]
        name: Option<Name>,
        /// Every farm of the grid
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// What a machine's trust stands on, weighed here instead of believed
    #[command(after_help = farm::VERIFY_HELP)]
    Verify {
        /// Which, as FARM/NODE
        node: String,
    },
    /// Which releases the farm's machines take, and when
    #[command(after_help = release::POLICY_HELP)]
    Policy(PolicyFlags),
    /// Negotiate with users by the farm's policy, until interrupted
    #[command(after_long_help = skill::SERVE_HELP, after_help = "See 'croft farm serve --help' for the format of the policy file.")]
    Serve {
        /// Which farms [default: all of the acting bot]
        names: Vec<Name>,
        /// Prices, terms, customers and when a person is asked; its format is at the end of the long help
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// A skill that names prices, within the policy's bounds
        #[arg(long, value_name = "NAME")]
        skill: Option<Name>,
    },
    /// Empty a node by agreement, and take nothing new on it
    #[command(after_help = farm::DRAIN_HELP)]
    Drain(farm::DrainFlags),
}

#[derive(Debug, Args)]
pub struct FarmNewFlags {
    /// What it is called
    pub name: Name,
    /// Where it is: two letters of ISO 3166-1, such as be
    #[arg(long, value_name = "CODE")]
    pub country: String,
    /// Where in the country, as you call it: lower-case letters, digits and '-', such as flanders
    #[arg(long, value_name = "NAME")]
    pub region: Option<Name>,
    /// Grains per second for one CPU
    #[arg(long, value_name = "GRAINS", default_value_t = 100)]
    pub price_cpu: u64,
    /// Grains per second for one GiB of memory
    #[arg(long, value_name = "GRAINS", default_value_t = 50)]
    pub price_memory: u64,
    /// Grains per second for one GiB of SSD
    #[arg(long, value_name = "GRAINS", default_value_t = 1)]
    pub price_ssd: u64,
    /// Grains per second for one GiB of rotating disk
    #[arg(long, value_name = "GRAINS", default_value_t = 1)]
    pub price_hdd: u64,
    /// Where to write the boot configuration [default: farms/NAME/boot.toml in the home]
    #[arg(long, value_name = "FILE")]
    pub boot_config: Option<PathBuf>,
    /// A replica's address as the machine must reach it; one for each replica of the grid, in their order
    #[arg(long, value_name = "ADDRESS")]
    pub replica_address: Vec<SocketAddr>,
    /// How others reach ports that the machine publishes [default: the addresses of its uplink]
    #[arg(long, value_name = "HOST")]
    pub public_address: Vec<String>,
    /// What the machine is called [default: made from its key]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<Name>,
    /// How long machines may join with it
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse_seconds)]
    pub valid: u64,
}

/// What a boot file comes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// An image for a USB stick or any disk, with room for upgrades
    Usb,
    /// A disc image, that boots from a stick as well
    Iso,
    /// A folder for HTTP and TFTP servers
    Netboot,
}

impl Medium {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Usb => "USB image",
            Self::Iso => "ISO image",
            Self::Netboot => "netboot folder",
        }
    }
}

#[derive(Debug, Args)]
pub struct FarmImageFlags {
    /// Which farm; the acting bot must be its owner
    #[arg(long, value_name = "NAME")]
    pub farm: Name,
    /// The boot file: kernel, initramfs and command line in one
    #[arg(long, value_name = "FILE")]
    pub boot_file: PathBuf,
    /// What to make
    #[arg(long, value_enum, default_value = "usb")]
    pub medium: Medium,
    /// Where it goes: a file, or for netboot a folder
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// The farm's boot configuration [default: farms/NAME/boot.toml in the home]
    #[arg(long, value_name = "FILE")]
    pub boot_config: Option<PathBuf>,
    /// Sign the boot file first, with db of this folder of keys
    #[arg(long, value_name = "FOLDER")]
    pub keys: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct MediaServeFlags {
    /// What 'croft farm image --medium netboot' made
    #[arg(long, value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Where the rack is [default: the only one with an address]
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// TCP port for HTTP
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub http_port: u16,
    /// Everything by TFTP, also for iPXE
    #[arg(long)]
    pub no_http: bool,
}

#[derive(Debug, Subcommand)]
pub enum MediaCommand {
    /// Disks of this machine, and whether an image may be written to them
    #[command(after_help = "\
Example:
  croft media disks

JSON: {disks: [{device, model, size_bytes, removable, usb, refused}]}")]
    Disks,
    /// Write an image to a stick and read it back
    #[command(after_help = "\
Example:
  croft media flash usb.img /dev/sdb

Shows model and size and asks for the name once more. Refuses disks that are mounted, in use,
too small, or carry the running system; needs the rights of root.
JSON: {device, bytes, read_directly}")]
    Flash {
        /// What 'croft farm image' made
        #[arg(value_name = "IMAGE")]
        image: PathBuf,
        /// The whole disk, such as /dev/sdb
        #[arg(value_name = "DEVICE")]
        device: PathBuf,
        /// Don't ask: this disk's content may be lost
        #[arg(long, value_name = "DEVICE")]
        yes_erase: Option<String>,
    },
    /// Make keys for Secure Boot: PK, KEK and db, and the files that enrol them
    #[command(after_help = "\
Example:
  croft media keys ./secure-boot

Existing keys are never overwritten. PK and KEK belong offline; db signs releases.
JSON: {folder, enrolment}")]
    Keys {
        /// A new folder
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Boot a rack over the network from a folder
    #[command(after_help = "\
Example:
  croft farm image --farm attic --boot-file croft.efi --medium netboot --out ./netboot
  sudo croft media serve --folder ./netboot --interface eth1

Adds the boot file to what the rack's DHCP server answers, for machines that boot by PXE, iPXE or UEFI
HTTP, and serves the folder by TFTP and HTTP. Never hands out addresses. Ends on a signal.
JSON, one object per line: {time_ms, event, machine, by, file, bytes, reason}")]
    Serve(MediaServeFlags),
    /// Sign a boot file for Secure Boot
    #[command(after_help = "\
Example:
  croft media sign croft.efi --keys ./secure-boot --out croft.signed.efi

JSON: {out, sha256, signer}")]
    Sign {
        /// The boot file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where the key db is
        #[arg(long, value_name = "FOLDER")]
        keys: PathBuf,
        /// Where the signed file goes
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make a workload image from an OCI image
    #[command(after_help = "\
Example:
  skopeo copy docker://docker.io/library/nginx:stable oci:nginx-oci:stable
  croft image build nginx-oci:stable --name nginx

Needs mkfs.erofs (package erofs-utils); without root also fakeroot, to keep owners and modes.
The same OCI image gives the same manifest.
JSON: {name, manifest, source, tag, size_bytes, stored_bytes, content_bytes, files, chunks,
       verity: {data_blocks, root, salt}, config: {entrypoint, cmd, env, user, working_dir, stop_signal,
       exposed_ports}, notes, tool}")]
    Build(ImageBuildFlags),
    /// Images of this home
    #[command(after_help = "\
Example:
  croft image list

JSON: {images: [{name, manifest, source, layout, tag, size_bytes, stored_bytes, files, built_ms, tool}]}")]
    List,
}

#[derive(Debug, Args)]
pub struct ImageBuildFlags {
    /// An OCI image layout: DIR or DIR:TAG
    #[arg(value_name = "OCI_LAYOUT[:TAG]")]
    pub layout: String,
    /// What deploy files call it
    #[arg(long)]
    pub name: Name,
    /// Where to unpack; needs about twice the image's size [default: tmp in the home]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft ps --all

JSON: {contracts: [{name, contract, state, reason?, node, node_id, farm, online, trust?, ports: [{published,
       transport, urls}], agreed_ms, starts_ms, expires_ms, ended_ms, rate, price, paid, held, refunded,
       covered_ms, height, deposit, funded_until_ms?, missing?, paused_until_ms?, quorum?: {threshold, approved,
       approvers: [{bot, weight, required, decision}]}}]}
'online' is what the replica says; everything else is proved.")]
pub struct PsFlags {
    /// Ended ones too
    #[arg(long, short)]
    pub all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft logs web --follow
  croft logs shop/db --tail 20

JSON, one object per line: {time_ms, stderr, text}")]
pub struct LogsFlags {
    /// The contract, and the microVM if it has several
    #[arg(value_name = "NAME[/VM]")]
    pub target: String,
    /// Go on as it comes
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 200)]
    pub tail: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft explain web

JSON: {name, contract, state, reason?, states: [{state, version, height, time_ms, hash}], escrow, rate, price,
       node: {node, id, farm, online, trust?, trust_reasons, troubles: [{kind, subject, reason, remedy}], addresses}, report: {state, detail, height, time_ms, ran_ms}?,
       explanation: {state, steps, vms}?, explanation_error?, quorum?, funded_until_ms?, missing?, advice: [text]}")]
pub struct ContractFlags {
    /// The contract; an ended one too
    pub name: Name,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft stop web

What its node ran since its last report stays held until the node's final report, for 15 minutes at most.
JSON: {name, contract, state, reason, height, price, paid, held, refunded, balance, data_kept_until_ms,
       final_report_until_ms?}")]
pub struct StopFlags {
    /// The contract
    pub name: Name,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  croft history web
  croft history alice --kind bot

JSON: {kind, name, id, verified: true, tip_height, versions: [{version, height, time_ms, author, author_name?,
       prev, hash, what, body}]}
Each version was proved to be in the log and to name the one before it, and the last to be the latest.")]
pub struct HistoryFlags {
    /// What it is called; contracts are the acting bot's, nodes are FARM/NODE
    pub name: String,
    /// What it is
    #[arg(long, value_enum, default_value_t = HistoryKind::Contract)]
    pub kind: HistoryKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HistoryKind {
    Contract,
    Bot,
    Farm,
    Node,
    /// What a node reported
    Report,
}

impl Flags {
    /// Parses a command line; clap's own error says what is wrong, or is the help text.
    pub fn parse_line(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        use clap::{CommandFactory as _, FromArgMatches as _};
        let with = |format: &'static str| {
            move |command: clap::Command| {
                let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
                command.after_long_help(text + format)
            }
        };
        let mut command = Self::command()
            .mut_subcommand("deploy", with(crate::deploy_file::FORMAT))
            .mut_subcommand("keep", with(crate::keep_file::FORMAT))
            .mut_subcommand("farm", |farm| farm.mut_subcommand("serve", with(croft_market::policy::FORMAT)));
        Self::from_arg_matches(&command.try_get_matches_from_mut(args)?).map_err(|e| e.format(&mut command))
    }
}

fn parse_grains(text: &str) -> Result<Grains, String> {
    // As we print them: groups of three digits.
    let digits: String = text.chars().filter(|c| *c != ' ' && *c != '_').collect();
    digits
        .parse()
        .map(Grains)
        .map_err(|_| "not a number of grains: write a whole number, such as 1000000".to_owned())
}

fn parse_seconds(text: &str) -> Result<u64, String> {
    units::parse_seconds(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Flags, clap::Error> {
        Flags::parse_line(std::iter::once("croft").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_documents_its_json() {
        fn visit(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(visit);
                return;
            }
            let help = [command.get_after_help(), command.get_after_long_help()]
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect::<String>();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
            assert!(help.contains("JSON"), "{} does not document its JSON", command.get_name());
        }
        visit(&Flags::command());
    }

    #[test]
    fn the_deploy_files_format_is_in_its_help() {
        let help = parse("deploy --help").unwrap_err().to_string();
        assert!(help.contains("[vm.web]") && help.contains("--dry-run"), "{help}");
    }

    #[test]
    fn exit_codes_are_in_the_help() {
        let help = parse("--help").unwrap_err().to_string();
        for code in ["0  done", "2  the command line", "3  the ledger", "4  what you named", "5  a replica"] {
            assert!(help.contains(code), "{help}");
        }
    }

    #[test]
    fn a_bad_name_or_amount_is_a_usage_error_that_says_how_to_write_it() {
        let error = parse("bot new Alice").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("'Alice' is not a name: use 1 to 32 of a-z"), "{error}");
        let error = parse("wallet send bob lots").unwrap_err();
        assert!(error.to_string().contains("write a whole number, such as 1000000"), "{error}");
    }

    #[test]
    fn grains_may_be_written_as_they_are_printed() {
        assert_eq!(parse_grains("1_250_000"), Ok(Grains(1_250_000)));
        assert_eq!(parse_grains("1 250 000"), Ok(Grains(1_250_000)));
        assert!(parse_grains("-1").is_err());
    }
}
