//! One module for each thing that `croft` does. They get a `Context` and say what happened through its
//! terminal; none of them reads the command line or exits.

mod bot;
mod contracts;
mod deploy;
mod directory;
mod drain;
mod explain;
mod farm;
mod find;
mod fund;
mod grid;
mod history;
mod image;
mod keep;
mod keys;
mod ledger;
mod logs;
mod media;
mod message;
mod policy;
mod ps;
mod quorum;
mod recipe;
mod reclaim;
pub(crate) mod release;
mod rotate;
mod serve;
mod show;
mod skill;
mod statement;
mod stop;
mod target;
pub(crate) mod validators;
mod verify;
mod wallet;

use std::path::PathBuf;

use croft_protocol::boot::GridPin;
use croft_protocol::{BotId, Name, SecretKey};
use tokio::sync::watch;

use crate::exit::Failure;
use crate::grid::Grid;
use crate::home::{Home, HomeError};
use crate::keyfile::KeyFile;
use crate::plan::{Action, Environment, Plan};
use crate::terminal::{Progress, Silent, Terminal};

/// Tells long-running commands that they should end.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop and the sender that brings it about.
    #[must_use]
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Whether it is time, for whoever can't wait.
    #[must_use]
    pub fn is_due(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is time. Never, if the sender is gone.
    pub async fn wait(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What every command has.
pub(crate) struct Context<'a> {
    pub(crate) home: Home,
    pub(crate) terminal: &'a mut Terminal,
    pub(crate) environment: &'a dyn Environment,
    pub(crate) stop: Stop,
    grid: Option<Name>,
    bot: Option<Name>,
    passphrase_file: Option<PathBuf>,
    quiet: bool,
}

/// The bot that acts, on a grid.
pub(crate) struct Acting {
    pub(crate) name: Name,
    pub(crate) key: SecretKey,
    pub(crate) grid: Grid,
}

impl Acting {
    pub(crate) fn id(&self) -> BotId {
        self.key.id()
    }

    /// Fails with the remedy if the bot has a key here but is nobody on the ledger, or was replaced there.
    pub(crate) async fn must_be_registered(&self) -> Result<(), Failure> {
        let checked = self.grid.verified().check_key(self.id(), self.key.public()).await;
        checked.map_err(|error| self.grid.error(error))?;
        if self.grid.bot(self.id()).await?.is_some() {
            return Ok(());
        }
        Err(Failure::not_found(CommandError::NotRegistered {
            bot: self.name.clone(),
            grid: self.grid.name().clone(),
        }))
    }
}

/// What several commands have to say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(
        "bot '{bot}' has a key here, but is not on grid '{grid}': register it with 'croft bot new {bot}'"
    )]
    NotRegistered { bot: Name, grid: Name },
    #[error("there is no bot '{bot}' on grid '{grid}'")]
    NoBot { bot: Name, grid: Name },
    #[error("there is no farm '{farm}' on grid '{grid}'")]
    NoFarm { farm: Name, grid: Name },
    #[error("farm '{farm}' has no node '{node}': 'croft farm nodes {farm}' lists them")]
    NoNode { farm: Name, node: Name },
    #[error("bot '{bot}' has no contract '{contract}' on grid '{grid}': 'croft ps --all' lists them")]
    NoContract { contract: Name, bot: Name, grid: Name },
}

impl Context<'_> {
    /// The grid that was chosen.
    pub(crate) fn pin(&self) -> Result<GridPin, Failure> {
        Ok(self.home.grid(self.grid.as_ref())?)
    }

    /// The bot that was chosen, and the grid.
    pub(crate) fn acting(&self) -> Result<Acting, Failure> {
        let pin = self.pin()?;
        let (name, key) = self.acting_key()?;
        let grid = Grid::open(&self.home, pin, &key)?;
        Ok(Acting { name, key, grid })
    }

    /// Name and key of the bot that was chosen.
    pub(crate) fn acting_key(&self) -> Result<(Name, SecretKey), Failure> {
        let name = self.home.acting_name(self.bot.as_ref())?;
        let key = self.present_key_of(&name)?;
        Ok((name, key))
    }

    /// The grid, asked by whoever there is: some key is needed to connect, none to read.
    pub(crate) fn reading_grid(&self) -> Result<Grid, Failure> {
        let pin = self.pin()?;
        let file = self.home.acting_name(self.bot.as_ref()).and_then(|name| self.home.key_file(&name));
        let key = match file {
            Ok(KeyFile::Open(key)) => key,
            // Nobody is asked for a passphrase only to read what everybody may.
            Ok(KeyFile::Locked(_)) | Err(HomeError::NoDefaultBot { .. }) => {
                SecretKey::generate().map_err(HomeError::Randomness)?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Grid::open(&self.home, pin, &key)?)
    }

    /// Where progress goes.
    pub(crate) fn progress(&mut self) -> Box<dyn Progress + '_> {
        if self.quiet { Box::new(Silent) } else { Box::new(&mut *self.terminal) }
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.progress().note(text);
    }
}

impl From<HomeError> for Failure {
    fn from(error: HomeError) -> Self {
        match error {
            HomeError::NoBot { .. }
            | HomeError::NoDefaultBot { .. }
            | HomeError::NoGrid { .. }
            | HomeError::NoDefaultGrid { .. }
            | HomeError::NoImage { .. }
            | HomeError::NoSkill { .. } => Self::not_found(error),
            _ => Self::failed(error),
        }
    }
}

/// Carries out a plan.
///
/// # Errors
/// [`Failure`] with its exit code; nothing was said yet.
pub async fn run(
    plan: Plan,
    terminal: &mut Terminal,
    environment: &dyn Environment,
    stop: Stop,
) -> Result<(), Failure> {
    let Plan { home, grid, bot, passphrase_file, json: _, quiet, action } = plan;
    let mut context = Context { home, terminal, environment, stop, grid, bot, passphrase_file, quiet };
    let c = &mut context;
    match action {
        Action::GridInit(flags) => grid::init(c, &flags),
        Action::GridUp(flags) => grid::up(c, &flags).await,
        Action::GridStatus => grid::status(c).await,
        Action::GridJoin { pin } => grid::join(c, &pin),
        Action::ValidatorsShow => validators::show(c).await,
        Action::ValidatorsPropose { set, remove, out } => validators::propose(c, &set, &remove, &out).await,
        Action::ValidatorsSign { file, key } => validators::sign(c, &file, key.as_deref()).await,
        Action::ValidatorsSubmit { files } => validators::submit(c, &files).await,
        Action::BotNew { name, grains } => bot::new(c, &name, grains).await,
        Action::BotShow { name } => bot::show(c, name).await,
        Action::BotPassphrase { name, change } => keys::passphrase(c, name, &change),
        Action::BotPhrase { name } => keys::phrase(c, name),
        Action::BotExport { name, file, passphrase } => keys::export(c, &name, &file, passphrase.as_deref()),
        Action::BotImport { name, from, later } => keys::import(c, name, &from, later),
        Action::BotRotate { name, resume } => rotate::rotate(c, name, resume).await,
        Action::BotUpdate(flags) => directory::update(c, &flags).await,
        Action::BotFind(flags) => directory::find(c, flags).await,
        Action::MessageSend { to, text } => message::send(c, &to, &text).await,
        Action::MessageRead { follow, skill } => message::read(c, follow, skill.as_ref()).await,
        Action::WalletStatement { since_ms } => statement::statement(c, since_ms).await,
        Action::WalletFaucet => wallet::faucet(c).await,
        Action::WalletReclaim => reclaim::reclaim(c).await,
        Action::WalletShow => wallet::show(c).await,
        Action::WalletSend { to, amount, memo } => wallet::send(c, &to, amount, memo).await,
        Action::FarmNew(farm) => farm::new(c, farm).await,
        Action::FarmImage(flags) => media::image(c, &flags),
        Action::FarmNodes { name, all } => farm::nodes(c, name, all).await,
        Action::FarmVerify { farm, node } => verify::verify(c, (farm, node)).await,
        Action::FarmPolicy(change) => policy::policy(c, change).await,
        Action::FarmDrain { farm, node, until_s, undo } => drain::drain(c, (farm, node), until_s, undo).await,
        Action::FarmServe { names, policy, skill } => {
            serve::serve(c, &names, policy.as_deref(), skill.as_ref()).await
        }
        Action::ImageBuild { layout, name, scratch } => image::build(c, &layout, &name, scratch),
        Action::ImageList => image::list(c),
        Action::MediaDisks => media::disks(c),
        Action::MediaFlash { image, device, agreed } => media::flash(c, &image, &device, agreed.as_deref()),
        Action::MediaKeys { folder } => media::make_keys(c, &folder),
        Action::MediaServe(flags) => media::serve(c, &flags).await,
        Action::MediaSign { file, keys, out } => media::sign(c, &file, &keys, &out),
        Action::ReleaseKeysShow => release::keys_show(c).await,
        Action::ReleaseKeysNew { file } => release::keys_new(c, &file),
        Action::ReleaseKeysPropose { keys, threshold, out } => {
            release::keys_propose(c, &keys, threshold, &out).await
        }
        Action::ReleasePrepare(flags) => release::prepare(c, flags).await,
        Action::ReleaseSign { file, key } => release::sign(c, &file, &key).await,
        Action::ReleasePublish(flags) => release::publish(c, &flags).await,
        Action::ReleaseList { channel } => release::list(c, &channel).await,
        Action::ReleaseShow(target) => release::show(c, &target).await,
        Action::ReleaseHalt { target, reason, key } => release::halt(c, &target, reason, &key).await,
        Action::RecipePublish { file } => recipe::publish(c, &file).await,
        Action::RecipeWithdraw { name, reason } => recipe::withdraw(c, name, reason).await,
        Action::RecipeList { author } => recipe::list(c, author).await,
        Action::RecipeShow { recipe, version, text } => recipe::show(c, &recipe, version, text).await,
        Action::RecipeDeploy(flags) => recipe::deploy(c, flags).await,
        Action::Deploy(flags) => deploy::deploy(c, &flags).await,
        Action::Ps { all } => ps::ps(c, all).await,
        Action::Logs { contract, vm, follow, tail } => logs::logs(c, &contract, vm, follow, tail).await,
        Action::Explain { name } => explain::explain(c, &name).await,
        Action::Stop { name } => stop::stop(c, &name).await,
        Action::Ledger(action) => ledger::ledger(c, action).await,
        Action::Find(flags) => find::find(c, &flags).await,
        Action::Cost(flags) => find::cost(c, &flags).await,
        Action::Approve { contract, refuse } => quorum::approve(c, &contract, refuse).await,
        Action::ApproveBySkill { contract, skill } => {
            quorum::approve_by_skill(c, contract.as_ref(), &skill).await
        }
        Action::Approvals { all } => quorum::approvals(c, all).await,
        Action::Fund { contract, amount } => fund::fund(c, &contract, amount).await,
        Action::Settle { contract } => fund::settle(c, &contract).await,
        Action::Keep(flags) => keep::keep(c, &flags).await,
        Action::Skill(command) => skill::skill(c, command),
    }
}
