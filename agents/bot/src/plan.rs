//! What is to be done: one validated value, made from the command line and the environment before anything
//! is touched. A combination that makes no sense ends here, as a usage error.

mod ledger;

use std::ffi::OsString;
use std::path::PathBuf;

use croft_protocol::api::{ContractQuery, FarmQuery, NodeQuery};
use croft_protocol::{ContractId, Name, PriceList, PublicKey, RecordId};

use crate::exit::Failure;
use crate::flags::{
    ApproveFlags, BotCommand, BotFindFlags, BotUpdateFlags, Command, Common, CostFlags, DeployFlags,
    FarmCommand, FarmImageFlags, FarmNewFlags, FindFlags, Flags, GridCommand, GridInitFlags, GridUpFlags,
    HistoryKind, ImageCommand, KeepFlags, MediaCommand, MediaServeFlags, MessageCommand, NewPower,
    PolicyFlags, PrepareFlags, PublishFlags, RecipeCommand, RecipeDeployFlags, RecipeRef, ReleaseCommand,
    ReleaseKeysCommand, ReleaseTarget, SkillCommand, ValidatorsCommand, WalletCommand,
};
use crate::home::Home;
use crate::image::LayoutRef;

/// The environment, so that tests need not change their own.
pub trait Environment {
    fn variable(&self, name: &str) -> Option<OsString>;

    /// What the person at the terminal answers; `None` when nobody is there.
    fn ask(&self, _question: &str) -> Option<String> {
        None
    }

    /// The same without waiting for it, for who has something else to do meanwhile.
    fn ask_aside(&self, question: String) -> tokio::sync::oneshot::Receiver<Option<String>> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // Whoever asked may have ended meanwhile.
        let _ = sender.send(self.ask(&question));
        receiver
    }

    /// The same for what is not shown while it is typed.
    fn ask_secret(&self, _question: &str) -> Option<String> {
        None
    }
}

/// The process's own.
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn ask(&self, question: &str) -> Option<String> {
        use std::io::{IsTerminal as _, Write as _};
        let (input, mut output) = (std::io::stdin(), std::io::stderr());
        if !input.is_terminal() || !output.is_terminal() {
            return None;
        }
        output.write_all(question.as_bytes()).and_then(|()| output.flush()).ok()?;
        let mut answer = String::new();
        input.read_line(&mut answer).ok()?;
        Some(answer)
    }

    fn ask_aside(&self, question: String) -> tokio::sync::oneshot::Receiver<Option<String>> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // Reading a terminal can't be interrupted: the thread ends with the answer, or with the process.
        drop(std::thread::spawn(move || sender.send(Self.ask(&question))));
        receiver
    }

    fn ask_secret(&self, question: &str) -> Option<String> {
        use std::io::IsTerminal as _;
        // It asks at the terminal of the session, which programs that run unattended have too at times.
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        rpassword::prompt_password(question).ok()
    }
}

#[derive(Debug)]
pub struct Plan {
    pub home: Home,
    pub grid: Option<Name>,
    pub bot: Option<Name>,
    /// Holds the passphrase of the acting bot's key.
    pub passphrase_file: Option<PathBuf>,
    pub json: bool,
    pub quiet: bool,
    pub action: Action,
}

/// What becomes of a key's passphrase.
#[derive(Debug, PartialEq, Eq)]
pub enum PassphraseChange {
    /// To one that is asked for, or is in a file.
    Set(Option<PathBuf>),
    Remove,
}

/// Where an imported key comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum KeySource {
    /// What 'bot export' wrote.
    File(PathBuf),
    /// 24 words, asked for or in a file.
    Words(Option<PathBuf>),
}

/// Where the text of a message comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum MessageText {
    Given(String),
    File(PathBuf),
}

#[derive(Debug)]
pub enum Action {
    GridInit(GridInitFlags),
    GridUp(GridUpFlags),
    GridStatus,
    GridJoin { pin: PathBuf },
    ValidatorsShow,
    ValidatorsPropose { set: Vec<NewPower>, remove: Vec<PublicKey>, out: PathBuf },
    ValidatorsSign { file: PathBuf, key: Option<PathBuf> },
    ValidatorsSubmit { files: Vec<PathBuf> },
    BotNew { name: Name, grains: Option<croft_protocol::Grains> },
    BotShow { name: Option<Name> },
    BotPassphrase { name: Option<Name>, change: PassphraseChange },
    BotPhrase { name: Option<Name> },
    BotExport { name: Name, file: PathBuf, passphrase: Option<PathBuf> },
    BotImport { name: Option<Name>, from: KeySource, later: bool },
    BotRotate { name: Option<Name>, resume: bool },
    BotUpdate(BotUpdateFlags),
    BotFind(BotFindFlags),
    MessageSend { to: Name, text: MessageText },
    MessageRead { follow: bool, skill: Option<Name> },
    WalletStatement { since_ms: Option<u64> },
    WalletFaucet,
    WalletReclaim,
    WalletShow,
    WalletSend { to: Name, amount: croft_protocol::Grains, memo: String },
    FarmNew(FarmNew),
    FarmImage(FarmImageFlags),
    FarmNodes { name: Option<Name>, all: bool },
    FarmVerify { farm: Name, node: Name },
    FarmPolicy(PolicyFlags),
    FarmDrain { farm: Name, node: Name, until_s: Option<u64>, undo: bool },
    FarmServe { names: Vec<Name>, policy: Option<PathBuf>, skill: Option<Name> },
    ImageBuild { layout: LayoutRef, name: Name, scratch: Option<PathBuf> },
    ImageList,
    MediaDisks,
    MediaFlash { image: PathBuf, device: PathBuf, agreed: Option<String> },
    MediaKeys { folder: PathBuf },
    MediaServe(MediaServeFlags),
    MediaSign { file: PathBuf, keys: PathBuf, out: PathBuf },
    ReleaseKeysShow,
    ReleaseKeysNew { file: PathBuf },
    ReleaseKeysPropose { keys: Vec<PublicKey>, threshold: u8, out: PathBuf },
    ReleasePrepare(PrepareFlags),
    ReleaseSign { file: PathBuf, key: PathBuf },
    ReleasePublish(PublishFlags),
    ReleaseList { channel: Name },
    ReleaseShow(ReleaseTarget),
    ReleaseHalt { target: ReleaseTarget, reason: String, key: PathBuf },
    RecipePublish { file: PathBuf },
    RecipeWithdraw { name: Name, reason: String },
    RecipeList { author: Option<Name> },
    RecipeShow { recipe: RecipeRef, version: Option<u64>, text: bool },
    RecipeDeploy(RecipeDeployFlags),
    Deploy(DeployFlags),
    Ps { all: bool },
    Logs { contract: Name, vm: Option<Name>, follow: bool, tail: u32 },
    Explain { name: Name },
    Stop { name: Name },
    Ledger(LedgerAction),
    Find(FindFlags),
    Cost(CostFlags),
    Approve { contract: ContractTarget, refuse: bool },
    ApproveBySkill { contract: Option<ContractTarget>, skill: Name },
    Approvals { all: bool },
    Fund { contract: ContractTarget, amount: croft_protocol::Grains },
    Settle { contract: ContractTarget },
    Keep(KeepFlags),
    Skill(SkillCommand),
}

/// What is asked of the ledger itself.
#[derive(Debug)]
pub enum LedgerAction {
    Get(Thing),
    Log { from: Option<u64>, count: u64, follow: bool },
    History(Thing),
    Query(QueryPlan),
    Verify { path: PathBuf },
}

impl Action {
    /// Whether it goes on until a signal, and ends in order when one comes.
    #[must_use]
    pub fn ends_by_signal(&self) -> bool {
        matches!(
            self,
            Self::GridUp(_)
                | Self::FarmServe { .. }
                | Self::MediaServe(_)
                | Self::Logs { follow: true, .. }
                | Self::MessageRead { follow: true, .. }
                | Self::Ledger(LedgerAction::Log { follow: true, .. })
        )
    }

    /// Whether it only works with files and disks of this machine, without ever waiting for a signal.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(
            self,
            Self::ImageBuild { .. }
                | Self::ImageList
                | Self::FarmImage(_)
                | Self::BotPassphrase { .. }
                | Self::BotPhrase { .. }
                | Self::BotExport { .. }
                | Self::BotImport { .. }
                | Self::MediaDisks
                | Self::MediaFlash { .. }
                | Self::MediaKeys { .. }
                | Self::MediaSign { .. }
                | Self::ReleaseKeysNew { .. }
                | Self::GridInit(_)
                | Self::Skill(_)
                | Self::GridJoin { .. }
                | Self::Ledger(LedgerAction::Verify { .. })
        )
    }
}

#[derive(Debug)]
pub struct FarmNew {
    pub name: Name,
    pub country: String,
    pub region: Option<Name>,
    pub prices: PriceList,
    pub boot_config: Option<PathBuf>,
    pub replica_addresses: Vec<std::net::SocketAddr>,
    pub public_addresses: Vec<String>,
    pub node_name: Option<Name>,
    pub valid_s: u64,
}

/// How somebody names a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContractTarget {
    Id(ContractId),
    /// The running one that a bot calls so.
    Of {
        owner: Name,
        name: Name,
    },
    /// A name, or the first digits of an id.
    Text(String),
}

/// What a history is of.
#[derive(Debug, PartialEq, Eq)]
pub enum Subject {
    Contract(Name),
    Bot(Name),
    Farm(Name),
    Node { farm: Name, node: Name },
    Report { farm: Name, node: Name },
}

/// A thing on the ledger.
#[derive(Debug, PartialEq, Eq)]
pub enum Thing {
    Named(Subject),
    Id(RecordId),
}

#[derive(Debug)]
pub struct QueryPlan {
    pub subject: QuerySubject,
    pub proved: bool,
    pub limit: u32,
}

/// What is searched for. Names are looked up before the search; until then the query lacks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuerySubject {
    Nodes {
        farm: Option<Name>,
        owner: Option<Name>,
        query: NodeQuery,
    },
    Farms {
        owner: Option<Name>,
        query: FarmQuery,
    },
    Contracts {
        user: Option<Name>,
        farmer: Option<Name>,
        node: Option<(Name, Name)>,
        expires_within_s: Option<u64>,
        query: ContractQuery,
    },
}

/// A command line that can't be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("there is neither --home nor CROFT_HOME nor HOME: say where keys and images are with --home DIR")]
    NoHome,
    #[error("{variable} is set to something that is no name")]
    Variable { variable: &'static str, source: croft_protocol::name::InvalidName },
    #[error("'{country}' is not a country: use two lower-case letters of ISO 3166-1, such as be")]
    Country { country: String },
    #[error("public address '{address}' is neither a host name nor an IP address")]
    PublicAddress { address: String },
    #[error("a permission to join is valid for at most 366d: renew it with 'croft farm new'")]
    Valid,
    #[error(
        "nothing says what to import: name a file that 'croft bot export' wrote, or give --words with --name NAME"
    )]
    NoImport,
    #[error(
        "nothing says what to approve: name a contract, or let a skill decide about all that wait with --skill"
    )]
    NoContract,
    #[error("nothing says what to write: give a text, or a file with --file")]
    NoText,
    #[error("'{text}' is not {what}: write {example}")]
    Target { text: String, what: &'static str, example: &'static str },
    #[error("'{what}' is no name")]
    Name { what: String, source: croft_protocol::name::InvalidName },
}

impl Plan {
    /// Checks a command line.
    pub fn new(flags: Flags, environment: &dyn Environment) -> Result<Self, Failure> {
        Self::check(flags, environment).map_err(Failure::usage)
    }

    fn check(flags: Flags, environment: &dyn Environment) -> Result<Self, PlanError> {
        let Flags { common: Common { home, grid, bot, passphrase_file, json, quiet }, command } = flags;
        let home = home
            .or_else(|| non_empty(environment.variable("CROFT_HOME")).map(PathBuf::from))
            .or_else(|| non_empty(environment.variable("HOME")).map(|h| PathBuf::from(h).join(".croft")))
            .ok_or(PlanError::NoHome)?;
        Ok(Self {
            home: Home::new(&home),
            grid: name_or_variable(grid, "CROFT_GRID", environment)?,
            bot: name_or_variable(bot, "CROFT_BOT", environment)?,
            passphrase_file: passphrase_file
                .or_else(|| non_empty(environment.variable("CROFT_PASSPHRASE_FILE")).map(PathBuf::from)),
            json,
            quiet,
            action: action(command)?,
        })
    }
}

fn non_empty(value: Option<OsString>) -> Option<OsString> {
    value.filter(|v| !v.is_empty())
}

fn name_or_variable(
    given: Option<Name>,
    variable: &'static str,
    environment: &dyn Environment,
) -> Result<Option<Name>, PlanError> {
    if given.is_some() {
        return Ok(given);
    }
    non_empty(environment.variable(variable))
        .map(|text| Name::new(&text.to_string_lossy()))
        .transpose()
        .map_err(|source| PlanError::Variable { variable, source })
}

fn action(command: Command) -> Result<Action, PlanError> {
    Ok(match command {
        Command::Grid(GridCommand::Init(flags)) => Action::GridInit(flags),
        Command::Grid(GridCommand::Up(flags)) => Action::GridUp(flags),
        Command::Grid(GridCommand::Status) => Action::GridStatus,
        Command::Grid(GridCommand::Join { pin }) => Action::GridJoin { pin },
        Command::Grid(GridCommand::Validators(command)) => match command {
            ValidatorsCommand::Show => Action::ValidatorsShow,
            ValidatorsCommand::Propose { set, remove, out } => Action::ValidatorsPropose { set, remove, out },
            ValidatorsCommand::Sign { file, key } => Action::ValidatorsSign { file, key },
            ValidatorsCommand::Submit { files } => Action::ValidatorsSubmit { files },
        },
        Command::Bot(BotCommand::New { name, grains }) => Action::BotNew { name, grains },
        Command::Bot(BotCommand::Show { name }) => Action::BotShow { name },
        Command::Bot(BotCommand::Passphrase { name, remove, new_passphrase_file }) => {
            let change =
                if remove { PassphraseChange::Remove } else { PassphraseChange::Set(new_passphrase_file) };
            Action::BotPassphrase { name, change }
        }
        Command::Bot(BotCommand::Phrase { name }) => Action::BotPhrase { name },
        Command::Bot(BotCommand::Export { name, file, new_passphrase_file }) => {
            Action::BotExport { name, file, passphrase: new_passphrase_file }
        }
        Command::Bot(BotCommand::Import { file: Some(file), name, later, .. }) => {
            Action::BotImport { name, from: KeySource::File(file), later }
        }
        Command::Bot(BotCommand::Import { file: None, name: Some(name), words_file, later, .. }) => {
            Action::BotImport { name: Some(name), from: KeySource::Words(words_file), later }
        }
        Command::Bot(BotCommand::Import { file: None, name: None, .. }) => return Err(PlanError::NoImport),
        Command::Bot(BotCommand::Rotate { name, resume }) => Action::BotRotate { name, resume },
        Command::Bot(BotCommand::Update(flags)) => Action::BotUpdate(flags),
        Command::Bot(BotCommand::Find(flags)) => Action::BotFind(flags),
        Command::Message(command) => message(command)?,
        Command::Wallet(WalletCommand::Statement { since }) => Action::WalletStatement { since_ms: since },
        Command::Wallet(WalletCommand::Faucet) => Action::WalletFaucet,
        Command::Wallet(WalletCommand::Reclaim) => Action::WalletReclaim,
        Command::Wallet(WalletCommand::Show) => Action::WalletShow,
        Command::Wallet(WalletCommand::Send { to, amount, memo }) => Action::WalletSend { to, amount, memo },
        Command::Farm(FarmCommand::New(flags)) => Action::FarmNew(farm_new(flags)?),
        Command::Farm(FarmCommand::Image(flags)) => Action::FarmImage(flags),
        Command::Farm(FarmCommand::Nodes { name, all }) => Action::FarmNodes { name, all },
        Command::Farm(FarmCommand::Verify { node }) => {
            let (farm, node) = farm_and_node(&node)?;
            Action::FarmVerify { farm, node }
        }
        Command::Farm(FarmCommand::Policy(flags)) => Action::FarmPolicy(flags),
        Command::Farm(FarmCommand::Drain(flags)) => {
            let (farm, node) = farm_and_node(&flags.node)?;
            Action::FarmDrain { farm, node, until_s: flags.until, undo: flags.undo }
        }
        Command::Farm(FarmCommand::Serve { names, policy, skill }) => {
            Action::FarmServe { names, policy, skill }
        }
        Command::Image(ImageCommand::Build(flags)) => Action::ImageBuild {
            layout: LayoutRef::parse(&flags.layout),
            name: flags.name,
            scratch: flags.scratch,
        },
        Command::Image(ImageCommand::List) => Action::ImageList,
        Command::Media(MediaCommand::Disks) => Action::MediaDisks,
        Command::Media(MediaCommand::Flash { image, device, yes_erase }) => {
            Action::MediaFlash { image, device, agreed: yes_erase }
        }
        Command::Media(MediaCommand::Keys { folder }) => Action::MediaKeys { folder },
        Command::Media(MediaCommand::Serve(flags)) => Action::MediaServe(flags),
        Command::Media(MediaCommand::Sign { file, keys, out }) => Action::MediaSign { file, keys, out },
        Command::Release(command) => release(command),
        Command::Recipe(command) => recipe(command)?,
        Command::Deploy(flags) => Action::Deploy(flags),
        Command::Ps(flags) => Action::Ps { all: flags.all },
        Command::Logs(flags) => {
            let (contract, vm) = match flags.target.split_once('/') {
                Some((contract, vm)) => (name(contract)?, Some(name(vm)?)),
                None => (name(&flags.target)?, None),
            };
            Action::Logs { contract, vm, follow: flags.follow, tail: flags.tail }
        }
        Command::Explain(flags) => Action::Explain { name: flags.name },
        Command::Stop(flags) => Action::Stop { name: flags.name },
        Command::History(flags) => {
            Action::Ledger(LedgerAction::History(Thing::Named(subject(flags.kind, &flags.name)?)))
        }
        Command::Ledger(command) => Action::Ledger(ledger::action(command)?),
        Command::Find(flags) => {
            countries(&flags.country)?;
            Action::Find(flags)
        }
        Command::Cost(flags) => Action::Cost(flags),
        Command::Approve(flags) => approve(flags)?,
        Command::Approvals(flags) => Action::Approvals { all: flags.all },
        Command::Fund(flags) => {
            Action::Fund { contract: contract_target(&flags.contract)?, amount: flags.amount }
        }
        Command::Settle(flags) => Action::Settle { contract: contract_target(&flags.contract)? },
        Command::Keep(flags) => Action::Keep(flags),
        Command::Skill(command) => Action::Skill(command),
    })
}

fn approve(flags: ApproveFlags) -> Result<Action, PlanError> {
    let contract = flags.contract.as_deref().map(contract_target).transpose()?;
    match (contract, flags.skill) {
        (contract, Some(skill)) => Ok(Action::ApproveBySkill { contract, skill }),
        (Some(contract), None) => Ok(Action::Approve { contract, refuse: flags.refuse }),
        (None, None) => Err(PlanError::NoContract),
    }
}

fn recipe(command: RecipeCommand) -> Result<Action, PlanError> {
    Ok(match command {
        RecipeCommand::Publish { file } => Action::RecipePublish { file },
        RecipeCommand::Withdraw { name, reason } => Action::RecipeWithdraw { name, reason },
        RecipeCommand::List { author } => Action::RecipeList { author },
        RecipeCommand::Show { recipe, version, text } => Action::RecipeShow { recipe, version, text },
        RecipeCommand::Deploy(flags) => {
            countries(&flags.country)?;
            Action::RecipeDeploy(flags)
        }
    })
}

fn message(command: MessageCommand) -> Result<Action, PlanError> {
    Ok(match command {
        MessageCommand::Send { to, text: _, file: Some(file) } => {
            Action::MessageSend { to, text: MessageText::File(file) }
        }
        MessageCommand::Send { to, text: Some(text), file: None } => {
            Action::MessageSend { to, text: MessageText::Given(text) }
        }
        MessageCommand::Send { text: None, file: None, .. } => return Err(PlanError::NoText),
        MessageCommand::Read { follow, skill } => Action::MessageRead { follow, skill },
    })
}

fn release(command: ReleaseCommand) -> Action {
    match command {
        ReleaseCommand::Keys(ReleaseKeysCommand::Show) => Action::ReleaseKeysShow,
        ReleaseCommand::Keys(ReleaseKeysCommand::New { file }) => Action::ReleaseKeysNew { file },
        ReleaseCommand::Keys(ReleaseKeysCommand::Propose { keys, threshold, out }) => {
            Action::ReleaseKeysPropose { keys, threshold, out }
        }
        ReleaseCommand::Prepare(flags) => Action::ReleasePrepare(flags),
        ReleaseCommand::Sign { file, key } => Action::ReleaseSign { file, key },
        ReleaseCommand::Publish(flags) => Action::ReleasePublish(flags),
        ReleaseCommand::List { channel } => Action::ReleaseList { channel },
        ReleaseCommand::Show(target) => Action::ReleaseShow(target),
        ReleaseCommand::Halt { target, reason, key } => Action::ReleaseHalt { target, reason, key },
    }
}

fn name(text: &str) -> Result<Name, PlanError> {
    Name::new(text).map_err(|source| PlanError::Name { what: text.chars().take(80).collect(), source })
}

fn contract_target(text: &str) -> Result<ContractTarget, PlanError> {
    if let Some((owner, contract)) = text.split_once('/') {
        return Ok(ContractTarget::Of { owner: name(owner)?, name: name(contract)? });
    }
    if let Ok(id) = text.parse() {
        return Ok(ContractTarget::Id(id));
    }
    // The first digits of an id are a name too, as far as form goes; they may be longer.
    let digits = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) && !text.is_empty();
    if !digits {
        name(text)?;
    }
    Ok(ContractTarget::Text(text.to_ascii_lowercase()))
}

fn countries(countries: &[String]) -> Result<(), PlanError> {
    match countries.iter().find(|country| !croft_protocol::name::is_country(country)) {
        Some(country) => Err(PlanError::Country { country: country.chars().take(80).collect() }),
        None => Ok(()),
    }
}

fn farm_and_node(text: &str) -> Result<(Name, Name), PlanError> {
    let (farm, node) = text.split_once('/').ok_or_else(|| PlanError::Target {
        text: text.chars().take(80).collect(),
        what: "a node",
        example: "FARM/NODE",
    })?;
    Ok((name(farm)?, name(node)?))
}

fn subject(kind: HistoryKind, text: &str) -> Result<Subject, PlanError> {
    Ok(match kind {
        HistoryKind::Contract => Subject::Contract(name(text)?),
        HistoryKind::Bot => Subject::Bot(name(text)?),
        HistoryKind::Farm => Subject::Farm(name(text)?),
        HistoryKind::Node => {
            let (farm, node) = farm_and_node(text)?;
            Subject::Node { farm, node }
        }
        HistoryKind::Report => {
            let (farm, node) = farm_and_node(text)?;
            Subject::Report { farm, node }
        }
    })
}

fn farm_new(flags: FarmNewFlags) -> Result<FarmNew, PlanError> {
    if !croft_protocol::name::is_country(&flags.country) {
        return Err(PlanError::Country { country: flags.country });
    }
    for address in &flags.public_address {
        let host = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b':';
        if address.is_empty() || address.len() > 253 || !address.bytes().all(host) {
            return Err(PlanError::PublicAddress { address: address.clone() });
        }
    }
    if flags.valid > 366 * 86_400 {
        return Err(PlanError::Valid);
    }
    Ok(FarmNew {
        name: flags.name,
        country: flags.country,
        region: flags.region,
        prices: PriceList {
            cpu: flags.price_cpu,
            memory_gib: flags.price_memory,
            ssd_gib: flags.price_ssd,
            hdd_gib: flags.price_hdd,
        },
        boot_config: flags.boot_config,
        replica_addresses: flags.replica_address,
        public_addresses: flags.public_address,
        node_name: flags.node_name,
        valid_s: flags.valid,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    struct Variables(BTreeMap<&'static str, &'static str>);

    impl Environment for Variables {
        fn variable(&self, name: &str) -> Option<OsString> {
            self.0.get(name).map(OsString::from)
        }
    }

    fn plan(line: &str, variables: &[(&'static str, &'static str)]) -> Result<Plan, String> {
        let args = std::iter::once("croft").chain(line.split_whitespace()).map(OsString::from);
        let flags = Flags::parse_line(args).unwrap();
        let environment = Variables(variables.iter().copied().collect());
        Plan::new(flags, &environment).map_err(|e| {
            assert_eq!(e.exit, crate::exit::Exit::Usage);
            e.message()
        })
    }

    #[test]
    fn a_flag_beats_the_environment_and_that_beats_the_default() {
        let p = plan("ps", &[("HOME", "/h")]).unwrap();
        assert_eq!(p.home.root(), Path::new("/h/.croft"));
        assert_eq!(p.bot, None);
        let p = plan("ps", &[("HOME", "/h"), ("CROFT_HOME", "/c"), ("CROFT_BOT", "bob")]).unwrap();
        assert_eq!((p.home.root(), p.bot.unwrap().as_str()), (Path::new("/c"), "bob"));
        let p = plan("ps --home /f --bot alice", &[("CROFT_HOME", "/c"), ("CROFT_BOT", "bob")]).unwrap();
        assert_eq!((p.home.root(), p.bot.unwrap().as_str()), (Path::new("/f"), "alice"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_touched() {
        for (line, variables, says) in [
            ("ps", &[][..], "say where keys and images are with --home DIR"),
            (
                "ps",
                &[("HOME", "/h"), ("CROFT_BOT", "B!")],
                "CROFT_BOT is set to something that is no name: 'B!'",
            ),
            ("farm new a --country Belgium --home /h", &[], "'Belgium' is not a country"),
            ("farm new a --country be --public-address a/b --home /h", &[], "neither a host name nor an IP"),
            ("farm new a --country be --valid 400d --home /h", &[], "valid for at most 366d"),
            ("history n --kind node --home /h", &[], "'n' is not a node: write FARM/NODE"),
            ("logs web/DB --home /h", &[], "'DB' is no name"),
        ] {
            let error = plan(line, variables).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn a_contract_is_named_by_owner_and_name_by_its_id_or_its_first_digits() {
        let of = |text: &str| contract_target(text).map_err(|e| e.to_string());
        let (owner, contract) = (Name::new("alice").unwrap(), Name::new("shop").unwrap());
        assert_eq!(of("alice/shop"), Ok(ContractTarget::Of { owner, name: contract }));
        let id = ContractId(croft_protocol::Hash([0xab; 32]));
        assert_eq!(of(&id.to_string()), Ok(ContractTarget::Id(id)));
        let long = "ab".repeat(20);
        assert_eq!(of(&long), Ok(ContractTarget::Text(long.clone())));
        assert_eq!(of("shop"), Ok(ContractTarget::Text("shop".to_owned())));
        assert!(of("Shop!").unwrap_err().contains("'Shop!' is no name"));
        assert!(of("a/b/c").unwrap_err().contains("'b/c' is no name"));
    }

    #[test]
    fn what_goes_on_until_a_signal_hears_of_it() {
        for line in ["media serve --folder boot", "grid up", "farm serve", "logs shop -f", "ledger log -f"] {
            let action = plan(&format!("{line} --home /h"), &[]).unwrap().action;
            assert!(action.ends_by_signal() && !action.is_local(), "{line}");
        }
    }

    #[test]
    fn a_log_target_names_a_contract_and_perhaps_a_microvm() {
        let Action::Logs { contract, vm, tail, .. } =
            plan("logs shop/db -n 5 --home /h", &[]).unwrap().action
        else {
            panic!()
        };
        assert_eq!((contract.as_str(), vm.unwrap().as_str(), tail), ("shop", "db", 5));
    }
}
