//! Validators are replaced from the command line, and what the ledger would refuse is refused before anybody
//! signs it.

use croft_protocol::SecretKey;

use super::world::{World, fields_are_documented};

fn validator(world: &World) -> String {
    world.json("grid validators show")["validators"][0]["key"].as_str().unwrap().to_owned()
}

#[test]
fn a_change_is_proposed_signed_and_submitted_and_the_grid_goes_on_with_it() {
    let world = World::with_farm();
    let shown = world.json("grid validators show");
    fields_are_documented("grid validators show", &shown);
    assert_eq!((&shown["version"], &shown["height"]), (&1.into(), &0.into()));
    let key = validator(&world);
    let file = world.file("unused", "").replace("unused", "change.json");

    let proposed = world.json(&format!("grid validators propose --set {key}=5 --out {file}"));
    fields_are_documented("grid validators propose", &proposed);
    assert_eq!(proposed["changes"][0], serde_json::json!({ "key": key, "power": 5 }));
    assert_eq!((&proposed["signed_power"], &proposed["enough"]), (&0.into(), &false.into()));
    assert_eq!(proposed["supersedes"], shown["record"]);

    let early = world.run(&format!("grid validators submit {file} --bot alice"));
    assert_eq!(early.code, 3, "{}", early.err);
    assert!(
        early.err.contains("it is signed by 0 of 1 power, more than two thirds are needed"),
        "{}",
        early.err
    );

    let text = world.text(&format!("grid validators sign {file}"));
    assert!(text.contains(&format!("change  {key}  power 5\n  signed by 1 of 1 power\n")), "{text}");
    assert!(text.contains(&format!("Next: 'croft grid validators submit {file}'")), "{text}");
    let done = world.json(&format!("grid validators submit {file} --bot alice"));
    fields_are_documented("grid validators submit", &done);
    assert_eq!((&done["version"], &done["validators"][0]["power"]), (&2.into(), &5.into()));

    world.text("bot new carol");
    assert_eq!(world.json("grid status")["validators"][0]["power"], 5);
    let again = world.run(&format!("grid validators submit {file} --bot alice"));
    assert_eq!(again.code, 3, "{}", again.err);
    assert!(again.err.contains("it supersedes validators record"), "{}", again.err);
}

#[test]
fn what_the_ledger_would_refuse_is_neither_written_nor_signed() {
    let world = World::with_farm();
    let key = validator(&world);
    let other = SecretKey::from_seed(&[9; 32]);
    let other_key = world.file("other.key", &hex::encode(other.seed()));
    let other = other.public();
    let exposed = world.run(&format!("grid validators sign x --key {other_key}"));
    assert!(exposed.err.contains("can be read by others"), "{}", exposed.err);
    std::fs::set_permissions(&other_key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file = world.file("unused", "").replace("unused", "change.json");
    let nonsense = world.file("nonsense.json", "{\"grid\": 5}");
    let propose = |args: &str| format!("grid validators propose {args} --out {file}");

    for (line, code, says) in [
        (propose(""), 2, "nothing would change: say who is to be a validator with --set"),
        (propose(&format!("--remove {other}")), 4, "is no validator of grid 'demo'"),
        (propose(&format!("--set {key}")), 3, "the validators and their powers are already these"),
        (propose(&format!("--remove {key}")), 3, "a validator set has 1 to 64 validators, not 0"),
        (
            propose(&format!("--set {other} --remove {key}")),
            3,
            "of the present validators' power 1 only 0 would stay, at least two thirds must",
        ),
        (format!("grid validators sign {nonsense}"), 2, "is no change of validators: "),
        ("grid validators sign nowhere.json".to_owned(), 1, "can't read nowhere.json"),
    ] {
        let output = world.run(&line);
        assert_eq!(output.code, code, "{line}: {}", output.err);
        assert!(output.err.contains(says), "{line}: {}", output.err);
        assert!(!std::path::Path::new(&file).exists(), "{line}");
    }

    world.text(&propose(&format!("--set {other}=2")));
    let output = world.run(&propose(&format!("--set {other}=3")));
    assert!(output.err.contains("is there already: choose another file with --out"), "{}", output.err);
    let output = world.run(&format!("grid validators sign {file} --key {other_key}"));
    assert_eq!(output.code, 3, "{}", output.err);
    assert!(output.err.contains("which is no validator of grid 'demo'"), "{}", output.err);

    // A change that was altered after it was signed.
    world.text(&format!("grid validators sign {file}"));
    let text = std::fs::read_to_string(&file).unwrap();
    let altered = world.file("altered.json", &text.replace("\"power\": 2", "\"power\": 3"));
    let output = world.run(&format!("grid validators submit {altered} --bot alice"));
    assert_eq!(output.code, 3, "{}", output.err);
    assert!(output.err.contains(&format!("the signature of validator {key} is wrong")), "{}", output.err);
    // Two halves that don't belong together.
    let unsigned = format!("{}\"signatures\": []\n}}\n", text.split("\"signatures\"").next().unwrap());
    let unsigned = world.file("unsigned.json", &unsigned.replace("\"power\": 2", "\"power\": 3"));
    let output = world.run(&format!("grid validators submit {file} {unsigned} --bot alice"));
    assert_eq!(output.code, 2, "{}", output.err);
    assert!(output.err.contains("has another change than"), "{}", output.err);
    let foreign = text.replace(world.json("grid status")["chain"].as_str().unwrap(), &"ab".repeat(32));
    let foreign = world.file("foreign.json", &foreign);
    let output = world.run(&format!("grid validators sign {foreign}"));
    assert_eq!(output.code, 2, "{}", output.err);
    assert!(
        output.err.contains(&format!("is for chain {}, but grid 'demo' is", "ab".repeat(32))),
        "{}",
        output.err
    );
}
