//! What the state machine needs of a store, and how it reads typed values from it.

use std::fmt;

use borsh::BorshDeserialize;
use croft_protocol::contract::{ContractBody, ContractId};
use croft_protocol::identity::{self, KeyRefusal, KeysBody};
use croft_protocol::record::{BotBody, Draining, FarmBody, NodeBody, RecipeBody};
use croft_protocol::release::{ChannelBody, FarmPolicy, ReleaseBody, ReleaseKeys, Trials, Tried};
use croft_protocol::reservation::{NodeReservations, OpenReservations, ReservationBody};
use croft_protocol::state::{Account, NodeContracts};
use croft_protocol::trust::WeighedQuote;
use croft_protocol::{
    Body, BotId, Escrow, FarmId, Hash, Name, NodeCapacity, NodeId, NodeTrust, PublicKey, Record, RecordId,
    ReleaseId, SignedCommand, StateKey, ValidatorSet,
};

/// The state can't be read, or isn't what this ledger wrote. It stops the block; nobody is to blame who
/// submitted a command.
#[derive(Debug)]
pub struct StateError(Box<dyn std::error::Error + Send + Sync>);

impl StateError {
    /// A failure of the store.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }

    /// Bytes under `key` that this ledger can't have written.
    #[must_use]
    pub fn corrupt(key: &StateKey, reason: impl fmt::Display) -> Self {
        Self::new(format!(
            "the ledger's state is corrupt at {key:?}: {reason}; restore this replica from another"
        ))
    }

    /// A rule that the state machine itself must keep and didn't.
    #[must_use]
    pub fn broken(invariant: impl fmt::Display) -> Self {
        Self::new(format!("the ledger would break an invariant ({invariant}); the block is refused"))
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for StateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// The state before a block: `StateKey -> bytes`.
pub trait StateRead {
    /// The bytes under a key; `None` when there are none.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    fn get(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateError>;

    /// Whether the command's author signed it. A view may remember what it computed before; it must never guess.
    fn is_signed(&self, command: &SignedCommand) -> bool {
        command.verify().is_ok()
    }
}

/// Who orders the ledger from the block after this state on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentValidators {
    pub set: ValidatorSet,
    /// Hash of the record that says so.
    pub record: Hash,
    /// Height of the block that carries it; its own certificate is still by the set before.
    pub height: u64,
}

/// Typed reads on any [`StateRead`].
pub trait StateReadExt: StateRead {
    /// Decodes the value under a key.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the bytes are corrupt.
    fn read<T: BorshDeserialize>(&self, key: &StateKey) -> Result<Option<T>, StateError> {
        self.get(key)?
            .map(|bytes| borsh::from_slice(&bytes).map_err(|e| StateError::corrupt(key, e)))
            .transpose()
    }

    /// The latest record of a thing.
    fn record(&self, id: &RecordId) -> Result<Option<Record>, StateError> {
        self.read(&StateKey::Record(*id))
    }

    /// An author's account; of nobody that is an empty one.
    fn account(&self, key: &PublicKey) -> Result<Account, StateError> {
        Ok(self.read(&StateKey::Account(*key))?.unwrap_or_default())
    }

    fn bot(&self, id: &BotId) -> Result<Option<BotBody>, StateError> {
        body(self, RecordId::bot(id), |body| match body {
            Body::Bot(bot) => Some(bot),
            _ => None,
        })
    }

    fn farm(&self, id: &FarmId) -> Result<Option<FarmBody>, StateError> {
        body(self, RecordId::farm(id), |body| match body {
            Body::Farm(farm) => Some(farm),
            _ => None,
        })
    }

    fn node(&self, id: &NodeId) -> Result<Option<NodeBody>, StateError> {
        body(self, RecordId::node(id), |body| match body {
            Body::Node(node) => Some(node),
            _ => None,
        })
    }

    fn contract(&self, id: &ContractId) -> Result<Option<ContractBody>, StateError> {
        body(self, RecordId::contract(id), |body| match body {
            Body::Contract(contract) => Some(*contract),
            _ => None,
        })
    }

    /// What was reserved for a contract.
    fn reservation(&self, contract: &ContractId) -> Result<Option<ReservationBody>, StateError> {
        body(self, RecordId::reservation(contract), |body| match body {
            Body::Reservation(reservation) => Some(*reservation),
            _ => None,
        })
    }

    fn release(&self, id: &ReleaseId) -> Result<Option<ReleaseBody>, StateError> {
        body(self, RecordId::release(id), |body| match body {
            Body::Release(release) => Some(*release),
            _ => None,
        })
    }

    fn release_keys(&self) -> Result<Option<ReleaseKeys>, StateError> {
        body(self, RecordId::release_keys(), |body| match body {
            Body::ReleaseKeys(keys) => Some(keys),
            _ => None,
        })
    }

    fn channel(&self, name: &Name) -> Result<Option<ChannelBody>, StateError> {
        body(self, RecordId::channel(name), |body| match body {
            Body::Channel(channel) => Some(channel),
            _ => None,
        })
    }

    /// What the farm's owner decided about upgrades.
    fn farm_policy(&self, farm: &FarmId) -> Result<Option<FarmPolicy>, StateError> {
        body(self, RecordId::farm_policy(farm), |body| match body {
            Body::FarmPolicy(policy) => Some(policy),
            _ => None,
        })
    }

    fn recipe(&self, author: &PublicKey, name: &Name) -> Result<Option<RecipeBody>, StateError> {
        body(self, RecordId::recipe(author, name), |body| match body {
            Body::Recipe(recipe) => Some(recipe),
            _ => None,
        })
    }

    /// How many nodes tried a release.
    fn trials(&self, release: &ReleaseId) -> Result<Trials, StateError> {
        Ok(self.read(&StateKey::Trials(*release))?.unwrap_or_default())
    }

    /// How many of them are a farmer's.
    fn farmer_trials(&self, release: &ReleaseId, farmer: &BotId) -> Result<Tried, StateError> {
        Ok(self.read(&StateKey::FarmerTrials(*release, *farmer))?.unwrap_or_default())
    }

    /// The keys that followed a bot's first one, if any did.
    fn keys(&self, bot: &BotId) -> Result<Option<KeysBody>, StateError> {
        body(self, RecordId::keys(bot), |body| match body {
            Body::Keys(keys) => Some(keys),
            _ => None,
        })
    }

    /// Whose key this is or was, if it is one of a bot that ever replaced its key.
    fn key_owner(&self, key: &PublicKey) -> Result<Option<BotId>, StateError> {
        self.read(&StateKey::KeyOwner(*key))
    }

    /// Whether `key` signs for `identity` now. Nodes, validators, and bots that never replaced their key, are their keys.
    fn check_key(&self, identity: &PublicKey, key: &PublicKey) -> Result<Result<(), KeyRefusal>, StateError> {
        let owner = self.key_owner(key)?;
        // A bot that ever replaced its key owns all of them, the first one too.
        if owner.is_none() && identity == key {
            return Ok(Ok(()));
        }
        let keys = self.keys(identity)?;
        Ok(identity::check_key(identity, key, owner.as_ref(), keys.as_ref()))
    }

    /// Who speaks where a key was proved and no identity was named.
    fn identity_of(&self, key: &PublicKey) -> Result<Result<PublicKey, KeyRefusal>, StateError> {
        let identity = self.key_owner(key)?.unwrap_or(*key);
        Ok(self.check_key(&identity, key)?.map(|()| identity))
    }

    /// The key with which an identity shows itself now.
    fn present_key(&self, identity: &PublicKey) -> Result<PublicKey, StateError> {
        Ok(self.keys(identity)?.map_or(*identity, |keys| keys.present(identity)))
    }

    /// Who certifies the next block.
    ///
    /// # Errors
    /// As [`Self::read`]; also where there are none, since the genesis has some.
    fn validators(&self) -> Result<PresentValidators, StateError> {
        let key = StateKey::Record(RecordId::validators());
        let bytes = self.get(&key)?.ok_or_else(|| StateError::corrupt(&key, "it is missing"))?;
        let record: Record = borsh::from_slice(&bytes).map_err(|e| StateError::corrupt(&key, e))?;
        let Body::Validators(set) = record.body else {
            return Err(StateError::corrupt(&key, format!("its body is a {:?}", record.body.kind())));
        };
        Ok(PresentValidators { set, record: Hash::of_bytes(&bytes), height: record.height })
    }

    /// Whether a node is being emptied.
    fn draining(&self, node: &NodeId) -> Result<Option<Draining>, StateError> {
        let drain = body(self, RecordId::drain(node), |body| match body {
            Body::Drain(drain) => Some(drain),
            _ => None,
        })?;
        Ok(drain.and_then(|drain| drain.draining))
    }

    fn capacity(&self, node: &NodeId) -> Result<Option<NodeCapacity>, StateError> {
        self.read(&StateKey::Capacity(*node))
    }

    /// What is known of a node whose TPM ever spoke for it.
    fn node_trust(&self, node: &NodeId) -> Result<Option<NodeTrust>, StateError> {
        self.read(&StateKey::NodeTrust(*node))
    }

    /// The last attestation of such a node, and what it was weighed against.
    fn node_quote(&self, node: &NodeId) -> Result<Option<WeighedQuote>, StateError> {
        self.read(&StateKey::NodeQuote(*node))
    }

    fn escrow(&self, contract: &ContractId) -> Result<Option<Escrow>, StateError> {
        self.read(&StateKey::Escrow(*contract))
    }

    /// Every contract addressed to the node that has not ended.
    fn node_contracts(&self, node: &NodeId) -> Result<NodeContracts, StateError> {
        Ok(self.read(&StateKey::NodeContracts(*node))?.unwrap_or_default())
    }

    /// Every reservation that holds capacity of the node.
    fn node_reservations(&self, node: &NodeId) -> Result<NodeReservations, StateError> {
        Ok(self.read(&StateKey::NodeReservations(*node))?.unwrap_or_default())
    }

    /// How many reservations of a bot hold capacity.
    fn open_reservations(&self, bot: &BotId) -> Result<OpenReservations, StateError> {
        Ok(self.read(&StateKey::OpenReservations(*bot))?.unwrap_or_default())
    }
}

impl<S: StateRead + ?Sized> StateReadExt for S {}

fn body<S: StateRead + ?Sized, T>(
    state: &S,
    id: RecordId,
    pick: impl FnOnce(Body) -> Option<T>,
) -> Result<Option<T>, StateError> {
    let Some(record) = state.record(&id)? else { return Ok(None) };
    let kind = record.body.kind();
    pick(record.body)
        .map(Some)
        .ok_or_else(|| StateError::corrupt(&StateKey::Record(id), format!("its body is a {kind:?}")))
}
