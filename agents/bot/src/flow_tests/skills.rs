//! Skills as people use them: made, added, tried out, and at work for a farmer, a buyer, an approver and a reader, each
//! with one that behaves and one that does not.

use serde_json::Value;

use super::WEB;
use super::fake_node::{Behaviour, FakeNode};
use super::world::World;

const SMALL: &str = "name = \"web\"\n[vm.web]\nimage = \"nginx\"\ncpu = \"0.1\"\nmemory = \"64M\"\n[terms]\nduration = \"1h\"\n";

const PRICE: &str = "(func (export \"croft:skill/pricing@1.0.0#price\") (param i32) (result i32)";
const SURCHARGE: &str = "(func (export \"croft:skill/scoring@1.0.0#surcharge\") (param i32) (result i64)";
const DECIDE: &str = "(func (export \"croft:skill/approval@1.0.0#decide\") (param i32) (result i32)";
const REACT: &str =
    "(func (export \"croft:skill/messages@1.0.0#react\") (param i32 i32 i32 i32 i64 i32 i32) (result i32)";

/// A rate of one grain per second, whatever is asked.
const ONE: &str =
    "(i32.store8 (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (i64.const 1)) (i32.const 16))";
const LOOPS: &str = "(loop (br 0)) unreachable)";

fn module(world: &World, name: &str, functions: &str) -> String {
    let text = format!(
        r#"(module (memory (export "memory") 1) (global $heap (mut i32) (i32.const 4096)) (data (i32.const 32) "disks")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                (global.set $heap (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
            {functions})"#
    );
    let path = world.file(&format!("{name}.wasm"), "");
    std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    path
}

/// Packs, signed by bob, and adds.
fn add(world: &World, name: &str, functions: &str) {
    let wasm = module(world, name, functions);
    let skill = world.file(&format!("{name}.skill"), "");
    world.text(&format!("skill pack {wasm} --name {name} --version 1 --out {skill} --bot bob"));
    world.text(&format!("skill add {skill}"));
}

fn refused(world: &World, line: &str, code: u8, says: &str) {
    let output = world.run(line);
    assert_eq!(output.code, code, "{line}: {}", output.err);
    assert!(output.err.contains(says), "{line}: {}", output.err);
}

fn is_documented(command: &str, json: &Value) {
    let help = World::help(command);
    for field in json.as_object().unwrap().keys() {
        assert!(help.contains(field.as_str()), "{command}: '{field}' is not documented in: {help}");
    }
}

#[test]
fn a_skill_is_packed_added_tried_out_listed_and_removed() {
    let world = World::of_keys();
    let wasm = module(&world, "one", &format!("{PRICE}{ONE}"));
    let file = world.file("one.skill", "");
    let packed = world.json(&format!("skill pack {wasm} --name one --version 2 --out {file} --bot bob"));
    is_documented("skill pack", &packed);
    assert_eq!(packed["skill"]["hooks"], serde_json::json!(["pricing"]));
    let tested = world.json(&format!("skill test {file}"));
    is_documented("skill test", &tested);
    let asked = &tested["answers"][0];
    assert_eq!(asked["answer"], serde_json::json!({"rate": 1}));
    assert!(asked["fuel"].as_u64().unwrap() < asked["fuel_limit"].as_u64().unwrap());

    let author = packed["skill"]["author"].as_str().unwrap();
    refused(&world, &format!("skill add {file} --author {}", "ab".repeat(32)), 3, "it is not added");
    let added = world.json(&format!("skill add {file} --author {author}"));
    is_documented("skill add", &added);
    assert!(world.text(&format!("skill add {file}")).contains("skill 'one' 2 is here already"));
    let older = world.file("older.skill", "");
    world.text(&format!("skill pack {wasm} --name one --version 1 --out {older} --bot bob"));
    refused(&world, &format!("skill add {older}"), 3, "is here in version 2, and version 1 is older");
    world.text(&format!("skill pack {wasm} --name one --version 3 --out {older} --bot alice"));
    refused(&world, &format!("skill add {older}"), 3, "remove the one that is there first, if you trust");
    let listed = world.json("skill list");
    is_documented("skill list", &listed);
    assert_eq!(listed["skills"][0]["version"], 2);
    assert!(world.text("skill list").contains("one    2        pricing"), "{}", world.text("skill list"));
    assert_eq!(world.json("skill remove one")["removed"], "one");
    assert!(world.text("skill list").starts_with("no skills: add one with"));
    refused(&world, "skill test one", 4, "there is no skill 'one' in");
    assert!(world.text("skill interface").contains("package croft:skill@1.0.0;"));
}

#[test]
fn what_is_wrong_with_a_skill_is_said_with_the_file_and_the_remedy() {
    let world = World::of_keys();
    let text = world.file("text.wasm", "hello");
    refused(
        &world,
        &format!("skill pack {text} --name a --version 1 --bot bob"),
        2,
        "text.wasm can't be packed: it is no WebAssembly",
    );
    refused(
        &world,
        &format!("skill add {text}"),
        2,
        "text.wasm: it is no skill of this format: pack one with",
    );
    refused(&world, "skill add none.skill", 4, "there is no file none.skill");
    let large = world.file("large.skill", &"x".repeat(1_048_577));
    refused(&world, &format!("skill add {large}"), 2, "large.skill has more than 1048576 bytes");
    let loops = module(&world, "loops", &format!("{PRICE}{LOOPS} {DECIDE} (i32.const 1))"));
    let file = world.file("loops.skill", "");
    world.text(&format!("skill pack {loops} --name loops --version 1 --out {file} --bot bob"));
    let output = world.run(&format!("skill test {file}"));
    assert_eq!(output.code, 1);
    assert!(
        output.out.contains("pricing: no answer; it used up its time: 10000000 instructions"),
        "{}",
        output.out
    );
    assert!(output.out.contains("approval: \"approve\""), "{}", output.out);
    assert!(
        output.err.contains("skill 'loops' did not answer: pricing: it used up its time"),
        "{}",
        output.err
    );
    world.text(&format!("skill test {file} --hook approval"));
    refused(&world, &format!("skill test {file} --hook scoring"), 1, "it has no hook scoring");
    let question = world.file("question.json", "{\"price\": 5}");
    refused(
        &world,
        &format!("skill test {file} --hook approval --input {question}"),
        2,
        "question.json is no question for the hook approval: 'croft skill test --json' shows one",
    );
    world.text(&format!("skill add {file}"));
    refused(
        &world,
        "message read --skill loops --bot bob",
        2,
        "skill 'loops' has no hook messages, only pricing, approval",
    );
}

#[test]
fn a_skill_sells_cheaper_but_never_below_the_policys_floor() {
    let mut world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    add(&world, "one", &format!("{PRICE}{ONE}"));
    let file = world.file("web.toml", SMALL);
    world.stop_farmer();
    let policy = world.file("policy.toml", "[reserve]\nfloor_percent = 50\n");
    let log = world.serve(&format!("--policy {policy} --skill one"), &[]);
    log.wait_for("at prices of skill one 1");
    // 14 grains per second by the list, half of it is the floor.
    let deployed = world.json(&format!("deploy {file} --yes --bot alice"));
    assert_eq!((&deployed["rate"], &deployed["price"]), (&7.into(), &(7 * 3600).into()));
}

#[test]
fn a_skill_that_loops_costs_only_its_own_answer() {
    let mut world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    add(&world, "loops", &format!("{PRICE}{LOOPS} {SURCHARGE}{LOOPS}"));
    let file = world.file("web.toml", SMALL);
    world.stop_farmer();
    let log = world.serve("--skill loops", &[]);
    let output = world.run(&format!("deploy {file} --yes --skill loops --bot alice --json"));
    assert_eq!(output.code, 0, "{}", output.err);
    let deployed: Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!((&deployed["rate"], &deployed["state"]), (&14.into(), &"active".into()));
    log.wait_for("skill 'loops' 1 had no answer");
    log.wait_for("it used up its time: 10000000 instructions; it went on without it");
    assert!(output.err.contains("skill 'loops' 1 had no answer"), "{}", output.err);
}

#[test]
fn a_buyers_skill_changes_the_choice_and_the_explanation_says_so() {
    let mut world = World::with_farm();
    let shed = world.add_farm("carol", "shed", "--country nl --price-cpu 110", "");
    let _nodes =
        [world.boot_config(), shed].map(|config| FakeNode::start_with(&config, Behaviour::default()));
    // A million more in 'be', whose letters are read at the address of the country.
    let body = "(if (result i64) (i32.eq (i32.load16_u (i32.load offset=96 (local.get 0))) (i32.const 0x6562)) \
                (then (i64.const 1000000)) (else (i64.const 0))))";
    add(&world, "not-be", &format!("{SURCHARGE}{body}"));
    let file = world.file("web.toml", SMALL);
    // A round ends when both have answered; a busy machine gets all the time that it needs.
    let deployed = world.json(&format!("deploy {file} --yes --window 40s --skill not-be --bot alice"));
    assert_eq!(deployed["farm"], "shed", "{deployed}");
    assert_eq!(deployed["explain"]["chosen"]["own_surcharge"], 0);
    let other = world.file("two.toml", &SMALL.replace("\"web\"", "\"two\""));
    let deployed = world.json(&format!("deploy {other} --yes --window 40s --bot alice"));
    assert_eq!(deployed["farm"], "attic", "{deployed}");
    refused(&world, &format!("deploy {other} --yes --skill gone --bot alice"), 4, "there is no skill 'gone'");
}

#[test]
fn an_approvers_skill_decides_or_leaves_it_to_a_person() {
    let world = World::with_farm();
    world.text("bot new olga");
    let node = FakeNode::start(&world, Behaviour::default());
    let approval = "[approval]\nthreshold = 1\napprovers = [{ bot = \"olga\" }]\n";
    let file = world.file("web.toml", &format!("{WEB}{approval}"));
    world.json(&format!("deploy {file} --yes --bot alice"));
    add(&world, "loops", &format!("{DECIDE}{LOOPS}"));
    add(&world, "abstains", &format!("{DECIDE}(i32.const 0))"));
    add(&world, "agrees", &format!("{DECIDE}(i32.const 1))"));
    let open = world.json("approve --skill loops --bot olga");
    is_documented("approve", &open);
    assert_eq!(open["decisions"][0]["decision"], "open");
    assert!(open["decisions"][0]["reason"].as_str().unwrap().contains("it used up its time"), "{open}");
    let text = world.text("approve alice/web --skill abstains --bot olga");
    assert_eq!(text, "'web' of alice is open by skill 'abstains': the skill leaves it to a person\n");
    let text = world.text("approve --skill agrees --bot olga");
    assert_eq!(text, "'web' of alice is approved by skill 'agrees'\n");
    node.wait_until_opened();
    assert_eq!(world.text("approve --skill agrees --bot olga"), "nothing waits for this bot\n");
    refused(
        &world,
        "approve alice/web --skill agrees --bot olga",
        3,
        "contract 'web' does not wait for bot 'olga'",
    );
    refused(&world, "approve --bot olga", 2, "nothing says what to approve: name a contract");
}

#[test]
fn a_readers_skill_marks_and_hides_and_its_failure_hides_nothing() {
    let world = World::with_farm();
    // Marked when it is longer than five bytes, hidden otherwise.
    let body = "(i32.store8 (i32.const 16) (select (i32.const 1) (i32.const 2) (i32.gt_u (local.get 6) (i32.const 5)))) \
                (i32.store (i32.const 20) (i32.const 32)) (i32.store (i32.const 24) (i32.const 5)) (i32.const 16))";
    add(&world, "sorts", &format!("{REACT}{body}"));
    add(&world, "loops", &format!("{REACT}{LOOPS}"));
    world.json("message send bob brief --bot alice");
    world.json("message send bob something-longer --bot alice");
    let read = world.json("message read --skill sorts --bot bob");
    let messages = read["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1, "{read}");
    assert_eq!((&messages[0]["text"], &messages[0]["mark"]), (&"something-longer".into(), &"disks".into()));
    assert_eq!(world.text("message read --bot bob"), "no new messages\n", "what is hidden is read");
    world.json("message send bob again --bot alice");
    let output = world.run("message read --skill loops --bot bob");
    assert!(output.out.contains("\n  again"), "{}", output.out);
    assert!(output.err.contains("skill 'loops' 1 had no answer: it used up its time"), "{}", output.err);
}
