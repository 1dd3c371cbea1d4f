//! What a node's trust stands on, weighed by whoever wants to know.

use croft_protocol::Hash;

use super::fake_node::{Behaviour, FakeNode};
use super::world::{World, fields_are_documented};

const KNOWN: Hash = Hash([0x11; 32]);

fn world() -> World {
    World::with_farm_on(&format!("--tpm unchecked --boot-file {KNOWN} --stale-after 2h"))
}

fn booted(world: &World, image: Hash) -> FakeNode {
    FakeNode::start(world, Behaviour { boots: Some(image), ..Behaviour::default() })
}

#[test]
fn a_node_is_weighed_without_believing_the_ledger_and_every_check_is_shown() {
    let world = world();
    let _node = booted(&world, KNOWN);
    let found = world.json("farm verify attic/node-1");
    fields_are_documented("farm verify", &found);
    fields_are_documented("farm verify", &found["quote"]);
    assert_eq!((&found["class"], &found["ledger_class"]), (&"attested".into(), &"attested".into()));
    assert_eq!((&found["holds"], &found["stale"]), (&true.into(), &false.into()), "{found}");
    assert_eq!((&found["boot_file"], &found["release"]), (&KNOWN.to_string().into(), &().into()));
    assert_eq!(found["quote"]["stale_after_s"], 7200);
    let passed = |what: &str| {
        let checks = found["checks"].as_array().unwrap();
        let checked = checks.iter().find(|checked| checked["check"] == what);
        checked.unwrap_or_else(|| panic!("no {what}: {found}"))["passed"].clone()
    };
    for what in ["quote", "signature", "nonce", "header", "fresh", "statement", "replay", "boot_file", "key"]
    {
        assert_eq!(passed(what), true, "{what}: {found}");
    }
    let text = world.text("farm verify attic/node-1");
    assert!(text.starts_with("node 'node-1' of farm 'attic' is attested, by a quote of "), "{text}");
    assert!(text.contains("the ledger says so too") && text.contains("yes  event log"), "{text}");

    let nodes = world.json("farm nodes attic");
    fields_are_documented("farm nodes", &nodes["nodes"][0]);
    assert_eq!(nodes["nodes"][0]["stale"], false);
    assert_eq!(nodes["nodes"][0]["quoted_ms"], found["quote"]["time_ms"]);
    let shown = world.text("farm nodes attic");
    assert!(shown.contains("attested ") && shown.contains(" ago"), "{shown}");
}

#[test]
fn a_modified_image_is_sealed_here_too_and_named() {
    let world = world();
    let evil = Hash([0x66; 32]);
    let _node = booted(&world, evil);
    let found = world.json("farm verify attic/node-1");
    assert_eq!((&found["class"], &found["holds"]), (&"sealed".into(), &true.into()), "{found}");
    let text = world.text("farm verify attic/node-1");
    assert!(text.contains("no   boot file") && text.contains(&evil.to_string()), "{text}");
}

#[test]
fn a_node_without_a_tpm_is_plain_and_that_holds() {
    let world = world();
    let _node = FakeNode::start(&world, Behaviour::default());
    let found = world.json("farm verify attic/node-1");
    assert_eq!(
        (&found["class"], &found["holds"], &found["quote"]),
        (&"plain".into(), &true.into(), &().into())
    );
    let unknown = world.run("farm verify attic/nobody");
    assert_eq!(unknown.code, 4, "{}", unknown.err);
    let wrong = world.run("farm verify attic");
    assert_eq!(wrong.code, 2, "{}", wrong.err);
}
