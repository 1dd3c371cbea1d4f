//! Standing orders: ordered once, found again, closed when fewer are wanted. What silence does is tested without a clock
//! in `croft_market::standing`.

use super::WEB;
use super::fake_node::{Behaviour, FakeNode};
use super::world::World;

const KEEP: &str = "name = \"shop\"\ndeploy = \"web.toml\"\nreplicas = 1\n\
                    [limits]\nmax_price = 300000\nbudget = 600000\n";

fn events(world: &World, file: &str) -> Vec<serde_json::Value> {
    let text = world.text(&format!("keep {file} --once --bot alice --json"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[serde_json::Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn a_standing_order_is_ordered_once_whoever_restarts_and_closed_when_nobody_wants_it() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    world.file("web.toml", WEB);
    let file = world.file("keep.toml", KEEP);
    let first = events(&world, &file);
    assert_eq!(names(&first), ["keeping", "order", "resting"]);
    assert_eq!(
        (&first[1]["name"], &first[1]["reason"]),
        (&"shop-0-1".into(), &"replica 0 is missing".into())
    );
    let help = World::help("keep");
    for field in first.iter().flat_map(|event| event.as_object().unwrap().keys()) {
        assert!(help.contains(field.as_str()), "'{field}' is not documented in: {help}");
    }
    for _ in 0..2 {
        assert_eq!(names(&events(&world, &file)), ["keeping", "resting"]);
    }
    let contracts = world.json("ps --bot alice")["contracts"].clone();
    assert_eq!((contracts.as_array().unwrap().len(), &contracts[0]["name"]), (1, &"shop-0-1".into()));

    // It was closed by hand: it is ordered anew, under another name.
    world.text("stop shop-0-1 --bot alice");
    let again = events(&world, &file);
    assert_eq!(again[1]["name"], "shop-0-2");
    let why = again[1]["reason"].as_str().unwrap();
    assert_eq!(why, "the contract of replica 0 has ended: ClosedByUser");
    assert_eq!(names(&events(&world, &file)), ["keeping", "resting"]);

    let none = world.file("keep.toml", &KEEP.replace("replicas = 1", "replicas = 0"));
    let closed = events(&world, &none);
    assert_eq!(
        (&closed[1]["event"], &closed[1]["reason"]),
        (&"close".into(), &"fewer replicas are wanted".into())
    );
    assert_eq!(world.json("ps --bot alice")["contracts"].as_array().unwrap().len(), 0);
}

#[test]
fn what_the_limits_forbid_or_the_market_does_not_have_is_said_with_its_reason() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    world.file("web.toml", WEB);
    let cheap = world.file("keep.toml", &KEEP.replace("max_price = 300000", "max_price = 1000"));
    let found = events(&world, &cheap);
    assert_eq!(names(&found), ["keeping", "order", "failed", "resting"]);
    let error = found[2]["error"].as_str().unwrap();
    assert!(error.contains("it costs 226 800 grains, the limit is 1 000 grains"), "{error}");
    let later = events(&world, &cheap);
    assert_eq!(names(&later), ["keeping", "waiting", "resting"]);
    assert!(later[1]["reason"].as_str().unwrap().contains("1 tries failed, the next in"), "{}", later[1]);

    let abroad = KEEP.replace("\"shop\"", "\"far\"") + "[placement]\ncountry = [\"nl\"]\n";
    let abroad = world.file("far.toml", &abroad);
    let found = events(&world, &abroad);
    assert!(found[2]["error"].as_str().unwrap().contains("it is in be, wanted is nl"), "{}", found[2]);

    let bad = world.run(&format!("keep {} --bot alice", world.file("bad.toml", "name = 5")));
    assert_eq!(bad.code, 2, "{}", bad.err);
    let missing = world.run("keep nothing.toml --bot alice");
    assert_eq!(missing.code, 4, "{}", missing.err);
    assert!(missing.err.contains("see its format with 'croft keep --help'"), "{}", missing.err);
}
