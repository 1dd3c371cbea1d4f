//! The life of a contract: approvers who decide, funds that are added.

use super::WEB;
use super::fake_node::{Behaviour, FakeNode};
use super::world::{World, fields_are_documented};

const APPROVAL: &str = "[approval]\nthreshold = 2\napprovers = [{ bot = \"olga\", weight = 2, required = true }, { bot = \"otto\" }]\n";

fn with_approvers() -> (World, FakeNode, String) {
    let world = World::with_farm();
    for bot in ["olga", "otto"] {
        world.text(&format!("bot new {bot}"));
    }
    let node = FakeNode::start(&world, Behaviour::default());
    let file = world.file("web.toml", &format!("{WEB}{APPROVAL}"));
    (world, node, file)
}

#[test]
fn a_contract_waits_for_its_approvers_and_runs_once_they_approved() {
    let (world, node, file) = with_approvers();
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(deployed["state"], "agreed");
    let text = world.text("ps --bot alice");
    assert!(text.contains("agreed: waits for olga (2, required), otto (1), has 0 of 2"), "{text}");
    let text = world.text("explain web --bot alice");
    assert!(text.contains("approver olga (weight 2, required): waiting"), "{text}");
    assert!(text.contains("it waits for olga (2, required), otto (1), has 0 of 2"), "{text}");

    let waiting = world.json("approvals --bot otto");
    fields_are_documented("approvals", &waiting);
    let one = &waiting["approvals"][0];
    assert_eq!(
        (&one["name"], &one["owner"], &one["price"]),
        (&"web".into(), &"alice".into(), &226_800.into())
    );
    assert_eq!(world.text("approvals --bot bob"), "nothing waits for 'bob'\n");

    let half = world.json("approve web --bot otto");
    fields_are_documented("approve", &half);
    assert_eq!((&half["state"], &half["quorum"]["approved"]), (&"agreed".into(), &1.into()));
    assert_eq!(world.json("approvals --bot otto")["approvals"].as_array().unwrap().len(), 0);
    assert_eq!(world.json("approvals --all --bot otto")["approvals"][0]["decision"], "approved");
    for (line, says) in [
        ("approve alice/web --bot otto", "bot 'otto' has approved contract 'web' already"),
        ("approve alice/web --bot bob", "bot 'bob' is no approver of contract 'web': those are olga, otto"),
    ] {
        let refused = world.run(line);
        assert_eq!(refused.code, 3, "{line}: {}", refused.err);
        assert!(refused.err.contains(says), "{line}: {}", refused.err);
    }
    let nothing = world.run("approve shop --bot otto");
    assert_eq!(nothing.code, 4, "{}", nothing.err);
    assert!(nothing.err.contains("no contract is meant by 'shop'"), "{}", nothing.err);

    let id = one["contract"].as_str().unwrap();
    let text = world.text(&format!("approve {} --bot olga", &id[..8]));
    assert!(text.contains("the quorum is reached with 3 of 2"), "{text}");
    node.wait_until_opened();
    let late = world.run("approve alice/web --refuse --bot bob");
    assert_eq!(late.code, 3, "{}", late.err);
    let history = world.json("history web --bot alice");
    let first: Vec<&str> =
        history["versions"].as_array().unwrap().iter().take(2).map(|v| v["what"].as_str().unwrap()).collect();
    assert_eq!(first, ["agreed", "approved"]);
}

#[test]
fn a_required_approver_who_refuses_ends_it_and_everything_goes_back() {
    let (world, _node, file) = with_approvers();
    world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!(world.json("wallet show --bot alice")["balance"], 1_000_000 - 226_800);
    let text = world.text("approve web --refuse --bot olga");
    assert!(text.contains("it has ended: not approved; 226 800 grains went back to alice"), "{text}");
    assert_eq!(world.json("wallet show --bot alice")["balance"], 1_000_000);
    assert_eq!(world.json("farm nodes attic")["nodes"][0]["free"]["cpu_millis"], 2000);
    let stranger = world.file("stranger.toml", &format!("{WEB}{}", APPROVAL.replace("otto", "nobody")));
    let unknown = world.run(&format!("deploy {stranger} --yes --bot alice"));
    assert_eq!(unknown.code, 4, "{}", unknown.err);
    assert!(unknown.err.contains("there is no bot 'nobody' on grid 'demo'"), "{}", unknown.err);
    assert!(unknown.err.contains("correct [approval] in the deploy file"), "{}", unknown.err);
}

#[test]
fn what_is_paid_by_the_hour_can_be_funded_by_anyone_up_to_its_price() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let by_the_hour = WEB.replace("duration = \"1h\"", "duration = \"3h\"\nprepaid = \"1h\"");
    let file = world.file("web.toml", &by_the_hour);
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!((&deployed["price"], &deployed["deposit"]), (&680_400.into(), &226_800.into()));
    assert_eq!(world.json("wallet show --bot alice")["balance"], 1_000_000 - 226_800);
    let before = world.json("ps --bot alice")["contracts"][0].clone();
    assert!(before["funded_until_ms"].as_u64().unwrap() < before["expires_ms"].as_u64().unwrap());

    let funded = world.json("fund web 63000 --bot alice");
    fields_are_documented("fund", &funded);
    assert_eq!((&funded["deposit"], &funded["balance"]), (&289_800.into(), &710_200.into()));
    world.text("wallet send bob 5000 --bot alice");
    let others = world.text("fund alice/web 5000 --bot bob");
    assert!(others.contains("'web' of alice got 5 000 grains: 294 800 grains in all"), "{others}");
    let text = world.text("explain web --bot alice");
    assert!(text.contains("its funds are used up, if it always runs"), "{text}");
    for (bot, amount) in [("alice", -63_000), ("bob", -5_000)] {
        let statement = world.json(&format!("wallet statement --bot {bot}"));
        assert_eq!(statement["unexplained"], 0, "{statement}");
        let lines = statement["lines"].as_array().unwrap();
        let line = lines.iter().find(|line| line["what"] == "funding").unwrap();
        assert_eq!(
            (&line["amount"], line["with"].as_str().unwrap().contains("web")),
            (&amount.into(), true),
            "{line}"
        );
    }

    let much = world.run("fund web 500000 --bot alice");
    assert_eq!(much.code, 3, "{}", much.err);
    assert!(much.err.contains("allowed are 1 to 385600, which pay for its whole duration"), "{}", much.err);
    let nobody = world.run("fund carol/web 5 --bot alice");
    assert_eq!(nobody.code, 4, "{}", nobody.err);

    let text = world.text("settle web --bot alice");
    assert!(text.contains("'web' of alice is active: nothing was due"), "{text}");
    let stopped = world.text("stop web --bot alice");
    assert!(stopped.contains("wait for the node's final report"), "{stopped}");
}
