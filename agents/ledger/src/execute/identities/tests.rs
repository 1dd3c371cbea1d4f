//! Who may become what, and whose names are whose.

use croft_protocol::command::Join;
use croft_protocol::units::show_time;
use croft_protocol::{Capacity, Command, Grains, NodeTrouble, SecretKey, TroubleKind};

use super::*;
use crate::memory::{ALLOWANCE, Scenario, key, name};

fn refused(scenario: &mut Scenario, key: &SecretKey, command: Command) -> String {
    scenario.ledger.submit(key, command).expect_err("the command must be refused").to_string()
}

fn farm_command(called: &str, country: &str) -> Command {
    Command::CreateFarm {
        name: name(called),
        country: country.to_owned(),
        region: None,
        prices: PriceList::default(),
    }
}

#[test]
fn a_key_becomes_a_bot_once() {
    let mut scenario = Scenario::new();
    let new = key(50);
    scenario.add_bot("new", &new);
    assert_eq!(scenario.ledger.bot(&new.public()).unwrap().unwrap().name, name("new"));
    let again = Command::CreateBot(BotBody { name: name("newer") });
    let text = refused(&mut scenario, &new, again);
    assert_eq!(text, format!("{} is already a bot named 'new'", new.public()));
}

#[test]
fn a_bots_name_is_unique() {
    let mut scenario = Scenario::new();
    let text = refused(&mut scenario, &key(50), Command::CreateBot(BotBody { name: name("alice") }));
    assert_eq!(text, "bot name 'alice' is taken: choose another name");
}

#[test]
fn a_bot_says_of_itself_what_it_likes_in_its_own_name_only() {
    let mut scenario = Scenario::new();
    let user = scenario.user.clone();
    let mut profile = Profile::named(name("alice"));
    profile.description = "I buy".to_owned();
    scenario.ledger.submit(&user, Command::UpdateBot(profile.clone())).unwrap();
    profile.encryption_key = Some([9; 32]);
    scenario.ledger.submit(&user, Command::UpdateBot(profile.clone())).unwrap();
    let id = RecordId::profile(&user.public());
    let record = scenario.ledger.record(&id).unwrap().unwrap();
    assert_eq!((record.version, record.author), (2, user.public()));
    assert_eq!(record.body, Body::Profile(profile.clone()));

    let other = Profile { name: name("fred"), ..profile.clone() };
    let text = refused(&mut scenario, &user, Command::UpdateBot(other));
    assert_eq!(text, "the command is malformed: the profile is of bot 'fred', its author is 'alice'");
    let odd = Profile { description: "\u{1b}[2J".to_owned(), ..profile.clone() };
    let text = refused(&mut scenario, &user, Command::UpdateBot(odd));
    assert_eq!(
        text,
        "the command is malformed: a description is one line of printable characters, without 0x1b: leave that out"
    );
    let text = refused(&mut scenario, &key(50), Command::UpdateBot(profile));
    assert!(text.contains("is no bot on this grid"), "{text}");
}

#[test]
fn only_bots_open_farms_and_each_has_its_own_name_and_a_country() {
    let mut scenario = Scenario::new();
    let (farmer, stranger) = (scenario.farmer.clone(), key(50));
    let text = refused(&mut scenario, &stranger, farm_command("red", "be"));
    assert_eq!(
        text,
        format!("{} is no bot on this grid: create it first with 'croft bot new'", stranger.public())
    );
    let text = refused(&mut scenario, &farmer, farm_command("green", "be"));
    assert_eq!(text, "farm name 'green' is taken: choose another name");
    for wrong in ["", "b", "BE", "bel", "b1", "\u{e9}"] {
        let text = refused(&mut scenario, &farmer, farm_command("red", wrong));
        assert_eq!(
            text,
            format!("'{wrong}' is not a country: use two lower-case letters of ISO 3166-1, such as be")
        );
    }
    scenario.ledger.submit(&farmer, farm_command("red", "nl")).unwrap();
}

#[test]
fn only_its_owner_sets_a_farms_prices() {
    let mut scenario = Scenario::new();
    let (farmer, user, farm) = (scenario.farmer.clone(), scenario.user.clone(), scenario.farm);
    let prices = PriceList { cpu: 99, ..PriceList::default() };
    let text = refused(&mut scenario, &user, Command::SetPrices { farm, prices });
    assert_eq!(text, format!("only the owner of farm 'green' may do this, not {}", user.public()));
    let nowhere = FarmId(croft_protocol::Hash([1; 32]));
    let text = refused(&mut scenario, &farmer, Command::SetPrices { farm: nowhere, prices });
    assert_eq!(text, format!("there is no farm {nowhere} on this grid"));
    scenario.ledger.submit(&farmer, Command::SetPrices { farm, prices }).unwrap();
    assert_eq!(scenario.ledger.farm(&farm).unwrap().unwrap().prices, prices);
}

#[test]
fn grains_move_between_bots_only_and_only_those_that_are_there() {
    let mut scenario = Scenario::new();
    let (user, other) = (scenario.user.clone(), scenario.other.clone());
    let pay = |to: &SecretKey, grains, memo: &str| Command::Transfer {
        to: to.public(),
        amount: Grains(grains),
        memo: memo.to_owned(),
    };
    let (stranger, node) = (key(50), scenario.node.clone());
    let no_bot = |key: &SecretKey| {
        format!("{} is no bot on this grid: create it first with 'croft bot new'", key.public())
    };
    assert_eq!(refused(&mut scenario, &user, pay(&stranger, 1, "")), no_bot(&stranger));
    assert_eq!(refused(&mut scenario, &node, pay(&other, 1, "")), no_bot(&node));
    assert_eq!(
        refused(&mut scenario, &user, pay(&user, 1, "")),
        "the command is malformed: a transfer goes to another bot"
    );
    assert_eq!(
        refused(&mut scenario, &user, pay(&other, 0, "")),
        "the amount in grains is out of bounds: 0, allowed are 1 and more"
    );
    assert_eq!(
        refused(&mut scenario, &user, pay(&other, 1, &"x".repeat(1025))),
        "the length of the memo in bytes is out of bounds: 1025, allowed are at most 1024"
    );
    assert_eq!(
        refused(&mut scenario, &user, pay(&other, ALLOWANCE.0 + 1, "")),
        format!("{} has 1 000 000 grains, but 1 000 001 grains are needed: top up the wallet", user.public())
    );
    scenario.ledger.submit(&user, pay(&other, ALLOWANCE.0, "all")).unwrap();
    assert_eq!(scenario.balance(&user), Grains::ZERO);
    assert_eq!(scenario.balance(&other), Grains(2 * ALLOWANCE.0));
}

fn register(node: &NodeBody, join: Option<croft_protocol::command::SignedJoin>) -> Command {
    Command::RegisterNode { node: node.clone(), join, attestation: None }
}

#[test]
fn a_node_joins_with_its_farm_owners_permission_only() {
    let mut scenario = Scenario::without_node();
    let (node, body) = (scenario.node.clone(), scenario.node_body());
    let remedy = "; ask the farm's owner for a new boot configuration";
    let refusal = |join| {
        let text = refused(&mut scenario.clone(), &node, register(&body, join));
        let reason = text.strip_prefix("the node's permission to join is no good: ").unwrap();
        reason.strip_suffix(remedy).unwrap().to_owned()
    };
    let grid = scenario.clone();
    assert_eq!(refusal(None), "it is missing, and the node is not registered yet");

    let now_ms = grid.now_ms();
    let join = |farm, expires_ms| Join { farm, expires_ms, nonce: [1; 16] };
    let expired = grid.join_of(join(grid.farm, now_ms));
    assert_eq!(refusal(Some(expired)), format!("it expired 0 s ago, at {}", show_time(now_ms)));

    let elsewhere = FarmId(croft_protocol::Hash([1; 32]));
    let other_farm = grid.join_of(join(elsewhere, now_ms + 1000));
    assert_eq!(refusal(Some(other_farm)), format!("it is for farm {elsewhere}, not for 'green'"));

    let mut forged = grid.join();
    forged.join.expires_ms += 1;
    assert_eq!(refusal(Some(forged)), "it is not signed by the owner of farm 'green'");

    scenario.ledger.submit(&node, register(&body, Some(grid.join()))).unwrap();
    let books = scenario.ledger.capacity(&node.public()).unwrap().unwrap();
    assert_eq!(books, NodeCapacity { version: 1, total: body.capacity, used: Capacity::default() });
}

#[test]
fn a_node_needs_a_farm_that_exists_and_a_name_of_its_own() {
    let mut scenario = Scenario::new();
    let second = key(51);
    let mut body = scenario.node_body();
    let text = refused(&mut scenario, &second, register(&body, Some(Scenario::new().join())));
    assert_eq!(text, "node name 'n1' is taken: choose another name");
    body.farm = FarmId(croft_protocol::Hash([1; 32]));
    let text = refused(&mut scenario, &second, register(&body, None));
    assert_eq!(text, format!("there is no farm {} on this grid", body.farm));
}

#[test]
fn a_node_changes_itself_without_permission_but_not_its_farm() {
    let mut scenario = Scenario::new();
    let (node, farmer) = (scenario.node.clone(), scenario.farmer.clone());
    let mut body = scenario.node_body();
    body.release = "0.2.0".to_owned();
    body.name = name("n2");
    scenario.ledger.submit(&node, register(&body, None)).unwrap();
    assert_eq!(scenario.ledger.node(&node.public()).unwrap().unwrap(), body);

    // Its former name is free again.
    let second = key(51);
    let join = scenario.join();
    let first_name = scenario.node_body();
    scenario.ledger.submit(&second, register(&first_name, Some(join))).unwrap();

    scenario.ledger.submit(&farmer, farm_command("red", "nl")).unwrap();
    let (green, red) = (scenario.farm, FarmId::new(&farmer.public(), &name("red")));
    body.farm = red;
    let text = refused(&mut scenario, &node, register(&body, None));
    let expected = format!("node {} belongs to farm {green} and can't move to {red}", node.public());
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn one_node_key_can_not_run_twice() {
    let mut scenario = Scenario::new();
    let node = scenario.node.clone();
    let mut body = scenario.node_body();
    body.session = 7;
    scenario.ledger.submit(&node, register(&body, None)).unwrap();
    body.release = "0.1.1".to_owned();
    scenario.ledger.submit(&node, register(&body, None)).expect("the same boot may change what it says");

    let stale = |got| {
        format!(
            "session {got} of node {} is not newer than 7: the same key runs twice, or its clock went back",
            node.public()
        )
    };
    let mut older = body.clone();
    older.session = 6;
    assert_eq!(refused(&mut scenario, &node, register(&older, None)), stale(6));
    let mut twin = body.clone();
    twin.sealing_key = [8; 32];
    assert_eq!(refused(&mut scenario, &node, register(&twin, None)), stale(7));
    twin.session = 8;
    scenario.ledger.submit(&node, register(&twin, None)).expect("a new boot may have lost its disk");
}

#[test]
fn a_changed_total_is_a_new_version_and_what_is_used_stays() {
    let mut scenario = Scenario::new();
    let node = scenario.node.clone();
    scenario.agree(scenario.terms("web")).unwrap();
    let before = scenario.ledger.capacity(&node.public()).unwrap().unwrap();
    let mut body = scenario.node_body();
    scenario.ledger.submit(&node, register(&body, None)).unwrap();
    let same = scenario.ledger.capacity(&node.public()).unwrap().unwrap();
    assert_eq!(same, before, "the same total is no news");

    body.capacity.cpu_millis = 500;
    scenario.ledger.submit(&node, register(&body, None)).unwrap();
    let shrunk = scenario.ledger.capacity(&node.public()).unwrap().unwrap();
    assert_eq!(shrunk.version, before.version + 1);
    assert_eq!((shrunk.used, shrunk.free().cpu_millis), (before.used, 0));
}

#[test]
fn what_a_node_says_of_itself_is_bounded() {
    let mut scenario = Scenario::new();
    let node = scenario.node.clone();
    let mut refusal = |change: &dyn Fn(&mut NodeBody)| {
        let mut body = scenario.node_body();
        change(&mut body);
        refused(&mut scenario, &node, register(&body, None))
    };
    assert_eq!(
        refusal(&|node| node.addresses = vec!["a".to_owned(); 17]),
        "the number of addresses is out of bounds: 17, allowed are at most 16"
    );
    assert_eq!(
        refusal(&|node| node.addresses = vec!["a".repeat(256)]),
        "the length of an address in bytes is out of bounds: 256, allowed are at most 255"
    );
    let trouble = |kind, remedy: &str| NodeTrouble {
        remedy: remedy.to_owned(),
        ..NodeTrouble::new(kind, "", "it is broken", "replace it")
    };
    let unprintable = refusal(&|node| node.troubles = vec![trouble(TroubleKind::Disk, "a\x1b[2J")]);
    let expected =
        "the remedy of a trouble is one line of printable characters, without 0x1b: leave that out";
    assert!(unprintable.ends_with(expected), "{unprintable}");
    let unsorted = [trouble(TroubleKind::Other, "a"), trouble(TroubleKind::Disk, "b")];
    let text = refusal(&|node| node.troubles = unsorted.to_vec());
    assert!(text.contains("the disk trouble of '' is told twice, or before one"), "{text}");
    let texts: [fn(&mut NodeBody, String); 4] = [
        |node, text| node.release = text,
        |node, text| node.hardware.cpu_model = text,
        |node, text| node.hardware.vendor = text,
        |node, text| node.hardware.product = text,
    ];
    for change in texts {
        let text = refusal(&|node| change(node, "x".repeat(1025)));
        assert!(text.ends_with("in bytes is out of bounds: 1025, allowed are at most 1024"), "{text}");
    }
}
