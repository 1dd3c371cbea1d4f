//! A node that is emptied: nothing new goes there, everybody hears of it, and nobody's contract is touched.

use super::fake_node::{Behaviour, FakeNode};
use super::world::World;

const WEB: &str = r#"
name = "web"
[vm.web]
image = "nginx"
cpu = "0.1"
memory = "64M"
[terms]
duration = "1h"
"#;

#[test]
fn a_node_that_is_drained_keeps_what_runs_takes_nothing_new_and_can_be_reopened() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", WEB);
    world.json(&format!("deploy {file} --yes --bot alice"));
    let drained = world.json("farm drain attic/node-1 --until 2d --bot bob");
    assert_eq!(drained["draining"], true);
    assert!(drained["until_ms"].as_u64() > drained["since_ms"].as_u64(), "{drained}");
    let told = &drained["contracts"][0];
    assert_eq!((&told["name"], &told["user"]), (&"web".into(), &"alice".into()));
    assert_eq!(told["told"], "mailbox", "{told}");
    let mail = world.text("message read --bot alice");
    assert!(mail.contains("node-1") && mail.contains("web"), "{mail}");

    let found = world.json("find --cpu 0.1 --memory 64M");
    assert_eq!(found["matches"].as_array().unwrap().len(), 0);
    assert_eq!(found["excluded"][0]["reasons"][0], "its farm empties it, and takes nothing new on it");
    let nodes = world.json("farm nodes attic");
    assert_eq!(nodes["nodes"][0]["draining"]["until_ms"], drained["until_ms"]);
    let other = world.file("other.toml", &WEB.replace("\"web\"", "\"other\""));
    let refused = world.run(&format!("deploy {other} --yes --bot alice"));
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("its farm empties it"), "{}", refused.err);
    let running = world.text("ps --bot alice");
    assert!(running.contains("web"), "a contract stays as it is: {running}");

    let text = world.text("farm drain attic/node-1 --undo --bot bob");
    assert_eq!(text, "node 'node-1' of farm 'attic' takes new contracts again\n");
    assert_eq!(world.json("find --cpu 0.1 --memory 64M")["matches"].as_array().unwrap().len(), 1);
}

#[test]
fn only_the_owner_drains_and_a_second_undo_says_so() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let refused = world.run("farm drain attic/node-1 --bot alice");
    assert!(refused.err.contains("choose the owner with --bot"), "{}", refused.err);
    let unknown = world.run("farm drain attic/nobody --bot bob");
    assert_ne!(unknown.code, 0);
    let undone = world.run("farm drain attic/node-1 --undo --bot bob");
    assert!(undone.err.contains("is not being drained: there is nothing to undo"), "{}", undone.err);
}
