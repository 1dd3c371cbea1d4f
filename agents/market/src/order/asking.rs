//! Who an order asks, what it answers to a price, and what it says of all of them in the end.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::market::{Demand, Reason, Role};
use croft_protocol::{BotId, Grains, Hash, NodeId};

use super::{
    ASKED, OPEN_MS, Offered, Order, OrderEntry, OrderFailure, OrderOutput, PER_FARMER, ROUND_MS, ROUNDS,
    State, Wish,
};
use crate::conversation::Conversation;
use crate::rank::{Candidate, Demand as Search, rank};
use crate::score::{Explain, NotTaken, Why};
use crate::strategy::{All, Concession, Decision, Limits, Strategy as _, View};
use crate::transcript::Transcript;

impl Order {
    /// Demands to some of the candidates that fit.
    pub(super) fn ask(&mut self, options: Vec<Offered>, now_ms: u64, out: &mut Vec<OrderOutput>) {
        self.options = options.into_iter().map(|option| (option.candidate.node, option)).collect();
        self.talks.clear();
        self.queue.clear();
        self.attempt += 1;
        let candidates: Vec<Candidate> = self.options.values().map(|o| o.candidate.clone()).collect();
        let matches = rank(&candidates, &self.search());
        self.why.retain(|node, _| self.avoid.contains(node));
        for excluded in matches.excluded {
            let why = excluded.reasons.into_iter().map(Why::Ledger).collect();
            self.why.insert(excluded.node, why);
        }
        let fits: Vec<(NodeId, BotId)> = matches.fits.iter().map(|fit| (fit.node, fit.farmer)).collect();
        let asked = self.draw(fits.iter().copied().filter(|(node, _)| !self.avoid.contains(node)).collect());
        for (node, _) in &fits {
            if !asked.contains(node) && !self.avoid.contains(node) {
                self.why.insert(*node, vec![Why::NotAsked { limit: ASKED }]);
            }
        }
        if asked.is_empty() {
            let name = self.wish.name.clone();
            let failure = if self.attempt == 1 && fits.is_empty() {
                OrderFailure::NoFit { name }
            } else {
                OrderFailure::NoBid { name, attempts: self.attempt }
            };
            return self.fail(failure, out);
        }
        out.push(OrderOutput::Write(Box::new(OrderEntry::Started { attempt: self.attempt })));
        for node in asked {
            let candidate = self.options[&node].candidate.clone();
            let demand = self.demand(&candidate);
            // A demand of our own is refused only where the wish itself is too large for a message.
            match Conversation::open(&self.party, demand, now_ms + OPEN_MS) {
                Ok(talk) => {
                    let message = Box::new(talk.transcript().last().clone());
                    out.push(OrderOutput::Send { to: candidate.farmer, message });
                    self.talks.insert(talk.transcript().id(), talk);
                }
                Err(refusal) => self.not(node, Why::Invalid { problem: refusal.to_string() }),
            }
        }
        self.state = State::Collecting { round: 0, round_ends_ms: now_ms + ROUND_MS };
    }

    fn search(&self) -> Search {
        // Prices come down in negotiations: up to half as much again is worth asking.
        let max_price = self.wish.max_price.0.saturating_add(self.wish.max_price.0 / 2);
        Search {
            resources: self.wish.resources,
            ports: self.wish.ports.clone(),
            duration_s: self.wish.duration_s,
            max_price: Some(Grains(max_price)),
            ..Search::default()
        }
    }

    /// Who is asked: the cheapest, and some by a lot that depends on the seed.
    fn draw(&self, fits: Vec<(NodeId, BotId)>) -> BTreeSet<NodeId> {
        let mut by_lot = fits.clone();
        let attempt = self.attempt;
        by_lot
            .sort_by_cached_key(|(node, _)| Hash::of("croft/market-lot/1", &(self.wish.seed, attempt, node)));
        let (mut asked, mut per_farmer) = (BTreeSet::new(), BTreeMap::<BotId, usize>::new());
        for (limit, list) in [(ASKED / 2, &fits), (ASKED, &by_lot)] {
            for (node, farmer) in list {
                let of_farmer = per_farmer.entry(*farmer).or_default();
                if asked.len() < limit && *of_farmer < PER_FARMER && asked.insert(*node) {
                    *of_farmer += 1;
                }
            }
        }
        asked
    }

    fn demand(&self, candidate: &Candidate) -> Demand {
        let nonce = Hash::of("croft/market-nonce/1", &(self.wish.seed, self.attempt, candidate.node));
        Demand {
            buyer: self.party.id(),
            farmer: candidate.farmer,
            farm: candidate.farm,
            node: candidate.node,
            resources: self.wish.resources,
            ports: self.wish.ports.clone(),
            duration_s: self.wish.duration_s,
            grace_s: self.wish.grace_s,
            prepaid_s: self.wish.prepaid_s,
            nonce: half(nonce),
        }
    }

    /// Why this one, and why each other one is not.
    #[must_use]
    pub fn explain(&self, taken: Option<NodeId>) -> Explain {
        let chosen = self.queue.iter().find(|scored| Some(scored.node) == taken).cloned();
        let place = |node: &NodeId| self.queue.iter().position(|scored| scored.node == *node);
        let mut others: Vec<NotTaken> = self
            .options
            .values()
            .filter(|option| Some(option.candidate.node) != taken)
            .map(|option| {
                let node = option.candidate.node;
                let outscored = chosen.as_ref().zip(place(&node)).map(|(chosen, at)| {
                    let (effective, chosen) = (self.queue[at].effective, chosen.effective);
                    vec![Why::Outscored { effective, chosen }]
                });
                let why = self.why.get(&node).cloned().or(outscored).unwrap_or_else(|| {
                    let avoided = self.avoid.contains(&node);
                    vec![if avoided { Why::Avoided } else { Why::NoReply }]
                });
                let Candidate { name, farm_name, .. } = option.candidate.clone();
                NotTaken { node, name, farm_name, why }
            })
            .collect();
        others.sort_by_key(|other| (place(&other.node).unwrap_or(usize::MAX), other.why.len(), other.node));
        Explain { chosen, others }
    }
}

/// What the owner's limits say to the price on the table.
pub(super) fn decide(wish: &Wish, option: &Offered, transcript: &Transcript, round: u32) -> Decision {
    let demand = transcript.demand();
    let Some(list) = option.candidate.prices.rate(&demand.resources) else {
        return Decision::Reject(Reason::Overflow);
    };
    if transcript.quote().is_none() {
        return Decision::Reject(Reason::Malformed);
    }
    let max_rate = croft_protocol::Rate(wish.max_price.0 / demand.duration_s.max(1));
    let first = crate::strategy::share(list, wish.opening_percent).min(max_rate);
    let view = View {
        role: Role::Buyer,
        demand,
        country: &option.candidate.country,
        region: None,
        list,
        theirs: transcript.quote(),
        ours: transcript.quote_of(Role::Buyer).map(|quote| quote.rate),
        round,
        // The choice itself is the last round.
        rounds: ROUNDS,
    };
    let last = list.min(max_rate);
    All(vec![
        Box::new(Limits { max_rate, max_hold_fee: wish.max_hold_fee }),
        Box::new(Concession { first, last: last.max(first) }),
    ])
    .decide(&view)
}

pub(super) fn half(hash: Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.0[..16]);
    half
}
