//! A bot's key is replaced: by whom the bot acts afterwards, and what the old key is still worth.

use croft_protocol::{Name, SecretKey};
use serde_json::Value;

use super::WEB;
use super::fake_node::{Behaviour, FakeNode};
use super::world::{Output, World};
use crate::home::{Home, Successor};
use crate::keyfile::open_text;

const PASSPHRASE: &str = "correct horse battery";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.code, 0, "{}", output.err);
    serde_json::from_str(&output.out).unwrap_or_else(|e| panic!("{e}: {}", output.out))
}

/// Another home with the same grid and the keys that are here now: a machine that was left behind, or a thief's.
fn copy_of_home(world: &World, called: &str) -> String {
    let (from, to) = (world.home(), world.home().with_file_name(called));
    for folder in ["", "bots", "grids", "grids/demo"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
        for entry in std::fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    to.display().to_string()
}

fn profile_id(world: &World, bot: &str) -> Value {
    world.json(&format!("bot show {bot}"))["id"].clone()
}

fn later_keys(world: &World, bot: &str) -> usize {
    Home::new(&world.home()).key_files(&name(bot)).unwrap().len() - 1
}

fn texts(read: &Value) -> Vec<&str> {
    read["messages"].as_array().unwrap().iter().map(|m| m["text"].as_str().unwrap()).collect()
}

#[test]
fn a_bot_with_a_contract_goes_on_with_its_new_key_and_the_old_one_does_nothing_any_more() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", WEB);
    world.json(&format!("deploy {file} --yes --bot alice"));
    world.json("message send alice sealed-to-the-old-key --bot bob");
    let before = profile_id(&world, "alice");
    let thief = copy_of_home(&world, "thief");

    let rotated = world.json("bot rotate alice");
    assert_eq!((&rotated["changed"], &rotated["changes"]), (&true.into(), &1.into()));
    assert_eq!((&rotated["id"], &profile_id(&world, "alice")), (&before, &before), "the bot stays who it is");
    assert_ne!(rotated["key"], before);
    let history = world.text("history alice --kind bot");
    assert!(history.contains("bot 'alice'"), "{history}");

    // The new key negotiates with the farm, reads and stops what the old one had made, and opens what was sealed to it.
    let other = world.file("other.toml", &WEB.replace("\"web\"", "\"other\"").replace("18080", "18081"));
    let deployed = world.json(&format!("deploy {other} --yes --bot alice"));
    assert_eq!(deployed["state"], "active");
    assert_eq!(world.text("logs web --bot alice"), "starting\nlistening on 80\n");
    assert_eq!(world.json("stop web --bot alice")["reason"], "closed by user");
    world.json("wallet send bob 5 --bot alice");
    world.json("message send alice sealed-to-the-new-key --bot bob");
    let read = world.json("message read --bot alice");
    assert_eq!(texts(&read), ["sealed-to-the-old-key", "sealed-to-the-new-key"], "{read}");
    world.json("message send bob by-the-new-key --bot alice");
    assert_eq!(texts(&world.json("message read --bot bob")), ["by-the-new-key"]);

    for line in [
        "wallet send bob 5 --bot alice".to_owned(),
        "stop other --bot alice".to_owned(),
        "message send bob by-a-thief --bot alice".to_owned(),
        "message read --bot alice".to_owned(),
        "farm new shed --country nl --bot alice".to_owned(),
    ] {
        let refused = world.run(&format!("{line} --home {thief}"));
        assert_eq!(refused.code, 3, "{line}: {}{}", refused.out, refused.err);
        let said =
            refused.err.contains("was replaced at height") && refused.err.contains("signs nothing any more");
        assert!(said, "{line}: {}", refused.err);
    }
    assert!(texts(&world.json("message read --bot bob")).is_empty());
    let names: Vec<_> = world.json("ps --bot alice")["contracts"].as_array().unwrap().clone();
    assert_eq!(names.len(), 1, "{names:?}");

    // The owner himself has to wait, or the change would not be seen everywhere before the next one.
    let soon = world.run("bot rotate alice");
    assert_eq!(soon.code, 3, "{}", soon.err);
    assert!(soon.err.contains("the next change is possible from height"), "{}", soon.err);
    assert_eq!(later_keys(&world, "alice"), 2, "the key that was made waits for it");
    let soon = world.run("bot rotate alice");
    assert!(soon.err.contains("the next change is possible from height"), "{}", soon.err);
    assert_eq!(later_keys(&world, "alice"), 2, "no second one is made while it waits");
}

#[test]
fn a_farm_is_served_with_the_new_key_once_it_starts_anew() {
    let mut world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let text = world.text("bot rotate bob");
    assert!(text.contains("start anew what runs as this bot"), "{text}");
    let file = world.file("web.toml", WEB);
    let unserved = world.run(&format!("deploy {file} --yes --bot alice"));
    assert_ne!(unserved.code, 0, "the desk that runs with the old key is not asked");
    world.stop_farmer();
    world.serve("", &[]);
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(deployed["state"], "active");
    let drained = world.json("farm drain attic/node-1 --bot bob");
    assert_eq!(drained["draining"], true);
}

#[test]
fn nothing_is_lost_wherever_a_rotation_is_interrupted() {
    let world = World::with_farm();
    let home = Home::new(&world.home());
    let (alice, demo) = (name("alice"), name("demo"));
    let bot = home.key_file(&alice).unwrap().id();

    // After the key was written and before anything else: nothing was promised to it, and it is not used.
    let unused = SecretKey::from_seed(&[91; 32]);
    home.add_key(&alice, &open_text(&unused)).unwrap();
    world.json("wallet send bob 5 --bot alice");
    // After it was marked, before the ledger heard of it: the first key acts, and the next run goes on with this one.
    let waiting = SecretKey::from_seed(&[92; 32]);
    home.add_key(&alice, &open_text(&waiting)).unwrap();
    let marked = Successor { bot, links: Vec::new(), next: Some(waiting.public()) };
    home.keep_successor(&demo, &alice, &marked).unwrap();
    world.json("wallet send bob 5 --bot alice");
    let nothing = world.json("bot rotate alice --resume");
    assert_eq!((&nothing["changed"], &nothing["changes"]), (&false.into(), &0.into()), "{nothing}");
    let rotated = world.json("bot rotate alice");
    assert_eq!(rotated["key"], waiting.public().to_string());
    assert_eq!(later_keys(&world, "alice"), 2, "no third key was made");

    // After the ledger had it, before this home knew.
    home.keep_successor(&demo, &alice, &marked).unwrap();
    let refused = world.run("wallet send bob 5 --bot alice");
    assert_eq!(refused.code, 3);
    assert!(refused.err.contains("'croft bot rotate --resume'"), "{}", refused.err);
    let resumed = world.json("bot rotate alice");
    assert_eq!(
        (&resumed["changed"], &resumed["key"], &resumed["height"]),
        (&false.into(), &rotated["key"], &rotated["height"]),
        "what came about is taken up, and nothing is replaced once more"
    );
    world.json("wallet send bob 5 --bot alice");
    assert_eq!(later_keys(&world, "alice"), 2);
}

#[test]
fn another_machine_takes_the_new_key_up_from_its_words_and_from_a_file() {
    let world = World::with_farm();
    let (left, bare) = (copy_of_home(&world, "left"), copy_of_home(&world, "bare"));
    world.json("bot rotate alice");
    let missing = world.run(&format!("bot rotate alice --resume --home {left}"));
    assert_eq!(missing.code, 4, "{}", missing.err);
    assert!(
        missing.err.contains("this home does not have it: bring it with 'croft bot import --later'"),
        "{}",
        missing.err
    );

    let words = world.json("bot phrase alice")["words"].as_str().unwrap().to_owned();
    let words = world.secret_file("words", &words);
    let import = format!("bot import --words --name alice --words-file {words}");
    let taken = world.run(&format!("{import} --home {left}"));
    assert!(taken.err.contains("bot 'alice' has a key in"), "{}", taken.err);
    let text = world.text(&format!("{import} --later --home {left}"));
    assert!(text.contains("'croft bot rotate alice --resume' takes it up where it holds"), "{text}");
    let twice = world.run(&format!("{import} --later --home {left}"));
    assert!(twice.err.contains("this key of bot 'alice' is in"), "{}", twice.err);
    let resumed = world.json(&format!("bot rotate alice --resume --home {left}"));
    assert_eq!((&resumed["changed"], &resumed["changes"]), (&false.into(), &1.into()));
    world.json(&format!("wallet send bob 5 --bot alice --home {left}"));

    // On a machine that never had the first key, the later one alone gives the bot back.
    std::fs::remove_file(format!("{bare}/bots/alice.key")).unwrap();
    let file = world.home().join("alice.croft-key").display().to_string();
    let exported = world.run_telling(&format!("bot export alice {file} --json"), &[PASSPHRASE, PASSPHRASE]);
    let id = json(&exported)["id"].clone();
    json(&world.run_telling(&format!("bot import {file} --home {bare} --json"), &[PASSPHRASE]));
    let passphrase = world.secret_file("passphrase", PASSPHRASE);
    let with = format!("--home {bare} --passphrase-file {passphrase}");
    let nobody = world.run(&format!("wallet send bob 5 --bot alice {with}"));
    assert_ne!(nobody.code, 0);
    assert!(
        nobody.err.contains("followed the first key of bot")
            && nobody.err.contains("'croft bot rotate --resume'"),
        "{}",
        nobody.err
    );
    let resumed = world.json(&format!("bot rotate alice --resume {with}"));
    assert_eq!(resumed["id"], id);
    world.json(&format!("wallet send bob 5 --bot alice {with}"));
}

#[test]
fn a_locked_bot_keeps_all_its_keys_behind_the_passphrase() {
    let world = World::with_farm();
    assert_eq!(world.run_telling("bot passphrase alice", &[PASSPHRASE, PASSPHRASE]).code, 0);
    json(&world.run_telling("bot rotate alice --json", &[PASSPHRASE]));
    let folder = world.home().join("bots/alice.keys");
    let locked = std::fs::read_to_string(folder.join("1.key")).unwrap();
    assert!(locked.contains("argon2") || locked.contains("salt"), "{locked}");
    let refused = world.run("wallet send bob 5 --bot alice");
    assert!(refused.err.contains("the key of bot 'alice' is behind a passphrase"), "{}", refused.err);
    json(&world.run_telling("wallet send bob 5 --bot alice --json", &[PASSPHRASE]));
    let new = "another one of four words";
    assert_eq!(world.run_telling("bot passphrase alice", &[PASSPHRASE, new, new]).code, 0);
    json(&world.run_telling("wallet send bob 5 --bot alice --json", &[new]));
    assert_eq!(world.run_telling("bot passphrase alice --remove", &[new]).code, 0);
    world.json("wallet send bob 5 --bot alice");
}
