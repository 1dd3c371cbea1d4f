//! What must hold of reservations: what they hold of nodes, of money, of counts and of time.

use std::collections::{BTreeMap, BTreeSet};

use croft_protocol::reservation::{
    NodeReservations, OpenReservations, ReservationBody, ReservationQueue, ReservationSlot, ReservationState,
    slot_of,
};
use croft_protocol::{BotId, ContractId, Grains, NodeId, limits};

use super::{Check, broken, ensure};

/// Everything in a state that is about reservations.
#[derive(Default)]
pub(super) struct Reservations {
    pub(super) bodies: BTreeMap<ContractId, ReservationBody>,
    pub(super) fees: BTreeMap<ContractId, Grains>,
    pub(super) of_nodes: BTreeMap<NodeId, NodeReservations>,
    pub(super) open: BTreeMap<BotId, OpenReservations>,
    pub(super) queue: Option<ReservationQueue>,
    pub(super) slots: BTreeMap<u64, ReservationSlot>,
}

impl Reservations {
    /// Those that hold capacity of a node.
    pub(super) fn on_node(&self, node: &NodeId) -> impl Iterator<Item = &ReservationBody> {
        let contracts = self.of_nodes.get(node).map_or(&[][..], |of| &of.contracts);
        contracts.iter().filter_map(|id| self.bodies.get(id))
    }

    /// Those that hold capacity of any node.
    pub(super) fn holding(&self) -> impl Iterator<Item = (&ContractId, &ReservationBody)> {
        let contracts = self.of_nodes.values().flat_map(|of| &of.contracts);
        contracts.filter_map(|id| Some((id, self.bodies.get(id)?)))
    }

    pub(super) fn held_fees(&self) -> u128 {
        self.fees.values().map(|fee| u128::from(fee.0)).sum()
    }

    pub(super) fn check(&self, agreed: &BTreeSet<ContractId>) -> Check {
        for (id, body) in &self.bodies {
            let held = &body.signed.reservation;
            let is_held = body.state == ReservationState::Held;
            ensure(self.fees.get(id) == is_held.then_some(&held.fee), || {
                format!("reservation {id} is {:?}, its escrow has {:?}", body.state, self.fees.get(id))
            })?;
            ensure((body.state == ReservationState::Used) <= agreed.contains(id), || {
                format!("reservation {id} was used, but its contract is not there")
            })?;
            ensure(!(agreed.contains(id) && is_held), || {
                format!("contract {id} was agreed on, but its reservation is still held")
            })?;
        }
        ensure(self.fees.keys().all(|id| self.bodies.contains_key(id)), || {
            "fees are held for reservations that exist".to_owned()
        })?;
        self.check_nodes()?;
        self.check_time()
    }

    fn check_nodes(&self) -> Check {
        let mut open = BTreeMap::<BotId, OpenReservations>::new();
        for (node, of) in &self.of_nodes {
            let ascending = of.contracts.windows(2).all(|pair| pair[0] < pair[1]);
            ensure(ascending && !of.contracts.is_empty(), || {
                format!("the reservations of node {node} are not in order: {:?}", of.contracts)
            })?;
            for id in &of.contracts {
                let body = self.bodies.get(id).ok_or_else(|| {
                    broken(format_args!("node {node} holds {id}, which was never reserved"))
                })?;
                let held = &body.signed.reservation;
                ensure(body.state == ReservationState::Held && held.node == *node, || {
                    format!("node {node} holds {id}, which is {:?} of node {}", body.state, held.node)
                })?;
                open.entry(held.user).or_default().as_user += 1;
                open.entry(held.farmer).or_default().as_farmer += 1;
            }
        }
        ensure(open == self.open, || {
            format!("open reservations are {open:?}, counted were {:?}", self.open)
        })?;
        let within = |of: &OpenReservations| {
            of.as_user <= limits::RESERVATIONS_PER_USER && of.as_farmer <= limits::RESERVATIONS_PER_FARMER
        };
        ensure(open.values().all(within), || "nobody has more reservations open than allowed".to_owned())
    }

    /// What holds capacity frees itself: it waits in the slot of its expiry, which is still to come.
    fn check_time(&self) -> Check {
        let waiting: usize = self.slots.values().map(|slot| slot.contracts.len()).sum();
        let queue = self.queue.unwrap_or_default();
        ensure(queue.waiting == waiting as u64 && self.queue.is_some() == (waiting > 0), || {
            format!("{waiting} reservations wait for their expiry, counted were {:?}", self.queue)
        })?;
        ensure(self.slots.keys().all(|slot| *slot >= queue.next_slot), || {
            format!("slots are left behind: {:?} before {}", self.slots.keys().next(), queue.next_slot)
        })?;
        let full = |slot: &ReservationSlot| {
            slot.contracts.is_empty() || slot.contracts.len() > limits::RESERVATIONS_PER_SLOT
        };
        ensure(!self.slots.values().any(full), || "a slot has too few or too many".to_owned())?;
        for (id, body) in self.holding() {
            let slot = slot_of(body.signed.reservation.expires_ms);
            let waits = self.slots.get(&slot).is_some_and(|slot| slot.contracts.contains(id));
            ensure(waits, || format!("reservation {id} holds capacity and never frees itself"))?;
        }
        Ok(())
    }
}
