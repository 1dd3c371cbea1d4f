//! Reservations on the ledger, as bots see them: in the statement, in the books, in the history.

use croft_protocol::contract::{Approver, Quorum};
use croft_protocol::keys::Domain;
use croft_protocol::market::{RESERVATION, Reservation, SignedReservation};
use croft_protocol::{
    Announcement, Command, ContractId, Grains, Name, Rate, RecordId, ReservationState, SignedTerms, Terms,
};

use super::fake_node::{Behaviour, FakeNode};
use super::market::{Someone, block_on, demand};
use super::world::{World, fields_are_documented};
use crate::grid::now_ms;

const FEE: u64 = 777;

/// What farmer and buyer would have said to each other, at its end.
async fn announced(buyer: &Someone, farmer: &Someone, nonce: u8) -> (ContractId, SignedTerms) {
    let wanted = demand(buyer).await;
    let chain = buyer.grid.pin().chain;
    let terms = Terms {
        name: Name::new("web").unwrap(),
        user: wanted.buyer,
        farmer: wanted.farmer,
        farm: wanted.farm,
        node: wanted.node,
        resources: wanted.resources,
        ports: Vec::new(),
        rate: Rate(1),
        duration_s: wanted.duration_s,
        grace_s: wanted.grace_s,
        prepaid_s: None,
        capacity_version: 1,
        // It waits for its approver, so no node opens what nobody sealed.
        quorum: Quorum {
            threshold: 1,
            approvers: vec![Approver { bot: wanted.farmer, weight: 1, required: true }],
        },
        sealed: vec![1],
        expires_ms: now_ms() + 300_000,
        nonce: [nonce; 16],
    };
    let held = Reservation::of(wanted.id(&chain), &terms, Grains(FEE));
    let reservation = SignedReservation {
        user: buyer.key.sign_as_bot(RESERVATION, &chain, &held),
        farmer: farmer.key.sign_as_bot(RESERVATION, &chain, &held),
        reservation: held,
    };
    let approval = farmer.key.sign_as_bot(Domain::TERMS, &chain, &terms);
    let announcement = Announcement { reservation, terms: terms.clone(), approval: approval.clone() };
    let command = Command::AnnounceReservation(Box::new(announcement));
    farmer.grid.submit(&farmer.key, &command).await.unwrap();
    let user = buyer.key.sign_as_bot(Domain::TERMS, &chain, &terms);
    (terms.id(), SignedTerms { terms, user, farmer: approval })
}

/// Kinds of its lines, with amounts, of those that are about reservations.
fn lines(world: &World, bot: &str) -> Vec<(String, i64)> {
    let statement = world.json(&format!("wallet statement --bot {bot}"));
    assert_eq!(statement["complete"], true, "{statement}");
    let lines = statement["lines"].as_array().unwrap().iter();
    let ours = lines.filter(|line| line["kind"] == "reservation");
    ours.map(|line| (line["what"].as_str().unwrap().to_owned(), line["amount"].as_i64().unwrap())).collect()
}

#[test]
fn what_is_reserved_is_held_and_stands_in_the_statement_until_it_is_used_at_no_cost() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    let fee = i64::try_from(FEE).unwrap();
    let (id, signed) = block_on(async {
        let (alice, bob) = (Someone::new(&world, "alice"), Someone::new(&world, "bob"));
        let node = demand(&alice).await.node;
        let free = bob.grid.node(node).await.unwrap().unwrap().capacity.free();
        let (id, signed) = announced(&alice, &bob, 1).await;
        let held = bob.grid.node(node).await.unwrap().unwrap();
        assert_eq!(held.reserved, [id]);
        assert_eq!(held.capacity.free().cpu_millis, free.cpu_millis - 500);
        alice.grid.close().await;
        bob.grid.close().await;
        (id, signed)
    });
    assert_eq!(lines(&world, "alice"), [("reservation".to_owned(), -fee)]);
    assert!(lines(&world, "bob").is_empty());
    // It is the farmer's to claim, and can still be used.
    let reclaimed = world.json("wallet reclaim --bot alice");
    fields_are_documented("wallet reclaim", &reclaimed);
    assert_eq!(
        (&reclaimed["back"], &reclaimed["waiting"][0]["amount"]),
        (&serde_json::json!([]), &FEE.into())
    );
    let text = world.text("wallet reclaim --bot alice");
    assert!(text.starts_with("777 grains wait: bob may claim them until "), "{text}");
    block_on(async {
        let alice = Someone::new(&world, "alice");
        let node = signed.terms.node;
        alice.grid.submit(&alice.key, &Command::Agree(Box::new(signed))).await.unwrap();
        let (_, versions) = alice.grid.history(RecordId::reservation(&id)).await.unwrap();
        assert_eq!(versions.len(), 2, "announced, used");
        let croft_protocol::Body::Reservation(last) = &versions[1].body else { panic!("{versions:?}") };
        assert_eq!(last.state, ReservationState::Used);
        assert!(alice.grid.node(node).await.unwrap().unwrap().reserved.is_empty());
        alice.grid.close().await;
    });
    assert_eq!(lines(&world, "alice"), [("reservation".to_owned(), -fee), ("fee back".to_owned(), fee)]);
}

#[test]
fn a_second_reservation_of_the_same_terms_and_an_early_claim_name_their_reasons() {
    let world = World::with_farm();
    let _node = FakeNode::start(&world, Behaviour::default());
    block_on(async {
        let (alice, bob) = (Someone::new(&world, "alice"), Someone::new(&world, "bob"));
        let (contract, _) = announced(&alice, &bob, 2).await;
        let claim = Command::ClaimReservation { contract };
        let refused = bob.grid.submit(&bob.key, &claim).await.unwrap_err();
        let text = refused.rejection().unwrap().to_string();
        assert!(text.contains("it is good until") && text.ends_with("claim the fee after that"), "{text}");
        alice.grid.close().await;
        bob.grid.close().await;
    });
}
