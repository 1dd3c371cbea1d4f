use croft_protocol::{Name, SecretKey};

use super::*;
use crate::hooks::examples;
use crate::pack;

/// A pricing skill whose function has this body. It gets the address of its question, and returns that of its answer.
fn module(body: &str) -> Vec<u8> {
    module_with("", "1", body)
}

fn module_with(more: &str, pages: &str, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
  (import "$root" "log" (func $log (param i32 i32)))
  (memory (export "memory") {pages})
  (global $heap (mut i32) (i32.const 4096))
  (global $count (mut i64) (i64.const 0))
  (data (i32.const 64) "a line")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  {more}
  (func $price (export "croft:skill/pricing@1.0.0#price") (param $question i32) (result i32) {body}))"#
    );
    wat::parse_str(text).unwrap()
}

/// Answers with this rate.
const RATE: &str =
    "(i32.store8 (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (RATE)) (i32.const 16)";

fn rate(expression: &str) -> String {
    RATE.replace("(RATE)", expression)
}

fn sign(component: Vec<u8>, hooks: Vec<Hook>) -> SignedSkill {
    SignedSkill::sign(&SecretKey::from_seed(&[1; 32]), Name::new("test").unwrap(), 1, hooks, component)
        .unwrap()
}

fn packed(module: &[u8]) -> SignedSkill {
    let (component, hooks) = pack::component(module).unwrap();
    sign(component, hooks)
}

fn load(module: &[u8]) -> Skill {
    Host::new().unwrap().load(&packed(module)).unwrap()
}

fn ask(module: &[u8]) -> Answer<Price> {
    load(module).price(examples::demand())
}

fn says(module: &[u8]) -> String {
    ask(module).result.unwrap_err().to_string()
}

#[test]
fn a_skill_answers_from_its_question_and_nothing_else() {
    // The list price is at offset 112.
    let skill = load(&module(&rate("(i64.load offset=112 (local.get $question))")));
    assert_eq!(skill.price(examples::demand()).result, Ok(Price::Rate(400)));
    let other = Demand { list_rate: 7, ..examples::demand() };
    assert_eq!(skill.price(other).result, Ok(Price::Rate(7)));
    let answer = ask(&module("(i32.store8 (i32.const 16) (i32.const 2)) (i32.const 16)"));
    assert_eq!(answer.result, Ok(Price::Refuse));
    assert!(answer.log.is_empty());
}

#[test]
fn nothing_survives_an_answer_and_the_same_question_costs_the_same() {
    let count = "(global.set $count (i64.add (global.get $count) (i64.const 1)))";
    let skill = load(&module(&format!("{count} {}", rate("(global.get $count)"))));
    let first = skill.price(examples::demand());
    assert_eq!(first.result, Ok(Price::Rate(1)));
    assert!(first.fuel > 0 && first.fuel < 10_000, "{}", first.fuel);
    assert_eq!(skill.price(examples::demand()), first);
}

#[test]
fn a_skill_that_loops_is_ended_by_its_fuel_and_the_next_answer_comes() {
    // For ever, when less than 100 is asked for.
    let body = format!(
        "(if (i64.lt_u (i64.load offset=112 (local.get $question)) (i64.const 100)) (then (loop (br 0)))) {}",
        rate("(i64.const 5)")
    );
    let skill = load(&module(&body));
    let answer = skill.price(Demand { list_rate: 1, ..examples::demand() });
    assert_eq!(answer.result.unwrap_err().to_string(), "it used up its time: 10000000 instructions");
    assert_eq!(answer.fuel, limits::FUEL);
    assert_eq!(skill.price(examples::demand()).result, Ok(Price::Rate(5)));
}

#[test]
fn a_skill_that_breaks_off_says_how() {
    let text = says(&module("unreachable"));
    assert!(text.starts_with("it broke off: ") && text.contains("unreachable"), "{text}");
    let text = says(&module("(i32.div_u (i32.const 1) (i32.const 0))"));
    assert!(text.contains("divide by zero"), "{text}");
    let text = says(&module("(i32.load (i32.const -4))"));
    assert!(text.contains("out of bounds"), "{text}");
}

#[test]
fn a_skill_that_eats_memory_is_told_no_and_named_so() {
    let grow = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    let text = says(&module(grow));
    assert!(text.contains("of memory, it may have 16777216"), "{text}");
    let text = says(&module(
        "(if (i32.eq (memory.grow (i32.const 60000)) (i32.const -1)) (then unreachable)) (i32.const 0)",
    ));
    assert!(text.contains("it wanted 3932225536 bytes"), "{text}");
    // Who copes with a no may answer.
    let copes = format!("(drop (memory.grow (i32.const 60000))) {}", rate("(i64.const 9)"));
    assert_eq!(ask(&module(&copes)).result, Ok(Price::Rate(9)));
}

#[test]
fn a_skill_that_fills_its_stack_is_ended() {
    let answer = ask(&module_with("", "1", "(call $price (i32.add (local.get $question) (i32.const 1)))"));
    assert_eq!(answer.result, Err(Fault::Stack { limit_bytes: limits::STACK_BYTES }));
}

#[test]
fn an_answer_that_is_none_is_nonsense() {
    for body in [
        // No such case.
        "(i32.store8 (i32.const 16) (i32.const 9)) (i32.const 16)",
        // Outside of its memory, and not aligned.
        "(i32.const 0x7ffffff8)",
        "(i32.const 17)",
    ] {
        let answer = ask(&module(body));
        assert!(matches!(answer.result, Err(Fault::Nonsense { .. } | Fault::Trap { .. })), "{answer:?}");
    }
}

#[test]
fn a_log_is_kept_up_to_its_bound() {
    let line = "(call $log (i32.const 64) (i32.const 6))";
    let answer = ask(&module(&format!("{line} {line} {}", rate("(i64.const 1)"))));
    assert_eq!((answer.result, answer.log), (Ok(Price::Rate(1)), vec!["a line".to_owned(); 2]));
    let many = format!("{} {}", line.repeat(100), rate("(i64.const 1)"));
    assert_eq!(ask(&module(&many)).log.len(), limits::LOG_LINES);
    let long = format!("(call $log (i32.const 64) (i32.const 4000)) {}", rate("(i64.const 1)"));
    let answer = ask(&module(&long));
    assert_eq!(answer.log[0].chars().count(), limits::LOG_CHARS);
    assert!(!answer.log[0].chars().any(char::is_control), "{:?}", answer.log);
}

#[test]
fn what_a_skill_copies_out_is_bounded() {
    // Few long lines, and many empty ones: neither is worth many instructions.
    for bytes in [1_000_000, 0] {
        let line = format!("(call $log (i32.const 65536) (i32.const {bytes}))");
        let answer = ask(&module_with("", "20", &format!("(loop {line} (br 0)) unreachable")));
        assert_eq!(answer.result, Err(Fault::Copies { limit_bytes: limits::COPIED_BYTES }));
        assert!(answer.fuel < limits::FUEL, "{} instructions", answer.fuel);
    }
    let line = "(call $log (i32.const 65536) (i32.const 1200000)) unreachable";
    let text = says(&module_with("", "20", line));
    assert!(text.starts_with("its answer makes no sense: ") && text.len() < 400, "{text}");
}

#[test]
fn a_skill_that_can_not_start_is_not_taken() {
    let refused = |module: &[u8]| Host::new().unwrap().load(&packed(module)).unwrap_err();
    let large = refused(&module_with("", "4000", "unreachable"));
    let LoadError::Start { source, .. } = &large else { panic!("{large}") };
    assert_eq!(source.to_string(), "it wanted 262144000 bytes of memory, it may have 16777216");
    let forever = refused(&module_with("(func $s (loop (br 0))) (start $s)", "1", "unreachable"));
    assert_eq!(forever.to_string(), "skill 'test' can't even be started");
    assert!(matches!(forever, LoadError::Start { source: Fault::Time { .. }, .. }));
}

#[test]
fn a_skill_that_wants_more_than_the_log_is_refused_by_name() {
    let wasi = wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "croft:skill/pricing@1.0.0#price") (param i32) (result i32) unreachable))"#,
    )
    .unwrap();
    let error = pack::component(&wasi).unwrap_err().to_string();
    assert!(error.contains("wasi_snapshot_preview1"), "{error}");
    let clock = r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance (export "now" (func (result u64))))))"#;
    let skill = sign(wat::parse_str(clock).unwrap(), vec![Hook::Pricing]);
    let error = Host::new().unwrap().load(&skill).unwrap_err().to_string();
    assert_eq!(
        error,
        "skill 'test' asks for 'wasi:clocks/wall-clock@0.2.0', and skills get nothing but 'log': build it without them"
    );
}

#[test]
fn a_hook_that_is_missing_or_of_another_interface_is_named() {
    let host = Host::new().unwrap();
    let (component, hooks) = pack::component(&module("unreachable")).unwrap();
    assert_eq!(hooks, [Hook::Pricing]);
    let error = host.load(&sign(component, vec![Hook::Pricing, Hook::Scoring])).unwrap_err();
    assert_eq!(error, LoadError::Missing { name: "test".to_owned(), hook: Hook::Scoring });
    let other = r#"(component
        (core module $m (func (export "f") (result i32) (i32.const 1)))
        (core instance $i (instantiate $m))
        (func $price (result u32) (canon lift (core func $i "f")))
        (instance $pricing (export "price" (func $price)))
        (export "croft:skill/pricing@1.0.0" (instance $pricing)))"#;
    let error =
        host.load(&sign(wat::parse_str(other).unwrap(), vec![Hook::Pricing])).unwrap_err().to_string();
    assert!(
        error.contains("another interface than ours for its hook pricing: build it with the skill.wit"),
        "{error}"
    );
    let no_wasm = host.load(&sign(b"\0asm\x0d\0\x01\0rubbish".to_vec(), vec![Hook::Pricing])).unwrap_err();
    assert!(no_wasm.to_string().starts_with("skill 'test' is no component that can be run: "), "{no_wasm}");
}

#[test]
fn a_skill_is_asked_only_what_it_has() {
    let answer = load(&module("unreachable")).surcharge(examples::offer());
    assert_eq!(answer.result, Err(Fault::NoHook { hook: Hook::Scoring }));
    assert_eq!(answer.fuel, 0);
}

#[test]
fn each_hook_reaches_its_function_and_gets_its_answer_back() {
    let text = r#"(module
        (memory (export "memory") 1)
        (global $heap (mut i32) (i32.const 4096))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (local $at i32)
            (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
            (global.set $heap (i32.add (local.get $at) (local.get 3)))
            (local.get $at))
        (data (i32.const 32) "urgent")
        (func (export "croft:skill/scoring@1.0.0#surcharge") (param i32) (result i64)
            (i64.sub (i64.const 0) (i64.load offset=48 (local.get 0))))
        (func (export "croft:skill/approval@1.0.0#decide") (param i32) (result i32)
            (select (i32.const 1) (i32.const 2) (i64.lt_u (i64.load (local.get 0)) (i64.const 1000))))
        (func (export "croft:skill/messages@1.0.0#react") (param i32 i32 i32 i32 i64 i32 i32) (result i32)
            (i32.store8 (i32.const 16) (i32.const 1))
            (i32.store (i32.const 20) (i32.const 32)) (i32.store (i32.const 24) (local.get 6))
            (i32.const 16)))"#;
    let skill = load(&wat::parse_str(text).unwrap());
    assert_eq!(skill.manifest().hooks, [Hook::Scoring, Hook::Approval, Hook::Messages]);
    let offer = Offer { price: 5, ..examples::offer() };
    assert_eq!(skill.surcharge(offer).result, Ok(-5));
    assert_eq!(skill.decide(examples::request()).result, Ok(Decision::Refuse));
    assert_eq!(skill.decide(Request { now_ms: 1, ..examples::request() }).result, Ok(Decision::Approve));
    let message = |text: &str| Message { text: text.to_owned(), ..examples::message() };
    assert_eq!(skill.react(message("123456")).result, Ok(Reaction::Mark("urgent".to_owned())));
    let long = skill.react(message(&"x".repeat(40))).result.unwrap_err().to_string();
    assert_eq!(long, "its answer makes no sense: a mark has at most 32 characters");
}

#[test]
fn what_is_no_skill_can_not_be_packed() {
    let says = |bytes: &[u8]| pack::component(bytes).unwrap_err().to_string();
    assert!(
        says(b"#!/bin/sh").contains("no WebAssembly that can be used: build it for wasm32-unknown-unknown")
    );
    assert!(
        says(&wat::parse_str("(module)").unwrap())
            .contains("it exports no hook: those are croft:skill/pricing")
    );
    assert!(says(&vec![0; limits::MODULE_BYTES + 1]).contains("it has 1048577 bytes"));
    let wrong = r#"(module (memory (export "memory") 1)
        (func (export "croft:skill/pricing@1.0.0#price") (result i32) unreachable))"#;
    let error = says(&wat::parse_str(wrong).unwrap());
    assert!(error.starts_with("no component can be made of it: "), "{error}");
    // A component is taken as it is.
    let (component, hooks) = pack::component(&module("unreachable")).unwrap();
    assert_eq!(pack::component(&component).unwrap(), (component, hooks));
}
