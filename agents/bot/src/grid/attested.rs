//! What a node's class stands on, read with proofs, to be weighed by this bot itself.

use croft_attest::Policy;
use croft_light::Tip;
use croft_protocol::record::NodeBody;
use croft_protocol::release::{Release, ReleaseState};
use croft_protocol::trust::{NodeTrust, RecentHeader, TrustPolicy, WeighedQuote};
use croft_protocol::{Body, FarmId, Hash, NodeId, Record, RecordId, ReleaseId, StateKey, limits};

use super::{Grid, GridError};

/// All of one header but the farm's releases, which are read after it, and the header that the quote names.
pub struct Attested {
    pub tip: Tip,
    pub body: NodeBody,
    pub known: Option<(NodeTrust, WeighedQuote)>,
    pub trust_policy: TrustPolicy,
    /// That the farm follows, and that count as known.
    pub followed: Vec<Release>,
    pub policy: Policy,
    /// At the height that the quote names; `None` where no replica shows it with a certificate of the present
    /// validators.
    pub header: Option<RecentHeader>,
}

impl Grid {
    /// The policy of this grid's genesis for its nodes' TPMs.
    pub async fn trust_policy(&self) -> Result<TrustPolicy, GridError> {
        Ok(self.value("the trust policy", StateKey::TrustPolicy).await?.unwrap_or_default())
    }

    /// What is needed to weigh a node anew; `None` where there is no such node.
    pub async fn attested(&self, id: NodeId) -> Result<Option<Attested>, GridError> {
        let proved = self
            .get(&[
                StateKey::Record(RecordId::node(&id)),
                StateKey::NodeTrust(id),
                StateKey::NodeQuote(id),
                StateKey::TrustPolicy,
                StateKey::Record(RecordId::validators()),
            ])
            .await?;
        let value = |at: usize| proved.values[at].as_deref();
        let body = match self.decode::<Record>("a node", value(0))?.map(|record| record.body) {
            None => return Ok(None),
            Some(Body::Node(body)) => body,
            Some(_) => return Err(self.other_record(format!("node {id}"))),
        };
        let trust: Option<NodeTrust> = self.decode("the trust in a node", value(1))?;
        let quote: Option<WeighedQuote> = self.decode("the last quote of a node", value(2))?;
        let trust_policy: TrustPolicy = self.decode("the trust policy", value(3))?.unwrap_or_default();
        let record: Option<Record> = self.decode("the validators", value(4))?;
        let Some(Body::Validators(validators)) = record.map(|record| record.body) else {
            return Err(self.other_record("the validators"));
        };
        let known = trust.zip(quote);
        let header = match &known {
            Some((_, quote)) => self.final_header(quote.header.height).await?,
            None => None,
        };
        let followed = self.followed_releases(body.farm).await?;
        let policy = Policy::of(trust_policy.clone(), &validators, &followed);
        Ok(Some(Attested { tip: proved.tip, body, known, trust_policy, followed, policy, header }))
    }

    async fn final_header(&self, height: u64) -> Result<Option<RecentHeader>, GridError> {
        let found = self.verified.header(height).await.map_err(|e| self.error(e))?;
        Ok(found.map(|signed| RecentHeader {
            height: signed.header.height,
            time_ms: signed.header.time_ms,
            hash: signed.header.hash(),
        }))
    }

    /// As the ledger looks for them: the newest of the farm's channel that were not halted nor fell below its minimum.
    async fn followed_releases(&self, farm: FarmId) -> Result<Vec<Release>, GridError> {
        let Some(policy) = self.farm_policy(farm).await? else { return Ok(Vec::new()) };
        let name = policy.channel;
        let head = match self.record(RecordId::channel(&name)).await?.map(|record| record.body) {
            None => return Ok(Vec::new()),
            Some(Body::Channel(head)) if head.name == name => head,
            Some(_) => return Err(self.other_record(format!("channel '{name}'"))),
        };
        let (mut found, mut next) = (Vec::new(), Some(head.latest));
        for _ in 0..limits::CHANNEL_LOOK_BACK {
            let Some(version) = next.filter(|version| *version >= head.minimum) else { break };
            let id = ReleaseId::new(&name, version);
            let body = match self.record(RecordId::release(&id)).await?.map(|record| record.body) {
                Some(Body::Release(body)) if body.signed.release.id() == id => *body,
                _ => return Err(self.other_record(format!("release {version} of channel '{name}'"))),
            };
            next = body.signed.release.previous;
            if body.state == ReleaseState::Published {
                found.push(body.signed.release);
            }
        }
        Ok(found)
    }
}

impl Attested {
    /// Which release a boot file is; `None` for one of the genesis.
    #[must_use]
    pub fn release_of(&self, file: Hash) -> Option<&Release> {
        self.followed.iter().find(|release| release.boot_file.authenticode == file)
    }
}
