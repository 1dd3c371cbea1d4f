//! A farmer's skill: from 22 to 6 o'clock UTC a third less, as long as half of the node's CPUs are free.
//!
//! The policy's floor stands whatever this says: to sell for less, the policy file has to allow it
//! (`floor_percent` under `[reserve]`).

use croft_skill::{Demand, Price, Pricing};

const HOUR_MS: u64 = 3_600_000;
/// Of the list price, in hundredths.
const NIGHT_PERCENT: u64 = 67;

struct NightDiscount;

impl Pricing for NightDiscount {
    fn price(demand: &Demand) -> Price {
        let hour = demand.now_ms / HOUR_MS % 24;
        if (6..22).contains(&hour) {
            return Price::Policy;
        }
        if demand.free.cpu_millis < 2 * demand.resources.cpu_millis {
            croft_skill::log("the node is too full for a discount");
            return Price::Policy;
        }
        // Rounded up; as 128 bits, since a price list may be as high as it likes.
        let rate = (u128::from(demand.list_rate) * u128::from(NIGHT_PERCENT) + 99) / 100;
        // Where the policy is cheaper anyway, it stays so.
        Price::Rate((rate as u64).min(demand.policy_rate))
    }
}

croft_skill::pricing!(NightDiscount);

#[cfg(test)]
mod tests {
    use super::*;
    use croft_skill::Resources;

    fn at(hour: u64, free_cpu_millis: u64) -> Price {
        NightDiscount::price(&Demand {
            now_ms: 20_000 * 24 * HOUR_MS + hour * HOUR_MS,
            resources: Resources { cpu_millis: 1000, ..Resources::default() },
            free: Resources { cpu_millis: free_cpu_millis, ..Resources::default() },
            list_rate: 400,
            policy_rate: 400,
            ..Demand::default()
        })
    }

    #[test]
    fn it_is_cheaper_at_night_and_only_then() {
        assert_eq!(at(3, 8000), Price::Rate(268));
        assert_eq!(at(22, 8000), Price::Rate(268));
        assert_eq!(at(6, 8000), Price::Policy);
        assert_eq!(at(21, 8000), Price::Policy);
    }

    #[test]
    fn a_full_node_costs_as_much_as_ever() {
        assert_eq!(at(3, 1999), Price::Policy);
        assert_eq!(at(3, 2000), Price::Rate(268));
    }

    #[test]
    fn the_highest_price_there_is_does_not_overflow() {
        let demand = Demand { list_rate: u64::MAX, policy_rate: u64::MAX, ..Demand::default() };
        assert!(matches!(NightDiscount::price(&demand), Price::Rate(rate) if rate > u64::MAX / 2));
        let cheap = Demand { list_rate: 400, policy_rate: 100, ..Demand::default() };
        assert_eq!(NightDiscount::price(&cheap), Price::Rate(100));
    }
}
