//! `croft ledger` against an embedded replica, and against its file once it is stopped.

use serde_json::Value;

use super::WEB;
use super::fake_node::{Behaviour, FakeNode};
use super::world::World;

/// Every field of a result, two levels deep, is in the help of its command.
fn check_documented(command: &str, json: &Value) {
    let help = World::help(command);
    let mut fields: Vec<&String> = json.as_object().unwrap().keys().collect();
    for list in ["nodes", "farms", "contracts", "versions"] {
        fields.extend(json[list].get(0).and_then(Value::as_object).into_iter().flat_map(|f| f.keys()));
    }
    for field in fields {
        assert!(help.contains(field.as_str()), "{command}: '{field}' is not documented in: {help}");
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_record_is_read_by_name_or_by_id_with_its_proof() {
    let world = World::with_farm();
    let farm = world.json("ledger get farm attic");
    check_documented("ledger get", &farm);
    assert_eq!((&farm["proved"], &farm["version"]), (&true.into(), &1.into()));
    assert_eq!(farm["body"]["farm"]["country"], "be");
    assert_eq!(farm["author_name"], "bob");
    let id = farm["id"].as_str().unwrap();
    let by_id = world.json(&format!("ledger get farm:{id}"));
    assert_eq!(by_id["hash"], farm["hash"]);
    let text = world.text("ledger get farm attic");
    assert!(text.starts_with("farm 'attic'\n"), "{text}");
    assert!(text.contains("proof       the latest version as of block "), "{text}");

    let history = world.json("ledger history farm attic");
    check_documented("ledger history", &history);
    assert_eq!(history["versions"][0]["hash"], farm["hash"]);
    assert_eq!(world.json("ledger get validators")["body"]["validators"]["validators"][0]["power"], 1);

    let absent = world.run(&format!("ledger get bot:{id}"));
    assert_eq!(absent.code, 4);
    let says = format!("it is proved that there is no bot {id} on grid 'demo' at block ");
    assert!(absent.err.contains(&says), "{}", absent.err);
    let unknown = world.run("ledger get node attic/n9");
    assert_eq!(unknown.code, 4);
    assert!(unknown.err.contains("farm 'attic' has no node 'n9'"), "{}", unknown.err);
    let nonsense = world.run("ledger get cat tom");
    assert_eq!(nonsense.code, 2);
    assert!(
        nonsense.err.contains("'cat tom' is not a thing on the ledger: write bot NAME"),
        "{}",
        nonsense.err
    );
}

#[test]
fn the_log_is_read_in_its_order_from_any_position() {
    let world = World::with_farm();
    let first = lines(&world.text("ledger log --from 0 --count 3 --json"));
    let positions: Vec<u64> = first.iter().map(|item| item["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [0, 1, 2]);
    assert_eq!(first[0]["height"], 0);
    check_documented("ledger log", &first[0]);
    let all = lines(&world.text("ledger log --from 0 --count 1000 --json"));
    let last = lines(&world.text("ledger log --count 2 --json"));
    assert_eq!(last[..], all[all.len() - 2..]);
    assert_eq!(last[1]["what"], "in be, prices: CPU 100, memory 50, SSD 1, HDD 1");
    let past = world.run("ledger log --from 1000");
    assert_eq!(past.code, 4);
    let says = format!("the log has {} records, from 0 on: there is none at 1000 yet", all.len());
    assert!(past.err.contains(&says), "{}", past.err);
}

#[test]
fn the_log_is_followed_as_records_come() {
    let world = World::with_farm();
    let pay = || drop(world.text("wallet send bob 77 --bot alice"));
    let text = world.watch("ledger log --count 1 --follow", "in be, prices", pay, "77 grains");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_search_finds_by_each_condition_and_has_what_it_finds_proved() {
    let world = World::with_farm();
    world.text("farm new barn --country be --region flanders --price-cpu 7 --bot bob");
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", WEB);
    world.json(&format!("deploy {file} --bot alice"));

    let farms = world.json("ledger query farms --owner bob --proved");
    check_documented("ledger query farms", &farms);
    let names = |json: &Value, list: &str, field: &str| -> Vec<String> {
        json[list].as_array().unwrap().iter().map(|f| f[field].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&farms, "farms", "farm"), ["attic", "barn"]);
    assert!(farms["tip_height"].as_u64().is_some());
    let flanders = world.json("ledger query farms --country be --region flanders");
    assert_eq!(names(&flanders, "farms", "farm"), ["barn"]);
    let one = world.json("ledger query farms --limit 1");
    assert_eq!((&one["more"], one["farms"].as_array().unwrap().len()), (&true.into(), 1));

    let nodes = world.json("ledger query nodes --farm attic --cpu 1.5 --memory 1G --country be --proved");
    check_documented("ledger query nodes", &nodes);
    assert_eq!(names(&nodes, "nodes", "node"), ["node-1"]);
    assert_eq!(nodes["nodes"][0]["free"]["cpu_millis"], 1500);
    // One and a half CPUs at 100 and a GiB at 50, for an hour.
    assert_eq!(nodes["nodes"][0]["per_hour"], 200 * 3600);
    for (line, found) in [
        ("--cpu 1.5 --memory 1G --max-price 720000", 1),
        ("--cpu 1.5 --memory 1G --max-price 719999", 0),
        ("--cpu 1.6", 0),
        ("--country nl", 0),
        ("--trust sealed", 0),
        ("--owner alice", 0),
        ("--owner bob --trust plain", 1),
    ] {
        for proved in ["", " --proved"] {
            let nodes = world.json(&format!("ledger query nodes {line}{proved}"));
            assert_eq!(nodes["nodes"].as_array().unwrap().len(), found, "{line}{proved}");
        }
    }

    let contracts = world.json("ledger query contracts --user alice --node attic/node-1 --proved");
    check_documented("ledger query contracts", &contracts);
    assert_eq!(names(&contracts, "contracts", "state"), ["active"]);
    for (line, found) in [
        ("--farmer bob --state active,degraded", 1),
        ("--state ended", 0),
        ("--expires-within 2h", 1),
        ("--expires-within 30m", 0),
        ("--farmer alice", 0),
    ] {
        let contracts = world.json(&format!("ledger query contracts {line}"));
        assert_eq!(contracts["contracts"].as_array().unwrap().len(), found, "{line}");
    }
    let text = world.text("ledger query nodes");
    assert!(text.contains("(as a replica says; --proved has each one proved)"), "{text}");
    assert_eq!(world.text("ledger query nodes --country nl"), "no nodes found\n");
    let error = world.run("ledger query nodes --country belgium");
    assert_eq!(error.code, 2);
    let error = world.run("ledger query farms --owner nobody");
    assert!(error.code == 4 && error.err.contains("there is no bot 'nobody'"), "{}", error.err);
}

#[test]
fn a_whole_ledger_is_verified_offline_and_damage_is_found() {
    let mut world = World::with_farm();
    let ledger = world.home().join("grids/demo/ledger");
    let line = format!("ledger verify {}", ledger.display());
    let busy = world.run(&line);
    assert_eq!(busy.code, 1);
    assert!(busy.err.contains("is in use by another process: stop the other replica first"), "{}", busy.err);

    world.stop_farmer();
    world.stop_replica();
    let whole = world.json(&line);
    check_documented("ledger verify", &whole);
    assert_eq!((&whole["whole"], &whole["pinned"]), (&true.into(), &"genesis".into()));
    assert_eq!(whole["supply"], 1_000_000_000);
    let text = world.text(&format!("ledger verify {}/replica.toml", ledger.display()));
    assert!(text.starts_with("the ledger of grid 'demo' is whole: "), "{text}");
    let bare = world.json(&format!("ledger verify {}/data", ledger.display()));
    assert_eq!(bare["pinned"], "pin");

    let file = ledger.join("data/ledger.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    // A record that all ledgers of this test have: the farm's name.
    let at = bytes.windows(5).position(|window| window == b"attic").unwrap();
    bytes[at] = b'A';
    std::fs::write(&file, bytes).unwrap();
    let damaged = world.run(&line);
    assert_eq!(damaged.code, 1, "{}", damaged.out);
    assert!(damaged.err.contains(" is not whole: "), "{}", damaged.err);
    assert!(damaged.err.contains("what to do: restore it from a copy"), "{}", damaged.err);

    let nothing = world.run(&format!("ledger verify {}", world.home().display()));
    assert_eq!(nothing.code, 4);
    assert!(nothing.err.contains("there is neither replica.toml nor ledger.redb in "), "{}", nothing.err);
}
