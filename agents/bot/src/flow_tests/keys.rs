//! Keys of bots: behind a passphrase, on paper, on another machine.

use serde_json::Value;

use super::world::{Output, World};

const PASSPHRASE: &str = "correct horse battery";

fn json(output: &Output) -> Value {
    assert_eq!(output.code, 0, "{}", output.err);
    serde_json::from_str(&output.out).unwrap_or_else(|e| panic!("{e}: {}", output.out))
}

fn key_file(world: &World, bot: &str) -> String {
    std::fs::read_to_string(world.home().join(format!("bots/{bot}.key"))).unwrap()
}

fn id(world: &World, bot: &str) -> Value {
    let words = world.json(&format!("bot phrase {bot}"));
    words["id"].clone()
}

#[test]
fn a_locked_bot_acts_for_whoever_knows_the_passphrase_and_reads_for_anybody() {
    let world = World::with_farm();
    let open = key_file(&world, "alice");
    let locked = json(&world.run_telling("bot passphrase alice --json", &[PASSPHRASE, PASSPHRASE]));
    assert_eq!(locked["locked"], true);
    assert!(!key_file(&world, "alice").contains(open.trim()));

    // Nobody is there: what everybody may see is shown, and nothing is signed.
    assert_eq!(world.json("bot show alice")["balance"], 1_000_000);
    let refused = world.run("wallet send bob 5 --bot alice");
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("the key of bot 'alice' is behind a passphrase, and nobody is here to ask")
            && refused.err.contains("--passphrase-file or CROFT_PASSPHRASE_FILE"),
        "{}",
        refused.err
    );

    let sent = world.run_telling("wallet send bob 5 --bot alice --json", &["a wrong one", PASSPHRASE]);
    assert_eq!(json(&sent)["balance"], 999_995);
    let wrong = world.run_telling("wallet send bob 5 --bot alice", &["1", "2", "3", PASSPHRASE]);
    assert!(wrong.err.contains("this is not the passphrase of bot 'alice'"), "{}", wrong.err);
    assert_eq!(world.json("bot show alice")["balance"], 999_995);

    let file = world.secret_file("passphrase", &format!("{PASSPHRASE}\n"));
    let sent = world.json(&format!("wallet send bob 5 --bot alice --passphrase-file {file}"));
    assert_eq!(sent["balance"], 999_990);
    let public = world.file("public", PASSPHRASE);
    let refused = world.run(&format!("wallet send bob 5 --bot alice --passphrase-file {public}"));
    assert!(refused.err.contains("can be read by others"), "{}", refused.err);
}

#[test]
fn a_passphrase_is_changed_and_removed_only_by_who_knows_it() {
    let world = World::of_keys();
    let before = id(&world, "alice");
    let set = |secrets: &[&str]| world.run_telling("bot passphrase alice", secrets);
    let weak = set(&["short", "short"]);
    assert!(weak.err.contains("a passphrase has at least 12 characters, this one has 5"), "{}", weak.err);
    let differ = set(&[PASSPHRASE, "correct horse batterz"]);
    assert!(differ.err.contains("the two passphrases differ"), "{}", differ.err);
    let nobody = set(&[]);
    assert!(
        nobody.err.contains("nobody is here to ask for a new passphrase: give it with --new-passphrase-file")
    );
    let nothing = world.run("bot passphrase alice --remove");
    assert!(nothing.err.contains("the key of bot 'alice' has no passphrase"), "{}", nothing.err);
    assert_eq!(id(&world, "alice"), before, "nothing was changed by what failed");

    assert_eq!(set(&[PASSPHRASE, PASSPHRASE]).code, 0);
    let (old, new) = (PASSPHRASE, "another one of four words");
    assert_eq!(set(&["wrong", "wrong", "wrong", new, new]).code, 1);
    assert_eq!(set(&[old, new, new]).code, 0);
    let with = |secrets: &[&str]| world.run_telling("bot phrase alice --json", secrets);
    assert_eq!(with(&[old, old, old]).code, 1);
    assert_eq!(json(&with(&[new]))["id"], before);
    assert_eq!(world.run_telling("bot passphrase alice --remove", &[new]).code, 0);
    assert_eq!(id(&world, "alice"), before);
}

#[test]
fn a_key_moves_to_another_home_and_replaces_none_there() {
    let (here, there) = (World::of_keys(), World::of_keys());
    let file = here.home().join("alice.croft-key").display().to_string();
    let exported = here.run_telling(&format!("bot export alice {file} --json"), &[PASSPHRASE, PASSPHRASE]);
    let alice = json(&exported)["id"].clone();
    assert_eq!(alice, id(&here, "alice"));
    let again = here.run_telling(&format!("bot export alice {file}"), &[PASSPHRASE, PASSPHRASE]);
    assert!(again.err.contains("exists: choose another name"), "{}", again.err);

    let others = id(&there, "alice");
    let taken = there.run_telling(&format!("bot import {file}"), &[PASSPHRASE]);
    assert!(taken.err.contains("bot 'alice' has a key in"), "{}", taken.err);
    assert_eq!(id(&there, "alice"), others);
    let renamed = there.run_telling(&format!("bot import {file} --name carol"), &[PASSPHRASE]);
    assert_eq!(renamed.code, 2);
    assert!(
        renamed.err.contains("holds the key of bot 'alice', and its name is sealed with it"),
        "{}",
        renamed.err
    );

    std::fs::remove_file(there.home().join("bots/alice.key")).unwrap();
    let wrong = there.run_telling(&format!("bot import {file}"), &["1", "2", "3"]);
    assert_eq!(wrong.code, 1);
    assert!(!there.home().join("bots/alice.key").exists());
    let imported = json(&there.run_telling(&format!("bot import {file} --json"), &[PASSPHRASE]));
    assert_eq!((&imported["id"], &imported["locked"]), (&alice, &true.into()));
    let phrase = json(&there.run_telling("bot phrase alice --json", &[PASSPHRASE]));
    assert_eq!(phrase["id"], alice);

    let no_key = there.secret_file("notes", "buy milk");
    let refused = there.run(&format!("bot import {no_key}"));
    assert!(refused.err.contains("is no file that 'croft bot export' wrote"), "{}", refused.err);
    assert!(!refused.err.contains("milk"), "{}", refused.err);
}

#[test]
fn a_bot_comes_back_from_its_24_words() {
    let (here, there) = (World::of_keys(), World::of_keys());
    let phrase = here.json("bot phrase alice");
    let words = phrase["words"].as_str().unwrap().to_owned();
    let text = here.text("bot phrase alice");
    assert!(text.starts_with("whoever has these words is bot 'alice': keep them on paper"), "{text}");
    for (number, word) in words.split(' ').enumerate() {
        assert!(text.contains(&format!("{:>2} {word}", number + 1)), "{text}");
    }
    let imported = json(&there.run_telling("bot import --words --name alice2 --json", &[&words]));
    assert_eq!((&imported["id"], &imported["locked"]), (&phrase["id"], &false.into()));
    let file = there.secret_file("words", &words.replace(' ', "\n"));
    let again = there.json(&format!("bot import --words --name alice3 --words-file {file}"));
    assert_eq!(again["id"], phrase["id"]);
    let wrong = words.replacen(words.split(' ').next().unwrap(), "croft", 1);
    let refused = there.run_telling("bot import --words --name alice4", &[&wrong]);
    assert!(refused.err.contains("word 1 of the phrase is in no list of BIP-39"), "{}", refused.err);
    let nobody = there.run("bot import --words --name alice4");
    assert!(
        nobody.err.contains("nobody is here to ask for the words: give it with --words-file"),
        "{}",
        nobody.err
    );
}

#[test]
fn a_locked_key_under_another_name_is_told_from_its_own() {
    let world = World::of_keys();
    assert_eq!(world.run_telling("bot passphrase alice", &[PASSPHRASE, PASSPHRASE]).code, 0);
    let bots = world.home().join("bots");
    std::fs::rename(bots.join("alice.key"), bots.join("bob.key")).unwrap();
    let refused = world.run_telling("bot phrase bob", &[PASSPHRASE]);
    assert!(refused.err.contains("is the key of bot 'alice', not of 'bob'"), "{}", refused.err);
}
