//! Machines without a TPM, and with one that does not answer as a TPM does. What a real one does is in `os/identity`.

use super::*;
use croft_protocol::record::TrustClass;

/// A machine whose TPM is at `device`.
fn identify_at(device: &str, dir: &Path) -> Result<Identified, KeyError> {
    let nowhere = dir.join("no-event-log");
    let sysfs = dir.join("sys");
    identify(Places { device: Path::new(device), event_log: &nowhere, sysfs: &sysfs, pause: |_| {} }, dir)
}

#[test]
fn without_a_tpm_the_key_is_on_the_disk_and_the_stage_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let found = identify_at("/nowhere/tpmrm0", dir.path()).unwrap();
    assert_eq!(found.identity.trust(), TrustClass::Plain);
    assert!(found.witness.is_none());
    let place = found.place;
    assert!(place.starts_with("key on the disk: there is no TPM 2.0 at /nowhere/tpmrm0"), "{place}");
    assert!(place.contains("turn it on in the firmware setup"), "{place}");
}

#[test]
fn a_disk_whose_key_is_in_a_tpm_makes_no_node_without_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tpm.key"), "00".repeat(32)).unwrap();
    let Err(error) = identify_at("/nowhere/tpmrm0", dir.path()) else { panic!("a second identity") };
    let text = error.to_string();
    assert!(text.contains("put the disk back into its machine"), "{text}");
    assert!(!dir.path().join("node.key").exists(), "nothing was made");
}

#[test]
fn a_tpm_that_can_not_even_be_asked_makes_no_second_identity() {
    let dir = tempfile::tempdir().unwrap();
    // It takes every command and answers none.
    let Err(error) = identify_at("/dev/null", dir.path()) else { panic!("a guess") };
    assert!(matches!(error, KeyError::Tpm(_)), "{error}");
    assert!(!dir.path().join("node.key").exists(), "nothing was made");
    // With a key on the disk it is known where the node lives.
    DiskKeyStore::new(dir.path()).create(&[7; 32]).unwrap();
    let found = identify_at("/dev/null", dir.path()).unwrap();
    assert!(!found.identity.is_new());
    assert!(found.place.starts_with("key on the disk: "), "{}", found.place);
}

#[test]
fn a_tpm_that_the_kernel_does_not_start_makes_no_second_identity() {
    let dir = tempfile::tempdir().unwrap();
    let sys = dir.path().join("sys");
    for (file, content) in
        [("firmware/acpi/tables/TPM2", ""), ("bus/acpi/devices/MSFT0101:00/status", "15\n")]
    {
        std::fs::create_dir_all(sys.join(file).parent().unwrap()).unwrap();
        std::fs::write(sys.join(file), content).unwrap();
    }
    let Err(error) = identify_at("/nowhere/tpmrm0", dir.path()) else { panic!("a second identity") };
    assert!(chain_of(&error).contains("turn the TPM off in the firmware setup"), "{error}");
    assert!(!dir.path().join("node.key").exists(), "nothing was made");
    DiskKeyStore::new(dir.path()).create(&[7; 32]).unwrap();
    let place = identify_at("/nowhere/tpmrm0", dir.path()).unwrap().place;
    assert!(place.starts_with("key on the disk: the firmware announces a TPM 2.0"), "{place}");
}

#[test]
fn a_seal_hangs_on_secure_boot_only_where_that_is_on() {
    let boot = |digest| {
        let event = croft_protocol::attestation::MeasuredEvent { pcr: PCR_SECURE_BOOT, kind: 1, digest };
        seal_policy(&Ok(MeasuredBoot { locality: 0, events: vec![event] }))
    };
    assert_eq!(boot(secure_boot_digest(true)), SealPolicy::SecureBoot);
    assert_eq!(boot(secure_boot_digest(false)), SealPolicy::Tpm);
    assert_eq!(seal_policy(&Err("no log".to_owned())), SealPolicy::Tpm);
}

#[test]
fn what_is_proved_absent_is_the_strictest_policy_and_one_voucher() {
    assert_eq!(decoded::<TrustPolicy>(Some(&None)).endorsement, Endorsement::Certified);
    assert_eq!(decoded::<RecentHeaders>(None).headers, []);
    assert_eq!(vouchers_needed(validators_of(Some(&None)).as_ref()), 1);
}

/// A day as the task of a node lives it that asks every ten minutes, with blocks a little behind.
#[test]
fn a_node_quotes_anew_long_before_its_quote_is_stale_and_seldom_enough() {
    for (policy, expected) in [
        (TrustPolicy::default(), 4),
        (TrustPolicy { stale_after_s: 3600, ..TrustPolicy::default() }, 72),
        (TrustPolicy { stale_after_s: 90 * 86_400, ..TrustPolicy::default() }, 4),
    ] {
        let by = Hash([1; 32]);
        let quoted =
            |header_ms| LastQuote { weighed_by: by, header_ms, requote_after_ms: policy.requote_after_ms() };
        let (mut last, mut quotes) = (quoted(0), 0);
        for now_ms in (0..=86_400_000).step_by(600_000) {
            assert!(!policy.is_stale(last.header_ms, now_ms), "stale at {now_ms}: {last:?}");
            let header_ms = now_ms.saturating_sub(8_000);
            if last.is_due(now_ms) && last.is_worth_less(header_ms, &by) {
                (last, quotes) = (quoted(header_ms), quotes + 1);
            }
        }
        assert!((expected - expected / 3..=expected).contains(&quotes), "{quotes}, not {expected}");
    }
}

#[test]
fn a_quote_is_worth_more_where_what_it_is_weighed_by_changed() {
    let last = LastQuote { weighed_by: Hash([1; 32]), header_ms: 1_000, requote_after_ms: 500 };
    assert!(!last.is_worth_less(1_400, &Hash([1; 32])));
    assert!(last.is_worth_less(1_400, &Hash([2; 32])));
    assert!(last.is_worth_less(1_500, &Hash([1; 32])));
    assert!(!last.is_due(0), "clocks differ");
}
