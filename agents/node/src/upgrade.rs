//! Upgrades: the release that the farm's policy names, tried, and kept or left.
//!
//! ```text
//!   ledger: policy, channel, release ─┐
//!   journal on the data disk ─────────┼─> decide ─> fetch ─> journal: armed ─> init: load; TPM: told; init: end, kexec
//!   registered, able to run VMs ──────┘                                              │
//!        ┌───────────────────────────────────────────────────────────────────────────┘
//!        └─> journal: running ─> well in time: confirmed ── the medium's release starts it by kexec from now on
//!                             └> not well, or no sign of life: restart, the medium's own release says why
//! ```
//! [`journal`] remembers, `decide` decides, [`files`] keeps boot files; here is what does it. It must never boot what
//! is not exactly the file that the release keys signed for, and never before the journal says so durably.

pub mod decide;
pub mod files;
pub mod floor;
pub mod journal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croft_init::notify::{KERNEL_FOLDER, Message, Notifier, loaded_of, refusal_of, trouble_of};
use croft_protocol::release::{ChannelBody, FarmPolicy, ReleaseBody};
use croft_protocol::{
    Body, Command, FarmId, NodeId, Record, RecordId, Rejection, ReleaseId, ReleaseVersion, StateKey, limits,
};
use croft_storage::data::Data;
use croft_storage::documents::Documents;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::ledger::{Ledger, chain_of};
use crate::time::Time;
use crate::witness::Places;
use crate::witness::measured::{TellError, Teller, Told};
use decide::{Action, Facts, Why, decide};
use files::BootFiles;
use journal::{Installed, Journal, Start};

/// Between two looks at the ledger; all nodes of a rack look at their own times.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Between two decisions while a release is on trial.
const TRIAL_LOOK: Duration = Duration::from_secs(2);
/// For init to load a kernel and begin to end this process.
const KEXEC_WAIT: Duration = Duration::from_secs(60);
/// After a trial that did not begin.
const TRY_AGAIN: Duration = Duration::from_secs(600);
const DOCUMENT: &str = "journal";
/// Among the kernels, in memory: the release of which the TPM is told. The kernel that it tells of never sees it; an agent
/// that does knows that quotes of this boot speak of what does not run.
const TOLD: &str = "told";
/// The journal is small; a damaged one is not worth more memory.
const JOURNAL_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("the upgrade journal can't be opened")]
    Open(#[from] croft_storage::documents::OpenDocumentsError),
    #[error("the upgrade journal can't be read")]
    Read(#[from] croft_storage::documents::GetDocumentError),
    #[error("the upgrade journal is of another release: {0}")]
    Decode(#[from] croft_protocol::DecodeError),
    #[error("the upgrade journal can't be written")]
    Write(#[from] croft_storage::documents::PutDocumentError),
    #[error(transparent)]
    Files(#[from] files::BootFileError),
    #[error("init can't be asked")]
    Notify(#[from] croft_init::notify::NotifyError),
    #[error("this node was not started by init, so nobody boots a release")]
    NoInit,
    /// The kernel's word on the file.
    #[error("the release can't be booted: {0}")]
    Refused(String),
    #[error("the release can't be loaded now: {0}")]
    NotNow(String),
    #[error("init did not {what} it within {} s", KEXEC_WAIT.as_secs())]
    Late { what: &'static str },
    #[error(transparent)]
    Tell(#[from] TellError),
    #[error("{mark:?} can't be written, which tells the agent's next start what the TPM knows")]
    Mark { mark: PathBuf, source: std::io::Error },
    #[error("the TPM's thread ended before it answered")]
    Ended,
}

impl UpgradeError {
    /// Whether it would come again at every try, and on other machines.
    fn is_of_the_release(&self) -> bool {
        use files::BootFileError::{NoProgram, OtherProgram};
        matches!(self, Self::Refused(_) | Self::Files(NoProgram { .. } | OtherProgram { .. }))
    }
}

/// The journal and the boot files of this machine, with what this boot is.
pub struct Upgrades {
    documents: Documents,
    journal: Journal,
    files: BootFiles,
    running: Option<ReleaseVersion>,
    notifier: Option<Arc<Notifier>>,
    kernels: PathBuf,
    teller: Teller,
    started: Instant,
    /// After trouble of this machine's own.
    try_not_before: Option<Instant>,
    /// What the TPM says was confirmed on this machine, whatever its disk knows.
    floor: Option<ReleaseVersion>,
}

impl Upgrades {
    /// Takes up what an earlier boot left, and says what this one begins with. `None` where nothing outlives a boot.
    ///
    /// # Errors
    /// [`UpgradeError`]; then this node takes no releases, and runs on.
    pub fn open(
        data: &Data,
        release: &str,
        notifier: Option<Arc<Notifier>>,
    ) -> Result<Option<(Self, Start)>, UpgradeError> {
        if data.ephemeral() {
            return Ok(None);
        }
        let folder = data.folder("upgrade");
        let documents = Documents::open(&folder.join("journal"))?;
        let places = Places::default();
        let identity = data.folder("identity");
        let confirmed = read(&documents)?.confirmed.map(|confirmed| confirmed.version);
        let floor = floor::read(places, &identity, confirmed);
        let teller = Teller::new(places, &identity);
        let folders = (&*folder.join("files"), Path::new(KERNEL_FOLDER));
        Self::open_on(documents, folders, release, (notifier, teller), floor).map(Some)
    }

    fn open_on(
        documents: Documents,
        (files, kernels): (&Path, &Path),
        release: &str,
        (notifier, teller): (Option<Arc<Notifier>>, Teller),
        floor: Option<ReleaseVersion>,
    ) -> Result<(Self, Start), UpgradeError> {
        let running: Option<ReleaseVersion> = release.parse().ok();
        let before = read(&documents)?;
        let mut journal = before.clone();
        let mut start = journal.at_start(running);
        if let (Some(floor), Start::Resume(of)) = (floor, &start)
            && of.version < floor
        {
            tracing::error!(release = %of.version, %floor, "the disk is a copy from before: its release is not booted");
            start = Start::Normal;
        }
        if let Some(floor) = floor.filter(|floor| running.is_some_and(|running| running < *floor)) {
            tracing::warn!(%floor, "the medium's release is older than one that was confirmed here: make a new medium");
        }
        let files = BootFiles::open(files)?;
        let (kernels, started) = (kernels.to_owned(), Instant::now());
        let mut upgrades = Self {
            documents,
            journal: before,
            files,
            running,
            notifier,
            kernels,
            teller,
            started,
            try_not_before: None,
            floor,
        };
        upgrades.set(journal)?;
        Ok((upgrades, start))
    }

    /// Makes a journal durable, and only then counts on it.
    fn set(&mut self, journal: Journal) -> Result<(), UpgradeError> {
        if journal != self.journal {
            self.documents.put(DOCUMENT, &croft_protocol::encode(&journal))?;
            self.journal = journal;
        }
        Ok(())
    }

    fn change(&mut self, change: impl FnOnce(&mut Journal)) -> Result<(), UpgradeError> {
        let mut journal = self.journal.clone();
        change(&mut journal);
        self.set(journal)
    }

    /// Goes on with a boot file; comes back only where that did not work.
    async fn kexec(&self, of: &Installed) -> UpgradeError {
        let kernel = match self.load(of).await {
            Ok(kernel) => kernel,
            Err(error) => return error,
        };
        let (teller, authenticode) = (self.teller.clone(), of.boot_file.authenticode);
        let mark = self.kernels.join(TOLD);
        if let Err(source) = std::fs::write(&mark, of.version.to_string()) {
            return UpgradeError::Mark { mark, source };
        }
        let told = match tokio::task::spawn_blocking(move || teller.about_to_run(authenticode)).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                if !matches!(error, TellError::Unsure(_)) {
                    let _ = std::fs::remove_file(mark);
                }
                return error.into();
            }
            Err(_) => return UpgradeError::Ended,
        };
        match &told {
            Told::Register => tracing::info!(release = %of.version, "the TPM knows what runs next"),
            Told::Nobody(why) => {
                let _ = std::fs::remove_file(mark);
                tracing::debug!(why, "no TPM has to know what runs next");
            }
        }
        let asked = self.tell_init(&Message::Kexec(kernel));
        // Init ends this process.
        sleep(KEXEC_WAIT).await;
        asked.map_or_else(|error| error, |()| UpgradeError::Late { what: "go on with" })
    }

    /// Has init load a boot file; the kernel's path.
    async fn load(&self, of: &Installed) -> Result<PathBuf, UpgradeError> {
        let kernel = self.files.stage(&of.boot_file, &self.kernels)?;
        let (loaded, refused, trouble) = (loaded_of(&kernel), refusal_of(&kernel), trouble_of(&kernel));
        for old in [&loaded, &refused, &trouble] {
            let _ = std::fs::remove_file(old);
        }
        self.tell_init(&Message::Load(kernel.clone()))?;
        let deadline = Instant::now() + KEXEC_WAIT;
        while Instant::now() < deadline {
            if loaded.exists() {
                return Ok(kernel);
            }
            let said = |file: &Path| {
                let reason = std::fs::read_to_string(file).ok().filter(|reason| !reason.is_empty())?;
                Some(reason.chars().take(300).collect())
            };
            if let Some(reason) = said(&refused) {
                return Err(UpgradeError::Refused(reason));
            }
            if let Some(reason) = said(&trouble) {
                return Err(UpgradeError::NotNow(reason));
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(UpgradeError::Late { what: "load" })
    }

    fn tell_init(&self, message: &Message) -> Result<(), UpgradeError> {
        let notifier = self.notifier.as_ref().ok_or(UpgradeError::NoInit)?;
        Ok(notifier.send(message)?)
    }

    /// What the start asks for, before anything else of the node begins. Comes back where the boot goes on.
    pub async fn begin(&mut self, start: Start) {
        match start {
            Start::Normal => {}
            Start::Trial => tracing::warn!(
                release = %shown(self.running),
                "this release is on trial: it is confirmed when the node is registered and well"
            ),
            Start::GoBack { reason } => self.go_back(&reason).await,
            Start::NoWayBack { reason } => tracing::error!(
                release = %shown(self.running),
                reason,
                "the release on trial failed, and the medium has the same one: it goes on; make a medium of another release"
            ),
            Start::Resume(of) => {
                tracing::info!(release = %of.version, "going on with the release that was confirmed here");
                let error = self.kexec(&of).await;
                tracing::error!(error = %chain_of(&error), "the confirmed release can't be reached; this one goes on");
                self.restart_if_told().await;
            }
        }
    }

    /// Restarts the machine, which boots what its medium has.
    /// A quote of this boot would speak of a release that does not run.
    async fn restart_if_told(&self) {
        if let Some(reason) = told_in_vain(&self.kernels) {
            self.go_back(&reason).await;
        }
    }

    async fn go_back(&self, reason: &str) {
        go_back(self.notifier.as_deref(), reason).await;
    }
}

/// Restarts the machine, which boots what its medium has. Comes back where init does not.
pub async fn go_back(notifier: Option<&Notifier>, reason: &str) {
    tracing::error!(reason, "back to the release before, by a restart");
    let asked = notifier.ok_or(UpgradeError::NoInit).and_then(|notifier| {
        Ok(notifier.send(&Message::Reboot(format!("back to the release before: {reason}")))?)
    });
    if let Err(error) = asked {
        tracing::error!(error = %chain_of(&error), "init was not told");
    }
    sleep(KEXEC_WAIT).await;
}

/// Why this boot has to end, if the TPM was or may have been told of a kernel that did not start, by this agent or an earlier
/// one. The journal is not asked: its disk may be what ended that agent.
#[must_use]
pub fn told_in_vain(kernels: &Path) -> Option<String> {
    let release = std::fs::read_to_string(kernels.join(TOLD)).ok()?;
    Some(format!("the TPM was told of release {release}, which did not start"))
}

fn read(documents: &Documents) -> Result<Journal, UpgradeError> {
    let Some(bytes) = documents.get(DOCUMENT)? else { return Ok(Journal::default()) };
    Ok(croft_protocol::decode("upgrade journal", &bytes, JOURNAL_BYTES)?)
}

/// How the node is, as far as upgrades care.
#[derive(Debug, Clone)]
pub struct Health {
    pub registered: watch::Receiver<bool>,
    /// What keeps it from running the workloads that it has.
    pub trouble: Option<String>,
}

/// What the ledger proves of upgrades of one node.
#[derive(Debug, Default)]
struct Offer {
    policy: Option<FarmPolicy>,
    channel: Option<ChannelBody>,
    release: Option<ReleaseBody>,
}

impl Offer {
    async fn read(ledger: &Ledger, farm: &FarmId) -> Result<Self, String> {
        let mut offer = Self::default();
        let Some(Body::FarmPolicy(policy)) = body(ledger, RecordId::farm_policy(farm)).await? else {
            return Ok(offer);
        };
        let channel = match body(ledger, RecordId::channel(&policy.channel)).await? {
            Some(Body::Channel(channel)) if channel.name == policy.channel => Some(channel),
            _ => None,
        };
        offer.policy = Some(policy);
        let Some(channel) = channel else { return Ok(offer) };
        if let Some(version) = channel.offered {
            let id = ReleaseId::new(&channel.name, version);
            if let Some(Body::Release(release)) = body(ledger, RecordId::release(&id)).await?
                && release.signed.release.id() == id
            {
                offer.release = Some(*release);
            }
        }
        offer.channel = Some(channel);
        Ok(offer)
    }
}

/// The latest version of a thing, proved.
async fn body(ledger: &Ledger, id: RecordId) -> Result<Option<Body>, String> {
    let (_, values) = ledger.read(vec![StateKey::Record(id)]).await.map_err(|e| chain_of(&e))?;
    let Some(bytes) = values.into_iter().next().flatten() else { return Ok(None) };
    let record: Record =
        croft_protocol::decode("record", &bytes, limits::RECORD_BYTES).map_err(|e| chain_of(&e))?;
    Ok((record.id == id).then_some(record.body))
}

/// Follows the farm's policy for as long as the node runs.
pub async fn follow(
    mut upgrades: Upgrades,
    ledger: Arc<Ledger>,
    time: Arc<Time>,
    (node, farm): (NodeId, FarmId),
    health: Health,
) {
    let mut well_since = None;
    let mut said: Option<Why> = None;
    let mut offer = Offer::default();
    let mut resumed = false;
    loop {
        let on_trial = upgrades.journal.trial.is_some();
        sleep(if on_trial { TRIAL_LOOK } else { LOOK_EVERY }).await;
        let up = upgrades.started.elapsed();
        let is_well = *health.registered.borrow() && health.trouble.is_none();
        well_since = if is_well { well_since.or(Some(up)) } else { None };
        if is_well && !on_trial {
            match Offer::read(&ledger, &farm).await {
                Ok(read) => offer = read,
                Err(reason) => tracing::debug!(reason, "no news of releases"),
            }
        }
        let trouble = health.trouble.as_deref().unwrap_or("not registered on the ledger");
        let action = decide(&Facts {
            node,
            running: upgrades.running,
            now_ms: time.now_ms(),
            up,
            well_since,
            trouble,
            policy: offer.policy.as_ref(),
            channel: offer.channel.as_ref(),
            offered: offer.release.as_ref(),
            journal: &upgrades.journal,
            floor: upgrades.floor,
            fetched: offer
                .release
                .as_ref()
                .is_some_and(|release| upgrades.files.has(&release.signed.release.boot_file)),
        });
        if let Action::Stay(why) = action
            && said.replace(why) != Some(why)
        {
            tracing::info!("upgrades: {why}");
        }
        if is_well && !on_trial && !resumed && upgrades.runs_confirmed() {
            resumed = upgrades.change(Journal::resumed).is_ok();
        }
        if let Err(error) = upgrades.act(action, &ledger).await {
            tracing::error!(error = %chain_of(&error), "the upgrade does not go on");
        }
    }
}

impl Upgrades {
    fn runs_confirmed(&self) -> bool {
        self.journal.confirmed.as_ref().is_some_and(|confirmed| self.running == Some(confirmed.version))
    }

    async fn act(&mut self, action: Action, ledger: &Ledger) -> Result<(), UpgradeError> {
        match action {
            Action::Stay(_) => Ok(()),
            Action::Fetch(release) => {
                tracing::info!(release = %release.version, bytes = release.boot_file.size_bytes, "fetching a release");
                self.files.fetch(&release.boot_file, ledger).await?;
                tracing::info!(release = %release.version, "the release is here, and is what its keys signed");
                Ok(())
            }
            Action::Try(_) if self.try_not_before.is_some_and(|at| Instant::now() < at) => Ok(()),
            Action::Try(release) => self.try_out(release).await,
            Action::Confirm => {
                self.change(Journal::confirm)?;
                let kept: Vec<_> = self.journal.confirmed.iter().map(|of| of.boot_file.sha256).collect();
                self.files.keep_only(&kept);
                tracing::info!(release = %shown(self.running), "the release is confirmed");
                Ok(())
            }
            Action::GoBack { reason } => {
                self.change(|journal| journal.fail(reason.clone()))?;
                self.go_back(&reason).await;
                Ok(())
            }
            Action::Tell(told) => {
                let command = Command::ReleaseOutcome {
                    channel: told.channel.clone(),
                    version: told.version,
                    outcome: told.outcome.clone(),
                };
                let result = ledger.submit(command).await;
                // What it refuses for what it is, it would refuse for ever: it knows it already, or nobody asks any more.
                let refused =
                    result.as_ref().err().and_then(croft_transport::verified::VerifiedError::rejection);
                let refused = matches!(refused, Some(Rejection::Release(_)));
                match &result {
                    Ok(height) => {
                        tracing::info!(release = %told.version, height, "the ledger knows the outcome");
                    }
                    Err(error) => tracing::warn!(error = %chain_of(error), "the outcome is not told"),
                }
                if result.is_ok() || refused {
                    self.change(|journal| journal.untold.retain(|other| *other != told))?;
                }
                Ok(())
            }
        }
    }

    async fn try_out(&mut self, release: Installed) -> Result<(), UpgradeError> {
        tracing::warn!(release = %release.version, "booting a release on trial");
        self.change(|journal| journal.arm(release.clone()))?;
        let error = self.kexec(&release).await;
        // Still here: nothing was booted, and this release goes on.
        if error.is_of_the_release() {
            let reason = chain_of(&error);
            self.change(|journal| journal.give_up(reason))?;
        } else {
            // This machine's trouble is no fault of the release: the next look tries again, or fetches what was damaged.
            self.change(Journal::disarm)?;
            self.try_not_before = Some(Instant::now() + TRY_AGAIN);
        }
        self.restart_if_told().await;
        Err(error)
    }
}

/// As people write versions.
fn shown(running: Option<ReleaseVersion>) -> String {
    running.map_or_else(|| "without a version".to_owned(), |version| version.to_string())
}

#[cfg(test)]
mod tests;
