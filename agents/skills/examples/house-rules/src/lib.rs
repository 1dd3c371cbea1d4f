//! An approver's skill: the rules of a house. Only in countries of an allow-list, only on nodes whose key is in a TPM;
//! what is cheap is approved, what is dear waits for a person.
//!
//! What a contract runs is sealed to its node, so no approver sees the image: rules about that belong where images are
//! published.

use croft_skill::{Approval, Decision, Request, Trust};

/// Where data of this house may be.
const COUNTRIES: [&str; 4] = ["be", "de", "lu", "nl"];
/// Up to this many grains per hour nobody has to look.
const PER_HOUR: u128 = 2_000_000;

struct HouseRules;

impl Approval for HouseRules {
    fn decide(request: &Request) -> Decision {
        if !COUNTRIES.contains(&request.country.as_str()) {
            croft_skill::log(&format!("'{}' would run in {}", request.name, request.country));
            return Decision::Refuse;
        }
        if request.trust == Trust::Plain {
            croft_skill::log(&format!("the node of '{}' has its key on a disk", request.name));
            return Decision::Refuse;
        }
        if u128::from(request.price) * 3600 > PER_HOUR * u128::from(request.duration_s) {
            return Decision::Abstain;
        }
        Decision::Approve
    }
}

croft_skill::approval!(HouseRules);

#[cfg(test)]
mod tests {
    use super::*;
    use croft_skill::Resources;

    fn request() -> Request {
        Request {
            now_ms: 0,
            name: "shop".to_owned(),
            owner: "alice".to_owned(),
            owner_key: String::new(),
            farm: "attic".to_owned(),
            country: "be".to_owned(),
            trust: Trust::Sealed,
            resources: Resources::default(),
            price: 2_000_000,
            duration_s: 3600,
            approved: 0,
            threshold: 1,
        }
    }

    #[test]
    fn what_keeps_the_rules_is_approved() {
        assert_eq!(HouseRules::decide(&request()), Decision::Approve);
    }

    #[test]
    fn another_country_or_a_weak_identity_is_refused() {
        let far = Request { country: "us".to_owned(), ..request() };
        assert_eq!(HouseRules::decide(&far), Decision::Refuse);
        let weak = Request { trust: Trust::Plain, ..request() };
        assert_eq!(HouseRules::decide(&weak), Decision::Refuse);
    }

    #[test]
    fn what_is_dear_waits_for_a_person() {
        assert_eq!(HouseRules::decide(&Request { price: 2_000_001, ..request() }), Decision::Abstain);
        let long = Request { price: u64::MAX, duration_s: u64::MAX, ..request() };
        assert_eq!(HouseRules::decide(&long), Decision::Approve);
    }
}
