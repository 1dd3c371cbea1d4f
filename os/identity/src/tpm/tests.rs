//! Identities in swtpm: machines and disks that come and go.

use croft_protocol::NodeId;
use croft_tpm::FdTransport;
use croft_tpm::swtpm::{Powered, Swtpm};
use tempfile::TempDir;

use super::*;
use crate::NodeIdentity;

/// One boot of a machine with a disk.
fn boot(swtpm: &Swtpm, disk: &Path) -> Result<NodeIdentity, KeyError> {
    boot_with(swtpm.power_on(), SealPolicy::Tpm, disk)
}

fn boot_with(machine: Powered, policy: SealPolicy, disk: &Path) -> Result<NodeIdentity, KeyError> {
    let (tpm, _process) = machine.split();
    NodeIdentity::load_or_create(&choose(Some(tpm), policy, disk)?)
}

fn id(identity: Result<NodeIdentity, KeyError>) -> NodeId {
    identity.unwrap_or_else(|e| panic!("{e}")).id()
}

fn error(identity: Result<NodeIdentity, KeyError>) -> String {
    let Err(error) = identity else { panic!("a key was given") };
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn the_same_tpm_gives_the_same_node_without_its_disk() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    let first = boot(&swtpm, disk.path()).unwrap();
    assert!(first.is_new());
    assert_eq!(first.trust(), TrustClass::Sealed);
    assert_eq!(id(boot(&swtpm, disk.path())), first.id());
    // The disk died; another one, and then none that is more than a RAM disk.
    let other = TempDir::new().unwrap();
    for _ in 0..2 {
        let again = boot(&swtpm, other.path()).unwrap();
        assert_eq!(again.id(), first.id());
        assert!(!again.is_new());
    }
    assert_eq!(first.sealing().public(), boot(&swtpm, other.path()).unwrap().sealing().public());
}

#[test]
fn the_seed_never_touches_the_disk() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    let (tpm, _process) = swtpm.power_on().split();
    let store = TpmKeyStore::new(tpm, SealPolicy::Tpm, disk.path());
    let seed = [0x5a; 32];
    store.create(&seed).unwrap();
    assert_eq!(store.load().unwrap(), Some(seed));
    let files: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files, [disk.path().join("tpm.key")]);
    let text = fs::read_to_string(&files[0]).unwrap();
    assert!(!text.contains(&hex::encode(seed)) && text.len() == 64, "{text}");
}

#[test]
fn a_copied_disk_gives_no_key_in_another_machine() {
    let (one, two, disk) = (Swtpm::new(), Swtpm::new(), TempDir::new().unwrap());
    let first = id(boot(&one, disk.path()));
    let text = error(boot(&two, disk.path()));
    assert!(
        text.contains("belongs to a node whose key is in another TPM, or was in this one before"),
        "{text}"
    );
    assert!(text.contains("tpm.key"), "{text}");
    // The other machine got no key by that; with a disk of its own it is a node of its own.
    let own = TempDir::new().unwrap();
    let second = boot(&two, own.path()).unwrap();
    assert!(second.is_new() && second.id() != first);
    // And with the first one's disk it neither takes that one's name nor goes on.
    let text = error(boot(&two, disk.path()));
    assert!(text.contains("belongs to another node"), "{text}");
    assert_eq!(id(boot(&one, disk.path())), first, "the first machine is as it was");
}

#[test]
fn a_cleared_tpm_gives_no_new_key_beside_the_old_disk() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    let first = id(boot(&swtpm, disk.path()));
    swtpm.power_on().clear();
    let text = error(boot(&swtpm, disk.path()));
    assert!(text.contains("was in this one before it was cleared"), "{text}");
    // The remedy that the message names.
    fs::remove_file(disk.path().join("tpm.key")).unwrap();
    let fresh = boot(&swtpm, disk.path()).unwrap();
    assert!(fresh.is_new() && fresh.id() != first);
}

#[test]
fn a_tpm_that_is_turned_off_gives_no_new_key() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    id(boot(&swtpm, disk.path()));
    let Err(gone) = choose::<FdTransport>(None, SealPolicy::Tpm, disk.path()) else {
        panic!("a store was given")
    };
    let text = gone.to_string();
    assert!(text.contains("turn the TPM on in the firmware setup"), "{text}");
}

#[test]
fn other_secure_boot_keys_give_no_new_key() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    let with = |value: u8| {
        let mut machine = swtpm.power_on();
        machine.tpm.pcr_extend(7, &Hash([value; 32])).unwrap();
        boot_with(machine, SealPolicy::SecureBoot, disk.path())
    };
    let first = id(with(1));
    let text = error(with(2));
    assert!(text.contains("put Secure Boot and its keys back"), "{text}");
    assert_eq!(id(with(1)), first);
}

#[test]
fn a_power_cut_at_any_step_leaves_one_key_or_none() {
    let seal = |swtpm: &Swtpm| swtpm.power_on().tpm.seal(&[7; 32], SealPolicy::Tpm).unwrap().encode();
    // Written and not locked: it is the key, and locked by the next boot.
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    let blob = seal(&swtpm);
    swtpm.power_on().leave_identity(&blob, blob.len());
    let first = boot(&swtpm, disk.path()).unwrap();
    assert!(!first.is_new());
    assert_eq!(swtpm.power_on().tpm.identity_state().unwrap(), NvState::Locked(blob));
    assert_eq!(id(boot(&swtpm, disk.path())), first.id());
    // Defined and not written, or half written: no key yet, and the next one takes the place.
    for written in [0, 40] {
        let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
        let blob = seal(&swtpm);
        swtpm.power_on().leave_identity(&blob, written);
        let first = boot(&swtpm, disk.path()).unwrap();
        assert!(first.is_new());
        assert_eq!(id(boot(&swtpm, disk.path())), first.id());
    }
}

#[test]
fn a_damaged_locked_key_is_never_replaced() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    swtpm.power_on().tpm.identity_write(b"nonsense of some other program").unwrap();
    let text = error(boot(&swtpm, disk.path()));
    assert_eq!(
        text,
        "the TPM does not give or keep the node key: what is kept in the TPM at 0x184c0f1 is damaged (it is of another \
         kind or release)"
    );
    let state = swtpm.power_on().tpm.identity_state().unwrap();
    assert_eq!(state, NvState::Locked(b"nonsense of some other program".to_vec()));
}

#[test]
fn a_node_that_began_on_a_disk_stays_there() {
    let (swtpm, disk) = (Swtpm::new(), TempDir::new().unwrap());
    let plain = NodeIdentity::load_or_create(&DiskKeyStore::new(disk.path())).unwrap();
    let now = boot(&swtpm, disk.path()).unwrap();
    assert_eq!((now.id(), now.trust()), (plain.id(), TrustClass::Plain));
    assert_eq!(swtpm.power_on().tpm.identity_state().unwrap(), NvState::Absent);
    // Two keys: somebody must say which.
    let other = TempDir::new().unwrap();
    id(boot(&swtpm, other.path()));
    let text = error(boot(&swtpm, disk.path()));
    assert!(text.contains("both") && text.contains("node.key"), "{text}");
}
