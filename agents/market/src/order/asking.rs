//! Who an order asks, what it answers to a price, whom it chooses, and what it says of all of them in the end.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::market::{Demand, NegotiationId, Quote, Reason, Role, Said};
use croft_protocol::{BotId, Grains, Hash, NodeId};

use super::{
    ASKED, OPEN_MS, Offered, Order, OrderEntry, OrderFailure, OrderOutput, PER_FARMER, ROUNDS, State,
    Unheard, Wish,
};
use crate::conversation::Conversation;
use crate::rank::{Candidate, Demand as Search, Exclusion, rank};
use crate::score::{Bid, Explain, NotTaken, Why, score_with};
use crate::strategy::{All, Concession, Decision, Limits, Strategy as _, View};
use crate::transcript::Transcript;

impl Order {
    /// Demands to some of the candidates that fit.
    pub(super) fn ask(&mut self, options: Vec<Offered>, now_ms: u64, out: &mut Vec<OrderOutput>) {
        self.options = options.into_iter().map(|option| (option.candidate.node, option)).collect();
        self.talks.clear();
        self.queue.clear();
        self.unheard.clear();
        self.attempt += 1;
        let candidates: Vec<Candidate> = self.options.values().map(|o| o.candidate.clone()).collect();
        let matches = rank(&candidates, &self.search());
        self.why.retain(|node, _| self.avoid.contains(node));
        for excluded in matches.excluded {
            // What is searched for is wider than what is paid; people are told of their own limit.
            let own = |reason| match reason {
                Exclusion::TooDear { price, .. } => Exclusion::TooDear { price, limit: self.wish.max_price },
                other => other,
            };
            let why = excluded.reasons.into_iter().map(own).map(Why::Ledger).collect();
            self.why.insert(excluded.node, why);
        }
        let fits: Vec<(NodeId, BotId)> = matches.fits.iter().map(|fit| (fit.node, fit.farmer)).collect();
        let asked = self.draw(fits.iter().copied().filter(|(node, _)| !self.avoid.contains(node)).collect());
        for (node, _) in &fits {
            if !asked.contains(node) && !self.avoid.contains(node) {
                self.why.insert(*node, vec![Why::NotAsked { limit: ASKED, per_farmer: PER_FARMER }]);
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
        self.state = State::Collecting { round: 0, round_ends_ms: now_ms + round_ms(&self.wish) };
    }

    /// Whether nobody is left who may still answer in this round.
    pub(super) fn everybody_answered(&self) -> bool {
        self.talks.iter().all(|(id, talk)| talk.unanswered().is_none() || self.unheard.contains_key(id))
    }

    /// A message of ours got nowhere.
    pub(super) fn not_heard(
        &mut self,
        id: NegotiationId,
        problem: Unheard,
        now_ms: u64,
        out: &mut Vec<OrderOutput>,
    ) {
        if !self.talks.contains_key(&id) {
            return;
        }
        let why = match problem {
            Unheard::Unreachable => Why::Unreachable,
            Unheard::Refused(problem) => Why::Unheard { problem },
        };
        self.unheard.insert(id, why);
        if matches!(self.state, State::Collecting { .. }) && self.everybody_answered() {
            self.end_round(now_ms, out);
        }
    }

    /// Answers all prices, or chooses, where no further answer is expected.
    pub(super) fn end_round(&mut self, now_ms: u64, out: &mut Vec<OrderOutput>) {
        let State::Collecting { round, .. } = self.state else { return };
        if round + 1 >= ROUNDS {
            return self.choose(now_ms, out);
        }
        self.haggle(round, now_ms, out);
        if self.everybody_answered() {
            return self.choose(now_ms, out);
        }
        let round_ends_ms = now_ms + round_ms(&self.wish);
        self.state = State::Collecting { round: round + 1, round_ends_ms };
    }

    /// The end of a round: every price on the table is answered, in the order of ids.
    fn haggle(&mut self, round: u32, now_ms: u64, out: &mut Vec<OrderOutput>) {
        let mut refused = Vec::new();
        for (id, talk) in &mut self.talks {
            let (node, farmer) = (talk.transcript().demand().node, talk.transcript().demand().farmer);
            if let Some(message) = talk.unanswered() {
                if matches!(self.unheard.get(id), Some(Why::Unheard { .. })) {
                    continue;
                }
                self.unheard.remove(id);
                out.push(OrderOutput::Send { to: farmer, message: Box::new(message.clone()) });
                continue;
            }
            let Some(option) = self.options.get(&node).filter(|_| talk.is_my_turn()) else { continue };
            let said = match decide(&self.wish, option, talk.transcript(), round) {
                Decision::Negotiating(rate) if talk.has_room_for_a_round() => {
                    let Some(quote) = talk.transcript().quote() else { continue };
                    Said::Counter(Quote { rate, capacity_version: 0, ..quote })
                }
                Decision::Ready | Decision::Negotiating(_) => continue,
                Decision::Reject(reason) => {
                    refused.push((node, reason.clone()));
                    Said::Reject { last: true, reason }
                }
            };
            if let Ok(message) = talk.say(&self.party, said, now_ms + OPEN_MS) {
                out.push(OrderOutput::Send { to: farmer, message: Box::new(message) });
            }
        }
        for (node, reason) in refused {
            self.not(node, Why::Failed { reason });
        }
    }

    /// The window is over: what is on the table is scored, whenever it came.
    fn choose(&mut self, now_ms: u64, out: &mut Vec<OrderOutput>) {
        let (mut bids, mut not) = (Vec::new(), Vec::new());
        for talk in self.talks.values() {
            let transcript = talk.transcript();
            let demand = transcript.demand();
            let Some(option) = self.options.get(&demand.node) else { continue };
            let price = transcript.quote().and_then(|q| Some((q, q.rate.for_seconds(demand.duration_s)?)));
            let why = match (&transcript.last().message.said, price) {
                (Said::Reject { last: true, reason }, _) | (Said::Reject { reason, .. }, None) => {
                    Why::Refused { reason: reason.clone() }
                }
                _ if !talk.is_my_turn() || now_ms > talk.expires_ms() => {
                    self.unheard.get(&transcript.id()).cloned().unwrap_or(Why::NoReply)
                }
                (_, None) => Why::Refused { reason: Reason::Overflow },
                (_, Some((_, price))) if price > self.wish.max_price => {
                    Why::TooDear { price, limit: self.wish.max_price }
                }
                (_, Some((quote, _))) if quote.hold_fee > self.wish.max_hold_fee => {
                    Why::Refused { reason: Reason::HoldFeeTooHigh }
                }
                (_, Some((quote, price))) => {
                    let up = option.uptime_permille;
                    bids.push(Bid::of(&option.candidate, up, quote.rate, price, quote.hold_fee));
                    continue;
                }
            };
            not.push((demand.node, why));
        }
        for (node, why) in not {
            self.not(node, why);
        }
        self.queue = score_with(&bids, self.wish.weights, &self.wish.seed, self.scoring.as_deref());
        self.try_next(now_ms, out);
    }

    fn search(&self) -> Search {
        // Prices come down in negotiations: up to half as much again is worth asking.
        let max_price = self.wish.max_price.0.saturating_add(self.wish.max_price.0 / 2);
        let place = &self.wish.place;
        Search {
            resources: self.wish.resources,
            ports: self.wish.ports.clone(),
            duration_s: self.wish.duration_s,
            node: place.node.clone(),
            farm: place.farm.clone(),
            countries: place.countries.clone(),
            trust: place.trust,
            max_price: Some(Grains(max_price)),
            funds: place.funds,
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

/// The window in equal rounds.
fn round_ms(wish: &Wish) -> u64 {
    (wish.window_ms / u64::from(ROUNDS)).max(1)
}

/// What the owner's limits say to the price on the table.
fn decide(wish: &Wish, option: &Offered, transcript: &Transcript, round: u32) -> Decision {
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
