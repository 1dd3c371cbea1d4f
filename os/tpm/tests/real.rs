//! Every operation against swtpm, which shares its code with no TPM of ours. It has no resource manager: what is left
//! behind in its three slots shows.

use croft_attest::credential::{Challenge, CredentialError, make_credential};
use croft_attest::pcr::{PcrSelection, extended};
use croft_protocol::{Hash, PublicKey};
use croft_tpm::swtpm::{Powered, Swtpm};
use croft_tpm::{
    FLOOR_INDEX, FdTransport, IDENTITY_INDEX, NvState, SealPolicy, Sealed, Tpm, TpmError, Transport,
    TransportError,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use zeroize::Zeroizing;

const TRANSIENT: u32 = 0x8000_0000;
const HMAC_SESSIONS: u32 = 0x0200_0000;
const POLICY_SESSIONS: u32 = 0x0300_0000;

/// Nothing but the cached keys may be in the TPM's memory.
fn assert_no_leak(machine: &mut Powered, keys: usize) {
    assert_eq!(machine.tpm.handles(TRANSIENT).unwrap().len(), keys, "keys");
    assert_eq!(machine.tpm.handles(HMAC_SESSIONS).unwrap(), [0u32; 0], "sessions");
    assert_eq!(machine.tpm.handles(POLICY_SESSIONS).unwrap(), [0u32; 0], "policy sessions");
}

#[test]
fn a_tpm_says_who_made_it_and_that_it_is_not_locked_out() {
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let properties = machine.tpm.properties().unwrap();
    assert_eq!(properties.manufacturer, "IBM");
    assert!(properties.vendor.contains("SW"), "{}", properties.vendor);
    assert_ne!(properties.firmware, 0);
    assert!(!properties.lockout.active);
    assert!(properties.lockout.max_failures > 0);
    machine.tpm.startup().unwrap();
}

#[test]
fn registers_are_read_as_they_were_extended() {
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let all: Vec<u8> = (0..16).collect();
    let before = machine.tpm.pcr_read(PcrSelection::of(&all)).unwrap();
    assert_eq!(before.len(), 16, "more than the TPM gives at once");
    assert!(before.values().all(|value| *value == Hash::ZERO));
    machine.tpm.pcr_extend(4, &Hash([9; 32])).unwrap();
    let after = machine.tpm.pcr_read(PcrSelection::of(&[3, 4])).unwrap();
    assert_eq!(after[&4], extended(&Hash::ZERO, &Hash([9; 32])));
    assert_eq!(after[&3], Hash::ZERO);
}

#[test]
fn keys_come_back_after_a_power_cut_and_differ_between_tpms() {
    let (one, other) = (Swtpm::new(), Swtpm::new());
    let keys = |swtpm: &Swtpm| {
        let mut machine = swtpm.power_on();
        let keys = [
            machine.tpm.storage_key().unwrap().key,
            machine.tpm.attestation_key().unwrap().key,
            machine.tpm.endorsement_key().unwrap(),
        ];
        assert_no_leak(&mut machine, 2);
        keys
    };
    let first = keys(&one);
    assert_eq!(first, keys(&one));
    first[1].check_attestation().unwrap();
    first[2].check_endorsement().unwrap();
    let second = keys(&other);
    assert!(first.iter().zip(&second).all(|(a, b)| a.point != b.point));
}

#[test]
fn a_cleared_tpm_has_another_owners_keys_and_the_makers_old_one() {
    let swtpm = Swtpm::new();
    let keys = || {
        let mut machine = swtpm.power_on();
        (machine.tpm.attestation_key().unwrap().key, machine.tpm.endorsement_key().unwrap())
    };
    let (attestation, endorsement) = keys();
    swtpm.power_on().clear();
    let (new_attestation, new_endorsement) = keys();
    assert_ne!(attestation, new_attestation);
    assert_eq!(endorsement, new_endorsement);
}

#[test]
fn a_sealed_secret_comes_back_on_its_tpm_only() {
    let (one, other) = (Swtpm::new(), Swtpm::new());
    let secret = [7u8; 32];
    let sealed = {
        let mut machine = one.power_on();
        let sealed = machine.tpm.seal(&secret, SealPolicy::Tpm).unwrap();
        assert_no_leak(&mut machine, 1);
        sealed
    };
    let bytes = sealed.encode();
    assert!(!bytes.windows(8).any(|window| window == &secret[..8]), "it is encrypted");
    let sealed = Sealed::decode(&bytes).unwrap();
    let mut machine = one.power_on();
    assert_eq!(*machine.tpm.unseal(&sealed).unwrap(), secret);
    assert_no_leak(&mut machine, 1);

    let mut machine = other.power_on();
    let error = machine.tpm.unseal(&sealed).unwrap_err();
    assert!(matches!(error, TpmError::Foreign { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "the TPM did not make what TPM2_Load got: it comes from another TPM, or this one was cleared since"
    );
    assert_no_leak(&mut machine, 1);
}

#[test]
fn a_secret_sealed_to_secure_boot_survives_upgrades_but_not_other_secure_boot_keys() {
    let swtpm = Swtpm::new();
    let boot = |secure_boot: u8, image: u8| {
        let mut machine = swtpm.power_on();
        machine.tpm.pcr_extend(7, &Hash([secure_boot; 32])).unwrap();
        machine.tpm.pcr_extend(4, &Hash([image; 32])).unwrap();
        machine
    };
    let sealed = boot(1, 1).tpm.seal(b"seed", SealPolicy::SecureBoot).unwrap();
    assert_eq!(**boot(1, 2).tpm.unseal(&sealed).unwrap(), *b"seed");
    let mut changed = boot(2, 1);
    let error = changed.tpm.unseal(&sealed).unwrap_err();
    assert!(error.to_string().contains("put Secure Boot and its keys back"), "{error}");
    assert_no_leak(&mut changed, 1);
    drop(changed);
    // Nor does it help to call it a seal without a policy.
    let mut bytes = sealed.encode();
    bytes[8] = 0;
    let end = bytes.len() - 8;
    let check = Hash::of_bytes(&bytes[..end]);
    bytes[end..].copy_from_slice(&check.0[..8]);
    let renamed = Sealed::decode(&bytes).unwrap();
    assert_eq!(renamed.policy, SealPolicy::Tpm);
    assert!(boot(1, 1).tpm.unseal(&renamed).is_err());
}

#[test]
fn an_altered_seal_is_refused_by_the_tpm() {
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let bytes = machine.tpm.seal(&[7; 32], SealPolicy::Tpm).unwrap().encode();
    for at in [20, 60, bytes.len() / 2, bytes.len() - 20] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let end = bad.len() - 8;
        let check = Hash::of_bytes(&bad[..end]);
        bad[end..].copy_from_slice(&check.0[..8]);
        if let Ok(sealed) = Sealed::decode(&bad) {
            assert!(machine.tpm.unseal(&sealed).is_err(), "byte {at}");
        }
    }
    assert_no_leak(&mut machine, 1);
}

#[test]
fn the_identity_index_is_written_once() {
    let swtpm = Swtpm::new();
    {
        let mut machine = swtpm.power_on();
        assert_eq!(machine.tpm.identity_state().unwrap(), NvState::Absent);
        machine.tpm.identity_write(b"first").unwrap();
    }
    let mut machine = swtpm.power_on();
    assert_eq!(machine.tpm.identity_state().unwrap(), NvState::Locked(b"first".to_vec()));
    let error = machine.tpm.identity_write(b"other").unwrap_err().to_string();
    assert_eq!(error, format!("the TPM index {IDENTITY_INDEX:#x} is locked: it is written once"));
    assert_eq!(machine.tpm.identity_state().unwrap(), NvState::Locked(b"first".to_vec()));
    machine.clear();
    assert_eq!(machine.tpm.identity_state().unwrap(), NvState::Absent, "a new owner finds nothing");
}

#[test]
fn the_counter_never_goes_back() {
    let swtpm = Swtpm::new();
    let first = {
        let mut machine = swtpm.power_on();
        assert_eq!(machine.tpm.counter().unwrap(), None);
        machine.tpm.counter_step().unwrap()
    };
    let mut machine = swtpm.power_on();
    assert_eq!(machine.tpm.counter().unwrap(), Some(first));
    assert_eq!(machine.tpm.counter_step().unwrap(), first + 1);
}

#[test]
fn the_floor_rises_once_a_boot_and_never_falls() {
    let swtpm = Swtpm::new();
    {
        let mut machine = swtpm.power_on();
        assert_eq!(machine.tpm.floor().unwrap(), None);
        assert_eq!(machine.tpm.raise_floor(7).unwrap(), 7);
        // Locked now, for less and for more.
        assert_eq!(machine.tpm.raise_floor(5).unwrap(), 7);
        assert!(matches!(machine.tpm.raise_floor(8), Err(TpmError::Locked { index: FLOOR_INDEX })));
        assert_no_leak(&mut machine, 0);
    }
    let mut machine = swtpm.power_on();
    assert_eq!(machine.tpm.floor().unwrap(), Some(7), "it outlives a power cut");
    assert_eq!(machine.tpm.raise_floor(9).unwrap(), 9);
    drop(machine);
    assert_eq!(swtpm.power_on().tpm.floor().unwrap(), Some(9));
}

#[test]
fn somebody_elses_owner_password_is_named_with_the_remedy() {
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    machine.set_owner_password(b"windows");
    let error = machine.tpm.storage_key().unwrap_err().to_string();
    assert_eq!(
        error,
        "somebody set a password in the TPM that TPM2_CreatePrimary needs: clear the TPM in the firmware setup, which \
         loses its present keys"
    );
    // What was there before can still be looked at.
    assert_eq!(machine.tpm.identity_state().unwrap(), NvState::Absent);
}

#[test]
fn a_credential_opens_only_beside_both_keys() {
    let (one, other) = (Swtpm::new(), Swtpm::new());
    let (mut genuine, mut impostor) = (one.power_on(), other.power_on());
    let node = PublicKey([1; 32]);
    let entropy = |byte| Zeroizing::new([byte; 64]);
    let endorsement = genuine.tpm.endorsement_key().unwrap();
    let attestation = genuine.tpm.attestation_key().unwrap().key;

    let (challenge, credential) =
        Challenge::new(node, &attestation, &endorsement, None, &entropy(5)).unwrap();
    let answer = genuine.tpm.activate_credential(&credential).unwrap();
    let voucher = challenge.answer(&answer, 7).unwrap();
    assert_eq!((voucher.key, voucher.endorsement), (attestation.hash(), endorsement.hash()));
    assert_eq!((voucher.node, voucher.height), (node, 7));
    assert_no_leak(&mut genuine, 2);

    // A key of another TPM beside this endorsement key: neither machine can open it.
    let foreign = impostor.tpm.attestation_key().unwrap().key;
    let (challenge, credential) = Challenge::new(node, &foreign, &endorsement, None, &entropy(6)).unwrap();
    for machine in [&mut genuine, &mut impostor] {
        let error = machine.tpm.activate_credential(&credential).unwrap_err();
        assert!(matches!(error, TpmError::Foreign { .. }), "{error}");
        assert_no_leak(machine, 2);
    }
    let error = challenge.answer(&[0; 32], 7).unwrap_err();
    assert_eq!(error, CredentialError::WrongAnswer);

    // A key that signs is no endorsement key.
    let error =
        make_credential(&attestation, &attestation.name(), &[1; 32], &[1; 32]).unwrap_err().to_string();
    assert!(error.contains("not those of an endorsement key"), "{error}");
}

#[test]
fn a_tpm_from_no_factory_has_no_certificate() {
    let swtpm = Swtpm::new();
    assert_eq!(swtpm.power_on().tpm.endorsement_certificate().unwrap(), None);
}

/// Everything that passed on the bus, and what to do to it.
#[derive(Clone, Default)]
struct Bus {
    passed: Rc<RefCell<Vec<Vec<u8>>>>,
    /// Flips a bit of the response to this command, at this distance from its end.
    tampering: Rc<RefCell<Option<(u32, usize)>>>,
}

/// Somebody on the wires between processor and TPM.
struct Tapped {
    transport: FdTransport,
    bus: Bus,
}

impl Transport for Tapped {
    fn exchange(&mut self, command: &[u8], limit: Duration) -> Result<Vec<u8>, TransportError> {
        let mut response = self.transport.exchange(command, limit)?;
        if let Some((code, from_end)) = *self.bus.tampering.borrow()
            && command[6..10] == code.to_be_bytes()
        {
            let at = response.len() - from_end;
            response[at] ^= 1;
        }
        self.bus.passed.borrow_mut().extend([command.to_vec(), response.clone()]);
        Ok(response)
    }
}

#[test]
fn no_secret_passes_on_the_bus_and_nobody_there_alters_one() {
    let swtpm = Swtpm::new();
    let (transport, _process) = swtpm.plug();
    let bus = Bus::default();
    let mut tpm = Tpm::new(Tapped { transport, bus: bus.clone() });
    let secret: Vec<u8> = (0..32).map(|n| n ^ 0xa5).collect();
    for policy in [SealPolicy::Tpm, SealPolicy::SecureBoot] {
        let sealed = tpm.seal(&secret, policy).unwrap();
        assert_eq!(*tpm.unseal(&sealed).unwrap(), secret);
        let seen = bus.passed.borrow().concat();
        assert!(seen.len() > 1000);
        assert!(!seen.windows(4).any(|window| window == &secret[..4]), "the secret passed in the clear");

        // TPM2_Unseal's response ends with the HMAC (2 + 32 bytes), before it attributes (1), nonce (2 + 32), secret.
        for from_end in [1, 32, 35, 40, 70, 90] {
            *bus.tampering.borrow_mut() = Some((0x15e, from_end));
            let error = tpm.unseal(&sealed).unwrap_err().to_string();
            *bus.tampering.borrow_mut() = None;
            assert_eq!(
                error,
                "the answer to TPM2_Unseal does not come from the TPM: something on its bus alters messages",
                "{from_end}"
            );
        }
    }
    assert_eq!(tpm.handles(TRANSIENT).unwrap().len(), 1, "nothing is left behind");
}
