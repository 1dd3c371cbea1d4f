//! What a release's parts mean by themselves; how the ledger takes them is tested there.

use super::*;

const CHAIN: ChainId = ChainId(Hash([7; 32]));

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn version(text: &str) -> ReleaseVersion {
    text.parse().unwrap()
}

fn release() -> Release {
    Release {
        channel: "stable".parse().unwrap(),
        version: version("1.2.3"),
        previous: None,
        minimum: version("1.0.0"),
        boot_file: BootFile {
            sha256: Hash([1; 32]),
            size_bytes: 3 << 20,
            authenticode: Hash([2; 32]),
            manifest: Hash([3; 32]),
        },
        measurements: vec![Measurement { pcr: 9, digest: Hash([4; 32]) }],
        stop: StopRule::default(),
        notes: String::new(),
    }
}

#[test]
fn a_version_has_one_text_and_sorts_by_its_numbers() {
    assert!(version("1.10.0") > version("1.9.99"));
    assert!(version("0.1.20261122") < version("0.2.0"));
    assert_eq!(version("1.2.3").to_string(), "1.2.3");
    for text in ["", "1.2", "1.2.3.4", "01.2.3", "1.2.+3", "1.2.3 ", "1.2.4294967296", "65536.0.0", "v1.2.3"]
    {
        let error = text.parse::<ReleaseVersion>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("'{text}' is not a release's version")), "{error}");
    }
}

#[test]
fn a_window_may_pass_midnight_and_may_be_the_whole_day() {
    let at = |hour: u64, minute: u64| ((20_000 * 24 + hour) * 60 + minute) * 60_000;
    let night = Window { start_minute: 23 * 60, duration_minutes: 120 };
    assert!(night.contains(at(23, 0)) && night.contains(at(0, 59)));
    assert!(!night.contains(at(1, 0)) && !night.contains(at(22, 59)));
    let day = Window { start_minute: 700, duration_minutes: DAY_MINUTES };
    assert!((0..24).all(|hour| day.contains(at(hour, 30))));
}

#[test]
fn a_share_of_nodes_is_near_what_it_says_and_other_for_each_release() {
    let nodes: Vec<_> = (0..200).map(|n| key(n).public()).collect();
    let stages = |v: &str| -> Vec<u16> {
        let id = ReleaseId::new(&"stable".parse().unwrap(), version(v));
        nodes.iter().map(|node| id.stage_of(node)).collect()
    };
    let (one, two) = (stages("1.0.0"), stages("1.0.1"));
    assert!(one.iter().chain(&two).all(|stage| *stage < 1000));
    let early = |stages: &[u16]| stages.iter().filter(|stage| **stage < 250).count();
    assert!((25..=75).contains(&early(&one)), "{}", early(&one));
    assert_ne!(one, two, "it is not always the same nodes that go first");
}

/// What farmers' nodes said, each farmer with (confirmed, returned), in any order of farmers.
fn trials(rule: StopRule, farmers: &[(u64, u64)]) -> Trials {
    let returned = Outcome::Returned { reason: String::new() };
    let mut all = Trials::default();
    for (confirmed, returns) in farmers {
        let mut own = Tried::default();
        for _ in 0..*confirmed {
            (all, own) = all.count(own, &Outcome::Confirmed, rule).unwrap();
        }
        for _ in 0..*returns {
            (all, own) = all.count(own, &returned, rule).unwrap();
        }
    }
    all
}

#[test]
fn a_rollout_stops_at_enough_returns_that_are_enough_of_the_trials() {
    let rule = StopRule { returns: 3, per_mille: 100 };
    let stops = |farmers: &[(u64, u64)]| rule.stops(trials(rule, farmers));
    assert!(!stops(&[(0, 1), (0, 1)]) && stops(&[(0, 1), (0, 1), (0, 1)]));
    // Three farmers of the same size: 3 of 30, then 3 of 33.
    assert!(stops(&[(9, 1), (9, 1), (9, 1)]) && !stops(&[(10, 1), (10, 1), (10, 1)]));
    let most = Trials {
        confirmed: u64::MAX,
        returned: u64::MAX,
        counted: u64::MAX,
        largest: Tried { confirmed: u64::MAX, returned: u64::MAX / 2 },
    };
    assert!(rule.stops(most), "nothing overflows");
    assert_eq!(most.count(Tried::default(), &Outcome::Confirmed, rule), None);
}

#[test]
fn one_farmer_alone_neither_stops_a_rollout_nor_keeps_a_bad_one_going() {
    let rule = StopRule { returns: 3, per_mille: 100 };
    let stops = |farmers: &[(u64, u64)]| rule.stops(trials(rule, farmers));
    assert!(!stops(&[(0, 500)]), "whoever has it first must not keep all others from it");
    assert!(!stops(&[(0, 500), (40, 0)]));
    assert_eq!(trials(rule, &[(0, 500)]).counted, 2);
    assert!(stops(&[(0, 500), (0, 1)]), "a second farmer bears him out");
    // 10 of the others' 10 returned; 990 nodes that confirmed are no reason to go on.
    assert!(stops(&[(990, 0), (0, 5), (0, 5)]));
    assert!(!stops(&[(990, 0), (45, 2), (46, 1)]), "3 of 94 are too few of the others");
    // A number of one is what a single node reaches.
    let one = StopRule { returns: 1, per_mille: 1 };
    assert!(one.stops(trials(one, &[(0, 1)])));
}

proptest::proptest! {
    /// Whatever the nodes of one farmer say, two honest farmers decide as their own nodes bear out.
    #[test]
    fn a_farmer_of_any_size_can_t_decide_against_the_others(
        confirmed in 0_u64..300, returned in 0_u64..300, others in 1_u64..40,
    ) {
        let rule = StopRule::default();
        let stops = |farmers: &[(u64, u64)]| rule.stops(trials(rule, farmers));
        proptest::prop_assert!(!stops(&[(confirmed, returned), (others, 0), (others, 0)]));
        proptest::prop_assert!(stops(&[(confirmed, returned), (0, others + 1), (0, others + 1)]));
    }
}

#[test]
fn a_threshold_of_the_keys_signs_for_one_grid_and_one_release() {
    let keys = ReleaseKeys::new(2, vec![key(1).public(), key(2).public(), key(3).public()]);
    keys.check().unwrap();
    let mut signed = SignedRelease { release: release(), signatures: Vec::new() };
    signed.add(signed.release.sign(&key(1), &CHAIN));
    let error = signed.check(&CHAIN, &keys).unwrap_err();
    assert_eq!(error, InvalidRelease::TooFewSignatures { have: 1, need: 2 });
    signed.add(signed.release.sign(&key(1), &CHAIN));
    assert_eq!(signed.signatures.len(), 1, "one key signs once");
    signed.add(signed.release.sign(&key(3), &CHAIN));
    signed.check(&CHAIN, &keys).unwrap();
    let elsewhere = signed.check(&ChainId(Hash([8; 32])), &keys).unwrap_err();
    assert!(matches!(elsewhere, InvalidRelease::BadSignature { .. }), "{elsewhere}");
    let mut other = signed.clone();
    other.release.channel = "nightly".parse().unwrap();
    assert!(matches!(other.check(&CHAIN, &keys), Err(InvalidRelease::BadSignature { .. })));
    let mut stranger = signed.clone();
    stranger.add(signed.release.sign(&key(9), &CHAIN));
    let error = stranger.check(&CHAIN, &keys).unwrap_err().to_string();
    assert!(error.ends_with("signed it but is no release key: leave that signature out"), "{error}");
    let mut twice = signed;
    twice.signatures[1] = twice.signatures[0];
    assert_eq!(
        twice.check(&CHAIN, &keys).unwrap_err().to_string(),
        "the signatures must stand in ascending order, each once"
    );
}

#[test]
fn what_is_out_of_bounds_is_named() {
    type Change = fn(&mut Release);
    let cases: [(Change, &str); 6] = [
        (|r| r.boot_file.size_bytes = 0, "the boot file's size in bytes must be 1 to 134217728, not 0"),
        (|r| r.measurements[0].pcr = 24, "a measurement's register must be 0 to 23, not 24"),
        (
            |r| r.measurements.push(r.measurements[0]),
            "the measurements must stand in ascending order, each once",
        ),
        (|r| r.stop.returns = 0, "the stop rule's returns must be 1 to 4294967295, not 0"),
        (|r| r.stop.per_mille = 0, "the stop rule's share per mille must be 1 to 1000, not 0"),
        (|r| r.notes = "x".repeat(1025), "the notes' length in bytes must be 0 to 1024, not 1025"),
    ];
    for (change, text) in cases {
        let mut release = release();
        change(&mut release);
        assert_eq!(release.check_form().unwrap_err().to_string(), text);
    }
    let keys = |threshold, keys| ReleaseKeys { threshold, keys }.check().unwrap_err().to_string();
    assert_eq!(keys(0, vec![key(1).public()]), "the threshold must be 1 to 1, not 0");
    assert_eq!(keys(1, vec![]), "the number of release keys must be 1 to 16, not 0");
    let policy = |share_per_mille, start_minute, duration_minutes| {
        let window = Some(Window { start_minute, duration_minutes });
        FarmPolicy { channel: "stable".parse().unwrap(), share_per_mille, window, hold: false }.check()
    };
    assert_eq!(policy(1000, 1439, 1440), Ok(()));
    assert!(policy(1001, 0, 1).is_err() && policy(0, 1440, 1).is_err() && policy(0, 0, 0).is_err());
}

#[test]
fn a_manifest_is_the_one_that_the_release_names_and_adds_up() {
    let chunk = |n| Chunk { hash: Hash([n; 32]), compressed_bytes: 100 };
    let manifest = BootManifest { version: 1, size_bytes: (1 << 20) + 1, chunks: vec![chunk(1), chunk(2)] };
    let file = |m: &BootManifest| BootFile {
        sha256: Hash::ZERO,
        size_bytes: m.size_bytes,
        authenticode: Hash::ZERO,
        manifest: m.hash(),
    };
    let good = BootManifest::check(&crate::encode(&manifest), &file(&manifest)).unwrap();
    assert_eq!((good.chunk_len(0), good.chunk_len(1), good.chunk_len(2)), (1 << 20, 1, 0));
    let mut short = manifest.clone();
    short.chunks.pop();
    let error = BootManifest::check(&crate::encode(&short), &file(&short)).unwrap_err().to_string();
    assert!(error.contains("1 chunks where 2 are needed"), "{error}");
    let error = BootManifest::check(&crate::encode(&short), &file(&manifest)).unwrap_err();
    assert!(matches!(error, InvalidBootManifest::Hash { .. }), "{error}");
}
