//! Messages, the directory, the faucet and the statement, as people type them.

use serde_json::Value;

use super::fake_node::{Behaviour, FakeNode};
use super::world::World;

fn texts(read: &Value) -> Vec<(&str, &str)> {
    let messages = read["messages"].as_array().unwrap();
    messages.iter().map(|m| (m["from"].as_str().unwrap(), m["text"].as_str().unwrap())).collect()
}

#[test]
fn a_message_waits_for_a_bot_that_is_away_and_is_shown_once() {
    let world = World::with_farm();
    // The file is a way to write spaces here.
    let file = world.file("letter.txt", "dear bob,\nthe disks are here\u{1b}[2J");
    let sent = world.json(&format!("message send bob --file {file} --bot alice"));
    assert_eq!((&sent["delivered"], &sent["mailboxes"]), (&"mailbox".into(), &1.into()));
    assert!(sent["expires_ms"].as_u64().unwrap() > sent["time_ms"].as_u64().unwrap() + 29 * 86_400_000);
    world.json("message send bob second --bot alice");
    world.json("message send bob from-myself --bot bob");

    let text = world.text("message read --bot bob");
    assert!(text.contains("from 'alice'\n  dear bob,\n  the disks are here\u{fffd}[2J\n"), "{text}");
    assert!(text.find("the disks").unwrap() < text.find("second").unwrap(), "{text}");
    assert!(text.contains("from 'bob'\n  from-myself"), "{text}");
    assert_eq!(world.text("message read --bot bob"), "no new messages\n");
    assert!(texts(&world.json("message read --bot bob")).is_empty());
    assert!(texts(&world.json("message read --bot alice")).is_empty(), "nobody reads another's");
}

#[test]
fn a_message_goes_straight_to_a_bot_that_listens_while_its_farm_is_served() {
    let world = World::with_farm();
    // bob's other process takes proposals under the same key meanwhile.
    let shown = world.watch(
        "message read --follow --bot bob --json",
        "\"event\":\"listening\"",
        || {
            // Listening begins with a word to the replica: until it is heard, mail waits in the mailbox.
            let direct = (0..60).any(|n| {
                let sent = world.json(&format!("message send bob hello-{n} --bot alice"));
                sent["delivered"] == "directly"
            });
            assert!(direct, "no message went straight to bob");
            world.json("message send bob last --bot alice");
        },
        "\"text\":\"last\"",
    );
    let lines: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.iter().find(|line| line["text"] == "last").unwrap();
    assert_eq!((&last["event"], &last["from"]), (&"message".into(), &"alice".into()));
    let read = world.json("message read --bot bob");
    assert!(!texts(&read).iter().any(|(_, text)| *text == "last"), "what was shown is not shown again");
}

#[test]
fn what_can_not_be_sent_says_why() {
    let world = World::with_farm();
    let nobody = world.run("message send nobody hi --bot alice");
    assert_eq!(nobody.code, 4);
    assert!(nobody.err.contains("there is no bot 'nobody' on grid 'demo'"), "{}", nobody.err);

    world.text("bot update --no-messages --bot bob");
    let no_key = world.run("message send bob hi --bot alice");
    assert_eq!(no_key.code, 4);
    assert!(
        no_key.err.contains("bot 'bob' takes no messages") && no_key.err.contains("'croft bot update'"),
        "{}",
        no_key.err
    );
    let deaf = world.run("message read --bot bob");
    assert_eq!(deaf.code, 4);
    assert!(deaf.err.contains("bot 'bob' takes no messages"), "{}", deaf.err);

    let long = world.file("long.txt", &"x".repeat(32 * 1024 + 1));
    let long = world.run(&format!("message send alice --file {long} --bot bob"));
    assert_eq!(long.code, 2);
    assert!(long.err.contains("at most 32768 bytes, not 32769"), "{}", long.err);
    let empty = world.file("empty.txt", "");
    let empty = world.run(&format!("message send alice --file {empty} --bot bob"));
    assert!(empty.err.contains("a message needs some text"), "{}", empty.err);
}

#[test]
fn bots_are_found_by_what_they_say_and_only_they_say_it() {
    let world = World::with_farm();
    let said =
        world.json("bot update --bot bob --role farmer,approver --capability audits --description Hospitals");
    assert_eq!(said["roles"], serde_json::json!(["farmer", "approver"]));
    assert_eq!(said["version"], 2, "'bot new' said something already");
    let found = |line: &str| -> Vec<String> {
        let found = world.json(line);
        assert_eq!(found["more"], false);
        found["bots"].as_array().unwrap().iter().map(|b| b["bot"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(found("bot find hospital"), ["bob"]);
    assert_eq!(found("bot find ALICE"), ["alice"]);
    assert_eq!(found("bot find --role approver"), ["bob"]);
    assert_eq!(found("bot find o --role approver --capability audits"), ["bob"]);
    assert_eq!(found("bot find --role expert"), [""; 0]);
    let text = world.text("bot find hospital");
    assert!(text.contains("bob  farmer,approver  audits        yes       Hospitals"), "{text}");

    // What is not named stays.
    world.text("bot update --bot bob --no-roles");
    let shown = world.json("bot show bob");
    assert_eq!((&shown["roles"], &shown["description"]), (&serde_json::json!([]), &"Hospitals".into()));
    assert_eq!((&shown["listed"], shown["encryption_key"].as_str().map(str::len)), (&true.into(), Some(64)));
    let treasury = world.json("bot show treasury");
    assert_eq!((&treasury["listed"], &treasury["encryption_key"]), (&false.into(), &Value::Null));
}

#[test]
fn a_statement_adds_up_to_the_balance_for_buyer_and_seller() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", super::WEB);
    world.json(&format!("deploy {file} --bot alice"));
    world.json("wallet send bob 5 --memo cake --bot alice");
    world.json("stop web --bot alice");

    let lines = |bot: &str| {
        let statement = world.json(&format!("wallet statement --bot {bot}"));
        assert_eq!(
            (&statement["complete"], &statement["unexplained"]),
            (&true.into(), &0.into()),
            "{statement}"
        );
        let lines = statement["lines"].as_array().unwrap().clone();
        let sum: i64 = lines.iter().map(|line| line["amount"].as_i64().unwrap()).sum();
        assert_eq!(sum, statement["balance"].as_i64().unwrap());
        let whats: Vec<String> = lines.iter().map(|line| line["what"].as_str().unwrap().to_owned()).collect();
        (whats, statement)
    };
    let (alice, statement) = lines("alice");
    assert_eq!(alice, ["received", "deposit", "sent", "refund"]);
    assert_eq!(statement["lines"][2]["memo"], "cake");
    let (bob, _) = lines("bob");
    assert!(
        bob.contains(&"received".to_owned()) && bob.iter().all(|w| w == "received" || w == "pay"),
        "{bob:?}"
    );
    let (treasury, statement) = lines("treasury");
    assert_eq!(treasury, ["genesis", "sent"]);
    assert_eq!(statement["lines"][0]["amount"], 1_000_000_000);

    let later = world.json("wallet statement --since 2999-01-01 --bot alice");
    assert_eq!((&later["lines"], &later["opening"]), (&serde_json::json!([]), &later["balance"]));
    let text = world.text("wallet statement --bot alice");
    assert!(text.contains("these lines make the balance, to the grain"), "{text}");
    assert!(text.contains("sent bob (cake)"), "{text}");
}

#[test]
fn a_faucet_gives_on_a_grid_that_has_one_and_says_no_on_others() {
    let world = World::with_faucet("--faucet 500 --faucet-every 1d --faucet-fund 1000");
    let claimed = world.json("wallet faucet --bot alice");
    assert_eq!((&claimed["amount"], &claimed["balance"]), (&500.into(), &500.into()));
    let again = world.run("wallet faucet --bot alice");
    assert_eq!(again.code, 3);
    assert!(again.err.contains("the next claim is possible in"), "{}", again.err);
    let statement = world.json("wallet statement --bot alice");
    assert_eq!((&statement["complete"], &statement["lines"][0]["what"]), (&true.into(), &"faucet".into()));
    let show = world.text("wallet show --bot alice");
    assert!(show.contains("the faucet"), "{show}");

    let without = World::with_farm();
    let refused = without.run("wallet faucet --bot alice");
    assert_eq!(refused.code, 3);
    assert!(refused.err.contains("the faucet gives nothing: this grid has none"), "{}", refused.err);
}
