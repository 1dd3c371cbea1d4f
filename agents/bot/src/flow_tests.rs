//! The whole way of a workload, by the commands that a person would type, against an embedded replica on
//! loopback and a node that speaks the protocol but runs nothing.

mod contradiction;
mod drain;
mod fake_node;
mod keep;
mod keys;
mod ledger;
mod life;
mod market;
mod media;
mod messages;
mod recipes;
mod releases;
mod reservation;
mod rotate;
mod skills;
mod validators;
mod verify;
mod world;

use croft_protocol::record::WorkloadState;
use croft_protocol::{NodeTrouble, TroubleKind};
use fake_node::{Behaviour, FakeNode};
use world::{World, fields_are_documented};

const WEB: &str = r#"
name = "web"
[vm.web]
image = "nginx"
cpu = "0.5"
memory = "256M"
secrets = { TOKEN = { env = "WEB_TOKEN" } }
mounts = [{ volume = "data", path = "/data" }]
ports = [{ published = 18080, guest = 80 }]
[volume.data]
kind = "exclusive"
size = "64M"
[terms]
duration = "1h"
"#;

#[test]
fn a_workload_is_deployed_explained_and_stopped_and_its_history_is_a_chain() {
    let world = World::with_farm();
    let node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", WEB);

    let nodes = world.json("farm nodes attic");
    assert_eq!(nodes["nodes"][0]["online"], true);
    assert_eq!(nodes["nodes"][0]["trust"], "plain");
    assert_eq!(nodes["nodes"][0]["free"]["cpu_millis"], 2000);

    let dry = world.json(&format!("deploy {file} --dry-run --bot alice"));
    assert_eq!((&dry["dry_run"], &dry["node"]), (&true.into(), &"node-1".into()));
    let price = dry["price"].as_u64().unwrap();
    // Half a CPU at 100, a quarter GiB at 50 and a sixteenth at 1, rounded up: 63 grains per second.
    assert_eq!((dry["rate"].as_u64().unwrap(), price), (63, 63 * 3600));
    assert_eq!(world.json("ps --bot alice")["contracts"].as_array().unwrap().len(), 0);

    let deployed = world.json(&format!("deploy {file} --bot alice"));
    assert_eq!((&deployed["state"], &deployed["farm"]), (&"active".into(), &"attic".into()));
    assert_eq!(deployed["ports"][0]["urls"][0], "http://192.0.2.7:18080");
    // What the node opened with its own key is what the file said, secret included.
    let workload = node.workload();
    assert_eq!(workload.vms[0].argv, ["/usr/sbin/nginx"]);
    assert_eq!(workload.vms[0].secrets["TOKEN"], "t0ken");

    let ps = world.json("ps --bot alice");
    let contract = &ps["contracts"][0];
    assert_eq!((&contract["name"], &contract["state"]), (&"web".into(), &"active".into()));
    assert_eq!((&contract["node"], &contract["online"]), (&"node-1".into(), &true.into()));
    assert_eq!(contract["paid"].as_u64().unwrap() + contract["held"].as_u64().unwrap(), price);
    let text = world.text("ps --bot alice");
    assert!(text.contains("web   active  node-1  attic  plain  http://192.0.2.7:18080"), "{text}");

    let logs = world.text("logs web --bot alice");
    assert_eq!(logs, "starting\nlistening on 80\n");
    let one = world.text("logs web/web -n 1 --bot alice");
    assert_eq!(one, "listening on 80\n");

    let explained = world.json("explain web --bot alice");
    let states: Vec<&str> =
        explained["states"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["approved", "active"]);
    assert_eq!(explained["report"]["state"], "running");
    assert_eq!(explained["explanation"]["vms"][0]["phase"], "running");
    assert_eq!(explained["advice"][0], "nothing: it runs");

    let free = &world.json("farm nodes attic")["nodes"][0]["free"]["cpu_millis"];
    assert_eq!(free, 1500);

    let stopped = world.json("stop web --bot alice");
    assert_eq!((&stopped["state"], &stopped["reason"]), (&"ended".into(), &"closed by user".into()));
    let (paid, refunded) = (stopped["paid"].as_u64().unwrap(), stopped["refunded"].as_u64().unwrap());
    // What it ran since its last report stays held until the final one.
    let held = stopped["held"].as_u64().unwrap();
    assert_eq!(paid + held + refunded, price);
    assert_eq!(stopped["balance"].as_u64().unwrap(), 1_000_000 - paid - held);

    let free = &world.json("farm nodes attic")["nodes"][0]["free"]["cpu_millis"];
    assert_eq!(free, 2000);
    let all = world.json("ps --all --bot alice");
    assert_eq!(all["contracts"][0]["reason"], "closed by user");

    check_chain(&world.json("history web --bot alice"), &["approved", "active", "ended: closed by user"]);
    let history = world.json("history alice --kind bot");
    assert_eq!(history["versions"][0]["what"], "bot 'alice'");
}

#[test]
fn every_field_of_the_json_is_documented_in_the_help() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", WEB);
    for line in [
        "grid status".to_owned(),
        "bot new carol --grains 5".to_owned(),
        "bot show carol".to_owned(),
        "wallet send bob 5 --bot alice".to_owned(),
        "wallet show --bot bob".to_owned(),
        "farm nodes attic".to_owned(),
        "farm new shed --country nl --bot bob".to_owned(),
        "image list".to_owned(),
        format!("deploy {file} --dry-run --bot alice"),
        format!("cost {file} --bot alice"),
        "find --cpu 64".to_owned(),
        format!("deploy {file} --bot alice"),
        "ps --bot alice".to_owned(),
        "explain web --bot alice".to_owned(),
        "history web --bot alice".to_owned(),
        "approvals --bot alice".to_owned(),
        "settle web --bot alice".to_owned(),
        "stop web --bot alice".to_owned(),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let grouped = ["grid", "bot", "wallet", "farm", "image"].contains(&words[0]);
        let help = World::help(&words[..if grouped { 2 } else { 1 }].join(" "));
        let json = world.json(&line);
        let mut fields: Vec<&String> = json.as_object().unwrap().keys().collect();
        // One level down, where the result is a list of things.
        for list in ["contracts", "nodes", "images", "versions", "transfers", "matches", "excluded"] {
            if let Some(first) = json.get(list).and_then(|l| l.get(0)).and_then(|f| f.as_object()) {
                fields.extend(first.keys());
            }
        }
        for field in fields {
            assert!(help.contains(field.as_str()), "{line}: '{field}' is not documented in: {help}");
        }
    }
}

fn check_chain(history: &serde_json::Value, whats: &[&str]) {
    assert_eq!(history["verified"], true);
    let versions = history["versions"].as_array().unwrap();
    let found: Vec<&str> = versions.iter().map(|v| v["what"].as_str().unwrap()).collect();
    assert_eq!(found, whats);
    assert!(versions[0]["prev"].is_null());
    for pair in versions.windows(2) {
        assert_eq!(pair[1]["prev"], pair[0]["hash"]);
        assert!(pair[1]["height"].as_u64() > pair[0]["height"].as_u64());
    }
}

#[test]
fn an_interrupted_upload_goes_on_and_a_second_deploy_sends_nothing() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", WEB);
    let first = world.run(&format!("deploy {file} --bot alice"));
    assert!(first.err.contains("sending image 'nginx'"), "{}", first.err);
    world.json("stop web --bot alice");
    let second = world.run(&format!("deploy {file} --bot alice"));
    assert_eq!(second.code, 0, "{}", second.err);
    assert!(!second.err.contains("sending image"), "{}", second.err);
}

#[test]
fn what_is_wrong_with_a_machine_stands_where_its_farmer_and_its_users_look() {
    let world = World::with_farm();
    let trouble = |kind, subject, reason, remedy| NodeTrouble::new(kind, subject, reason, remedy);
    let troubles = vec![
        trouble(
            TroubleKind::Virtualisation,
            "",
            "no microVM can run here",
            "enable it in the firmware setup",
        ),
        trouble(TroubleKind::Disk, "sda", "failing: it is worn out", "replace the disk"),
    ];
    let _node = FakeNode::start(&world, Behaviour { troubles, ..Behaviour::default() });
    let text = world.text("farm nodes attic");
    let first =
        "node-1 has trouble with virtualisation: no microVM can run here: enable it in the firmware setup\n";
    assert!(text.contains(first), "{text}");
    assert!(
        text.contains("node-1 has trouble with disk sda: failing: it is worn out: replace the disk\n"),
        "{text}"
    );
    let nodes = world.json("farm nodes attic");
    let disk = &nodes["nodes"][0]["troubles"][1];
    assert_eq!((&disk["kind"], &disk["subject"]), (&"disk".into(), &"sda".into()));
    assert_eq!(disk["remedy"], "replace the disk");
    fields_are_documented("farm nodes", &nodes);
    let found = world.json("ledger query nodes");
    assert_eq!(found["nodes"][0]["troubles"], nodes["nodes"][0]["troubles"]);
    fields_are_documented("ledger query nodes", &found);

    let history = world.text("ledger history node attic/node-1");
    assert!(history.contains("registered, release 0.1.0"), "{history}");

    let file = world.file("web.toml", WEB);
    world.json(&format!("deploy {file} --bot alice"));
    let explained = world.json("explain web --bot alice");
    assert_eq!(explained["node"]["troubles"][0]["reason"], "no microVM can run here");
    fields_are_documented("explain", &explained);
    let text = world.text("explain web --bot alice");
    assert!(text.contains("  the node has trouble with disk sda: failing: it is worn out"), "{text}");
}

#[test]
fn a_machine_that_is_refused_is_listed_with_what_to_do() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    assert_eq!(world.json("farm nodes attic")["refused"].as_array().unwrap().len(), 0);
    // Another machine that calls itself the same.
    FakeNode::is_refused(&world);
    let nodes = world.json("farm nodes attic");
    fields_are_documented("farm nodes", &nodes);
    let refused = &nodes["refused"][0];
    assert_eq!((&refused["node"], &refused["farm"]), (&"node-1".into(), &"attic".into()));
    assert_eq!(refused["reason"], "node name 'node-1' is taken: choose another name");
    let text = world.text("farm nodes attic");
    assert!(text.contains("('node-1') of farm attic was refused 1 times, last "), "{text}");
    assert!(text.contains(": node name 'node-1' is taken: choose another name\n"), "{text}");
}

#[test]
fn a_workload_that_the_node_refuses_is_explained_with_its_reason() {
    let world = World::with_farm();
    let behaviour = Behaviour {
        state: WorkloadState::Refused,
        step: "the image's verity root does not match".to_owned(),
        ..Behaviour::default()
    };
    let _node = FakeNode::start(&world, behaviour);
    let file = world.file("web.toml", WEB);
    let failed = world.run(&format!("deploy {file} --bot alice"));
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(
        failed.err.contains("node 'node-1' won't run 'web': the image's verity root does not match"),
        "{}",
        failed.err
    );
    assert!(failed.err.contains("what to do: 'croft explain web' has the details"), "{}", failed.err);
    let text = world.text("explain web --bot alice");
    assert!(text.contains("'web' is degraded on node 'node-1' of farm 'attic'"), "{text}");
    assert!(text.contains("failed: the image's verity root does not match"), "{text}");
    assert!(text.contains("correct the file, deploy again"), "{text}");
}

#[test]
fn what_is_missing_or_impossible_is_said_with_its_exit_code() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let huge = world.file("huge.toml", &WEB.replace("256M", "64G"));
    let apache = world.file("apache.toml", &WEB.replace("nginx", "apache"));
    let web = world.file("web.toml", WEB);
    let dear = world.file("dear.toml", &format!("{WEB}max_price = 1\n"));
    let elsewhere = world.file("nl.toml", &format!("{WEB}[placement]\ncountry = [\"nl\"]\n"));
    for (line, code, says) in [
        (format!("deploy {apache} --bot alice"), 4, "there is no image 'apache' in"),
        (
            format!("deploy {huge} --bot alice"),
            4,
            "node 'node-1' of farm 'attic': memory: 64 GiB needed, 4 GiB free",
        ),
        (format!("deploy {dear} --bot alice"), 4, "it costs 226 800 grains, the limit is 1 grains"),
        (format!("deploy {elsewhere} --bot alice"), 4, "it is in be, wanted is nl"),
        (format!("deploy {web} --bot bob"), 4, "the wallet has 0 grains"),
        (format!("deploy {web} --bot nobody"), 4, "there is no bot 'nobody' in"),
        ("deploy missing.toml".to_owned(), 4, "there is no deploy file missing.toml"),
        ("stop web --bot alice".to_owned(), 4, "bot 'alice' has no contract 'web'"),
        ("logs web --bot alice".to_owned(), 4, "'croft ps --all' lists them"),
        ("farm nodes cellar".to_owned(), 4, "there is no farm 'cellar' on grid 'demo'"),
        ("bot show carol".to_owned(), 4, "there is no bot 'carol' on grid 'demo'"),
        ("wallet send carol 5 --bot alice".to_owned(), 4, "there is no bot 'carol' on grid 'demo'"),
        ("wallet send bob 5000000 --bot alice".to_owned(), 3, "top up the wallet"),
        ("bot new alice".to_owned(), 3, "bot 'alice' is on grid 'demo' already"),
        (
            "farm new attic --country be --bot alice".to_owned(),
            3,
            "farm 'attic' belongs to bot 'bob', not to 'alice'",
        ),
        ("history attic/node-9 --kind node".to_owned(), 4, "farm 'attic' has no node 'node-9'"),
        ("grid init demo".to_owned(), 1, "grid 'demo' exists in"),
    ] {
        let output = world.run(&line);
        assert_eq!(output.code, code, "{line}: {}", output.err);
        assert!(output.err.contains(says), "{line}: {}", output.err);
    }
}

#[test]
fn a_taken_name_or_port_is_refused_before_anything_is_paid() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let web = world.file("web.toml", WEB);
    let other = world.file("other.toml", &WEB.replacen("\"web\"", "\"other\"", 1));
    world.json(&format!("deploy {web} --bot alice --detach"));
    let before = world.json("wallet show --bot alice")["balance"].clone();
    let again = world.run(&format!("deploy {web} --bot alice"));
    assert_eq!(again.code, 3);
    assert!(
        again.err.contains("'web' runs already, on node 'node-1': end it with 'croft stop web'"),
        "{}",
        again.err
    );
    let taken = world.run(&format!("deploy {other} --bot alice"));
    assert_eq!(taken.code, 4);
    assert!(taken.err.contains("port 18080/tcp is taken"), "{}", taken.err);
    assert!(taken.err.contains("what to do: publish another port"), "{}", taken.err);
    assert_eq!(world.json("wallet show --bot alice")["balance"], before);
}

#[test]
fn an_absent_farmer_node_or_replica_is_named_as_unreachable() {
    let mut world = World::with_farm();
    let node = FakeNode::start(&world, Behaviour::default());
    let web = world.file("web.toml", WEB);
    world.json(&format!("deploy {web} --bot alice"));
    world.stop_farmer();
    let other = world.file("other.toml", &WEB.replacen("\"web\"", "\"other\"", 1).replace("18080", "18081"));
    let output = world.run(&format!("deploy {other} --bot alice"));
    assert_eq!(output.code, 5, "{}", output.err);
    assert!(
        output.err.contains(
            "node 'node-1' of farm 'attic': its farmer's bot is not connected: its owner must run 'croft farm serve'"
        ),
        "{}",
        output.err
    );

    node.stop();
    let output = world.run("logs web --bot alice");
    assert_eq!(output.code, 5, "{}", output.err);
    assert!(output.err.contains("node 'node-1' is not connected"), "{}", output.err);
    let explained = world.text("explain web --bot alice");
    assert!(explained.contains("the replica says that the node is offline"), "{explained}");
    assert!(explained.contains("it is not paid meanwhile"), "{explained}");

    world.stop_replica();
    let output = world.run("ps --bot alice");
    assert_eq!(output.code, 5, "{}", output.err);
    assert!(output.err.contains("no replica of the grid can be used"), "{}", output.err);
    assert!(output.err.contains("what to do: start it with 'croft grid up'"), "{}", output.err);
}

#[test]
fn a_tampered_chunk_never_leaves_this_machine() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let chunk = world.chunk();
    std::fs::write(&chunk, b"other bytes").unwrap();
    let web = world.file("web.toml", WEB);
    let output = world.run(&format!("deploy {web} --bot alice"));
    assert_eq!(output.code, 1, "{}", output.err);
    assert!(output.err.contains("was altered or damaged"), "{}", output.err);
    assert!(output.err.contains("build the image again"), "{}", output.err);
}

#[test]
fn a_replica_of_another_chain_or_an_older_state_is_not_believed() {
    let mut world = World::with_farm();
    let pin = world.home().join("grids/demo/pin.toml");
    let right = std::fs::read_to_string(&pin).unwrap();
    let chain = world.json("grid status")["chain"].as_str().unwrap().to_owned();

    std::fs::write(&pin, right.replace(&chain, &"ab".repeat(32))).unwrap();
    std::fs::remove_file(world.home().join("grids/demo/tip")).unwrap();
    let output = world.run("grid status");
    assert_eq!(output.code, 1, "{}", output.err);
    assert!(output.err.contains("it sent a header of chain"), "{}", output.err);
    std::fs::write(&pin, right).unwrap();

    // The replica's owner goes back to a copy of an older day.
    let height = world.json("grid status")["height"].as_u64().unwrap();
    assert!(height > 0);
    world.stop_replica();
    world.reset_ledger();
    world.start_replica();
    let output = world.run("grid status");
    assert_eq!(output.code, 1, "{}", output.err);
    assert!(
        output.err.contains("is older than header") || output.err.contains("there are two final headers"),
        "{}",
        output.err
    );
}

#[test]
fn grains_move_by_name_and_both_wallets_show_it() {
    let world = World::with_farm();
    let sent = world.json("wallet send bob 5000 --memo cake --bot alice");
    assert_eq!(sent["balance"], 995_000);
    let bob = world.json("wallet show --bot bob");
    assert_eq!(bob["balance"], 5000);
    let transfer = &bob["transfers"][0];
    assert_eq!((&transfer["from"], &transfer["to"]), (&"alice".into(), &"bob".into()));
    assert_eq!((&transfer["amount"], &transfer["memo"]), (&5000.into(), &"cake".into()));
}
