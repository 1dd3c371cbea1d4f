//! A recipe from its author to somebody else's workload, by the commands that both would type.

use std::os::unix::fs::PermissionsExt as _;

use super::fake_node::{Behaviour, FakeNode};
use super::world::{World, fields_are_documented};

const SHOP: &str = r#"
[recipe]
name = "shop"
title = "A shop with its database"
[parameter.greeting]
type = "text"
description = "Shown on the first page"
[parameter.published]
type = "port"
default = 18080
[parameter.password]
type = "secret"
default = "generate"
[vm.web]
image = "nginx"
cpu = "0.5"
memory = "128M"
env = { GREETING = "${greeting}" }
secrets = { DB_PASSWORD = "${password}" }
ports = [{ published = "${published}", guest = 80 }]
[vm.db]
image = "nginx"
cpu = "0.25"
memory = "128M"
secrets = { DB_PASSWORD = "${password}" }
[terms]
duration = "1h"
"#;

/// As if it were another person's home: no images in it.
fn forget_images(world: &World) {
    for folder in ["blobs", "images"] {
        std::fs::remove_dir_all(world.home().join(folder)).unwrap();
    }
}

#[test]
fn an_expert_publishes_and_somebody_else_deploys_with_two_parameters() {
    let world = World::with_farm();
    let node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("recipe.toml", SHOP);
    let published = world.json(&format!("recipe publish {file} --bot bob"));
    fields_are_documented("recipe publish", &published);
    assert_eq!((&published["recipe"], &published["version"]), (&"bob/shop".into(), &1.into()));
    forget_images(&world);

    let list = world.json("recipe list");
    fields_are_documented("recipe list", &list["recipes"][0]);
    assert_eq!(
        (&list["recipes"][0]["recipe"], &list["recipes"][0]["title"]),
        (&"bob/shop".into(), &"A shop with its database".into())
    );
    assert_eq!(world.json("recipe list --author alice")["recipes"].as_array().unwrap().len(), 0);
    let shown = world.json("recipe show bob/shop");
    fields_are_documented("recipe show", &shown);
    let needed = shown["parameters"].as_array().unwrap().iter().find(|p| p["name"] == "greeting").unwrap();
    assert_eq!((&needed["type"], &needed["default"]), (&"text".into(), &serde_json::Value::Null));
    let text = world.text("recipe show bob/shop");
    assert!(text.contains("greeting") && text.contains("(needed)") && text.contains("generate"), "{text}");
    assert!(!world.text("recipe show bob/shop --text").contains("\"nginx\""), "images are named by hash");

    let line = "recipe deploy bob/shop --name mine --set greeting=hi --set published=18090 --bot alice";
    let deployed = world.json(line);
    assert_eq!((&deployed["name"], &deployed["state"]), (&"mine".into(), &"active".into()));
    assert_eq!(deployed["ports"][0]["urls"][0], "http://192.0.2.7:18090");
    let workload = node.workload();
    assert_eq!((workload.vms.len(), workload.vms[1].env["GREETING"].as_str()), (2, "hi"));
    // Both got the same secret, which nobody typed, and which is the owner's alone.
    let secret = &workload.vms[0].secrets["DB_PASSWORD"];
    assert_eq!((secret, secret.len()), (&workload.vms[1].secrets["DB_PASSWORD"], 48));
    let kept = world.home().join("secrets/demo/alice/mine/password");
    assert_eq!(&std::fs::read_to_string(&kept).unwrap(), secret);
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    // Deployed again after its end it has the same secret: its data is behind it.
    world.json("stop mine --bot alice");
    world.json(line);
    assert_eq!(&node.workload().vms[0].secrets["DB_PASSWORD"], secret);
}

#[test]
fn versions_are_chosen_and_what_is_withdrawn_is_not_deployed_unawares() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("recipe.toml", SHOP);
    world.text(&format!("recipe publish {file} --bot bob"));
    let again = world.run(&format!("recipe publish {file} --bot bob"));
    assert_eq!(again.code, 3, "{}", again.err);
    assert!(again.err.contains("recipe 'shop' says this already"), "{}", again.err);
    let dearer = world.file("recipe.toml", &SHOP.replace("\"1h\"", "\"2h\""));
    assert_eq!(world.json(&format!("recipe publish {dearer} --bot bob"))["version"], 2);
    let price = |line: &str| {
        let line = format!("recipe deploy bob/shop --set greeting=hi --dry-run --bot alice {line}");
        world.json(&line)["duration_s"].as_u64().unwrap()
    };
    assert_eq!((price(""), price("--version 1"), price("--duration 90m")), (7200, 3600, 5400));

    let withdrawn = world.json("recipe withdraw shop --reason leaks --bot bob");
    fields_are_documented("recipe withdraw", &withdrawn);
    assert_eq!(world.json("recipe list")["recipes"].as_array().unwrap().len(), 0);
    let refused = world.run("recipe deploy bob/shop --set greeting=hi --dry-run --bot alice");
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("recipe bob/shop was withdrawn by its author: leaks"), "{}", refused.err);
    assert_eq!(price("--version 2"), 7200);
    let history = world.text("ledger log --count 100");
    assert!(history.contains("recipe 'shop' withdrawn: leaks"), "{history}");
}

#[test]
fn mistakes_name_the_culprit_and_the_remedy() {
    let world = World::with_farm();
    let file = world.file("recipe.toml", SHOP);
    world.text(&format!("recipe publish {file} --bot bob"));
    for (line, code, message) in [
        (
            "recipe show bob/web",
            4,
            "bot 'bob' has no recipe 'web' on grid 'demo': 'croft recipe list' has those that are offered",
        ),
        ("recipe show eve/web", 4, "there is no bot 'eve' on grid 'demo'"),
        ("recipe show bob/shop --version 7", 4, "recipe bob/shop has no version 7: its newest is 1"),
        ("recipe withdraw web --reason old --bot bob", 3, "has no recipe 'web'"),
        ("recipe publish nowhere.toml --bot bob", 2, "can't read nowhere.toml"),
        (
            "recipe deploy bob/shop --bot alice",
            2,
            "recipe bob/shop (version 1) needs a value for 'greeting': give it with --set greeting=...",
        ),
        (
            "recipe deploy bob/shop --set greeting=a --set greeting=b --bot alice",
            2,
            "parameter 'greeting': it is given twice: keep one",
        ),
        ("recipe deploy bob/shop --set greeting=a --set password=hunter2 --bot alice", 2, "never by itself"),
        ("recipe deploy bob/shop --set greeting=a --country xyz --bot alice", 2, "'xyz' is not a country"),
    ] {
        let refused = world.run(line);
        assert_eq!(refused.code, code, "{line}: {}", refused.err);
        assert!(refused.err.contains(message), "{line}: {}", refused.err);
    }
    let wrong = world.file("wrong.toml", &SHOP.replace("image = \"nginx\"", "image = \"apache\""));
    let refused = world.run(&format!("recipe publish {wrong} --bot bob"));
    assert_eq!(refused.code, 4, "{}", refused.err);
    assert!(refused.err.contains("image 'apache': there is no image 'apache'"), "{}", refused.err);
    let wrong = world.file("wrong.toml", &SHOP.replace("cpu = \"0.25\"", "cpu = \"some\""));
    let refused = world.run(&format!("recipe publish {wrong} --bot bob"));
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("wrong.toml, [vm.db]: cpu"), "{}", refused.err);
}
