//! The node from its first line to the last: seven stages, then the main loop.
//!
//! ```text
//!   network ─> inventory ─> disks ─> identity ─> ledger ─> register ─> reconcile ─> Running::run
//! ```
//! A stage that fails says why and what to do, and the boot goes on wherever it can: a node whose ledger is out of
//! reach runs what it verified in an earlier boot. Only what makes every later step senseless ends the sequence: no
//! boot configuration, a damaged key, no place for data. Then init restarts the node, and in the end the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croft_hardware::{Health, Inventory, Transport};
use croft_identity::NodeIdentity;
use croft_init::log::{Level, Log, chain};
use croft_init::notify::{KERNEL_FOLDER, Message, Notifier};
use croft_init::stage::Stage;
use croft_network::workload::Pool;
use croft_network::{Network, NetworkStatus, WaitLimits};
use croft_protocol::boot::BootConfig;
use croft_protocol::contract::KeptContract;
use croft_protocol::record::HardwareSummary;
use croft_protocol::{ContractId, Hash, TroubleKind};
use croft_screen::Status;
use croft_storage::data::{self, Attached, Data, Medium, WhyMemory};
use croft_storage::documents::Documents;
use croft_storage::examine::Examined;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::attendant::Attendant;
use crate::capacity::{self, Found};
use crate::images::ImageStore;
use crate::late::Late;
use crate::ledger::{Ledger, chain_of};
use crate::machines::Machines;
use crate::membership::{Membership, MembershipError, Owner};
use crate::networks::Networks;
use crate::peers::{self, Desk};
use crate::register::{self, Profile, Unregistered};
use crate::running::{Entered, Running};
use crate::screen::{self, Board};
use crate::spec::GuestFiles;
use crate::time::Time;
use crate::troubles::{self, Troubles};
use crate::upgrade::{self, Upgrades};
use crate::voice::{self, Heard};
use crate::volumes::Volumes;
use crate::witness::{self, Identified, Places};
use crate::workload::{Context, InUse};
use crate::{addition, contracts, links, medium};

/// Where the image keeps its parts.
const BOOT_FILE: &str = "/etc/croft/boot.toml";
const RELEASE_FILE: &str = "/etc/croft/release";
const GUEST_ELF: &str = "/usr/lib/croft/guest/vmlinux";
const GUEST_BZIMAGE: &str = "/usr/lib/croft/guest/bzImage";
const GUEST_INITRAMFS: &str = "/usr/lib/croft/guest/initramfs";
/// Subnets of contracts: 256 of 254 addresses each.
const POOL: &str = "10.90.0.0/16";
/// How long the boot waits for a ledger before it goes on with what it knows.
const LEDGER_WAIT: Duration = Duration::from_secs(20);
/// The same where contracts of an earlier boot wait to be started: one attempt.
const LEDGER_WAIT_WITH_WORKLOADS: Duration = Duration::from_secs(6);
/// How long a machine that needs a person waits for one, before it restarts and looks whether it still does.
const STUCK: Duration = Duration::from_secs(600);
const REGISTER_WAIT: Duration = Duration::from_secs(30);
/// What guests may send in one packet when nobody knows the uplink's.
const MTU_BYTES: u32 = 1500;

/// Why a node can't go on at all.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("{BOOT_FILE} can't be read: boot with a configuration from 'croft farm new'")]
    NoBootConfig(#[source] std::io::Error),
    #[error(transparent)]
    Addition(#[from] addition::AdditionError),
    #[error(transparent)]
    BootConfig(#[from] croft_protocol::boot::InvalidBootConfig),
    #[error(transparent)]
    Links(#[from] links::LinkError),
    #[error("the network can't be started")]
    Network(#[from] croft_network::StartError),
    #[error(transparent)]
    Data(#[from] data::AttachError),
    #[error("the node's own disk is broken ({verdicts}): repair or replace it; nothing was changed on it")]
    DataDisk { verdicts: String },
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    Key(#[from] croft_identity::KeyError),
    #[error("the stored contracts can't be opened")]
    Documents(#[from] croft_storage::documents::OpenDocumentsError),
    #[error(transparent)]
    Image(#[from] crate::images::ImageError),
    #[error(transparent)]
    Volumes(#[from] crate::volumes::VolumeError),
    #[error("the transport can't be started")]
    Client(#[from] croft_transport::ClientError),
    #[error("the firewall can't be set: nothing may run behind an open door")]
    Firewall(#[from] crate::networks::NetworkError),
}

/// A machine that knows its boot configuration and nothing else.
pub struct Start<'a> {
    pub log: &'a dyn Log,
    pub notifier: Option<Notifier>,
    pub troubles: Troubles,
}

/// A node waits for nobody on the network. Whatever does all the same is a defect, and everyone shall see it.
fn say_what_listens(log: &dyn Log, troubles: &Troubles) {
    match croft_network::listeners(Path::new("/")) {
        Ok(found) if found.is_empty() => log.line(Level::Notice, "croft: listeners: none"),
        Ok(found) => {
            let names: Vec<String> = found.iter().map(ToString::to_string).collect();
            let names = names.join(", ");
            log.line(Level::Error, &format!("croft: listeners: {names}: a node must have none: report this"));
            troubles.set(TroubleKind::Other, vec![troubles::listens(&names)]);
        }
        Err(error) => log.line(Level::Error, &format!("croft: listeners: {}", chain(&error))),
    }
}

impl Start<'_> {
    /// All stages, then the main loop until SIGTERM.
    ///
    /// # Errors
    /// [`Fatal`]; the failing stage has said it already.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let notifier = self.notifier.take().map(Arc::new);
        let alive = Alive { notifier: notifier.clone() };
        alive.beat();
        let (board, orders) = Board::start(Status { version: release(), ..Status::default() });
        let began = Instant::now();
        let Configured { boot, started, medium, owner } = alive.through(boot_config()).await?;
        let time = Arc::new(Time::default());
        board.change(|status| status.farm = boot.farm.name.to_string());

        let network = Arc::new(self.network(&boot, started, &alive, &board).await?);
        let (servers, status) = (boot.clock.ntp.clone(), network.subscribe());
        let keep = links::keep_time(time.clone(), servers, status, self.troubles.clone());
        tokio::spawn(keep);
        let inventory = alive.through(self.inventory()).await;
        let (data, disks) = alive.through(self.disks(&inventory)).await?;
        let ours = data.as_ref().ok().and_then(data_disk);
        if let Ok(data) = &data {
            let found = troubles::disks(data, &disks, &inventory.health, medium.as_deref());
            self.troubles.set(TroubleKind::Disk, found);
        }
        let shown = (disks.as_slice(), &inventory.health);
        let attendant = Attendant::new(network.clone(), &boot, medium, ours, shown, board.clone())?;
        tokio::spawn(attendant.serve(orders));
        let joined = data.and_then(|data| {
            let membership = Membership::open(&data, owner);
            membership.map(|membership| (data, membership)).map_err(Fatal::from)
        });
        let (data, membership) = match joined {
            Ok(joined) => joined,
            Err(error) => return Err(self.stuck(error, &alive).await),
        };
        let upgrades = alive.through(upgrades(&data, notifier, &self.troubles)).await;
        let Identified { identity, witness, .. } = alive.through(self.identity(&data)).await?;
        let name = register::name(&boot, &identity.id());
        board.change(|status| {
            status.name = name.to_string();
            status.id = identity.id().to_string();
            status.fingerprint = identity.id().short();
            status.trust = format!("{:?}", identity.trust()).to_ascii_lowercase();
        });
        let documents = Documents::open(&data.folder("contracts"))?;
        let known = kept_contracts(&documents, &boot, &identity);

        let folder = data.folder("contracts");
        let ledger = Arc::new(Ledger::open(&boot.grid, identity.key().clone(), time.clone(), folder)?);
        let (trouble, trouble_seen) = watch::channel(None);
        tokio::spawn(show_ledger(ledger.clone(), boot.grid.name.to_string(), trouble_seen, board.clone()));
        let in_reach = alive.through(self.ledger(&ledger, &boot, &time, known.len())).await;

        let machines = Machines::open(is_emulated()).await;
        self.troubles.set(TroubleKind::Virtualisation, machines.trouble().cloned().into_iter().collect());
        let (addresses, addresses_seen) = watch::channel(reachable(&boot, &network.status()));
        let profile = Profile {
            name,
            sealing_key: identity.sealing().public(),
            capacity: capacity::sellable(found(&inventory, &data, &machines)),
            hardware: summary(&inventory),
            trust: identity.trust(),
            addresses: addresses_seen.borrow().clone(),
            release: release(),
            troubles: Vec::new(),
        };
        let join = boot.farm.permission()?;
        let farm = join.join.farm;
        let unregistered = Unregistered {
            id: identity.id(),
            join,
            profile,
            ledger: ledger.clone(),
            time: time.clone(),
            witness: witness.map(Arc::new),
        };
        let (heard_sender, mut heard) = mpsc::channel(16);
        let (say, say_receiver) = mpsc::channel(16);
        let changes = (addresses_seen, self.troubles.subscribe());
        tokio::spawn(voice::speak(unregistered, changes, say_receiver, heard_sender.clone()));
        let patience = if in_reach { REGISTER_WAIT } else { Duration::from_secs(1) };
        let registered = alive.through(self.register(&mut heard, patience, &board)).await;

        let late = Late::new(self.log, began.into(), network.subscribe(), in_reach, registered.is_some());
        let stage = Stage::Reconcile.begin(self.log);
        let desk = Desk::default();
        let calls = ledger.verified().listen();
        tokio::spawn(peers::serve(calls, ledger.verified().clone(), identity.key().clone(), desk.clone()));
        let (dns, dns_seen) = watch::channel(network.status().dns());
        tokio::spawn(follow_links(network, boot.clone(), addresses, dns));
        let vmm = machines.vmm();
        let no_workloads = machines.trouble().map(ToString::to_string);
        let pool = Pool::new(POOL.parse().expect("the pool is a network"), 24).expect("the pool can be cut");
        let context = Arc::new(Context {
            node: identity.id(),
            sealing: identity.sealing().clone(),
            ledger: ledger.clone(),
            images: ImageStore::open(&data.folder("cache").join("images"), image_quota(&data))?,
            in_use: InUse::default(),
            volumes: alive.through(Volumes::open(&data)).await?,
            networks: Networks::open(pool)?,
            machines,
            guest: guest_files(vmm),
            log_dir: PathBuf::from("/run/croft/log"),
            desk,
            time: time.clone(),
            dns: dns_seen,
            mtu_bytes: MTU_BYTES,
            news: tokio::sync::Notify::new(),
            board,
            registered: watch::Sender::new(registered.is_some()),
        });
        if let Some(upgrades) = upgrades {
            let trouble = context.machines.trouble().filter(|_| !known.is_empty()).map(ToString::to_string);
            let health = upgrade::Health { registered: context.registered.subscribe(), trouble };
            let (ledger, time) = (ledger.clone(), time.clone());
            tokio::spawn(upgrade::follow(upgrades, ledger, time, (identity.id(), farm), health));
        }
        let _ = std::fs::create_dir_all(&context.log_dir);
        let (known_sender, known_seen) = watch::channel(BTreeSet::new());
        tokio::spawn(voice::hear(ledger, time, identity.id(), known_seen, heard_sender, trouble));
        let running =
            Running::new(context, (documents, membership), known, registered, say, heard, known_sender);
        match no_workloads {
            None => stage.ok(&format!("workloads run on {vmm}")),
            Some(reason) => stage.failed_because(&reason),
        };
        alive.say(&Message::Ready);
        say_what_listens(self.log, &self.troubles);
        self.log
            .line(Level::Notice, &format!("croft: node runs with {}", croft_init::privileges::describe()));
        tracing::info!("{}", crate::memory::idle());
        running.run(&alive, late).await;
        Ok(())
    }

    /// `started` is the network that found the boot configuration; it goes on where nothing else was asked for.
    async fn network(
        &self,
        boot: &BootConfig,
        started: Option<Network>,
        alive: &Alive,
        board: &Board,
    ) -> Result<Network, Fatal> {
        let stage = Stage::Network.begin(self.log);
        let network = match started.filter(|_| boot.links.is_empty()) {
            Some(network) => network,
            None => Network::start(links::config(boot)?).await?,
        };
        tokio::spawn(show_links(network.subscribe(), board.clone(), self.troubles.clone()));
        match alive.through(network.wait_uplink(WaitLimits::default())).await {
            Ok(uplink) => {
                let address = uplink.address().map_or_else(String::new, |a| a.to_string());
                stage.ok(&format!("{} {address}", uplink.name));
            }
            // It goes on trying; a boot never hangs on a cable.
            Err(error) => {
                stage.failed(&error);
            }
        }
        Ok(network)
    }

    async fn inventory(&self) -> Inventory {
        let stage = Stage::Inventory.begin(self.log);
        // Disks that are dying take their time.
        let asked = tokio::task::spawn_blocking(|| {
            let mut inventory = Inventory::read(Path::new("/"));
            inventory.ask_disks(Path::new("/dev"));
            inventory
        });
        let inventory = match asked.await {
            Ok(inventory) => inventory,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        for (disk, health) in &inventory.health {
            match health {
                Health::Failing { .. } => tracing::error!("disk {disk}: {health}"),
                Health::Worn { .. } => tracing::warn!("disk {disk}: {health}"),
                Health::Good | Health::Unknown { .. } => tracing::info!("disk {disk}: {health}"),
            }
        }
        for finding in &inventory.findings {
            tracing::debug!(finding, "inventory");
        }
        let memory = croft_protocol::units::show_bytes(inventory.memory.total_bytes);
        if let Some(trouble) = troubles::memory(&inventory) {
            stage.failed_because(&trouble.to_string());
            self.troubles.set(TroubleKind::Memory, vec![trouble]);
            return inventory;
        }
        stage.ok(&format!(
            "{}, {} threads, {memory} memory, {} disks, {} network cards",
            inventory.cpu.model.as_deref().unwrap_or("unknown CPU"),
            inventory.cpu.threads,
            inventory.disks.len(),
            inventory.nics.len()
        ));
        inventory
    }

    /// What stands in the way only a person can remove: the menu has to work meanwhile, which may be what it takes.
    async fn stuck(&self, error: Fatal, alive: &Alive) -> Fatal {
        let reason = chain(&error);
        self.log.line(Level::Error, &format!("croft: the node can't run: {reason}"));
        alive.through(tokio::time::sleep(STUCK)).await;
        // What a trial can't do, the release before may; a disk may answer again; and one that was wiped is taken.
        alive.say(&Message::Reboot(reason));
        alive.through(tokio::time::sleep(STUCK)).await;
        error
    }

    /// The disks, and the data on one of them, unless that is broken.
    async fn disks(&self, inventory: &Inventory) -> Result<(Result<Data, Fatal>, Vec<Examined>), Fatal> {
        let stage = Stage::Disks.begin(self.log);
        let disks = inventory.disks.clone();
        let options = data::Options::node(inventory.memory.total_bytes);
        // Checking a large disk takes minutes: not on a thread that has to answer.
        let attached = tokio::task::spawn_blocking(move || data::attach(&disks, &options)).await;
        let Attached { data, disks } = match attached {
            Ok(attached) => attached?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        for disk in &disks {
            tracing::info!("disk {disk}");
        }
        match &data.medium {
            Medium::Disk { name, new, .. } => {
                stage
                    .ok(&format!("{name} is the data disk{}", if *new { ", freshly formatted" } else { "" }));
            }
            // Identity and volumes are on it: a new identity must not take over in silence.
            Medium::Memory { why: WhyMemory::OursBroken, .. } => {
                let broken = Fatal::DataDisk { verdicts: verdicts(&disks) };
                stage.failed(&broken);
                return Ok((Err(broken), disks));
            }
            Medium::Memory { .. } => {
                stage.failed_because(&troubles::no_data_disk().to_string());
            }
        }
        Ok((Ok(data), disks))
    }

    async fn identity(&self, data: &Data) -> Result<Identified, Fatal> {
        let stage = Stage::Identity.begin(self.log);
        let folder = data.folder("identity");
        // The slowest TPMs take a minute to make their keys.
        let identified =
            tokio::task::spawn_blocking(move || witness::identify(Places::default(), &folder)).await;
        let identified = match identified {
            Ok(identified) => identified,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        match identified {
            Ok(identified) => {
                let Identified { identity, place, fault, .. } = &identified;
                self.troubles
                    .set(TroubleKind::Trust, fault.as_deref().map(troubles::tpm).into_iter().collect());
                let new = if identity.is_new() { ", a new one" } else { "" };
                stage.ok(&format!("node {}{new}, {place}", identity.id().short()));
                // Whole, for whoever copies it from the serial line.
                tracing::info!("node id {}", identity.id());
                Ok(identified)
            }
            Err(error) => {
                stage.failed(&error);
                Err(error.into())
            }
        }
    }

    /// Verifies chain and validators by a final header; goes on without one after a while, and sooner where there
    /// are workloads to start. Returns whether the ledger is there.
    async fn ledger(&self, ledger: &Ledger, boot: &BootConfig, time: &Time, known: usize) -> bool {
        let stage = Stage::Ledger.begin(self.log);
        let patience = if known > 0 { LEDGER_WAIT_WITH_WORKLOADS } else { LEDGER_WAIT };
        let deadline = Instant::now() + patience;
        loop {
            let reason = match timeout(patience, ledger.tip()).await {
                Ok(Ok((height, _))) => {
                    links::agree_with_tip(time);
                    let by = match ledger.verified().validators() {
                        Some(set) if set.hash() != boot.grid.validators => {
                            "those who the pinned ones handed over to"
                        }
                        _ => "the pinned validators",
                    };
                    stage.ok(&format!(
                        "grid '{}', chain {}, height {height}, certified by {by}",
                        boot.grid.name,
                        boot.grid.chain.0.short()
                    ));
                    return true;
                }
                Ok(Err(error)) => chain_of(&error),
                Err(_) => "no replica answers".to_owned(),
            };
            if Instant::now() >= deadline {
                stage
                    .failed_because(&format!("{reason}; going on with {known} contracts from the data disk"));
                return false;
            }
            stage.waiting(&reason);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn register(
        &self,
        heard: &mut mpsc::Receiver<Heard>,
        patience: Duration,
        board: &Board,
    ) -> Option<Entered> {
        let stage = Stage::Register.begin(self.log);
        let wait = async {
            while let Some(what) = heard.recv().await {
                match what {
                    Heard::Registered { session, height, reported_until_ms, standing } => {
                        return Some((session, height, reported_until_ms, standing));
                    }
                    Heard::NotRegistered { reason } => {
                        board.change(|status| status.registration = screen::not_registered(&reason));
                        stage.waiting(&reason);
                    }
                    _ => {}
                }
            }
            None
        };
        let heard = timeout(patience, wait).await.ok().flatten();
        if let Some((session, height, reported_until_ms, standing)) = heard {
            stage.ok(&format!("session {session} at height {height}, {standing}"));
            board.change(|status| {
                status.registration = screen::registered(session);
                status.trust = standing.to_string();
            });
            return Some(Entered { session, reported_until_ms });
        }
        stage.failed_because("not registered yet: it is tried again while known contracts run");
        None
    }
}

/// Signs of life for init, from whatever the node is at; never from a timer of their own.
pub struct Alive {
    notifier: Option<Arc<Notifier>>,
}

impl Alive {
    /// How often init hears of us.
    pub const EVERY: Duration = Duration::from_secs(3);

    pub fn beat(&self) {
        self.say(&Message::Alive);
    }

    pub fn say(&self, message: &Message) {
        if let Some(notifier) = &self.notifier
            && let Err(error) = notifier.send(message)
        {
            tracing::debug!(%error, "init was not told");
        }
    }

    /// Beats while a stage with limits of its own goes on.
    pub async fn through<T>(&self, stage: impl Future<Output = T>) -> T {
        tokio::pin!(stage);
        let mut beats = tokio::time::interval(Self::EVERY);
        loop {
            tokio::select! {
                result = &mut stage => return result,
                _ = beats.tick() => self.beat(),
            }
        }
    }
}

/// The part of the data disk that is not sold.
fn image_quota(data: &Data) -> u64 {
    let room = croft_storage::capacity::capacity(&data.path).map_or(0, |room| room.total_bytes);
    room / capacity::DISK_OVERHEAD_SHARE
}

fn verdicts(disks: &[Examined]) -> String {
    disks.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn data_disk(data: &Data) -> Option<String> {
    match &data.medium {
        Medium::Disk { name, .. } => Some(name.clone()),
        Medium::Memory { .. } => None,
    }
}

/// To which grid and farm the machine belongs, and who says so.
struct Configured {
    boot: BootConfig,
    /// The network that found it.
    started: Option<Network>,
    /// Name of the medium's disk.
    medium: Option<String>,
    /// Who signed the addition.
    owner: Option<Owner>,
}

/// What the image itself carries; else what the medium beside it, or the server that it would boot from, does.
async fn boot_config() -> Result<Configured, Fatal> {
    match std::fs::read_to_string(BOOT_FILE) {
        Ok(text) => {
            Ok(Configured { boot: BootConfig::parse(&text)?, started: None, medium: None, owner: None })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let found = addition::find(medium::Roots::default()).await?;
            let addition = found.addition.get();
            tracing::info!(place = found.place, farm = %addition.farm, "the farm's addition is valid");
            let owner = Some(Owner { chain: addition.grid.chain, bot: addition.owner });
            let boot = found.addition.boot_config();
            Ok(Configured { boot, started: found.network, medium: found.disk, owner })
        }
        Err(error) => Err(Fatal::NoBootConfig(error)),
    }
}

/// Contracts that an earlier boot verified: checked again, because a disk is not to be trusted more than a replica.
fn kept_contracts(
    documents: &Documents,
    boot: &BootConfig,
    identity: &NodeIdentity,
) -> BTreeMap<ContractId, KeptContract> {
    let mut known = BTreeMap::new();
    let names = documents.list().unwrap_or_default();
    for name in names {
        let Ok(id) = name.parse::<ContractId>() else { continue };
        let body = documents.get(&name).map_err(|error| chain_of(&error)).and_then(|bytes| {
            contracts::check_kept(&boot.grid.chain, &identity.id(), &id, bytes.as_deref())
                .map_err(|error| chain_of(&error))
        });
        match body {
            Ok(kept) => {
                known.insert(id, kept);
            }
            Err(error) => {
                tracing::warn!(contract = %id, error, "a stored contract is ignored until it is pulled again");
            }
        }
    }
    known
}

fn found(inventory: &Inventory, data: &Data, machines: &Machines) -> Found {
    let disk = match &data.medium {
        Medium::Disk { name, .. } => inventory.disks.iter().find(|disk| disk.name == *name),
        Medium::Memory { .. } => None,
    };
    let room = croft_storage::capacity::capacity(&data.path).map_or(0, |room| room.total_bytes);
    Found {
        threads: inventory.cpu.threads,
        virtualisation: machines.trouble().is_none(),
        memory_bytes: inventory.memory.total_bytes,
        data_bytes: if disk.is_some() { room } else { 0 },
        // A virtual disk says nothing about what turns beneath it.
        data_rotational: disk.is_some_and(|disk| disk.rotational && disk.transport != Transport::Virtio),
    }
}

fn summary(inventory: &Inventory) -> HardwareSummary {
    let json = serde_json::to_vec(inventory).unwrap_or_default();
    let short = |text: Option<&String>| text.map(|t| t.chars().take(64).collect()).unwrap_or_default();
    HardwareSummary {
        cpu_model: short(inventory.cpu.model.as_ref()),
        threads: inventory.cpu.threads,
        vendor: short(inventory.machine.vendor.as_ref()),
        product: short(inventory.machine.product.as_ref()),
        inventory: Hash::of_bytes(&json),
    }
}

/// Where published ports are reached: as configured, else the uplink's address.
fn reachable(boot: &BootConfig, status: &NetworkStatus) -> Vec<String> {
    if !boot.node.public_addresses.is_empty() {
        return boot.node.public_addresses.clone();
    }
    status
        .uplink()
        .and_then(croft_network::LinkStatus::address)
        .map(|net| vec![net.addr().to_string()])
        .unwrap_or_default()
}

/// Keeps the monitor's word on the links true, and the ledger's.
async fn show_links(mut changes: watch::Receiver<NetworkStatus>, board: Board, troubles: Troubles) {
    loop {
        let (links, found) = {
            let status = changes.borrow_and_update();
            (screen::links(&status), troubles::network(&status))
        };
        board.change(|status| status.links = links);
        troubles.set(TroubleKind::Network, found);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps the monitor's word on the ledger true.
async fn show_ledger(
    ledger: Arc<Ledger>,
    grid: String,
    trouble: watch::Receiver<Option<String>>,
    board: Board,
) {
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    loop {
        looks.tick().await;
        let height = ledger.verified().newest().map(|newest| newest.header.height);
        let line = match (&*trouble.borrow(), height) {
            (Some(reason), height) => screen::ledger_out_of_reach(&grid, height, reason),
            (None, Some(height)) => screen::ledger(&grid, height),
            (None, None) => continue,
        };
        board.change(|status| status.ledger = line);
    }
}

/// Keeps what others are told of the links true. Holds the network, which ends with it.
async fn follow_links(
    network: Arc<Network>,
    boot: BootConfig,
    addresses: watch::Sender<Vec<String>>,
    dns: watch::Sender<Vec<IpAddr>>,
) {
    let mut changes = network.subscribe();
    while changes.changed().await.is_ok() {
        let status = changes.borrow_and_update().clone();
        let now = reachable(&boot, &status);
        // No address is no news: the link may be back in a moment.
        if !now.is_empty() {
            addresses.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
        }
        let servers = status.dns();
        dns.send_if_modified(|known| std::mem::replace(known, servers.clone()) != servers);
    }
}

fn guest_files(vmm: &str) -> GuestFiles {
    let elf = Path::new(GUEST_ELF);
    let kernel = if vmm == "cloud-hypervisor" && elf.exists() || !Path::new(GUEST_BZIMAGE).exists() {
        elf.to_owned()
    } else {
        PathBuf::from(GUEST_BZIMAGE)
    };
    GuestFiles { kernel, initramfs: GUEST_INITRAMFS.into() }
}

/// What an earlier boot left to do about releases. Returns where this boot goes on; a node whose journal is of no use
/// takes no releases.
async fn upgrades(data: &Data, notifier: Option<Arc<Notifier>>, troubles: &Troubles) -> Option<Upgrades> {
    let none = |why: &str| {
        let trouble = troubles::no_releases(why);
        tracing::error!("{trouble}");
        troubles.set(TroubleKind::Upgrade, vec![trouble]);
    };
    if let Some(reason) = upgrade::told_in_vain(Path::new(KERNEL_FOLDER)) {
        upgrade::go_back(notifier.as_deref(), &reason).await;
    }
    // A TPM may take minutes, in which the node must still say that it lives.
    let data = data.clone();
    let opened = tokio::task::spawn_blocking(move || Upgrades::open(&data, &release(), notifier)).await;
    let Ok(opened) = opened else {
        none("what is known of them could not be looked at");
        return None;
    };
    match opened {
        Ok(Some((mut upgrades, start))) => {
            upgrades.begin(start).await;
            Some(upgrades)
        }
        Ok(None) => {
            tracing::info!(
                "this node has no data disk, so it takes no releases: boot it from a newer medium"
            );
            None
        }
        Err(error) => {
            none(&chain_of(&error));
            None
        }
    }
}

fn release() -> String {
    std::fs::read_to_string(RELEASE_FILE).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// Whether this machine is itself emulated, by the hypervisor's signature (CPUID leaf 0x40000000).
fn is_emulated() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
        [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|word| word.to_le_bytes()).eq(*b"TCGTCGTCGTCG")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
