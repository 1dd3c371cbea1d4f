//! Machines that this replica's ledger refused to register, and why: their farmer looks for them where his nodes are, and
//! a machine that is refused is no record.
//!
//! ```text
//!   RegisterNode, signed ──final──▶ forgotten
//!                        └─rejected─▶ by whom the farm knows? ──▶ the farm's list, in memory
//! ```
//! It must never grow with what strangers send: an entry takes a permission that the farm's owner signed, or a node that
//! the farm has. No I/O and no clock: time comes in as an argument.

use std::collections::BTreeMap;

use croft_protocol::api::RefusedNode;
use croft_protocol::{FarmId, NodeId};

/// Farms that are remembered. A crowd of farms can push others out; then these look at their machines' screens.
const FARMS: usize = 256;
/// Machines of one farm.
const NODES_PER_FARM: usize = croft_protocol::limits::REFUSED_PER_FARM;
/// A machine that is still there is refused again within minutes.
const KEPT_MS: u64 = 24 * 3_600_000;

/// The lists of all farms.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    farms: BTreeMap<FarmId, BTreeMap<NodeId, RefusedNode>>,
}

impl Refused {
    /// One more refusal. What is oldest makes room.
    pub(crate) fn note(&mut self, farm: FarmId, refused: RefusedNode) {
        self.forget_before(refused.time_ms.saturating_sub(KEPT_MS));
        if !self.farms.contains_key(&farm) && self.farms.len() >= FARMS {
            let newest = |nodes: &BTreeMap<_, RefusedNode>| nodes.values().map(|node| node.time_ms).max();
            let oldest = self.farms.iter().min_by_key(|(_, nodes)| newest(nodes)).map(|(farm, _)| *farm);
            oldest.and_then(|farm| self.farms.remove(&farm));
        }
        let nodes = self.farms.entry(farm).or_default();
        let count = nodes.get(&refused.node).map_or(1, |known| known.count.saturating_add(1));
        if !nodes.contains_key(&refused.node) && nodes.len() >= NODES_PER_FARM {
            let oldest = nodes.values().min_by_key(|node| node.time_ms).map(|node| node.node);
            oldest.and_then(|node| nodes.remove(&node));
        }
        nodes.insert(refused.node, RefusedNode { count, ..refused });
    }

    /// The machine is registered now.
    pub(crate) fn forget(&mut self, farm: &FarmId, node: &NodeId) {
        if let Some(nodes) = self.farms.get_mut(farm) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.farms.remove(farm);
            }
        }
    }

    /// The farm's list, in the order of the machines' ids.
    pub(crate) fn of(&mut self, farm: &FarmId, now_ms: u64) -> Vec<RefusedNode> {
        self.forget_before(now_ms.saturating_sub(KEPT_MS));
        self.farms.get(farm).map(|nodes| nodes.values().cloned().collect()).unwrap_or_default()
    }

    fn forget_before(&mut self, time_ms: u64) {
        self.farms.retain(|_, nodes| {
            nodes.retain(|_, node| node.time_ms >= time_ms);
            !nodes.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use croft_protocol::{Hash, Name, SecretKey};

    use super::*;

    fn node(n: u8) -> NodeId {
        SecretKey::from_seed(&[n; 32]).public()
    }

    fn farm(n: u64) -> FarmId {
        FarmId(Hash::of_bytes(&n.to_le_bytes()))
    }

    fn refused(n: u8, time_ms: u64) -> RefusedNode {
        let name = Name::new(&format!("n{n}")).unwrap();
        RefusedNode { node: node(n), name, reason: "because".to_owned(), time_ms, count: 0 }
    }

    #[test]
    fn a_machine_that_is_refused_again_is_one_line_that_counts_and_one_that_registers_is_none() {
        let mut all = Refused::default();
        for time_ms in 1..=3 {
            all.note(farm(1), refused(1, time_ms));
        }
        let list = all.of(&farm(1), 3);
        assert_eq!(list, [RefusedNode { count: 3, ..refused(1, 3) }]);
        assert_eq!(all.of(&farm(2), 3), []);
        all.forget(&farm(1), &node(1));
        assert_eq!(all.of(&farm(1), 3), []);
        assert!(all.farms.is_empty());
    }

    #[test]
    fn neither_one_farm_nor_many_take_more_than_their_room() {
        let mut all = Refused::default();
        for n in 0..=NODES_PER_FARM {
            all.note(farm(0), refused(u8::try_from(n).unwrap(), 10 + n as u64));
        }
        let list = all.of(&farm(0), 50);
        assert_eq!(list.len(), NODES_PER_FARM);
        assert!(list.iter().all(|one| one.node != node(0)), "the oldest made room");
        for n in 1..=FARMS as u64 {
            all.note(farm(n), refused(1, 100 + n));
        }
        assert_eq!(all.farms.len(), FARMS);
        assert_eq!(all.of(&farm(0), 400), [], "the one that was quiet for longest made room");
    }

    #[test]
    fn what_is_a_day_old_is_forgotten() {
        let mut all = Refused::default();
        all.note(farm(1), refused(1, 1));
        assert_eq!(all.of(&farm(1), 1 + KEPT_MS).len(), 1);
        assert_eq!(all.of(&farm(1), 2 + KEPT_MS), []);
    }
}
