use super::*;
use crate::testing::party;

fn parse(text: &str) -> Result<Policy, String> {
    let file = PolicyFile::parse(text).map_err(|e| e.to_string())?;
    file.resolve(|known| (known.as_str() == "alice").then(|| party(1).id())).map_err(|e| e.to_string())
}

#[test]
fn the_documented_format_is_the_format() {
    let documented = FORMAT.split_once("\n\n").unwrap().1.replace("[\"mallory\"]", "[]");
    let documented = documented.replace("mode = \"automatic\"", "mode = \"asked\"    ");
    let policy = parse(&documented).unwrap();
    assert_eq!(policy.prices.unwrap().cpu, 10);
    assert_eq!((policy.term.min_s, policy.term.max_grace_s), (3600, 30 * 86_400));
    assert_eq!(policy.discounts.percent(31 * 86_400), 10);
    assert_eq!(policy.customers.allowed, [party(1).id()].into());
    assert_eq!(policy.regions.0.len(), 2);
    assert_eq!((policy.floor_percent, policy.keep.cpu_millis), (80, 1000));
    assert_eq!(policy.approval, Approval::AskedAbove(Grains(100_000)));
    assert_eq!((policy.hold_ms, policy.hold_fee_percent), (60_000, 100));
}

#[test]
fn an_empty_policy_sells_to_everybody_at_list_prices() {
    assert_eq!(parse("").unwrap(), Policy::default());
    assert_eq!(Policy::default().floor(Rate(100), 60), Rate(100));
}

#[test]
fn each_mistake_is_told_with_its_place_and_what_would_be_right() {
    for (text, says) in [
        ("\n[terms]\nmin = \"1 week\"", "line 3: '1 week' is not a duration"),
        ("[reserve]\nfloor_percent = 101", "line 2: 101 is no share: write 0 to 100"),
        ("regions = [\"Belgium\"]", "line 1: 'Belgium' is not a country: use two lower-case letters"),
        ("regions = [\"be/Gent\"]", "line 1: 'Gent' is not a name"),
        ("colour = 1", "line 1: unknown field 'colour'"),
        ("[prices]\ncpu = -1", "line 2: "),
        ("rounds = 9", "line 1: 9 rounds are not possible: write 1 to 8"),
        ("[terms]\nmin = \"2h\"\nmax = \"1h\"", "[terms] min: 7200 s is more than max, 3600 s"),
        (
            "[hold]\ntime = \"20s\"",
            "[hold] time: capacity that is held for less than 25 s could not be announced, so nobody would pay for it: write more",
        ),
        ("[hold]\ntime = \"11m\"", "[hold] time: capacity is held for at most 600 s: write less"),
        (
            "[customers]\nallow = [\"bob\"]\ndeny = [\"bob\"]",
            "[customers]: 'bob' stands under allow and deny",
        ),
        (
            "[customers]\nallow = [\"bob\"]",
            "[customers]: there is no bot 'bob' on this grid: correct the name",
        ),
        ("[approval]\nmode = \"automatic\"\nabove = 5", "[approval] above: it means nothing with mode"),
        (
            "[[discount]]\nfrom = \"1d\"\npercent = 1\n[[discount]]\nfrom = \"24h\"\npercent = 2",
            "[[discount]]: two discounts start at 86400 s: keep one",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(says), "{text}: {error}");
    }
    let error = parse(&"#".repeat(70_000)).unwrap_err();
    assert!(error.starts_with("the policy has 70000 bytes"), "{error}");
}

#[test]
fn a_fee_is_the_price_of_the_held_time_and_overflows_into_none() {
    let policy = Policy { hold_ms: 30_000, hold_fee_percent: 50, ..Policy::default() };
    assert_eq!(policy.hold_fee(Rate(10)), Some(Grains(150)));
    assert_eq!(policy.hold_fee(Rate(u64::MAX)), None);
    assert_eq!(Policy { hold_fee_percent: 0, ..policy }.hold_fee(Rate(10)), Some(Grains(0)));
}

#[test]
fn a_person_is_asked_where_the_policy_says_so() {
    let above = Policy { approval: Approval::AskedAbove(Grains(10)), ..Policy::default() };
    assert_eq!([10, 11].map(|price| above.asks(Grains(price))), [false, true]);
    assert!(!Policy::default().asks(Grains(u64::MAX)));
    let asked = Policy { approval: Approval::Asked, ..Policy::default() };
    assert!(asked.asks(Grains(0)));
}
