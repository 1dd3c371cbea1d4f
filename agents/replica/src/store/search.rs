//! Searches: which keys of the index to walk, what each found thing must be, and where a page ends.
//!
//! ```text
//!   query ──plans_of──> plans ──a few steps of each──> the one that finds most ──walk──> page, cursor
//! ```
//! A plan is a row of key ranges that hold everything that matches. Conditions on nodes that are their farm's
//! are walked from farm to farm. A search must never look at more than [`SCANNED`] keys, never leave out what
//! matches, and never trust a cursor: it only says where in a plan to go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use borsh::{BorshDeserialize, BorshSerialize};
use croft_protocol::api::{BotQuery, ContractQuery, Cursor, FarmQuery, NodeQuery, Phase, Query};
use croft_protocol::record::TrustClass;
use croft_protocol::{FarmId, Hash, Kind, Name, RecordId, encode};
use redb::Range;

use super::StoreError;
use super::index::{ContractEntry, Entry, FarmEntry, NodeEntry, PRICED, Part, amounts, id_of, start};
use super::snapshot::{PAGE_BYTES, Snapshot};

/// Keys that one search looks at before it hands back what it has: bounds what a stranger can cost, some
/// 20 ms.
const SCANNED: usize = 8_192;
/// Keys of each plan that are looked at to choose one.
const PROBED: usize = 96;
/// What one unit of each price is for, in the order of the keys: thousandths of a CPU, bytes of a GiB.
const PRICED_UNITS: [u128; PRICED] = [1_000, 1 << 30, 1 << 30, 1 << 30];

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("the cursor is no good: {reason}")]
    Cursor { reason: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    pub things: Vec<T>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
    /// Keys that were looked at.
    pub scanned: usize,
}

type KeyRange = Range<'static, &'static [u8], ()>;

/// Keys from the first on and before the second.
type Keys = (Vec<u8>, Vec<u8>);

/// Key ranges, in the order in which they are walked, that hold all that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    ranges: Vec<Keys>,
    /// The keys are of farms, and their nodes are meant.
    by_farm: bool,
}

/// The last step that was taken.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Place {
    key: Vec<u8>,
    /// The node, where `key` is that of a farm; `None` when its nodes come next.
    node: Option<Hash>,
}

/// What is in a [`Cursor`].
#[derive(BorshSerialize, BorshDeserialize)]
struct Bookmark {
    shape: Hash,
    plan: u8,
    place: Place,
}

fn all(part: Part, pieces: &[&[u8]]) -> Keys {
    let first = start(part, pieces);
    let end = after(&first);
    (first, end)
}

/// The first key that does not begin with these bytes. The first of them is a [`Part`], so there is one.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn flat(keys: Keys) -> Plan {
    Plan { ranges: vec![keys], by_farm: false }
}

fn by_farm(keys: Keys) -> Plan {
    Plan { ranges: vec![keys], by_farm: true }
}

/// Every way to answer a query, the one that is usually best first.
fn plans_of(query: &Query) -> Vec<Plan> {
    match query {
        Query::Nodes(query) => node_plans(query),
        Query::Farms(FarmQuery { owner, country, region }) => {
            let mut plans = Vec::new();
            plans.extend(owner.map(|owner| flat(all(Part::FarmsOfOwner, &[&owner.0]))));
            plans.extend(country.as_ref().map(|country| flat(place(country, region.as_ref()))));
            or_all(plans, Part::Farms)
        }
        Query::Contracts(query) => contract_plans(query),
        Query::Transfers { of } => vec![flat(all(Part::TransfersOf, &[&of.0]))],
        Query::Recipes { author: Some(author) } => vec![flat(all(Part::RecipesOf, &[&author.0, &[0]]))],
        Query::Recipes { author: None } => vec![flat(all(Part::Recipes, &[&[0]]))],
        Query::Reservations { of } => vec![flat(all(Part::ReservationsOf, &[&of.0]))],
        Query::Bots(BotQuery { text: _, role, capability }) => {
            let mut plans = Vec::new();
            let of = |one: &Name| flat(all(Part::BotsByCapability, &[one.as_str().as_bytes(), &[0]]));
            plans.extend(capability.as_ref().map(of));
            plans.extend(role.map(|role| flat(all(Part::BotsByRole, &[&[role as u8]]))));
            or_all(plans, Part::Bots)
        }
    }
}

fn or_all(mut plans: Vec<Plan>, part: Part) -> Vec<Plan> {
    if plans.is_empty() {
        plans.push(flat(all(part, &[])));
    }
    plans
}

fn place(country: &str, region: Option<&croft_protocol::Name>) -> Keys {
    match region {
        Some(region) => all(Part::FarmsInCountry, &[country.as_bytes(), region.as_str().as_bytes(), &[0]]),
        None => all(Part::FarmsInCountry, &[country.as_bytes()]),
    }
}

fn node_plans(query: &NodeQuery) -> Vec<Plan> {
    let mut plans = Vec::new();
    plans.extend(query.farm.map(|farm| flat(all(Part::NodesOfFarm, &[&farm.0.0]))));
    plans.extend(query.owner.map(|owner| by_farm(all(Part::FarmsOfOwner, &[&owner.0]))));
    plans.extend(query.country.as_ref().map(|country| by_farm(place(country, query.region.as_ref()))));
    for (n, need) in (0_u8..).zip(amounts(&query.free)).filter(|(_, need)| *need > 0) {
        let (_, end) = all(Part::NodesByFree, &[&[n]]);
        plans.push(flat((start(Part::NodesByFree, &[&[n], &need.to_be_bytes()]), end)));
        if let (Some(max), Some(unit)) = (query.max_per_hour, PRICED_UNITS.get(usize::from(n))) {
            // A whole is not dearer than its parts: what alone costs too much needn't be looked at.
            let most = u128::from(max.0 / 3_600) * unit / u128::from(need);
            let (first, end) = all(Part::FarmsByPrice, &[&[n]]);
            let end = match u64::try_from(most).ok().and_then(|most| most.checked_add(1)) {
                Some(above) => start(Part::FarmsByPrice, &[&[n], &above.to_be_bytes()]),
                None => end,
            };
            plans.push(by_farm((first, end)));
        }
    }
    if let Some(trust) = query.trust.filter(|trust| *trust > TrustClass::Plain) {
        let (_, end) = all(Part::NodesByTrust, &[]);
        plans.push(flat((start(Part::NodesByTrust, &[&[trust as u8]]), end)));
    }
    or_all(plans, Part::Nodes)
}

fn contract_plans(query: &ContractQuery) -> Vec<Plan> {
    let phases = query.phases;
    let live = Phase::ALL.into_iter().any(|phase| phase != Phase::Ended && phases.has(phase));
    let sides: Vec<[u8; 1]> = [(live, [0]), (phases.has(Phase::Ended), [1])]
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, s)| s)
        .collect();
    let plan = |keys: &dyn Fn(&[u8]) -> Keys| Plan {
        ranges: sides.iter().map(|side| keys(side)).collect(),
        by_farm: false,
    };
    let mut plans = Vec::new();
    for party in [query.node, query.user, query.farmer].into_iter().flatten() {
        plans.push(plan(&|side| all(Part::ContractsOf, &[&party.0, side])));
    }
    if let Some(before) = query.expires_before_ms {
        let end = before.to_be_bytes();
        plans.push(plan(&|side| {
            (start(Part::ContractsByExpiry, &[side]), start(Part::ContractsByExpiry, &[side, &end]))
        }));
    }
    let some = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Ended).any(|phase| !phases.has(phase));
    if live && some {
        let ranges = phases.iter().map(|phase| all(Part::ContractsByPhase, &[&[phase as u8]])).collect();
        plans.push(Plan { ranges, by_farm: false });
    }
    if plans.is_empty() {
        plans.push(plan(&|side| all(Part::Contracts, &[side])));
    }
    plans
}

/// What a plan has at one place: a thing to look at, or nothing where a farm is of no use.
struct Step {
    place: Place,
    thing: Option<Hash>,
}

/// One search on its way.
struct Search<'a> {
    snapshot: &'a Snapshot,
    query: &'a Query,
    farms: BTreeMap<FarmId, Option<Arc<FarmEntry>>>,
}

/// A plan being walked.
struct Walk<'p> {
    plan: &'p Plan,
    /// The range that `keys` is of.
    range: usize,
    keys: Option<KeyRange>,
    /// Key of the farm whose nodes are being walked.
    farm: Option<(Vec<u8>, KeyRange)>,
}

impl<'p> Walk<'p> {
    fn new(plan: &'p Plan) -> Self {
        Self { plan, range: 0, keys: None, farm: None }
    }
}

impl Search<'_> {
    /// Goes on after a place; `None` when it is not one of the plan's.
    fn walk_after<'p>(&mut self, plan: &'p Plan, place: &Place) -> Result<Option<Walk<'p>>, StoreError> {
        let within = |(first, end): &Keys| *first <= place.key && place.key < *end;
        let Some(range) = plan.ranges.iter().position(within) else { return Ok(None) };
        if place.key.len() < 33 || (place.node.is_some() && !plan.by_farm) {
            return Ok(None);
        }
        // The next key after one is itself with a zero byte.
        let next = [&place.key[..], &[0]].concat();
        let keys = self.keys(&(next, plan.ranges[range].1.clone()))?;
        let farm = FarmId(id_of(&place.key)?);
        let (first, end) = all(Part::NodesOfFarm, &[&farm.0.0]);
        let first = match &place.node {
            Some(node) => [&first[..], &node.0, &[0]].concat(),
            None => first,
        };
        let in_farm = plan.by_farm && self.farm_serves(farm)?;
        let farm = if in_farm { Some((place.key.clone(), self.keys(&(first, end))?)) } else { None };
        Ok(Some(Walk { plan, range, keys: Some(keys), farm }))
    }

    fn keys(&self, (first, end): &Keys) -> Result<KeyRange, StoreError> {
        Ok(self.snapshot.index().range::<&[u8]>(first.as_slice()..end.as_slice())?)
    }

    fn step(&mut self, walk: &mut Walk<'_>) -> Result<Option<Step>, StoreError> {
        loop {
            if let Some((farm, nodes)) = &mut walk.farm {
                if let Some(node) = nodes.next() {
                    let node = id_of(node?.0.value())?;
                    let place = Place { key: farm.clone(), node: Some(node) };
                    return Ok(Some(Step { place, thing: Some(node) }));
                }
                walk.farm = None;
            }
            let Some(keys) = &mut walk.keys else {
                let Some(range) = walk.plan.ranges.get(walk.range) else { return Ok(None) };
                walk.keys = Some(self.keys(range)?);
                continue;
            };
            let Some(key) = keys.next() else {
                walk.keys = None;
                walk.range += 1;
                continue;
            };
            let key = key?.0.value().to_vec();
            let id = id_of(&key)?;
            if !walk.plan.by_farm {
                return Ok(Some(Step { place: Place { key, node: None }, thing: Some(id) }));
            }
            if self.farm_serves(FarmId(id))? {
                let nodes = self.keys(&all(Part::NodesOfFarm, &[&id.0]))?;
                walk.farm = Some((key.clone(), nodes));
            }
            // A step of its own, so that farms without nodes count as well.
            return Ok(Some(Step { place: Place { key, node: None }, thing: None }));
        }
    }

    fn farm(&mut self, id: FarmId) -> Result<Option<Arc<FarmEntry>>, StoreError> {
        if let Some(known) = self.farms.get(&id) {
            return Ok(known.clone());
        }
        let entry = match self.snapshot.entry(&RecordId::farm(&id))? {
            Some(Entry::Farm(farm)) => Some(Arc::new(farm)),
            _ => None,
        };
        self.farms.insert(id, entry.clone());
        Ok(entry)
    }

    /// Whether a farm's nodes may match.
    fn farm_serves(&mut self, id: FarmId) -> Result<bool, StoreError> {
        let Query::Nodes(query) = self.query else { return Ok(false) };
        let Some(farm) = self.farm(id)? else { return Ok(false) };
        let place = (query.owner, query.country.as_ref(), query.region.as_ref());
        Ok(is_in(&farm, place) && query.affords(&farm.prices))
    }

    fn matches(&mut self, id: &RecordId) -> Result<bool, StoreError> {
        if id.kind == Kind::Transfer {
            return Ok(true);
        }
        let entry = self.snapshot.entry(id)?;
        let entry =
            entry.ok_or_else(|| StoreError::damaged(format!("{id:?} is indexed, but has no entry")))?;
        Ok(match (self.query, entry) {
            (Query::Nodes(query), Entry::Node(node)) => {
                node_fits(query, &node) && self.farm_serves(node.farm)?
            }
            (Query::Farms(query), Entry::Farm(farm)) => {
                is_in(&farm, (query.owner, query.country.as_ref(), query.region.as_ref()))
            }
            (Query::Contracts(query), Entry::Contract(contract)) => contract_fits(query, &contract),
            (Query::Recipes { author }, Entry::Recipe(recipe)) => {
                !recipe.withdrawn && author.is_none_or(|author| recipe.author == author)
            }
            (Query::Bots(query), Entry::Bot(bot)) => {
                query.matches(&bot.name, &bot.roles, &bot.capabilities, &bot.description)
            }
            (Query::Reservations { of }, Entry::Reservation(held)) => held.user == *of || held.farmer == *of,
            _ => return Err(StoreError::damaged(format!("the index entry of {id:?} is of another kind"))),
        })
    }

    /// Takes a few steps of each plan: the first that ends soon, else the one that finds most on its way.
    fn choose(&mut self, plans: &[Plan]) -> Result<usize, StoreError> {
        let mut best = (0, 0);
        if plans.len() == 1 {
            return Ok(0);
        }
        for (n, plan) in plans.iter().enumerate() {
            let mut walk = Walk::new(plan);
            let mut found = 0;
            for scanned in 0..=PROBED {
                match self.step(&mut walk)? {
                    None => return Ok(n),
                    Some(_) if scanned == PROBED => {}
                    Some(Step { thing: Some(id), .. }) => {
                        let id = RecordId { kind: kind_of(self.query), id };
                        found += usize::from(self.matches(&id)?);
                    }
                    Some(Step { thing: None, .. }) => {}
                }
            }
            if found > best.1 {
                best = (n, found);
            }
        }
        Ok(best.0)
    }
}

fn is_in(
    farm: &FarmEntry,
    (owner, country, region): (Option<croft_protocol::BotId>, Option<&String>, Option<&croft_protocol::Name>),
) -> bool {
    owner.is_none_or(|owner| farm.owner == owner)
        && country.is_none_or(|country| farm.country == *country)
        && region.is_none_or(|region| farm.region.as_ref() == Some(region))
}

fn node_fits(query: &NodeQuery, node: &NodeEntry) -> bool {
    query.farm.is_none_or(|farm| node.farm == farm)
        && node.free.covers(&query.free)
        && query.trust.is_none_or(|trust| node.trust >= trust)
}

fn contract_fits(query: &ContractQuery, contract: &ContractEntry) -> bool {
    query.user.is_none_or(|user| contract.user == user)
        && query.farmer.is_none_or(|farmer| contract.farmer == farmer)
        && query.node.is_none_or(|node| contract.node == node)
        && query.phases.has(contract.phase)
        && query.expires_before_ms.is_none_or(|t| contract.expires_ms.is_some_and(|at| at < t))
}

fn kind_of(query: &Query) -> Kind {
    match query {
        Query::Nodes(_) => Kind::Node,
        Query::Farms(_) => Kind::Farm,
        Query::Contracts(_) => Kind::Contract,
        Query::Transfers { .. } => Kind::Transfer,
        Query::Recipes { .. } => Kind::Recipe,
        Query::Bots(_) => Kind::Profile,
        Query::Reservations { .. } => Kind::Reservation,
    }
}

/// Where a page ends, whichever comes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Things in it.
    count: usize,
    /// Bytes after which nothing more is added.
    bytes: usize,
    /// Keys that are looked at.
    scanned: usize,
}

impl Bounds {
    /// Of a page with at most so many things.
    pub(super) fn of(count: usize) -> Self {
        Self { count, bytes: PAGE_BYTES, scanned: SCANNED }
    }

    fn reached(&self, things: usize, bytes: usize, scanned: usize) -> bool {
        things >= self.count.max(1) || bytes > self.bytes || scanned >= self.scanned
    }
}

/// One page. `take` reads a found thing and says how many bytes it adds to the answer.
pub(super) fn search<T>(
    snapshot: &Snapshot,
    query: &Query,
    from: Option<&Cursor>,
    bounds: Bounds,
    take: impl Fn(RecordId) -> Result<(T, usize), StoreError>,
) -> Result<Found<T>, SearchError> {
    let refuse = |reason| SearchError::Cursor { reason };
    let mut search = Search { snapshot, query, farms: BTreeMap::new() };
    let (plans, shape) = (plans_of(query), query.shape());
    let (chosen, mut walk) = match from {
        None => {
            let chosen = search.choose(&plans)?;
            (chosen, Walk::new(&plans[chosen]))
        }
        Some(cursor) => {
            let known: Bookmark =
                borsh::from_slice(cursor.as_bytes()).map_err(|_| refuse("it can't be read"))?;
            if known.shape != shape {
                return Err(refuse("it is of another search"));
            }
            let plan =
                plans.get(usize::from(known.plan)).ok_or_else(|| refuse("it is of another release"))?;
            let walk = search.walk_after(plan, &known.place)?;
            (usize::from(known.plan), walk.ok_or_else(|| refuse("it is not within its search"))?)
        }
    };
    let mut found = Found { things: Vec::new(), next: None, scanned: 0 };
    let mut taken = 0;
    let mut last: Option<Place> = None;
    while let Some(Step { place, thing }) = search.step(&mut walk)? {
        if let Some(last) = last
            && bounds.reached(found.things.len(), taken, found.scanned)
        {
            let bookmark = Bookmark { shape, plan: u8::try_from(chosen).unwrap_or(u8::MAX), place: last };
            let cursor = Cursor::new(encode(&bookmark));
            found.next = Some(cursor.ok_or_else(|| StoreError::damaged("an index key is too long"))?);
            break;
        }
        found.scanned += 1;
        last = Some(place);
        let Some(id) = thing else { continue };
        let id = RecordId { kind: kind_of(query), id };
        if search.matches(&id)? {
            let (thing, size) = take(id)?;
            taken += size;
            found.things.push(thing);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
