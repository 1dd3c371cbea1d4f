//! A maker's certificate, made by swtpm's own tool to TCG's profile, kept in the TPM and checked by a voucher's author.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use croft_attest::EccKey;
use croft_attest::certificate::{CertificateError, verify};
use croft_attest::credential::{Author, CredentialError};
use croft_protocol::{ChainId, Hash, SecretKey};
use croft_tpm::swtpm::Swtpm;
use tempfile::TempDir;
use zeroize::Zeroizing;

fn run(program: &str, folder: &Path, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|e| panic!("{program} (packages openssl, swtpm-tools): {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A maker's root in a folder: `ca.key`, `ca.pem`; gives its DER.
fn maker(folder: &Path) -> Vec<u8> {
    let usage = "keyUsage=critical,keyCertSign,cRLSign";
    let request =
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 3650";
    let mut arguments: Vec<&str> = request.split(' ').collect();
    arguments.extend(["-subj", "/CN=Maker Root", "-addext", usage]);
    run("openssl", folder, &arguments);
    run("openssl", folder, &["x509", "-in", "ca.pem", "-outform", "DER", "-out", "ca.der"]);
    std::fs::read(folder.join("ca.der")).unwrap()
}

/// What the maker's factory writes for a key.
fn certify(folder: &Path, key: &EccKey, kind: &str) -> Vec<u8> {
    let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
    let (x, y) = (hex(key.point.x), hex(key.point.y));
    let mut arguments = vec!["--type", kind, "--ecc-x", &x, "--ecc-y", &y, "--ecc-curveid", "secp256r1"];
    arguments.extend(["--signkey", "ca.key", "--issuercert", "ca.pem", "--out-cert", "ek.der", "--tpm2"]);
    arguments.extend([
        "--tpm-manufacturer",
        "id:00001014",
        "--tpm-model",
        "swtpm",
        "--tpm-version",
        "id:20170619",
    ]);
    arguments.extend(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"]);
    arguments.extend([
        "--platform-manufacturer",
        "Croft",
        "--platform-model",
        "test",
        "--platform-version",
        "1",
    ]);
    arguments.extend(["--days", "3650", "--serial", "1"]);
    run("swtpm_cert", folder, &arguments);
    std::fs::read(folder.join("ek.der")).unwrap()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 + 60_000
}

#[test]
fn a_makers_certificate_is_read_from_the_tpm_and_leads_to_its_root() {
    let (folder, stranger) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (root, other_root) = (maker(folder.path()), maker(stranger.path()));
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let key = machine.tpm.endorsement_key().unwrap();
    let written = certify(folder.path(), &key, "ek");
    // Makers leave room behind the certificate.
    let padded = [written.as_slice(), &[0xff; 700]].concat();
    machine.install_endorsement_certificate(&padded);
    drop(machine);
    let mut machine = swtpm.power_on();
    let der = machine.tpm.endorsement_certificate().unwrap().expect("it is there");
    assert_eq!(der, written);

    assert_eq!(verify(&der, &[], &[&other_root, &root], &key, now_ms()).unwrap(), Hash::of_bytes(&der));
    let error = verify(&der, &[], &[&other_root], &key, now_ms()).unwrap_err();
    assert!(
        error.to_string().starts_with("the TPM's certificate leads to no maker that is trusted here"),
        "{error}"
    );
    let error = verify(&der, &[], &[], &key, now_ms()).unwrap_err();
    assert!(matches!(error, CertificateError::Untrusted { .. }), "{error}");
    let later = verify(&der, &[], &[&root], &key, now_ms() + 11 * 365 * 86_400_000).unwrap_err().to_string();
    assert!(later.contains("xpired"), "{later}");
    let attestation = machine.tpm.attestation_key().unwrap().key;
    assert_eq!(verify(&der, &[], &[&root], &attestation, now_ms()).unwrap_err(), CertificateError::OtherKey);
    // A byte of the maker's signature.
    let mut forged = der.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(
        verify(&forged, &[], &[&root], &key, now_ms()),
        Err(CertificateError::Untrusted { .. })
    ));
    assert_eq!(
        verify(&[0; 5000], &[], &[&root], &key, now_ms()).unwrap_err().to_string(),
        "the TPM's certificate has 5000 bytes, more than the limit of 4096"
    );
    let error = verify(&der, &[], &[b"nonsense"], &key, now_ms()).unwrap_err().to_string();
    assert!(error.starts_with("the root certificate ") && error.contains(" is none ("), "{error}");
}

#[test]
fn a_node_with_a_makers_tpm_is_vouched_for() {
    let folder = TempDir::new().unwrap();
    let root = maker(folder.path());
    let swtpm = Swtpm::new();
    let mut machine = swtpm.power_on();
    let key = machine.tpm.endorsement_key().unwrap();
    machine.install_endorsement_certificate(&certify(folder.path(), &key, "ek"));

    let (chain, replica) = (ChainId(Hash([0xc0; 32])), SecretKey::from_seed(&[2; 32]));
    let makers = [root.as_slice()];
    let author = Author { chain: &chain, key: &replica, makers: &makers };
    let node = SecretKey::from_seed(&[1; 32]).public();
    let introduction = machine.tpm.introduce().unwrap();
    let entropy = Zeroizing::new([5; 64]);
    let (challenge, credential) = author.introduce(node, &introduction, now_ms(), &entropy).unwrap();
    let answer = machine.tpm.activate_credential(&credential).unwrap();
    let signed = author.vouch(challenge, &answer, 7).unwrap();
    signed.verify(&chain).unwrap();
    assert_eq!(signed.voucher.certificate, Some(Hash::of_bytes(&introduction.certificates[0])));

    // A program that shows a genuine TPM's keys and certificate can't answer.
    let (challenge, _) = author.introduce(node, &introduction, now_ms(), &entropy).unwrap();
    assert_eq!(author.vouch(challenge, &[0; 32], 7).unwrap_err(), CredentialError::WrongAnswer);
    // One with keys of its own has no certificate for them.
    let other = Swtpm::new();
    let mut program = other.power_on();
    let mut own = program.tpm.introduce().unwrap();
    own.certificates = introduction.certificates;
    let error = author.introduce(node, &own, now_ms(), &entropy).map(drop).unwrap_err();
    assert_eq!(error, CredentialError::Certificate(CertificateError::OtherKey));
    // And without any, the voucher says so.
    own.certificates.clear();
    let (challenge, credential) = author.introduce(node, &own, now_ms(), &entropy).unwrap();
    let answer = program.tpm.activate_credential(&credential).unwrap();
    assert_eq!(author.vouch(challenge, &answer, 7).unwrap().voucher.certificate, None);
}

#[test]
fn a_certificate_for_another_use_is_refused() {
    let folder = TempDir::new().unwrap();
    let root = maker(folder.path());
    let swtpm = Swtpm::new();
    let key = swtpm.power_on().tpm.endorsement_key().unwrap();
    // Of a whole platform: another extended usage, by the same maker, even for the same key.
    let der = certify(folder.path(), &key, "platform");
    let error = verify(&der, &[], &[&root], &key, now_ms()).unwrap_err();
    assert!(matches!(error, CertificateError::Untrusted { .. }), "{error}");
}
