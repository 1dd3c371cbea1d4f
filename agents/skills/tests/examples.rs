//! The worked examples as they are used: compiled to WebAssembly, packed, signed, read back, and asked.
//!
//! `scripts/skills` compiles them, and CROFT_SKILLS says where they are; without it these tests say that they skip.

use std::path::PathBuf;

use croft_protocol::{Name, SecretKey};
use croft_skills::hooks::{Decision, Demand, Price, Request, Trust, examples};
use croft_skills::{Hook, Host, SignedSkill, Skill};

/// A skill as its users have it; `None` where nothing was compiled.
fn skill(file: &str, hook: Hook) -> Option<Skill> {
    let Some(folder) = std::env::var_os("CROFT_SKILLS") else {
        println!("skipped: CROFT_SKILLS does not say where scripts/skills put {file}");
        return None;
    };
    let module = std::fs::read(PathBuf::from(folder).join(file)).unwrap();
    let (component, hooks) = croft_skills::component(&module).unwrap();
    assert_eq!(hooks, [hook]);
    let (key, name) = (SecretKey::from_seed(&[1; 32]), Name::new("example").unwrap());
    let signed = SignedSkill::sign(&key, name, 1, hooks, component).unwrap();
    let read = SignedSkill::decode(&signed.encode()).unwrap();
    Some(Host::new().unwrap().load(&read).unwrap())
}

#[test]
fn the_night_discount_reads_its_question_and_answers_in_time() {
    let Some(skill) = skill("night_discount.wasm", Hook::Pricing) else { return };
    // Three o'clock, by the clock in the question.
    let night = skill.price(examples::demand());
    assert_eq!((night.result, night.log.len()), (Ok(Price::Rate(268)), 0));
    assert!(night.fuel < 100_000, "{}", night.fuel);
    let day = Demand { now_ms: examples::demand().now_ms + 9 * 3_600_000, ..examples::demand() };
    assert_eq!(skill.price(day).result, Ok(Price::Policy));
    let mut full = examples::demand();
    full.free.cpu_millis = 3999;
    let full = skill.price(full);
    assert_eq!(full.result, Ok(Price::Policy));
    assert_eq!(full.log, ["the node is too full for a discount"]);
    let haggling =
        Demand { offered_rate: Some(100), our_rate: Some(300), policy_rate: 200, ..examples::demand() };
    assert_eq!(skill.price(haggling).result, Ok(Price::Rate(200)));
}

#[test]
fn the_house_rules_read_countries_identities_and_prices() {
    let Some(skill) = skill("house_rules.wasm", Hook::Approval) else { return };
    let request = || Request { trust: Trust::Sealed, ..examples::request() };
    let decide = |request| skill.decide(request);
    assert_eq!(decide(request()).result, Ok(Decision::Approve));
    let far = decide(Request { country: "us".to_owned(), ..request() });
    assert_eq!((far.result, far.log), (Ok(Decision::Refuse), vec!["'shop' would run in us".to_owned()]));
    let weak = decide(examples::request());
    assert_eq!(weak.result, Ok(Decision::Refuse));
    assert!(weak.log[0].contains("has its key on a disk"), "{:?}", weak.log);
    assert_eq!(decide(Request { price: u64::MAX, ..request() }).result, Ok(Decision::Abstain));
}
